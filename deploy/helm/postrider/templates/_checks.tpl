{{/* What the schema cannot say: values that contradict each other. Each line says what to do. */}}
{{- define "postrider.checks" -}}
{{- $wrong := list -}}
{{- $values := .Values -}}

{{- if not $values.kafka.bootstrapServers -}}
{{- $wrong = append $wrong "kafka.bootstrapServers is not set: name the brokers, such as kafka-1:9092,kafka-2:9092" -}}
{{- end -}}
{{- if not $values.keys.existingSecret -}}
{{- $wrong = append $wrong (printf "keys.existingSecret is not set: make a Secret with the keys %s and %s, as the chart's README says, and name it" $values.keys.operatorKey $values.keys.encryptionKey) -}}
{{- end -}}
{{- if and $values.kafka.sasl.mechanism (not $values.kafka.sasl.existingSecret) -}}
{{- $wrong = append $wrong "kafka.sasl.existingSecret is not set: kafka.sasl.mechanism needs a Secret with user name and password" -}}
{{- end -}}
{{- $tls := $values.kafka.tls -}}
{{- if and (or $tls.certKey $tls.keyKey $tls.keyPasswordKey) (not (and $tls.enabled $tls.existingSecret)) -}}
{{- $wrong = append $wrong "kafka.tls.certKey, keyKey and keyPasswordKey name keys of kafka.tls.existingSecret: set it, and kafka.tls.enabled" -}}
{{- end -}}
{{- if ne (empty $tls.certKey) (empty $tls.keyKey) -}}
{{- $wrong = append $wrong "kafka.tls.certKey and kafka.tls.keyKey belong together: set both or none" -}}
{{- end -}}
{{- range $name, $_ := $values.kafka.properties -}}
{{- if has $name (list "bootstrap.servers" "security.protocol" "sasl.mechanism" "sasl.mechanisms" "ssl.ca.location" "ssl.certificate.location" "ssl.key.location" "prefix") -}}
{{- $wrong = append $wrong (printf "kafka.properties.%s is written by the chart: use kafka.bootstrapServers, kafka.prefix, kafka.sasl and kafka.tls" $name) -}}
{{- else if regexMatch "password|secret|pem|jaas|token|credential|username" $name -}}
{{- $wrong = append $wrong (printf "kafka.properties.%s would show in a ConfigMap: use kafka.sasl or kafka.tls, or a variable from a Secret in extraEnv" $name) -}}
{{- end -}}
{{- end -}}
{{- if hasKey (dig "ingest" dict $values.config) "operator_key" -}}
{{- $wrong = append $wrong "config.ingest.operator_key would show in a ConfigMap: it comes from keys.existingSecret" -}}
{{- end -}}

{{- $partitions := include "postrider.partitions" . | int -}}
{{- $deliver := $values.deliver -}}
{{- if $deliver.keda.enabled -}}
{{- if gt (int $deliver.keda.maxReplicas) $partitions -}}
{{- $wrong = append $wrong (printf "deliver.keda.maxReplicas is %d, but there are %d partitions (config.topics.partitions): more pods would have nothing to do" (int $deliver.keda.maxReplicas) $partitions) -}}
{{- end -}}
{{- if gt (int $deliver.keda.minReplicas) (int $deliver.keda.maxReplicas) -}}
{{- $wrong = append $wrong "deliver.keda.minReplicas is above deliver.keda.maxReplicas" -}}
{{- end -}}
{{- if not $deliver.keda.prometheusAddress -}}
{{- $wrong = append $wrong "deliver.keda.prometheusAddress is not set: KEDA asks Prometheus how long deliveries wait" -}}
{{- end -}}
{{- if not (or $values.exporter.enabled $deliver.keda.query) -}}
{{- $wrong = append $wrong "deliver.keda scales on what the exporter measures: set exporter.enabled, or deliver.keda.query" -}}
{{- end -}}
{{- else if gt (int $deliver.replicas) $partitions -}}
{{- $wrong = append $wrong (printf "deliver.replicas is %d, but there are %d partitions (config.topics.partitions): more pods would have nothing to do" (int $deliver.replicas) $partitions) -}}
{{- end -}}
{{- $scaling := $values.ingest.autoscaling -}}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- $wrong = append $wrong "ingest.autoscaling.minReplicas is above ingest.autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and $scaling.enabled (not (dig "requests" "cpu" "" $values.ingest.resources)) -}}
{{- $wrong = append $wrong "ingest.autoscaling measures CPU in percent of ingest.resources.requests.cpu: set it" -}}
{{- end -}}

{{- range $component := list "ingest" "deliver" -}}
{{- $part := get $values $component -}}
{{- with $part.terminationGracePeriodSeconds -}}
{{- $least := add (int $part.preStopSeconds) (include "postrider.drainSeconds" (list $ $component)) 5 -}}
{{- if lt (int .) (int $least) -}}
{{- $wrong = append $wrong (printf "%s.terminationGracePeriodSeconds is %d, but ending takes up to %d s (preStopSeconds, the drain, and 5 s to close): what is under way would be cut" $component (int .) $least) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if and $values.ingress.enabled (not $values.ingress.hosts) -}}
{{- $wrong = append $wrong "ingress.hosts is empty: name at least one host" -}}
{{- end -}}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) -}}
{{- $wrong = append $wrong "httpRoute.parentRefs is empty: name the Gateway" -}}
{{- end -}}
{{- if and (eq $values.topics.create "strimzi") (not $values.topics.strimzi.cluster) -}}
{{- $wrong = append $wrong "topics.strimzi.cluster is not set: name the Kafka resource" -}}
{{- end -}}

{{- with $wrong -}}
{{- fail (printf "these values cannot work:\n  - %s" (join "\n  - " .)) -}}
{{- end -}}
{{- end }}
