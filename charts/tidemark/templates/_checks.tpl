{{/* Values that contradict each other, which no schema can tell: each is refused with its place and the way out. */}}

{{/* An agent that is given two pools of one name, or one directory twice, ends at its start. */}}
{{- define "tidemark.checkPools" -}}
{{- $lists := list (list "pools" .Values.pools) -}}
{{- range $name, $group := .Values.nodeGroups -}}
{{- $lists = append $lists (list (printf "nodeGroups.%s.pools" $name) $group.pools) -}}
{{- end -}}
{{- range $lists -}}
{{- $where := index . 0 }}{{ $paths := dict }}{{ $names := dict -}}
{{- range default list (index . 1) -}}
{{- if hasKey $paths .name -}}
{{- fail (printf "%s: two pools are called %s, one in %s and one in %s. The id of a disk names its pool: give one of them another name" $where .name (get $paths .name) .path) -}}
{{- end -}}
{{- if hasKey $names .path -}}
{{- fail (printf "%s: the pools %s and %s both lie in %s. A pool has a directory of its own: give one of them another path" $where (get $names .path) .name .path) -}}
{{- end -}}
{{- $_ := set $paths .name .path -}}
{{- $_ := set $names .path .name -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Names of all pools that some node has, as JSON. */}}
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

{{/* A claim of a class that asks for a pool of no node, or for nodes by a label that the driver does not answer to, waits for ever. */}}
{{- define "tidemark.checkStorageClasses" -}}
{{- $pools := include "tidemark.poolNames" . | fromJsonArray -}}
{{- range $name, $class := .Values.storageClasses -}}
{{- if $class -}}
{{- $pool := default "" (($class.parameters).pool) -}}
{{- if and $pool (not (has $pool $pools)) -}}
{{- fail (printf "storageClasses.%s.parameters.pool: no node has a pool called %s; there are: %s. Name one of these, or add the pool to pools or nodeGroups" $name $pool (join ", " $pools)) -}}
{{- end -}}
{{- range default list $class.allowedTopologies -}}
{{- range default list .matchLabelExpressions -}}
{{- if ne .key "topology.csi.tidemark.dev/node" -}}
{{- fail (printf "storageClasses.%s.allowedTopologies: %s says nothing of where the driver may make a disk. Its one key is topology.csi.tidemark.dev/node, and the values are names of nodes" $name .key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "tidemark.checkDefaults" (list "storageClasses" .Values.storageClasses) -}}
{{- end }}

{{/* Of several default classes Kubernetes takes one by age, and the snapshot-controller none: (list section classes). */}}
{{- define "tidemark.checkDefaults" -}}
{{- $section := index . 0 }}{{ $defaults := list -}}
{{- range $name, $class := index . 1 -}}
{{- if $class -}}
{{- if $class.default }}{{ $defaults = append $defaults $name }}{{ end -}}
{{- range $key, $_ := default dict $class.annotations -}}
{{- if hasSuffix "/is-default-class" $key -}}
{{- fail (printf "%s: the annotation %s of the class %s is made from its value `default`: set that instead" $section $key $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if gt (len $defaults) 1 -}}
{{- fail (printf "%s: %s are all the default class. There can be one: leave `default` true in one of them" $section (join ", " $defaults)) -}}
{{- end -}}
{{- end }}

{{/* (list section extraVolumes own): what a user mounts takes no name of ours. */}}
{{- define "tidemark.checkVolumes" -}}
{{- $section := index . 0 }}{{ $own := index . 2 -}}
{{- range default list (index . 1) -}}
{{- if has .name $own -}}
{{- fail (printf "%s.extraVolumes: %s is a volume of the chart itself: give yours another name" $section .name) -}}
{{- end -}}
{{- end -}}
{{- end }}
