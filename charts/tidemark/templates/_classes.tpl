{{/* All classes for snapshots of one kind, `tidemark` and those of the user: (list root section group kind). */}}
{{- define "tidemark.snapshotClasses" -}}
{{- $root := index . 0 }}{{ $section := index . 1 }}{{ $group := index . 2 }}{{ $kind := index . 3 }}
{{- $values := index $root.Values $section }}
{{- $classes := dict }}
{{- range $name, $class := $values.classes }}
{{- if not (kindIs "invalid" $class) }}{{ $_ := set $classes $name $class }}{{ end }}
{{- end }}
{{- if $values.class.create }}
{{- if hasKey $classes "tidemark" }}
{{- fail (printf "%s.classes.tidemark: %s.class makes the class of that name. Rename yours, or set %s.class.create to false" $section $section $section) }}
{{- end }}
{{- $_ := set $classes "tidemark" $values.class }}
{{- end }}
{{- include "tidemark.checkDefaults" (list $section $classes) }}
{{- range $name, $class := $classes }}
---
apiVersion: {{ $group }}.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ $name | quote }}
  labels: {{- include "tidemark.labelsWith" (list $root $class.labels) | nindent 4 }}
  {{- $mark := dict (printf "%s.kubernetes.io/is-default-class" $group) (default false $class.default | toString) }}
  {{- include "tidemark.annotations" (list $root $class.annotations $mark) | nindent 2 }}
driver: {{ $root.Values.driverName | quote }}
deletionPolicy: {{ default "Delete" $class.deletionPolicy }}
{{- end }}
{{- end }}
