{{- define "veilrec.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "veilrec.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "veilrec.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "veilrec.environment" -}}
- {name: FLWR_TELEMETRY_ENABLED, value: "0"}
- {name: FLWR_DISABLE_UPDATE_CHECK, value: "1"}
- {name: FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION, value: "1"}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: VEILREC_PASSPHRASE_FILE, value: /run/veilrec-passphrase/passphrase}
{{- end }}

{{- define "veilrec.container" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Of a pod: {root, part, user}. 10010 may open the socket; the volumes are set to it when they are first mounted. */}}
{{- define "veilrec.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: 10010
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "veilrec.metadata" -}}
labels:
  {{- include "veilrec.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .part }}
{{- with .root.Values.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "veilrec.match" -}}
matchLabels:
  {{- include "veilrec.selector" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- /* On the agent's machine: its socket, and volumes that one machine mounts, are there only. */}}
{{- define "veilrec.beside-agent" -}}
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          {{- include "veilrec.match" (dict "root" . "part" "agent") | nindent 10 }}
{{- end }}

{{- /* A Secret's file can be read by its group; Veilrec takes secrets only from files of mode 0600. */}}
{{- define "veilrec.copy-secrets" -}}
- name: secrets
  image: {{ include "veilrec.image" .root | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [install, -m, "0600", {{ range .files }}/secret/{{ . }}, {{ end }}-t, {{ .to }}]
  securityContext: {{- include "veilrec.container" . | nindent 4 }}
  resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
  volumeMounts:
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: secrets, mountPath: {{ .to }}}
{{- end }}

{{- define "veilrec.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int .gpu.count) 0 -}}
{{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (int .gpu.count)) ($resources.limits | default dict)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- define "veilrec.claim" -}}
{{- $persistence := (index .root.Values .part).persistence -}}
{{ $persistence.existingClaim | default (printf "%s-%s" .root.Release.Name .part) }}
{{- end }}
