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
