{{/*
Protects existing objects and data from a release. Only helm itself asks the cluster: `helm template`, and each tool that renders with it,
checks nothing here.
*/}}

{{/* With two operators, each would finish runs and fail rollbacks of the other one's driver. */}}
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

{{/* In another directory the agent would create an empty pool of the same name, without volumes, where every deletion succeeds: (list root daemonset image). */}}
{{- define "tidemark.sameImage" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $image := index . 2 -}}
{{- range (dig "spec" "template" "spec" "containers" list (lookup "apps/v1" "DaemonSet" $root.Release.Namespace $name)) -}}
{{- range default list .env -}}
{{- if and (eq .name "TIDEMARK_POOL_IMAGE") (ne (default "" .value) $image) -}}
{{- fail (printf "poolImage.directory of DaemonSet %s cannot be changed while it is installed: the agents have their volumes in %s, and would create an empty pool of the same name in %s. Keep it; or delete all PVCs and snapshots, uninstall, and install again" $name (default "" .value) $image) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Bytes of a size (a number or a string), as a number for comparisons. */}}
{{- define "tidemark.bytes" -}}
{{- $size := include "tidemark.plain" . -}}
{{- $number := regexFind "^[0-9.]+" $size -}}
{{- $units := dict "" 1 "K" 1e3 "Ki" 1024 "M" 1e6 "Mi" 1048576 "G" 1e9 "Gi" 1073741824 "T" 1e12 "Ti" 1099511627776 "P" 1e15 "Pi" 1125899906842624 -}}
{{- printf "%.0f" (mulf (float64 $number) (get $units (trimPrefix $number $size))) -}}
{{- end }}

{{/* An existing image never shrinks: (list root daemonset size). The agent refuses it too, but helm can do so before any change. */}}
{{- define "tidemark.noSmallerImage" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $size := index . 2 -}}
{{- range (dig "spec" "template" "spec" "containers" list (lookup "apps/v1" "DaemonSet" $root.Release.Namespace $name)) -}}
{{- range default list .env -}}
{{- if and (eq .name "TIDEMARK_POOL_SIZE") .value -}}
{{- if lt (float64 (include "tidemark.bytes" $size)) (float64 (include "tidemark.bytes" .value)) -}}
{{- fail (printf "poolImage.size of DaemonSet %s cannot become %s: it is %s, and a pool never shrinks. Keep it, or set a larger one" $name $size .value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
