{{/* The scheduling of a Deployment's pods, as YAML with its keys: (list values selector). `selector` has the labels of all pods. */}}
{{- define "tidemark.scheduling" -}}
{{- $values := index . 0 }}{{ $selector := index . 1 -}}
affinity:
  {{- if $values.affinity }}
  {{- toYaml $values.affinity | nindent 2 }}
  {{- else }}
  # Preferred, not required: a cluster of one node runs both.
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- toYaml $selector | nindent 14 }}
  {{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $constraint := . }}
  {{- if not (hasKey . "labelSelector") }}{{ $constraint = merge (dict "labelSelector" (dict "matchLabels" $selector)) . }}{{ end }}
  - {{- toYaml $constraint | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
