{{/* Names, labels, images: what every template shares. */}}

{{/* Begins the name of every object. 40 characters, so that the longest ending still makes a label's value. */}}
{{- define "tidemark.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of every object. */}}
{{- define "tidemark.labels" -}}
{{ include "tidemark.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.extraLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels that select: they never change, not by extraLabels either. */}}
{{- define "tidemark.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Our image: its digest, else its tag, else the chart's version. */}}
{{- define "tidemark.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end }}

{{/* A sidecar's image: (list root name values). The version is pinned in versions.yaml, for chart and test cluster alike. */}}
{{- define "tidemark.sidecarImage" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $values := index . 2 -}}
{{- $pinned := index ($root.Files.Get "versions.yaml" | fromYaml) $name -}}
{{- $at := printf "%s/%s" $root.Values.sidecars.registry $name -}}
{{- if $values.digest }}{{ $at }}@{{ $values.digest }}{{ else }}{{ $at }}:{{ default $pinned $values.tag }}{{ end -}}
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
