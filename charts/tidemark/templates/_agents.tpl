{{/* The pools of a group of nodes, as JSON; none: a pool in a file, which the agent calls `default`. (list root group). */}}
{{- define "tidemark.pools" -}}
{{- $root := index . 0 }}{{ $group := index . 1 -}}
{{- $pools := $root.Values.pools -}}
{{- if hasKey $group "pools" }}{{ $pools = $group.pools }}{{ else if hasKey $group "poolImage" }}{{ $pools = list }}{{ end -}}
{{- toJson (default list $pools) -}}
{{- end }}

{{/* Whether one of these pools lies in a volume group of LVM: "true" or nothing. */}}
{{- define "tidemark.lvm" -}}
{{- range . }}{{ if .volumeGroup }}{{ true }}{{ break }}{{ end }}{{ end -}}
{{- end }}

{{/* A pool as the agent's option --pool has it. */}}
{{- define "tidemark.poolOption" -}}
{{- .name }}={{ if .volumeGroup }}lvm:{{ .volumeGroup }}{{ with .thinPool }}/{{ . }}{{ end }}{{ else }}reflink:{{ .path }}{{ end -}}
{{- end }}

{{/* Whether any group of nodes has a pool of LVM: "true" or nothing. */}}
{{- define "tidemark.anyLvm" -}}
{{- $root := . -}}
{{- range $group := append (values (default dict .Values.nodeGroups)) dict -}}
{{- if include "tidemark.lvm" (include "tidemark.pools" (list $root $group) | fromJsonArray) }}{{ true }}{{ break }}{{ end -}}
{{- end -}}
{{- end }}

{{/*
The affinity of a group's agents, as YAML or nothing: (list affinity expressions). Terms are alternatives, so each of them gets the
expressions that keep a node in one group.
*/}}
{{- define "tidemark.agentAffinity" -}}
{{- $affinity := deepCopy (default dict (index . 0)) }}{{ $expressions := index . 1 -}}
{{- if $expressions -}}
{{- $nodes := default dict $affinity.nodeAffinity -}}
{{- $required := default dict $nodes.requiredDuringSchedulingIgnoredDuringExecution -}}
{{- $terms := list -}}
{{- range default (list dict) $required.nodeSelectorTerms -}}
{{- $terms = append $terms (set . "matchExpressions" (concat (default list .matchExpressions) $expressions)) -}}
{{- end -}}
{{- $_ := set $required "nodeSelectorTerms" $terms -}}
{{- $_ := set $nodes "requiredDuringSchedulingIgnoredDuringExecution" $required -}}
{{- $_ := set $affinity "nodeAffinity" $nodes -}}
{{- end -}}
{{- if $affinity }}{{ toYaml $affinity }}{{ end -}}
{{- end }}

{{/*
The agents of one group of nodes: (list root name group others). `others` are the nodes of the groups that come first. The chart's
values are the defaults of a group.
*/}}
{{- define "tidemark.agents" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $group := index . 2 }}{{ $others := index . 3 }}
{{- $values := $root.Values }}
{{- $full := include "tidemark.fullname" $root }}
{{- $kubelet := trimSuffix "/" $values.kubeletDirectory }}
{{- $plugin := printf "%s/plugins/%s" $kubelet $values.driverName }}
{{- $pools := include "tidemark.pools" (list $root $group) | fromJsonArray }}
{{- /* Not merge: it treats false as unset. */}}
{{- $image := dict }}
{{- range $part := list $values.poolImage (default dict $group.poolImage) }}
{{- range $key, $value := $part }}{{ $_ := set $image $key $value }}{{ end }}
{{- end }}
{{- if not $pools }}
{{- $daemonset := printf "%s-agent%s" $full (ternary "" (printf "-%s" $name) (eq $name "default")) }}
{{- include "tidemark.sameImage" (list $root $daemonset (printf "%s/pool.img" $image.directory)) }}
{{- include "tidemark.noSmallerImage" (list $root $daemonset (include "tidemark.plain" $image.size)) }}
{{- end }}
{{- $poolInit := ternary $group.poolInit $values.poolInit (hasKey $group "poolInit") }}
{{- $tolerations := ternary $group.tolerations $values.agent.tolerations (hasKey $group "tolerations") }}
{{- $resources := default $values.agent.resources $group.resources }}
{{- $expressions := list }}
{{- with $group.nodes }}{{ $expressions = append $expressions (dict "key" .label "operator" "In" "values" .values) }}{{ end }}
{{- range $others }}{{ $expressions = append $expressions (dict "key" .label "operator" "NotIn" "values" .values) }}{{ end }}
{{- $lvm := include "tidemark.lvm" $pools }}
{{- $own := list "socket" "registration" "pods" "staging" "dev" "sys" "udev" "tls" "run" "runtime" "tmp" "pool-image" }}
{{- range $pools }}{{ if .path }}{{ $own = append $own (printf "pool-%s" .name) }}{{ end }}{{ end }}
{{- if $lvm }}{{ $own = append $own "lvm-locks" }}{{ end }}
{{- include "tidemark.checkVolumes" (list "agent" $values.agent.extraVolumes $own) }}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $full }}-agent{{ if ne $name "default" }}-{{ $name }}{{ end }}
  namespace: {{ $root.Release.Namespace | quote }}
  labels:
    {{- include "tidemark.labels" $root | nindent 4 }}
    app.kubernetes.io/component: agent
    tidemark.dev/node-group: {{ $name | quote }}
  {{- with include "tidemark.annotations" (list $root $values.agent.annotations) }}
  {{- . | nindent 2 }}
  {{- end }}
