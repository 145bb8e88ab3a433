{{/* The decider's objects are called the same in every release: agents and webhooks know them by name. */}}
{{- define "infer.name" -}}infer-decider{{- end }}

{{- define "infer.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "infer.selector" . }}
{{- end }}

{{- define "infer.selector" -}}
app.kubernetes.io/name: infer-decider
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "infer.priorityClass" -}}
{{- if .Values.priorityClassName }}{{ .Values.priorityClassName }}{{ else if .Values.createPriorityClass }}infer-decider{{ end }}
{{- end }}

{{/* What the decider may do with bindings, targets and Pods: the same rules cluster-wide or per namespace. */}}
{{- define "infer.rules" -}}
{{ .Files.Get "files/rbac/targets.yaml" }}
{{- with .Values.targets.extraRules }}
{{ toYaml . }}
{{- end }}
{{- end }}
