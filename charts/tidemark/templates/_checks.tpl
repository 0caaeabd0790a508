{{/* Refuses values that contradict each other, which no schema can express. Each message names the place and the remedy. */}}

{{/* An agent with two pools of one name, or with one directory twice, fails at its start. */}}
{{- define "tidemark.checkPools" -}}
{{- $lists := list (list "pools" .Values.pools) -}}
{{- range $name, $group := .Values.nodeGroups -}}
{{- $lists = append $lists (list (printf "nodeGroups.%s.pools" $name) $group.pools) -}}
{{- end -}}
{{- range $lists -}}
{{- $where := index . 0 }}{{ $paths := dict }}{{ $names := dict -}}
{{- range default list (index . 1) -}}
{{- if hasKey $paths .name -}}
{{- fail (printf "%s: two pools are called %s, one in %s and one in %s. A volume id contains the pool's name; rename one of them" $where .name (get $paths .name) .path) -}}
{{- end -}}
{{- if hasKey $names .path -}}
{{- fail (printf "%s: the pools %s and %s both lie in %s. Each pool needs its own directory; change one of the paths" $where (get $names .path) .name .path) -}}
{{- end -}}
{{- $_ := set $paths .name .path -}}
{{- $_ := set $names .path .name -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Names of the pools of all nodes, as JSON. */}}
{{- define "tidemark.poolNames" -}}
{{- $root := . }}{{ $names := list -}}
{{- range $group := append (values (default dict .Values.nodeGroups)) dict -}}
{{- range include "tidemark.pools" (list $root $group) | fromJsonArray -}}
{{- $names = append $names .name -}}
{{- else -}}
{{- $names = append $names "default" -}}
{{- end -}}
{{- end -}}
{{- toJson (uniq $names | sortAlpha) -}}
{{- end }}

{{/* A PVC waits forever if its class has a pool that no node has, or a topology key that the driver does not know. */}}
{{- define "tidemark.checkStorageClasses" -}}
{{- $pools := include "tidemark.poolNames" . | fromJsonArray -}}
{{- range $name, $class := .Values.storageClasses -}}
{{- if $class -}}
{{- $pool := default "" (($class.parameters).pool) -}}
{{- if and $pool (not (has $pool $pools)) -}}
{{- fail (printf "storageClasses.%s.parameters.pool: no node has a pool called %s; there are: %s. Use one of these, or add the pool to pools or nodeGroups" $name $pool (join ", " $pools)) -}}
{{- end -}}
{{- range default list $class.allowedTopologies -}}
{{- range default list .matchLabelExpressions -}}
{{- if ne .key "topology.csi.tidemark.dev/node" -}}
{{- fail (printf "storageClasses.%s.allowedTopologies: %s is not a topology key of this driver. The only key is topology.csi.tidemark.dev/node; its values are names of nodes" $name .key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "tidemark.checkDefaults" (list "storageClasses" .Values.storageClasses) -}}
{{- end }}

{{/* Of several default classes Kubernetes uses the newest one, and the snapshot-controller none: (list section classes). */}}
{{- define "tidemark.checkDefaults" -}}
{{- $section := index . 0 }}{{ $defaults := list -}}
{{- range $name, $class := index . 1 -}}
{{- if $class -}}
{{- if $class.default }}{{ $defaults = append $defaults $name }}{{ end -}}
{{- range $key, $_ := default dict $class.annotations -}}
{{- if hasSuffix "/is-default-class" $key -}}
{{- fail (printf "%s: the annotation %s of the class %s is made from its value `default`; set that instead" $section $key $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if gt (len $defaults) 1 -}}
{{- fail (printf "%s: %s are all the default class. Only one can be: set `default` to false in the others" $section (join ", " $defaults)) -}}
{{- end -}}
{{- end }}

{{/* Additional volumes must not have the name of one of the chart's own: (list section extraVolumes own). */}}
{{- define "tidemark.checkVolumes" -}}
{{- $section := index . 0 }}{{ $own := index . 2 -}}
{{- range default list (index . 1) -}}
{{- if has .name $own -}}
{{- fail (printf "%s.extraVolumes: %s is a volume of the chart itself; rename yours" $section .name) -}}
{{- end -}}
{{- end -}}
{{- end }}
