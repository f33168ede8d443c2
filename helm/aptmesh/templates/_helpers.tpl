{{/* Names. */}}

{{- define "aptmesh.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, so that 63 hold it with what is appended, by us and by StatefulSets. */}}
{{- define "aptmesh.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "aptmesh.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* What tells the pods of a component; never changes, since selectors can not. */}}
{{- define "aptmesh.selectorLabels" -}}
app.kubernetes.io/name: {{ include "aptmesh.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "aptmesh.labels" -}}
{{ include "aptmesh.selectorLabels" . }}
app.kubernetes.io/part-of: aptmesh
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ include "aptmesh.chart" .root }}
{{- end }}

{{- define "aptmesh.headless" -}}
{{ include "aptmesh.fullname" . }}-headless
{{- end }}

{{- define "aptmesh.indexSecret" -}}
{{- if .Values.postgresql.enabled -}}
{{ include "aptmesh.fullname" . }}-postgresql
{{- else -}}
{{ .Values.index.existingSecret }}
{{- end }}
{{- end }}

{{- define "aptmesh.indexSecretKey" -}}
{{ ternary "url" .Values.index.existingSecretKey .Values.postgresql.enabled }}
{{- end }}

{{- define "aptmesh.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "aptmesh.clientUrl" -}}
{{ .Values.client.url | default (printf "http://%s.%s.svc:%v" (include "aptmesh.fullname" .) .Release.Namespace .Values.service.port) }}
{{- end }}

{{/* What is on. Each gives `true` or nothing. */}}

{{- define "aptmesh.hasVolumeEach" -}}
{{- if eq .Values.mode "statefulset" }}true{{ end }}
{{- end }}

{{/* The open swarm has no key. */}}
{{- define "aptmesh.hasSwarmKey" -}}
{{- if and .Values.swarm.enabled (ne (toString .Values.settings.swarm.open) "true") }}true{{ end }}
{{- end }}

{{- define "aptmesh.makesSwarmKey" -}}
{{- if and (include "aptmesh.hasSwarmKey" .) (not .Values.swarm.existingSecret) }}true{{ end }}
{{- end }}

{{/* Whether somebody fetches from replicas: other sites, or fellows with a volume of their own. */}}
{{- define "aptmesh.givesToPeers" -}}
{{- if or .Values.swarm.enabled (include "aptmesh.hasVolumeEach" .) }}true{{ end }}
{{- end }}

{{/* Values that contradict each other, told before anything is made. */}}
{{- define "aptmesh.check" -}}
{{- if not (or .Values.postgresql.enabled .Values.index.existingSecret) }}
{{- fail "\n\nReplicas share an index in PostgreSQL. Name the Secret with its URL:\n  kubectl create secret generic aptmesh-index --from-literal=url=postgres://USER:PASSWORD@HOST/DATABASE\n  helm install … --set index.existingSecret=aptmesh-index\nor try it out with --set postgresql.enabled=true\n" }}
{{- end }}
{{- if and .Values.postgresql.enabled .Values.index.existingSecret }}
{{- fail "postgresql.enabled and index.existingSecret: which of the two?" }}
{{- end }}
{{- if and .Values.postgresql.enabled .Values.migration.existingSecret }}
{{- fail "migration.existingSecret is for a database of yours; with postgresql.enabled, replicas' own user changes the tables" }}
{{- end }}
{{- if and (eq .Values.mode "deployment") (not .Values.persistence.enabled) }}
{{- fail "mode: deployment has one volume for all replicas; without persistence, use mode: statefulset" }}
{{- end }}
{{- if and (include "aptmesh.hasVolumeEach" .) .Values.persistence.existingClaim }}
{{- fail "persistence.existingClaim is one volume, and mode: statefulset has one for each replica: use mode: deployment" }}
{{- end }}
{{- if and .Values.client.daemonSet.enabled (not .Values.client.url) }}
{{- fail "client.daemonSet.enabled needs client.url: nodes can not resolve the Service's name" }}
{{- end }}
{{- end }}

{{/* A setting as text: lists joined by commas, numbers without an exponent. */}}
{{- define "aptmesh.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "float64" . }}{{ int64 . }}
{{- else if not (kindIs "invalid" .) }}{{ toString . }}
{{- end }}
{{- end }}

{{/* The settings, and what follows from other values, as JSON. */}}
{{- define "aptmesh.settings" -}}
{{- $settings := deepCopy .Values.settings }}
{{- $store := $settings.store | default dict }}
{{- $isBounded := or (include "aptmesh.text" $store.quota) (include "aptmesh.text" $store.min_free) }}
{{- if not (or .Values.persistence.enabled $isBounded) }}
{{- /* An emptyDir is on the node's own disk. There kubelets remove images from 15 % free on, and evict pods from 10 %,
       so the program's default of 5 % would be too late. */}}
{{- $_ := set $settings "store" (merge (dict "min_free" "25%") $store) }}
{{- end }}
{{- toJson $settings }}
{{- end }}

{{/* The settings file. A string of JSON is one of TOML. */}}
{{- define "aptmesh.toml" -}}
{{- range $section, $settings := include "aptmesh.settings" . | fromJson }}
{{- $lines := list }}
{{- range $name, $value := $settings }}
{{- with include "aptmesh.text" $value }}
{{- $lines = append $lines (printf "%s = %s" $name (toJson .)) }}
{{- end }}
{{- end }}
{{- if and $lines (or $.Values.swarm.enabled (ne $section "swarm")) }}
{{ printf "[%s]" $section }}
{{ join "\n" $lines }}
{{- end }}
{{- end }}
{{- end }}
