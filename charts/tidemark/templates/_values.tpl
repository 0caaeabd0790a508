{{/*
Values as text. A number from a values file is a float64, which Go writes as 1.234567e+06 from seven digits on. A number from --set is an int64,
or a string if it has a fraction; some versions of helm pass json.Number. Integers go through `int`, and values that may be a number or a
string through `tidemark.plain`.
*/}}

{{/* A number or a string, as it was written. */}}
{{- define "tidemark.plain" -}}
{{- if kindIs "invalid" . -}}
{{- else if and (kindIs "float64" .) (eq (float64 .) (floor .)) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* A number of pods, or a percentage such as 10%. */}}
{{- define "tidemark.countOrShare" -}}
{{- if hasSuffix "%" (toString .) }}{{ . }}{{ else }}{{ int . }}{{ end -}}
{{- end }}

{{/* Maps of strings as one, as YAML without a key, or nothing: (list map...). For each key the last map that has it wins. */}}
{{- define "tidemark.strings" -}}
{{- $all := dict -}}
{{- range . }}{{ range $key, $value := . }}{{ $_ := set $all $key $value }}{{ end }}{{ end -}}
{{- if $all }}{{ toYaml $all }}{{ end -}}
{{- end }}

{{/* How many old versions of a workload are kept; 0 is valid. */}}
{{- define "tidemark.history" -}}
{{- ternary 10 (int .) (kindIs "invalid" .) -}}
{{- end }}

{{/* Where the page of an alert is; ALERT stands for its name. Not there: the default of a chart that had no such value. */}}
{{- define "tidemark.runbookUrl" -}}
{{- $default := "https://github.com/tidemark-dev/tidemark-csi/blob/main/docs/how-to/runbooks/ALERT.md" -}}
{{- ternary $default . (kindIs "invalid" .) -}}
{{- end }}
