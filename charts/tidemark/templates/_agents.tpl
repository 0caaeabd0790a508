{{/*
The agents of one group of nodes: (list root name group others). `others` are the nodes of the groups that come first. What the
group does not say is said by the chart's values.
*/}}
{{- define "tidemark.agents" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $group := index . 2 }}{{ $others := index . 3 }}
{{- $values := $root.Values }}
{{- $full := include "tidemark.fullname" $root }}
{{- $kubelet := trimSuffix "/" $values.kubeletDirectory }}
{{- $plugin := printf "%s/plugins/%s" $kubelet $values.driverName }}
{{- $pools := $values.pools }}
{{- if hasKey $group "pools" }}{{ $pools = $group.pools }}{{ else if hasKey $group "poolImage" }}{{ $pools = list }}{{ end }}
{{- /* Not merge: it takes a false for nothing. */}}
{{- $image := dict }}
{{- range $part := list $values.poolImage (default dict $group.poolImage) }}
{{- range $key, $value := $part }}{{ $_ := set $image $key $value }}{{ end }}
{{- end }}
{{- if not $pools }}
{{- $daemonset := printf "%s-agent%s" $full (ternary "" (printf "-%s" $name) (eq $name "default")) }}
{{- include "tidemark.sameImage" (list $root $daemonset (printf "%s/pool.img" $image.directory)) }}
{{- include "tidemark.noSmallerImage" (list $root $daemonset $image.size) }}
{{- end }}
{{- $poolInit := ternary $group.poolInit $values.poolInit (hasKey $group "poolInit") }}
{{- $tolerations := ternary $group.tolerations $values.agent.tolerations (hasKey $group "tolerations") }}
{{- $resources := default $values.agent.resources $group.resources }}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $full }}-agent{{ if ne $name "default" }}-{{ $name }}{{ end }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "tidemark.labels" $root | nindent 4 }}
    app.kubernetes.io/component: agent
    tidemark.dev/node-group: {{ $name }}
