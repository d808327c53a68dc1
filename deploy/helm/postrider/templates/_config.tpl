{{/* The configuration file, and what the chart reads out of it. */}}

{{/* A key as TOML: in quotes if it has dots. */}}
{{- define "postrider.tomlKey" -}}
{{- ternary . (toJson .) (regexMatch "^[A-Za-z0-9_-]+$" .) -}}
{{- end }}

{{/* A tree as TOML; takes (dict "path" "" "table" tree). Text, numbers, bools and lists look the same in JSON. */}}
{{- define "postrider.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .table -}}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ include "postrider.tomlKey" $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{- $inner := include "postrider.tomlKey" $key }}
{{- if $path }}{{ $inner = printf "%s.%s" $path $inner }}{{ end }}
[{{ $inner }}]
{{- include "postrider.toml" (dict "path" $inner "table" $value) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "postrider.configFile" -}}
{{- $kafka := dict "prefix" .Values.kafka.prefix "bootstrap.servers" .Values.kafka.bootstrapServers -}}
{{- $tls := .Values.kafka.tls -}}
{{- $sasl := .Values.kafka.sasl -}}
{{- if or $tls.enabled $sasl.mechanism -}}
{{- $transport := ternary "SSL" "PLAINTEXT" $tls.enabled -}}
{{- $_ := set $kafka "security.protocol" (ternary (printf "SASL_%s" $transport) $transport (not (empty $sasl.mechanism))) -}}
{{- end -}}
{{- with $sasl.mechanism -}}
{{- $_ := set $kafka "sasl.mechanism" . -}}
{{- end -}}
{{- if $tls.enabled -}}
{{- $directory := "/etc/postrider/kafka-tls" -}}
{{- /* librdkafka looks for the system's authorities only when it is told to. */ -}}
{{- $_ := set $kafka "ssl.ca.location" "probe" -}}
{{- if and $tls.existingSecret $tls.caKey -}}
{{- $_ := set $kafka "ssl.ca.location" (printf "%s/%s" $directory $tls.caKey) -}}
{{- end -}}
{{- with $tls.certKey -}}
{{- $_ := set $kafka "ssl.certificate.location" (printf "%s/%s" $directory .) -}}
{{- end -}}
{{- with $tls.keyKey -}}
{{- $_ := set $kafka "ssl.key.location" (printf "%s/%s" $directory .) -}}
{{- end -}}
{{- end -}}
{{- $kafka = merge $kafka .Values.kafka.properties -}}
{{- include "postrider.toml" (dict "path" "" "table" (merge (dict "kafka" $kafka) (deepCopy .Values.config))) | trim }}
{{- end }}

{{- define "postrider.partitions" -}}
{{- dig "topics" "partitions" 12 .Values.config | int -}}
{{- end }}

{{/* How long a process of this component may need to end after SIGTERM; takes (list root component). The API lets requests
end for 15 s and waits 5 s for Kafka; the stages drain as configured. Then the registry, traces and the log close. */}}
{{- define "postrider.drainSeconds" -}}
{{- if eq (index . 1) "ingest" -}}
20
{{- else if eq (index . 1) "deliver" -}}
{{- divf (dig "delivery" "stage" "stop_drain_ms" 25000 (first .).Values.config) 1000 | ceil -}}
{{- else -}}
5
{{- end -}}
{{- end }}

{{/* What a pod needs beyond the drain: closing, and a busy node. */}}
{{- define "postrider.graceSlackSeconds" -}}15{{- end }}

{{/* Port of the OTLP collector; nothing when no traces are exported. */}}
{{- define "postrider.otlpPort" -}}
{{- with dig "telemetry" "otlp_endpoint" "" .Values.config -}}
{{- $parts := urlParse . -}}
{{- if contains ":" (regexReplaceAll "\\[.*\\]" $parts.host "") -}}
{{- regexFind "[0-9]+$" $parts.host -}}
{{- else -}}
{{- ternary 443 80 (eq $parts.scheme "https") -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Ports of the brokers, as JSON. */}}
{{- define "postrider.kafkaPorts" -}}
{{- $ports := .Values.networkPolicy.kafka.ports -}}
{{- if not $ports -}}
{{- range splitList "," .Values.kafka.bootstrapServers -}}
{{- $ports = append $ports (regexFind "[0-9]+$" (trim .) | default "9092" | int) -}}
{{- end -}}
{{- end -}}
{{- toJson ($ports | uniq) -}}
{{- end }}
