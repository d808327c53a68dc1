{{/* Names, labels and images. */}}

{{- define "postrider.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* What all names begin with; short enough for what is added behind. */}}
{{- define "postrider.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- $name := include "postrider.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Never changes for a release: selectors cannot be changed. Takes (list root component). */}}
{{- define "postrider.selectorLabels" -}}
app.kubernetes.io/name: {{ include "postrider.name" (first .) }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* Takes (list root component); the component may be empty. */}}
{{- define "postrider.labels" -}}
{{- $root := first . -}}
{{ include "postrider.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: postrider
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Without versions: a new chart that changes nothing in a pod shall not replace it. Takes (list root component). */}}
{{- define "postrider.podLabels" -}}
{{ include "postrider.selectorLabels" . }}
app.kubernetes.io/part-of: postrider
{{- with (first .).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "postrider.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end }}
{{- end }}
{{- end }}

{{- define "postrider.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "postrider.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* Whether the Job that creates the topics runs as a hook, before the release's own objects are there. */}}
{{- define "postrider.topicsHook" -}}
{{- if and (eq .Values.topics.create "job") .Values.topics.hook }}true{{ end }}
{{- end }}

{{/* Takes (list root weight): annotations of the topics Job and of what it needs. */}}
{{- define "postrider.hookAnnotations" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