spec:
  revisionHistoryLimit: {{ include "tidemark.history" $values.agent.revisionHistoryLimit }}
  selector:
    matchLabels:
      {{- include "tidemark.selector" $root | nindent 6 }}
      app.kubernetes.io/component: agent
      tidemark.dev/node-group: {{ $name | quote }}
  {{- $update := default "RollingUpdate" (($values.agent.updateStrategy).type) }}
  updateStrategy:
    type: {{ $update }}
    {{- if eq $update "RollingUpdate" }}
    # No maxSurge: a second agent on a node would share its kubelet and its pools.
    rollingUpdate:
      maxUnavailable: {{ include "tidemark.countOrShare" $values.agent.maxUnavailable }}
    {{- end }}
  template:
    metadata:
      labels:
        {{- include "tidemark.labelsWith" (list $root $values.agent.podLabels) | nindent 8 }}
        app.kubernetes.io/component: agent
        tidemark.dev/node-group: {{ $name | quote }}
      annotations:
        {{- include "tidemark.strings" (list (dict "kubectl.kubernetes.io/default-container" "agent") $values.agent.podAnnotations) | nindent 8 }}
    spec:
      {{- with include "tidemark.pullSecrets" $root }}
      {{- . | nindent 6 }}
      {{- end }}
      serviceAccountName: {{ $full }}-agent
      # The agent does not use the API, so it gets no token.
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- if $lvm }}
      # Where the node has lvm, the agent runs that one, in the node's own namespaces: they are reached through its process 1.
      hostPID: true
      {{- end }}
      {{- with $values.agent.priorityClassName }}
      priorityClassName: {{ . | quote }}
      {{- end }}
      terminationGracePeriodSeconds: {{ int $values.agent.terminationGracePeriodSeconds }}
      nodeSelector:
        {{- include "tidemark.strings" (list $values.agent.nodeSelector (dict "kubernetes.io/os" "linux")) | nindent 8 }}
      {{- with include "tidemark.agentAffinity" (list $values.agent.affinity $expressions) }}
      affinity:
        {{- . | nindent 8 }}
      {{- end }}
      {{- with $tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.agent.initContainers }}
      initContainers: {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: agent
          image: {{ include "tidemark.image" $root }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          args: [agent]
          securityContext:
            # Mounts must reach the host, and loop devices must be attached: both need a privileged container.
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
              value: {{ range $i, $pool := $pools }}{{ if $i }} {{ end }}{{ include "tidemark.poolOption" $pool }}{{ end }}
            {{- if $poolInit }}
            - {name: TIDEMARK_POOL_INIT, value: "true"}
            {{- end }}
            {{- else }}
            - {name: TIDEMARK_POOL_IMAGE, value: {{ printf "%s/pool.img" $image.directory | quote }}}
            - {name: TIDEMARK_POOL_MOUNT, value: {{ printf "%s/pool" $image.directory | quote }}}
            - {name: TIDEMARK_POOL_SIZE, value: {{ include "tidemark.plain" $image.size | quote }}}
            {{- if $image.sparse }}
            - {name: TIDEMARK_POOL_IMAGE_SPARSE, value: "true"}
            {{- end }}
            {{- end }}
            - {name: TIDEMARK_OVERCOMMIT, value: {{ include "tidemark.plain" $values.agent.overcommit | quote }}}
            {{- with include "tidemark.plain" $values.agent.reserve }}
            - {name: TIDEMARK_RESERVE, value: {{ . | quote }}}
            {{- end }}
            - {name: TIDEMARK_MAX_SNAPSHOTS, value: {{ int $values.agent.maxSnapshots | quote }}}
            - {name: TIDEMARK_FREEZE_DEADLINE, value: {{ include "tidemark.plain" $values.agent.freezeDeadline | quote }}}
            {{- $shown := $values.agent.metricsVolumes }}
            - {name: TIDEMARK_METRICS_VOLUMES, value: {{ ternary 500 (int $shown) (kindIs "invalid" $shown) | quote }}}
            - {name: TIDEMARK_LOG_FORMAT, value: {{ $values.logFormat }}}
            {{- with $values.agent.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $values.agent.extraEnvFrom }}
          envFrom: {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - {name: grpc, containerPort: 9807, protocol: TCP}
            - {name: http, containerPort: 9808, protocol: TCP}
          # /dev is the host's: the usual file for this would be created there, and stay. The last log lines say why an agent ended.
          terminationMessagePath: /run/termination-log
          terminationMessagePolicy: FallbackToLogsOnError
          # A new pool image is allocated and formatted first, which takes minutes on a slow device.
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
            - {name: runtime, mountPath: /run/tidemark}
            - {name: tmp, mountPath: /tmp}
            {{- if $lvm }}
            - {name: lvm-locks, mountPath: /run/lock/lvm}
            {{- end }}
            {{- if $pools }}
            {{- range $pools }}
            {{- if .path }}
            # A file system that is mounted on the node later is visible here too.
            - {name: pool-{{ .name }}, mountPath: {{ .path }}, mountPropagation: HostToContainer}
            {{- end }}
            {{- end }}
            {{- else }}
            - {name: pool-image, mountPath: {{ $image.directory }}, mountPropagation: Bidirectional}
            {{- end }}
            {{- with $values.agent.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - {name: socket, hostPath: {path: {{ $plugin }}, type: DirectoryOrCreate}}
        - {name: registration, hostPath: {path: {{ $kubelet }}/plugins_registry, type: Directory}}
        - {name: pods, hostPath: {path: {{ $kubelet }}/pods, type: Directory}}
        - {name: staging, hostPath: {path: {{ $kubelet }}/plugins/kubernetes.io/csi, type: DirectoryOrCreate}}
        - {name: dev, hostPath: {path: /dev, type: Directory}}
        - {name: sys, hostPath: {path: /sys, type: Directory}}
        - {name: udev, hostPath: {path: /run/udev, type: ""}}
        - {name: tls, secret: {secretName: {{ default (printf "%s-agent-tls" $full) (include "tidemark.givenSecret" (list $root "agent")) | quote }}}}
        - {name: run, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
        # The journal of freezes: an agent that is killed with its pod leaves it to the next one. Of the host's /run, since no
        # freeze outlives a boot.
        - {name: runtime, hostPath: {path: /run/tidemark, type: DirectoryOrCreate}}
        - {name: tmp, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
        {{- if $lvm }}
        # Where the node has no lvm, the agent runs the image's: its locks must outlive the pod, as a hung lvm does.
        - {name: lvm-locks, hostPath: {path: /run/lock/lvm, type: DirectoryOrCreate}}
        {{- end }}
        {{- if $pools }}
        {{- range $pools }}
        {{- if .path }}
        - {name: pool-{{ .name }}, hostPath: {path: {{ .path }}, type: Directory}}
        {{- end }}
        {{- end }}
        {{- else }}
        - {name: pool-image, hostPath: {path: {{ $image.directory }}, type: DirectoryOrCreate}}
        {{- end }}
        {{- with $values.agent.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end }}
