{{/* Refuses values that contradict each other, which no schema can express. Each message names the place and the remedy. */}}

{{/* Where a pool lies, for messages. */}}
{{- define "tidemark.poolPlace" -}}
{{- with .volumeGroup }}the volume group {{ . }}{{ else }}{{ .path }}{{ end -}}
{{- end }}

{{/* A pool is a directory or a volume group: (list where pool). */}}
{{- define "tidemark.checkPool" -}}
{{- $where := index . 0 }}{{ $pool := index . 1 -}}
{{- if and $pool.path $pool.volumeGroup -}}
{{- fail (printf "%s: the pool %s has a path (%s) and a volumeGroup (%s). A pool lies in a directory on XFS or in a volume group of LVM; remove one of the two" $where $pool.name $pool.path $pool.volumeGroup) -}}
{{- end -}}
{{- if not (or $pool.path $pool.volumeGroup) -}}
{{- fail (printf "%s: the pool %s has neither a path nor a volumeGroup. Set `path` to a directory on XFS, or `volumeGroup` to a volume group of LVM" $where $pool.name) -}}
{{- end -}}
{{- if and $pool.thinPool (not $pool.volumeGroup) -}}
{{- fail (printf "%s: the pool %s has a thinPool (%s), but no volumeGroup to look for it in. Add volumeGroup, or remove thinPool" $where $pool.name $pool.thinPool) -}}
{{- end -}}
{{- end }}

{{/*
An agent with two pools of one name, or with one place twice, fails at its start. A volume group says in one place whose it is, so
it has one pool.
*/}}
{{- define "tidemark.checkPools" -}}
{{- $lists := list (list "pools" .Values.pools) -}}
{{- range $name, $group := .Values.nodeGroups -}}
{{- $lists = append $lists (list (printf "nodeGroups.%s.pools" $name) $group.pools) -}}
{{- end -}}
{{- range $lists -}}
{{- $where := index . 0 }}{{ $places := dict }}{{ $names := dict -}}
{{- range default list (index . 1) -}}
{{- include "tidemark.checkPool" (list $where .) -}}
{{- $place := include "tidemark.poolPlace" . -}}
{{- if hasKey $places .name -}}
{{- fail (printf "%s: two pools are called %s, one in %s and one in %s. A volume id contains the pool's name; rename one of them" $where .name (get $places .name) $place) -}}
{{- end -}}
{{- if hasKey $names $place -}}
{{- fail (printf "%s: the pools %s and %s both lie in %s. %s" $where (get $names $place) .name $place (ternary "A volume group has one pool; name another volume group" "Each pool needs its own directory; change one of the paths" (not .path))) -}}
{{- end -}}
{{- $_ := set $places .name $place -}}
{{- $_ := set $names $place .name -}}
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
