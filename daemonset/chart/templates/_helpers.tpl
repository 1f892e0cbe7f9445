{{/* The labels of an object; the argument is its component, or "". */}}
{{- define "culvert.labels" -}}
app.kubernetes.io/name: culvert
{{- with . }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/part-of: culvert
{{- end }}

{{/* The labels by which the pods of a component are found. */}}
{{- define "culvert.selector" -}}
app.kubernetes.io/name: culvert
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "culvert.image" -}}
image: {{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* Where the agent finds the CA. */}}
{{- define "culvert.caAddress" -}}
{{- if .Values.ca.address }}{{ .Values.ca.address }}
{{- else if eq .Values.ca.type "istio" }}istiod.istio-system.svc:15012
{{- else }}culvert-ca.{{ .Values.namespace }}.svc:15012
{{- end }}
{{- end }}
