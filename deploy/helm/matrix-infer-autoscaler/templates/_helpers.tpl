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
- apiGroups: [autoscaling.matrixinfer.ai]
  resources: [autoscalingpolicies, autoscalingpolicybindings]
  verbs: [get, list, watch]
- apiGroups: [autoscaling.matrixinfer.ai]
  resources: [autoscalingpolicies/status, autoscalingpolicybindings/status]
  verbs: [patch, update]
- apiGroups: [""]
  resources: [pods]
  # patch: controller.kubernetes.io/pod-deletion-cost on Pods chosen to go.
  verbs: [get, list, watch, patch]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [deployments/scale, statefulsets/scale]
  verbs: [get, patch]
{{- if .Values.targets.leaderWorkerSets }}
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get, list, watch]
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets/scale]
  verbs: [get, patch]
{{- end }}
{{- if .Values.targets.modelServings }}
- apiGroups: [workload.serving.volcano.sh, workload.matrixinfer.ai]
  resources: [modelservings, modelinfers]
  # patch: roles of one object scale through paths in it.
  verbs: [get, list, watch, patch]
- apiGroups: [workload.serving.volcano.sh, workload.matrixinfer.ai]
  resources: [modelservings/scale, modelinfers/scale]
  verbs: [get, patch]
{{- end }}
# Others that scale: whoever has a target keeps it.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, watch]
- apiGroups: [autoscaling.internal.knative.dev]
  resources: [podautoscalers]
  verbs: [get, list, watch]
- apiGroups: [workload.serving.volcano.sh]
  resources: [autoscalingpolicybindings]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- with .Values.targets.extraRules }}
{{ toYaml . }}
{{- end }}
{{- end }}
