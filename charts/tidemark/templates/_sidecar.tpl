{{/*
A sidecar beside the controller: (list root name values port arguments). Leader election is in the release's namespace. A call may take
60 s (a thick clone, a freeze), and is retried after 30 s at most, so that work continues soon after a process was killed.
*/}}
{{- define "tidemark.sidecar" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $values := index . 2 }}{{ $port := index . 3 }}{{ $arguments := index . 4 -}}
- name: {{ $name }}
  image: {{ include "tidemark.sidecarImage" (list $root $name $values) }}
  imagePullPolicy: {{ $root.Values.sidecars.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    - --timeout=60s
    - --retry-interval-max=30s
    - --http-endpoint=:{{ $port }}
    - --v={{ int $root.Values.sidecars.logLevel }}
    {{- range $arguments }}
    - {{ . }}
    {{- end }}
    {{- range $values.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  securityContext:
    {{- include "tidemark.harmless" $root | nindent 4 }}
  env:
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    {{- with $root.Values.controller.apiProxy }}
    - {name: HTTPS_PROXY, value: {{ . | quote }}}
    {{- end }}
    {{- with $values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: {{ trimPrefix "csi-" $name }}, containerPort: {{ $port }}, protocol: TCP}
  # It answers once the driver is ready, for which it waits; a restart would not help.
  startupProbe:
    httpGet: {path: /healthz/leader-election, port: {{ $port }}}
    periodSeconds: 5
    timeoutSeconds: 10
    failureThreshold: 1000
  # Fails if this one leads but no longer renews its lease: then another one takes over.
  livenessProbe:
    httpGet: {path: /healthz/leader-election, port: {{ $port }}}
    periodSeconds: 20
    timeoutSeconds: 10
  resources: {{- toYaml $values.resources | nindent 4 }}
  volumeMounts:
    - {name: socket, mountPath: /csi}
{{- end }}
