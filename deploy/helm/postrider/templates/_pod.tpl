{{/* What the pods of all components have in common. */}}

{{/* Variables of the environment that say where the configuration is, and that hold what may not be in it; takes
(list root keys), keys being those of the installation that the component needs. */}}
{{- define "postrider.env" -}}
{{- $root := first . -}}
{{- $keys := index . 1 -}}
{{- $values := $root.Values -}}
- name: POSTRIDER_CONFIG
  value: /etc/postrider/config/postrider.toml
{{- if has "operator" $keys }}
- name: POSTRIDER_INGEST__OPERATOR_KEY__FILE
  value: /etc/postrider/keys/{{ $values.keys.operatorKey }}
{{- end }}
{{- if has "encryption" $keys }}
- name: POSTRIDER_KEYS__ENCRYPTION__FILE
  value: /etc/postrider/keys/{{ $values.keys.encryptionKey }}
{{- end }}
{{- if $values.kafka.sasl.mechanism }}
- name: POSTRIDER_KAFKA__SASL_USERNAME
  valueFrom:
    secretKeyRef:
      name: {{ $values.kafka.sasl.existingSecret }}
      key: {{ $values.kafka.sasl.usernameKey }}
- name: POSTRIDER_KAFKA__SASL_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $values.kafka.sasl.existingSecret }}
      key: {{ $values.kafka.sasl.passwordKey }}
{{- end }}
{{- if and $values.kafka.tls.enabled $values.kafka.tls.keyPasswordKey }}
- name: POSTRIDER_KAFKA__SSL_KEY_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $values.kafka.tls.existingSecret }}
      key: {{ $values.kafka.tls.keyPasswordKey }}
{{- end }}
{{- end }}

{{/* Takes (list root keys). */}}
{{- define "postrider.volumeMounts" -}}
{{- $values := (first .).Values -}}
- name: config
  mountPath: /etc/postrider/config
  readOnly: true
{{- if index . 1 }}
- name: keys
  mountPath: /etc/postrider/keys
  readOnly: true
{{- end }}
{{- if and $values.kafka.tls.enabled $values.kafka.tls.existingSecret }}
- name: kafka-tls
  mountPath: /etc/postrider/kafka-tls
  readOnly: true
{{- end }}
{{- end }}

{{/* Takes (list root keys configMap). */}}
{{- define "postrider.volumes" -}}
{{- $values := (first .).Values -}}
{{- $keys := index . 1 -}}
- name: config
  configMap:
    name: {{ index . 2 }}
{{- if $keys }}
- name: keys
  secret:
    secretName: {{ $values.keys.existingSecret }}
    defaultMode: 0440
    items:
      {{- if has "operator" $keys }}
      - key: {{ $values.keys.operatorKey }}
        path: {{ $values.keys.operatorKey }}
      {{- end }}
      {{- if has "encryption" $keys }}
      - key: {{ $values.keys.encryptionKey }}
        path: {{ $values.keys.encryptionKey }}
      {{- end }}
{{- end }}
{{- if and $values.kafka.tls.enabled $values.kafka.tls.existingSecret }}
- name: kafka-tls
  secret:
    secretName: {{ $values.kafka.tls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* What the chart sets for every pod, whatever it runs; takes root. */}}
{{- define "postrider.podCommon" -}}
# Nothing in here asks the API of Kubernetes.
automountServiceAccountToken: false
# A Service called postrider would leave variables that begin like our own.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{/* How pods spread; takes (list root component constraints). Old and new pods of a rollout are counted apart. */}}
{{- define "postrider.spread" -}}
{{- $selector := dict "matchLabels" (include "postrider.selectorLabels" (list (first .) (index . 1)) | fromYaml) -}}
{{- $spread := list -}}
{{- range index . 2 -}}
{{- $spread = append $spread (merge (deepCopy .) (dict "labelSelector" $selector "matchLabelKeys" (list "pod-template-hash"))) -}}
{{- end -}}
{{- toYaml $spread -}}
{{- end }}

{{/* The template of a component's pods; takes (dict "root" "component" "values" "args" "keys" "ports" "env"). */}}
{{- define "postrider.podTemplate" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{- $preStop := $values.preStopSeconds | default 0 | int -}}
{{- $grace := add $preStop (include "postrider.drainSeconds" (list $root .component)) (include "postrider.graceSlackSeconds" $root) -}}
metadata:
  labels:
    {{- include "postrider.podLabels" (list $root .component) | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # A changed configuration is a new pod.
    checksum/config: {{ include "postrider.configFile" $root | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "postrider.podCommon" $root | nindent 2 }}
  serviceAccountName: {{ include "postrider.serviceAccountName" $root }}
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds | default $grace }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- include "postrider.spread" (list $root $.component .) | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "postrider.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        {{- toYaml (concat .args $values.extraArgs) | nindent 8 }}
      env:
        {{- include "postrider.env" (list $root .keys) | nindent 8 }}
        {{- with .env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- range .ports }}
        - name: {{ .name }}
          containerPort: {{ .port }}
        {{- end }}
      livenessProbe:
        {{- toYaml $root.Values.livenessProbe | nindent 8 }}
      readinessProbe:
        {{- toYaml $root.Values.readinessProbe | nindent 8 }}
      {{- if $preStop }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $preStop }}
      {{- end }}
      resources:
        {{- toYaml $values.resources | nindent 8 }}
      securityContext:
        {{- toYaml $root.Values.securityContext | nindent 8 }}
      volumeMounts:
        {{- include "postrider.volumeMounts" (list $root .keys) | nindent 8 }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "postrider.volumes" (list $root .keys (printf "%s-config" (include "postrider.fullname" $root))) | nindent 4 }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
