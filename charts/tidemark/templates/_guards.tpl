{{/*
What a release must not do to what is there already. Only helm itself asks the cluster: `helm template`, and whatever renders with it, sees
nothing here.
*/}}

{{/* Two operators answer for each other's disks: a run is over, and a rollback has failed, for the one whose driver has no part in it. */}}
{{- define "tidemark.oneOperator" -}}
{{- range ternary (lookup "apps/v1" "Deployment" "" "").items list .Values.controller.operator -}}
{{- $labels := default dict .metadata.labels }}{{ $namespace := .metadata.namespace -}}
{{- $own := and (eq .metadata.namespace $.Release.Namespace) (eq (get $labels "app.kubernetes.io/instance") $.Release.Name) -}}
{{- if and (eq (get $labels "app.kubernetes.io/name") $.Chart.Name) (eq (get $labels "app.kubernetes.io/component") "controller") (not $own) -}}
{{- range concat (default list .spec.template.spec.initContainers) .spec.template.spec.containers -}}
{{- if and (eq .name "controller") (not (has "--no-operator" (default list .args))) -}}
{{- fail (printf "release %s in namespace %s reconciles the VolumeRollbacks and SnapshotSchedules of this cluster: only one release may. Set controller.operator=false for one of the two; rollbacks and schedules work for the driver of the other" (get $labels "app.kubernetes.io/instance") $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A new image at another place is an empty pool of the same name, in which no disk is found and every deletion succeeds: (list root daemonset image). */}}
{{- define "tidemark.sameImage" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $image := index . 2 -}}
{{- range (dig "spec" "template" "spec" "containers" list (lookup "apps/v1" "DaemonSet" $root.Release.Namespace $name)) -}}
{{- range default list .env -}}
{{- if and (eq .name "TIDEMARK_POOL_IMAGE") (ne (default "" .value) $image) -}}
{{- fail (printf "poolImage.directory of DaemonSet %s cannot be changed while it is installed: the agents have their disks in %s, and would begin an empty pool of the same name in %s. Leave it; or delete all claims and snapshots, uninstall, and install anew" $name (default "" .value) $image) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Bytes of a size, be it a number or a text, as a number for comparisons. */}}
{{- define "tidemark.bytes" -}}
{{- $size := include "tidemark.plain" . -}}
{{- $number := regexFind "^[0-9.]+" $size -}}
{{- $units := dict "" 1 "K" 1e3 "Ki" 1024 "M" 1e6 "Mi" 1048576 "G" 1e9 "Gi" 1073741824 "T" 1e12 "Ti" 1099511627776 "P" 1e15 "Pi" 1125899906842624 -}}
{{- printf "%.0f" (mulf (float64 $number) (get $units (trimPrefix $number $size))) -}}
{{- end }}

{{/* An image that is there never shrinks: (list root daemonset size). The agent refuses it too, but helm can say so before anything is changed. */}}
{{- define "tidemark.noSmallerImage" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $size := index . 2 -}}
{{- range (dig "spec" "template" "spec" "containers" list (lookup "apps/v1" "DaemonSet" $root.Release.Namespace $name)) -}}
{{- range default list .env -}}
{{- if and (eq .name "TIDEMARK_POOL_SIZE") .value -}}
{{- if lt (float64 (include "tidemark.bytes" $size)) (float64 (include "tidemark.bytes" .value)) -}}
{{- fail (printf "poolImage.size of DaemonSet %s cannot become %s: it is %s, and a pool never shrinks. Leave it, or ask for more" $name $size .value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
