{{/*
Values as text. A number of a values file is a float64, which Go writes as 1.234567e+06 from seven digits on; one of --set is an int64, or
a string where it has a fraction; some versions of helm hand over json.Number. Integers go through `int`, and what may be a number or a text
through `tidemark.plain`.
*/}}

{{/* A number or a text, as it was written. */}}
{{- define "tidemark.plain" -}}
{{- if kindIs "invalid" . -}}
{{- else if and (kindIs "float64" .) (eq (float64 .) (floor .)) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* A number of pods, or a share of them such as 10%. */}}
{{- define "tidemark.countOrShare" -}}
{{- if hasSuffix "%" (toString .) }}{{ . }}{{ else }}{{ int . }}{{ end -}}
{{- end }}

{{/* Maps of strings as one, as YAML without a key, or nothing: (list map...). The last of those that have a key wins. */}}
{{- define "tidemark.strings" -}}
{{- $all := dict -}}
{{- range . }}{{ range $key, $value := . }}{{ $_ := set $all $key $value }}{{ end }}{{ end -}}
{{- if $all }}{{ toYaml $all }}{{ end -}}
{{- end }}

{{/* How many old versions of a workload are kept: none is a number too. */}}
{{- define "tidemark.history" -}}
{{- ternary 10 (int .) (kindIs "invalid" .) -}}
{{- end }}
