{{/* Names, labels, annotations, images, which all templates share. */}}

{{/* The prefix of every object's name. 40 characters, so that the name with the longest suffix is still a valid label value. */}}
{{- define "tidemark.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of every object. */}}
{{- define "tidemark.labels" -}}
{{ include "tidemark.labelsWith" (list . dict) }}
{{- end }}

{{/* The same and those of the object, which override the release's: (list root labels). */}}
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

{{/* Selector labels: they never change, not by extraLabels either. */}}
{{- define "tidemark.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The annotations of an object, with their key, or nothing: (list root annotations...). The last ones override the others and the release's. */}}
{{- define "tidemark.annotations" -}}
{{- $root := first . -}}
{{- with include "tidemark.strings" (prepend (rest .) $root.Values.commonAnnotations) -}}
annotations: {{- . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* The repository of an image: (list root repository). global.imageRegistry replaces the registry in it. */}}
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

{{/* The driver's image: by its digest, else its tag, else the chart's version. */}}
{{- define "tidemark.image" -}}
{{- include "tidemark.repository" (list . .Values.image.repository) -}}
{{- with .Values.image -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ include "tidemark.plain" (default $.Chart.AppVersion .tag) }}{{ end -}}
{{- end -}}
{{- end }}

{{/* A sidecar's image: (list root name values). versions.yaml pins the version, for chart and test cluster. */}}
{{- define "tidemark.sidecarImage" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $values := index . 2 -}}
{{- $pinned := index ($root.Files.Get "versions.yaml" | fromYaml) $name -}}
{{- $at := default (printf "%s/%s" $root.Values.sidecars.registry $name) $values.repository -}}
{{- include "tidemark.repository" (list $root $at) -}}
{{- if $values.digest }}@{{ $values.digest }}{{ else }}:{{ include "tidemark.plain" (default $pinned $values.tag) }}{{ end -}}
{{- end }}

{{/* The pull secrets of a pod, with their key, or nothing. A parent chart may pass only names. */}}
{{- define "tidemark.pullSecrets" -}}
{{- $secrets := list -}}
{{- range concat (default list .Values.imagePullSecrets) (default list (((.Values).global).imagePullSecrets)) -}}
{{- if kindIs "string" . }}{{ $secrets = append $secrets (dict "name" .) }}{{ else }}{{ $secrets = append $secrets . }}{{ end -}}
{{- end -}}
{{- with uniq $secrets -}}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* The security context of a container that needs no rights. */}}
{{- define "tidemark.harmless" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The security context of its pod. fsGroup: all containers of the pod share a socket and a directory in memory. */}}
{{- define "tidemark.harmlessPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
