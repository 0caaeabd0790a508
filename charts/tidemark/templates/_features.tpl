{{/* Which features are on, by values and by the APIs of the cluster. Each returns "true" or nothing. */}}

{{/* A VolumeSnapshotClass without its CRD fails the installation, so `auto` asks the cluster. */}}
{{- define "tidemark.snapshots" -}}
{{- $setting := toString .Values.snapshots.enabled -}}
{{- if eq $setting "auto" -}}
{{- if .Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1/VolumeSnapshotClass" }}true{{ end -}}
{{- else if eq $setting "true" }}true{{ end -}}
{{- end }}

{{/* Only v1: the snapshotter waits forever if its gate is on and v1 is not served. */}}
{{- define "tidemark.groupSnapshots" -}}
{{- $setting := toString .Values.groupSnapshots.enabled -}}
{{- $snapshots := include "tidemark.snapshots" . -}}
{{- if eq $setting "auto" -}}
{{- if and $snapshots (.Capabilities.APIVersions.Has "groupsnapshot.storage.k8s.io/v1/VolumeGroupSnapshotClass") }}true{{ end -}}
{{- else if eq $setting "true" -}}
{{- if not $snapshots }}{{ fail "groupSnapshots.enabled is true, but snapshots are off: set snapshots.enabled to true, or groupSnapshots.enabled to auto" }}{{ end -}}
true
{{- end -}}
{{- end }}

{{/* The Secret of a role's certificate, if the user or cert-manager supplies it: (list root role). Nothing if the controller creates it. */}}
{{- define "tidemark.givenSecret" -}}
{{- $root := index . 0 }}{{ $role := index . 1 }}{{ $tls := $root.Values.tls -}}
{{- $named := get $tls (printf "%sSecret" $role) -}}
{{- if $named }}{{ $named }}{{ else if $tls.certManager.enabled }}{{ include "tidemark.fullname" $root }}-{{ $role }}-certificate{{ end -}}
{{- end }}

{{/* Supplied certificates come in pairs: otherwise one side would not trust the other. */}}
{{- define "tidemark.givenCertificates" -}}
{{- with .Values.tls -}}
{{- if .certManager.enabled -}}
{{- if not .certManager.issuer.name }}{{ fail "tls.certManager.enabled needs tls.certManager.issuer.name" }}{{ end -}}
true
{{- else -}}
{{- if ne (empty .controllerSecret) (empty .agentSecret) }}{{ fail "tls.controllerSecret and tls.agentSecret belong together: set both, or none" }}{{ end -}}
{{- if .controllerSecret }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Whether a rule or a part of files/rights.yaml applies: (list root condition). */}}
{{- define "tidemark.when" -}}
{{- $root := index . 0 }}{{ $condition := index . 1 -}}
{{- if not $condition }}true
{{- else if eq $condition "snapshots" }}{{ include "tidemark.snapshots" $root }}
{{- else if eq $condition "groupSnapshots" }}{{ include "tidemark.groupSnapshots" $root }}
{{- else if eq $condition "snapshotsByOperator" }}{{ if $root.Values.controller.operator }}{{ include "tidemark.snapshots" $root }}{{ end }}
{{- else if eq $condition "groupsByOperator" }}{{ if $root.Values.controller.operator }}{{ include "tidemark.groupSnapshots" $root }}{{ end }}
{{- else if eq $condition "webhook" }}{{ if $root.Values.webhook.enabled }}true{{ end }}
{{- else if eq $condition "operator" }}{{ if $root.Values.controller.operator }}true{{ end }}
{{- else if eq $condition "uninstallCheck" }}{{ if not $root.Values.uninstall.force }}true{{ end }}
{{- else if eq $condition "snapshotController" }}{{ if $root.Values.snapshotController.install }}true{{ end }}
{{- else if eq $condition "givenCertificates" }}{{ include "tidemark.givenCertificates" $root }}
{{- else if eq $condition "ownCertificates" }}{{ if not (include "tidemark.givenCertificates" $root) }}true{{ end }}
{{- else }}{{ fail (printf "files/rights.yaml: %s is not a condition" $condition) }}
{{- end }}
{{- end }}

{{/* The sidecars whose metrics are scraped beside the controller's, as YAML: names of ports and their numbers, or nothing. */}}
{{- define "tidemark.scrapedSidecars" -}}
{{- if and .Values.monitoring.serviceMonitor.enabled .Values.monitoring.serviceMonitor.sidecars -}}
provisioner: 9809
{{- if include "tidemark.snapshots" . }}
snapshotter: 9810
{{- end }}
resizer: 9811
{{- end -}}
{{- end }}

{{/* Whether to create SecurityContextConstraints: only OpenShift has them. */}}
{{- define "tidemark.openshift" -}}
{{- $value := ((.Values.openshift).securityContextConstraints) -}}
{{- $setting := ternary "auto" (toString $value) (kindIs "invalid" $value) -}}
{{- if eq $setting "auto" -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1/SecurityContextConstraints" }}true{{ end -}}
{{- else if eq $setting "true" }}true{{ end -}}
{{- end }}