spec:
  selector:
    matchLabels:
      {{- include "tidemark.selector" $root | nindent 6 }}
      app.kubernetes.io/component: agent
      tidemark.dev/node-group: {{ $name }}
  updateStrategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: {{ $values.agent.maxUnavailable }}
  template:
    metadata:
      labels:
        {{- include "tidemark.labels" $root | nindent 8 }}
        {{- with $values.agent.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        app.kubernetes.io/component: agent
        tidemark.dev/node-group: {{ $name }}
      annotations:
        kubectl.kubernetes.io/default-container: agent
        {{- with $values.agent.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      serviceAccountName: {{ $full }}-agent
      # The agent has no business with the API: it gets no token.
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with $values.agent.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      terminationGracePeriodSeconds: {{ $values.agent.terminationGracePeriodSeconds }}
      nodeSelector:
        kubernetes.io/os: linux
        {{- with $values.agent.nodeSelector }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if or $group.nodes $others }}
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions:
                  {{- with $group.nodes }}
                  - key: {{ .label }}
                    operator: In
                    values: {{ toJson .values }}
                  {{- end }}
                  {{- range $others }}
                  - key: {{ .label }}
                    operator: NotIn
                    values: {{ toJson .values }}
                  {{- end }}
      {{- end }}
      {{- with $tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: agent
          image: {{ include "tidemark.image" $root }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          args: [agent]
          securityContext:
            # Mounts must reach the host, and loop devices be attached: both take a privileged container.
            privileged: true
            runAsUser: 0
            readOnlyRootFilesystem: true
          env:
            - name: TIDEMARK_NODE_NAME
              valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
            - {name: CSI_ENDPOINT, value: "unix:///csi/csi.sock"}
            - {name: TIDEMARK_DRIVER_NAME, value: {{ $values.driverName | quote }}}
            - {name: TIDEMARK_REGISTER, value: /registration}
            - {name: TIDEMARK_KUBELET_SOCKET, value: {{ printf "%s/csi.sock" $plugin | quote }}}
            - {name: TIDEMARK_LISTEN, value: {{ printf "%s:9807" $values.bindAddress | quote }}}
            - {name: TIDEMARK_METRICS_ADDRESS, value: {{ printf "%s:9808" $values.bindAddress | quote }}}
            - {name: TIDEMARK_CERTIFICATES, value: /etc/tidemark/tls}
            {{- if $pools }}
            - name: TIDEMARK_POOL
              value: {{ range $i, $pool := $pools }}{{ if $i }} {{ end }}{{ $pool.name }}=reflink:{{ $pool.path }}{{ end }}
            {{- if $poolInit }}
            - {name: TIDEMARK_POOL_INIT, value: "true"}
            {{- end }}
            {{- else }}
            - {name: TIDEMARK_POOL_IMAGE, value: {{ printf "%s/pool.img" $image.directory | quote }}}
            - {name: TIDEMARK_POOL_MOUNT, value: {{ printf "%s/pool" $image.directory | quote }}}
            - {name: TIDEMARK_POOL_SIZE, value: {{ $image.size | quote }}}
            {{- if $image.sparse }}
            - {name: TIDEMARK_POOL_IMAGE_SPARSE, value: "true"}
            {{- end }}
            {{- end }}
            - {name: TIDEMARK_OVERCOMMIT, value: {{ $values.agent.overcommit | quote }}}
            {{- with $values.agent.reserve }}
            - {name: TIDEMARK_RESERVE, value: {{ . | quote }}}
            {{- end }}
            - {name: TIDEMARK_MAX_SNAPSHOTS, value: {{ $values.agent.maxSnapshots | quote }}}
            - {name: TIDEMARK_FREEZE_DEADLINE, value: {{ $values.agent.freezeDeadline | quote }}}
            - {name: TIDEMARK_LOG_FORMAT, value: {{ $values.logFormat }}}
            {{- with $values.agent.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: grpc, containerPort: 9807, protocol: TCP}
            - {name: http, containerPort: 9808, protocol: TCP}
          # /dev is the host's: the usual file for this would be made there, and stay. Why an agent ended, its last lines say.
          terminationMessagePath: /run/termination-log
          terminationMessagePolicy: FallbackToLogsOnError
          # A new pool image is allocated and formatted first, which takes minutes on a slow disk.
          startupProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 2
            failureThreshold: 300
          livenessProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
          resources: {{- toYaml $resources | nindent 12 }}
          volumeMounts:
            - {name: socket, mountPath: /csi}
            - {name: registration, mountPath: /registration}
            - {name: pods, mountPath: {{ $kubelet }}/pods, mountPropagation: Bidirectional}
            - {name: staging, mountPath: {{ $kubelet }}/plugins/kubernetes.io/csi, mountPropagation: Bidirectional}
            - {name: dev, mountPath: /dev}
            - {name: sys, mountPath: /sys}
            - {name: udev, mountPath: /run/udev, readOnly: true}
            - {name: tls, mountPath: /etc/tidemark/tls, readOnly: true}
            - {name: run, mountPath: /run}
            - {name: tmp, mountPath: /tmp}
            {{- if $pools }}
            {{- range $pools }}
            # A disk that is mounted on the node later is seen here too.
            - {name: pool-{{ .name }}, mountPath: {{ .path }}, mountPropagation: HostToContainer}
            {{- end }}
            {{- else }}
            - {name: pool-image, mountPath: {{ $image.directory }}, mountPropagation: Bidirectional}
            {{- end }}
      volumes:
        - {name: socket, hostPath: {path: {{ $plugin }}, type: DirectoryOrCreate}}
        - {name: registration, hostPath: {path: {{ $kubelet }}/plugins_registry, type: Directory}}
        - {name: pods, hostPath: {path: {{ $kubelet }}/pods, type: Directory}}
        - {name: staging, hostPath: {path: {{ $kubelet }}/plugins/kubernetes.io/csi, type: DirectoryOrCreate}}
        - {name: dev, hostPath: {path: /dev, type: Directory}}
        - {name: sys, hostPath: {path: /sys, type: Directory}}
        - {name: udev, hostPath: {path: /run/udev, type: ""}}
        - {name: tls, secret: {secretName: {{ default (printf "%s-agent-tls" $full) (include "tidemark.givenSecret" (list $root "agent")) }}}}
        - {name: run, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
        - {name: tmp, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
        {{- if $pools }}
        {{- range $pools }}
        - {name: pool-{{ .name }}, hostPath: {path: {{ .path }}, type: Directory}}
        {{- end }}
        {{- else }}
        - {name: pool-image, hostPath: {path: {{ $image.directory }}, type: DirectoryOrCreate}}
        {{- end }}
{{- end }}
