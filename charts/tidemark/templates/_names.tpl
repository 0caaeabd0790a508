{{/* Names, labels, annotations, images: what every template shares. */}}

{{/* Begins the name of every object. 40 characters, so that the longest ending still makes a label's value. */}}
{{- define "tidemark.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of every object. */}}
{{- define "tidemark.labels" -}}
{{ include "tidemark.labelsWith" (list . dict) }}
{{- end }}

{{/* The same and those of the object, which win over the release's: (list root labels). */}}
{{- define "tidemark.labelsWith" -}}
{{- $root := index . 0 -}}
{{ include "tidemark.selector" $root }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with include "tidemark.strings" (list $root.Values.extraLabels (index . 1)) }}
{{ . }}
{{- end }}
{{- end }}

{{/* Labels that select: they never change, not by extraLabels either. */}}
{{- define "tidemark.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The annotations of an object, with their key, or nothing: (list root annotations...). The last of them win, over the release's too. */}}
{{- define "tidemark.annotations" -}}
{{- $root := first . -}}
{{- with include "tidemark.strings" (prepend (rest .) $root.Values.commonAnnotations) -}}
annotations: {{- . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* Where an image lies: (list root repository). global.imageRegistry takes the place of the registry in it. */}}
{{- define "tidemark.repository" -}}
{{- $root := index . 0 }}{{ $repository := index . 1 -}}
{{- $registry := default "" ((($root.Values).global).imageRegistry) | trimSuffix "/" -}}
{{- $parts := splitList "/" $repository -}}
{{- $host := first $parts -}}
{{- if not $registry -}}
{{ $repository }}
{{- else if and (gt (len $parts) 1) (or (contains "." $host) (contains ":" $host) (eq $host "localhost")) -}}
{{ $registry }}/{{ rest $parts | join "/" }}
{{- else -}}
{{ $registry }}/{{ $repository }}
{{- end -}}
{{- end }}

{{/* Our image: its digest, else its tag, else the chart's version. */}}
{{- define "tidemark.image" -}}
{{- include "tidemark.repository" (list . .Values.image.repository) -}}
{{- with .Values.image -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ include "tidemark.plain" (default $.Chart.AppVersion .tag) }}{{ end -}}
{{- end -}}
{{- end }}

{{/* A sidecar's image: (list root name values). The version is pinned in versions.yaml, for chart and test cluster alike. */}}
{{- define "tidemark.sidecarImage" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $values := index . 2 -}}
{{- $pinned := index ($root.Files.Get "versions.yaml" | fromYaml) $name -}}
{{- $at := default (printf "%s/%s" $root.Values.sidecars.registry $name) $values.repository -}}
{{- include "tidemark.repository" (list $root $at) -}}
{{- if $values.digest }}@{{ $values.digest }}{{ else }}:{{ include "tidemark.plain" (default $pinned $values.tag) }}{{ end -}}
{{- end }}

{{/* The pull secrets of a pod, with their key, or nothing. A chart around this one may hand over names alone. */}}
{{- define "tidemark.pullSecrets" -}}
{{- $secrets := list -}}
{{- range concat (default list .Values.imagePullSecrets) (default list (((.Values).global).imagePullSecrets)) -}}
{{- if kindIs "string" . }}{{ $secrets = append $secrets (dict "name" .) }}{{ else }}{{ $secrets = append $secrets . }}{{ end -}}
{{- end -}}
{{- with uniq $secrets -}}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* The security context of a container that needs nothing. */}}
{{- define "tidemark.harmless" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The pod's, beside it. fsGroup: all containers of the pod share a socket and a directory in memory. */}}
{{- define "tidemark.harmlessPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
