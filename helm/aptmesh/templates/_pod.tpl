{{/* What every pod of the chart has. */}}
{{- define "aptmesh.podDefaults" -}}
# Of each Service there would be a dozen variables, `APTMESH_…` among them, where settings are looked for.
enableServiceLinks: false
automountServiceAccountToken: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "aptmesh.container" -}}
image: {{ include "aptmesh.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end }}

{{/* What replicas and nodes of the swarm have in common. */}}
{{- define "aptmesh.commonEnv" -}}
- name: APTMESH_DATA_DIR
  value: /var/lib/aptmesh
- name: APTMESH_INDEX_URL_FILE
  value: /run/secrets/aptmesh/index-url
{{- if include "aptmesh.hasSwarmKey" . }}
- name: APTMESH_SWARM_KEY_FILE
  value: /run/secrets/aptmesh/swarm-key
{{- end }}
{{- end }}

{{- define "aptmesh.mounts" -}}
- name: data
  mountPath: /var/lib/aptmesh
- name: settings
  mountPath: /etc/aptmesh
  readOnly: true
- name: secrets
  mountPath: /run/secrets/aptmesh
  readOnly: true
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* `aptmesh migrate`, which needs the database and nothing else. */}}
{{- define "aptmesh.migrate" -}}
name: migrate
{{ include "aptmesh.container" . }}
args: [migrate]
env:
  - name: APTMESH_INDEX_URL_FILE
    value: /run/secrets/aptmesh/index-url
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources:
  {{- toYaml .Values.migration.resources | nindent 2 }}
volumeMounts:
  - name: secrets
    mountPath: /run/secrets/aptmesh
    readOnly: true
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Whether a container is alive. It may take some time to find what a large volume holds; after that, it answers. */}}
{{- define "aptmesh.livenessProbes" -}}
startupProbe:
  httpGet: {path: /livez, port: {{ . }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{/* A replica: the proxy, and beside it the swarm's node. */}}
{{- define "aptmesh.pod" -}}
metadata:
  labels:
    {{- include "aptmesh.labels" (dict "root" . "component" "proxy") | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: proxy
    # Settings are read at the start: a change makes new replicas.
    checksum/settings: {{ include "aptmesh.toml" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "aptmesh.podDefaults" . | nindent 2 }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  # A replica that is told to go says that it is not ready, and serves on for `listen.drain_delay`: no preStop is needed.
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- if .Values.postgresql.enabled }}
  # The bundled database comes up together with the replicas, too late for a hook before them; and a hook after them
  # would wait, with `helm install --wait`, for replicas that wait for it. Several at once are safe.
  initContainers:
    - {{- include "aptmesh.migrate" . | nindent 6 }}
  {{- end }}
  containers:
    - name: proxy
      {{- include "aptmesh.container" . | nindent 6 }}
      args: [proxy]
      env:
        {{- include "aptmesh.commonEnv" . | nindent 8 }}
        - name: APTMESH_LISTEN_PROXY
          value: "[::]:9977,[::]:3142"
        - name: APTMESH_LISTEN_ADMIN
          value: "[::]:9978"
        - name: APTMESH_LISTEN_PEER
          value: "[::]:9979"
        {{- if .Values.swarm.enabled }}
        - name: APTMESH_PROXY_SIDECAR
          value: http://127.0.0.1:9981
        {{- end }}
        {{- if include "aptmesh.hasVolumeEach" . }}
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: APTMESH_PROXY_ADVERTISE
          value: http://$(POD_NAME).{{ include "aptmesh.headless" . }}.{{ .Release.Namespace }}.svc:9979
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: proxy
          containerPort: 9977
        - name: proxy-auto
          containerPort: 3142
        - name: admin
          containerPort: 9978
        {{- if include "aptmesh.givesToPeers" . }}
        - name: peer
          containerPort: 9979
        {{- end }}
      {{- include "aptmesh.livenessProbes" "admin" | nindent 6 }}
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        periodSeconds: 3
        timeoutSeconds: 3
        failureThreshold: 2
      resources:
        {{- toYaml .Values.proxy.resources | nindent 8 }}
      volumeMounts:
        {{- include "aptmesh.mounts" . | nindent 8 }}
    {{- if .Values.swarm.enabled }}
    - name: dht
      {{- include "aptmesh.container" . | nindent 6 }}
      args: [dht]
      env:
        {{- include "aptmesh.commonEnv" . | nindent 8 }}
        # The proxy beside it has 9978.
        - name: APTMESH_LISTEN_ADMIN
          value: "[::]:9982"
        - name: APTMESH_LISTEN_DHT
          value: "0.0.0.0:9980,[::]:9980"
        - name: APTMESH_LISTEN_SIDECAR
          value: 127.0.0.1:9981
        - name: APTMESH_LISTEN_PEER
          value: "[::]:9979"
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: dht
          containerPort: 9980
        - name: dht-admin
          containerPort: 9982
      # No readinessProbe: the node is not ready while it finds no other one, and that would take the proxy out of the
      # Service, which serves clients without a swarm.
      {{- include "aptmesh.livenessProbes" "dht-admin" | nindent 6 }}
      resources:
        {{- toYaml .Values.dht.resources | nindent 8 }}
      volumeMounts:
        {{- include "aptmesh.mounts" . | nindent 8 }}
    {{- end }}
  volumes:
    - name: settings
      configMap:
        name: {{ include "aptmesh.fullname" . }}
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          - secret:
              name: {{ include "aptmesh.indexSecret" . }}
              items: [{key: {{ include "aptmesh.indexSecretKey" . }}, path: index-url}]
          {{- if include "aptmesh.hasSwarmKey" . }}
          - secret:
              name: {{ .Values.swarm.existingSecret | default (printf "%s-swarm" (include "aptmesh.fullname" .)) }}
              items: [{key: {{ ternary .Values.swarm.existingSecretKey "key" (not (empty .Values.swarm.existingSecret)) }}, path: swarm-key}]
          {{- end }}
    {{- if not .Values.persistence.enabled }}
    - name: data
      emptyDir: {}
    {{- else if not (include "aptmesh.hasVolumeEach" .) }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ .Values.persistence.existingClaim | default (include "aptmesh.fullname" .) }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if .Values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range .Values.topologySpread.topologyKeys }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: {{ $.Values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "aptmesh.selectorLabels" (dict "root" $ "component" "proxy") | nindent 10 }}
      {{- if not (include "aptmesh.hasVolumeEach" $) }}
      # Of a rollout's two generations each is spread by itself.
      matchLabelKeys: [pod-template-hash]
      {{- end }}
    {{- end }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
