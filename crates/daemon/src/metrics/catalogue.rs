//! Every metric of every role: its name, kind, labels, help, and who declares it.
//!
//! A metric exists by being listed here, and is declared in a process's registry by the methods of
//! its [`Metric`]. From the list docs/metrics.md is made, and against it dashboards and rules are
//! checked. Labels are bounded: never a URL, and an id only where the exporter shows its few worst.

use prometheus::Registry;

use super::declare::Metric;

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process unless the help says otherwise.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

impl Kind {
    /// As Prometheus writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The part of the program that declares a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The process itself.
    Process,
    /// The view of the registry.
    Registry,
    /// The topics, as every role looks at them.
    Topics,
    /// The clock of the machine, against the log's.
    Clock,
    /// The clients of Kafka.
    Kafka,
    /// The embedded log.
    Embedded,
    /// The API.
    Ingest,
    /// Fan-out, deliver and the scheduler.
    Delivery,
    /// What the topics look like from outside.
    Exporter,
}

impl Part {
    /// Every part, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Exporter,
        Self::Ingest,
        Self::Delivery,
        Self::Registry,
        Self::Topics,
        Self::Clock,
        Self::Kafka,
        Self::Embedded,
        Self::Process,
    ];

    /// The roles that show its metrics. `up` shows those of every part but Kafka's, and the
    /// embedded log's alone.
    pub fn roles(self) -> &'static [&'static str] {
        match self {
            Self::Process | Self::Registry | Self::Topics | Self::Kafka => {
                &["ingest", "deliver", "exporter"]
            }
            Self::Ingest => &["ingest"],
            Self::Delivery | Self::Clock => &["deliver"],
            Self::Exporter => &["exporter"],
            Self::Embedded => &["up"],
        }
    }
}

const REQUEST_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const LATENCY_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0, 3_600.0, 86_400.0,
];
const LOOP_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

macro_rules! catalogue {
    ($($constant:ident = $part:ident $kind:ident $name:literal [$($label:literal)*] $(in $buckets:ident)? $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
                part: Part::$part,
                buckets: catalogue!(@buckets $($buckets)?),
            };
        )*

        /// Every metric.
        pub static ALL: &[&Metric] = &[$(&$constant),*];
    };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
}

catalogue! {
    // How far each group is, and what waits.
    CONSUMER_LAG_RECORDS = Exporter Gauge "postrider_consumer_lag_records" ["group" "topic" "partition"]
        "Offsets between what a group has committed and the end of the partition";
    CONSUMER_LAG_SECONDS = Exporter Gauge "postrider_consumer_lag_seconds" ["group" "topic" "partition"]
        "Age of the oldest record that a group has not committed; 0 if there is none";
    CONSUMER_LOST_RECORDS = Exporter Gauge "postrider_consumer_lost_records" ["group" "topic" "partition"]
        "Offsets that retention took before the group had committed them, until it goes on";
    TOPIC_END_OFFSET = Exporter Gauge "postrider_topic_end_offset" ["topic" "partition"]
        "The offset that the next record gets; its rate is the rate of appends";
    READY_AGE_SECONDS = Exporter Gauge "postrider_deliveries_ready_age_seconds" ["partition"]
        "Age of the oldest delivery that could be attempted now and has not been settled; retries and what waits for a paused, disabled or deleted endpoint or for a lane that is behind are left out; 0 if there is none";
    LANES_BEHIND = Exporter Gauge "postrider_lanes_behind" ["cause"]
        "Endpoints whose backlog stays in the log, by cause: paused, disabled, failing, slow";
    LANES_BEHIND_AGE_SECONDS = Exporter Gauge "postrider_lanes_behind_age_seconds" ["cause"]
        "Age of the oldest unsettled delivery of an endpoint that is behind";
    LANES_BEHIND_OFFSETS = Exporter Gauge "postrider_lanes_behind_offsets" ["cause"]
        "Offsets between the cursor of the endpoint that is farthest behind and the end of its partition: at least as many as its deliveries";
    RETRIES_WAITING = Exporter Gauge "postrider_retries_waiting" ["delay_seconds"]
        "Deliveries that wait in the retry topic, by delay";
    RETRIES_DUE = Exporter Gauge "postrider_retries_due" ["delay_seconds" "within_seconds"]
        "Of those waiting, the ones that are due within 60, 300 and 3600 s, those overdue included";
    RETRIES_OVERDUE_SECONDS = Exporter Gauge "postrider_retries_overdue_seconds" []
        "For how long the retry that has waited longest past its due time has not been returned to deliveries; 0 if there is none";

    // What the records say. Counted once each, across restarts.
    RECORDED_ATTEMPTS = Exporter Counter "postrider_recorded_attempts_total" ["outcome" "reason"]
        "Attempts recorded in the log by outcome (succeeded, failed, interrupted) and reason; goes on across restarts";
    RECORDED_DELIVERIES = Exporter Counter "postrider_recorded_deliveries_total" ["outcome" "reason"]
        "Deliveries whose end is recorded in the log, by outcome (delivered, dead_lettered, dropped) and the reason of the last attempt; goes on across restarts";
    RECORDED_DEAD_LETTERS = Exporter Counter "postrider_recorded_dead_letters_total" ["reason"]
        "Dead letters in the log; goes on across restarts";
    RECORDED_DELIVERY_LATENCY = Exporter Histogram "postrider_recorded_delivery_latency_seconds" [] in LATENCY_BUCKETS
        "Time from acceptance to the success of a delivery, redrives and replays left out; goes on across restarts";
    RECORDED_FIRST_ATTEMPT_DELAY = Exporter Histogram "postrider_recorded_first_attempt_delay_seconds" [] in LATENCY_BUCKETS
        "Time from acceptance to the start of the first attempt, redrives and replays left out: the part that is ours; goes on across restarts";

    // The registry as a whole.
    ENDPOINTS = Exporter Gauge "postrider_endpoints" ["state"]
        "Endpoints by state: enabled, paused, disabled";
    ENDPOINTS_FAILING = Exporter Gauge "postrider_endpoints_failing" []
        "Endpoints at which nothing has succeeded since some attempt failed";
    BREAKERS_OPEN = Exporter Gauge "postrider_endpoints_breaker_open" []
        "Endpoints whose breaker is open or probes";
    TENANTS = Exporter Gauge "postrider_tenants" []
        "Tenants";
    REGISTRY_RECORDS = Exporter Gauge "postrider_registry_records" []
        "Offsets between the start and the end of the registry's topic";
    REGISTRY_LAST_WRITE = Exporter Gauge "postrider_registry_last_write_timestamp_seconds" []
        "When the last record was appended to the registry's topic";
    PAUSED = Exporter Gauge "postrider_installation_paused" []
        "1 while the whole installation is paused";

    // The few worst, over the last minutes.
    WORST_TENANT_FAILURES = Exporter Gauge "postrider_worst_tenant_failed_attempts" ["tenant"]
        "Failed attempts of the last five minutes, for the tenants with the most";
    WORST_ENDPOINT_FAILURES = Exporter Gauge "postrider_worst_endpoint_failed_attempts" ["tenant" "endpoint"]
        "Failed attempts of the last five minutes, for the endpoints with the most";
    BUSIEST_TENANT_ATTEMPTS = Exporter Gauge "postrider_busiest_tenant_attempts" ["tenant"]
        "Attempts of the last five minutes, for the tenants with the most";
    WORST_ENDPOINT_BEHIND = Exporter Gauge "postrider_worst_endpoint_behind_seconds" ["tenant" "endpoint"]
        "For how long an endpoint has been behind, for those that have been for longest";

    // Whether what the exporter shows is true now.
    COLLECTED_AT = Exporter Gauge "postrider_exporter_last_collection_timestamp_seconds" []
        "When everything the exporter shows was last gathered: if it does not move, the exporter is blind";
    COLLECTION_DURATION = Exporter Gauge "postrider_exporter_collection_duration_seconds" []
        "How long the last gathering took";
    COLLECTIONS_FAILED = Exporter Counter "postrider_exporter_collections_failed_total" []
        "Gatherings that failed, so that older values stayed";
    EXPORTER_UNCOUNTED = Exporter Gauge "postrider_exporter_uncounted_records" ["topic"]
        "Offsets of a topic that are not in the counters yet";
    EXPORTER_UNREADABLE = Exporter Counter "postrider_exporter_unreadable_records_total" ["topic"]
        "Records that the exporter did not understand and left out; goes on across restarts";

    EVENTS_ACCEPTED = Ingest Counter "postrider_events_accepted_total" []
        "Events that are durably in the log";
    EVENTS_REFUSED = Ingest Counter "postrider_events_refused_total" ["reason"]
        "Events not accepted";
    EVENTS_IN_FLIGHT = Ingest Gauge "postrider_events_in_flight" []
        "Events received and not yet acknowledged by the log";
    EVENTS_IN_FLIGHT_BYTES = Ingest Gauge "postrider_events_in_flight_bytes" []
        "Bytes reserved for events received and not yet acknowledged by the log";
    EVENTS_IN_FLIGHT_MAX = Ingest Gauge "postrider_events_in_flight_max" []
        "Events that may be in flight at present: fewer than configured while ingest or the log does not keep up";
    REQUESTS_IN_FLIGHT = Ingest Gauge "postrider_http_requests_in_flight" []
        "Requests under way";
    REQUEST_DURATION = Ingest Histogram "postrider_http_request_duration_seconds" ["method" "route" "status"] in REQUEST_BUCKETS
        "Time from the head of a request to the head of its answer; the status is a class such as 2xx";
    DEAD_LETTERS_REDRIVEN = Ingest Counter "postrider_dead_letters_redriven_total" []
        "Dead letters returned to deliveries";
    EVENTS_REPLAYED = Ingest Counter "postrider_events_replayed_total" []
        "Deliveries appended by replays";

    DELIVERIES = Delivery Counter "postrider_deliveries_total" ["outcome"]
        "Deliveries that ended here";
    ATTEMPTS = Delivery Counter "postrider_attempts_total" ["outcome" "reason"]
        "Attempts that ended here";
    ATTEMPT_DURATION = Delivery Histogram "postrider_attempt_duration_seconds" [] in LATENCY_BUCKETS
        "Duration of an attempt";
    DELIVERY_LATENCY = Delivery Histogram "postrider_delivery_latency_seconds" [] in LATENCY_BUCKETS
        "Time from acceptance to delivery";
    ATTEMPTS_IN_FLIGHT = Delivery Gauge "postrider_attempts_in_flight" []
        "Attempts under way";
    ATTEMPT_PERMITS = Delivery Gauge "postrider_attempt_permits" ["use"]
        "Attempts that may be under way at once, by use: held, free";
    LANES = Delivery Gauge "postrider_lanes" ["state"]
        "Lanes of this process by state: live, behind, paused (also disabled)";
    BREAKERS = Delivery Gauge "postrider_breakers" ["state"]
        "Breakers of this process's lanes by state: closed, open, half_open";
    QUEUED_DELIVERIES = Delivery Gauge "postrider_queued_deliveries" []
        "Deliveries that wait in memory for their attempt";
    QUEUED_BYTES = Delivery Gauge "postrider_queued_deliveries_bytes" []
        "Bytes of the deliveries in memory, those under way included";
    QUEUED_BYTES_MAX = Delivery Gauge "postrider_queued_deliveries_max_bytes" []
        "What they may take at most";
    PARTITIONS_OWNED = Delivery Gauge "postrider_partitions_owned" ["stage"]
        "Partitions that this process owns";
    NETWORK_DOWN = Delivery Gauge "postrider_network_down" []
        "1 while no endpoint can be reached, so that our own network seems down";
    EVENTS_ROUTED = Delivery Counter "postrider_events_routed_total" []
        "Events that fan-out routed";
    EVENTS_REPEATED = Delivery Counter "postrider_events_repeated_total" []
        "Events dropped because their id came before";
    EVENTS_REPEATED_CHANGED = Delivery Counter "postrider_events_repeated_changed_total" []
        "Events dropped because their id came before, although they say something else: type, data or ordering key differ";
    EVENTS_UNMATCHED = Delivery Counter "postrider_events_unmatched_total" []
        "Events that no endpoint wanted";
    DUPLICATES_DROPPED = Delivery Counter "postrider_delivery_duplicates_dropped_total" []
        "Records dropped because their step was settled already";
    RETRIES_RELEASED = Delivery Counter "postrider_retries_released_total" []
        "Retries that fell due and returned to deliveries";
    RETRY_LATENESS = Delivery Histogram "postrider_retry_lateness_seconds" [] in LATENCY_BUCKETS
        "Time from when a retry was due to its return to deliveries; of one that was postponed, from its later time";
    RETRIES_POSTPONED = Delivery Counter "postrider_retries_postponed_total" []
        "Times that a due retry got a later time because too many were due";
    RETRIES_HELD = Delivery Gauge "postrider_retries_held" []
        "Retries that were read and are in memory";
    RETRIES_HELD_BYTES = Delivery Gauge "postrider_retries_held_bytes" []
        "Bytes of the retries that were read and are in memory";
    DEAD_LETTERS = Delivery Counter "postrider_dead_letters_total" ["reason"]
        "Dead letters written";
    RECORDS_LOST = Delivery Counter "postrider_records_lost_total" ["topic"]
        "Records that retention took before they were read";
    PARTITIONS_STOPPED = Delivery Gauge "postrider_partitions_stopped" ["stage"]
        "Partitions that wait for an operator to decide where they go on";
    STAGE_RESTARTS = Delivery Counter "postrider_stage_restarts_total" ["stage"]
        "Stages that failed and were started again";

    REGISTRY_VIEW_AGE = Registry Gauge "postrider_registry_view_age_seconds" []
        "How long ago this process's view of the registry was last known to be current";
    REGISTRY_VIEW_POSITION = Registry Gauge "postrider_registry_view_position" []
        "The next offset of the registry's topic that this process reads";
    REGISTRY_STALE_RECORDS = Registry Gauge "postrider_registry_stale_records" []
        "Records of the registry that count no more and were not removed yet";
    REGISTRY_UNREADABLE = Registry Counter "postrider_registry_unreadable_records_total" []
        "Records of the registry whose key or value was not understood";
    REGISTRY_READ_FAILURES = Registry Counter "postrider_registry_read_failures_total" []
        "Reads of the registry that failed";
    REGISTRY_CONFLICTS = Registry Counter "postrider_registry_conflicts_total" []
        "Writes to the registry that another writer got ahead of";
    REGISTRY_UNSIGNABLE = Registry Gauge "postrider_registry_endpoints_unsignable" []
        "Endpoints with a signing secret that this process's keys do not open, so that it sends them nothing; not shown by `exporter`, which has no keys";
    REGISTRY_LOST = Registry Gauge "postrider_registry_lost" []
        "1 from when records of the registry are known to be lost until an operator accepts it";

    TOPIC_PARTITIONS_UNEXPECTED = Topics Gauge "postrider_topic_partitions_unexpected" ["topic"]
        "Partitions of a topic beyond those configured; below 0 if some are missing";

    CLOCK_SKEW = Clock Gauge "postrider_clock_skew_seconds" []
        "By how much this machine's clock is ahead of the log's; below 0 if behind, NaN while the log has not told its time";

    KAFKA_CONNECTED = Kafka Gauge "postrider_kafka_connected" ["client"]
        "1 while the clients of this name reach a broker, as far as is known without asking; `query` asks all the time";
    KAFKA_CLIENT_DEAD = Kafka Gauge "postrider_kafka_client_dead_seconds" ["client"]
        "For how long a client has been dead although brokers answer; 0 while it is not";
    KAFKA_CLIENTS_REPLACED = Kafka Counter "postrider_kafka_clients_replaced_total" ["client"]
        "Clients that were found dead and replaced";
    KAFKA_BROKERS = Kafka Gauge "postrider_kafka_brokers_connected" ["client"]
        "Brokers that the clients of this name are connected to";
    KAFKA_PRODUCER_QUEUE = Kafka Gauge "postrider_kafka_producer_queue_records" ["client"]
        "Records in the producer's queue or under way";
    KAFKA_PRODUCER_QUEUE_BYTES = Kafka Gauge "postrider_kafka_producer_queue_bytes" ["client"]
        "Bytes in the producer's queue or under way";
    KAFKA_CONSUMER_QUEUE = Kafka Gauge "postrider_kafka_consumer_queue_records" ["client"]
        "Records read ahead";
    KAFKA_CONSUMER_QUEUE_BYTES = Kafka Gauge "postrider_kafka_consumer_queue_bytes" ["client"]
        "Bytes read ahead";
    KAFKA_REQUESTS_IN_FLIGHT = Kafka Gauge "postrider_kafka_requests_in_flight" ["client"]
        "Requests that wait for a broker's answer or to be sent";
    KAFKA_ROUND_TRIP = Kafka Gauge "postrider_kafka_round_trip_seconds" ["client"]
        "The 99th percentile of the time that the slowest broker takes to answer";
    KAFKA_PRODUCE_REQUESTS = Kafka Counter "postrider_kafka_produce_requests_total" ["client"]
        "Requests that append records, each of one partition";
    KAFKA_SENT_RECORDS = Kafka Counter "postrider_kafka_sent_records_total" ["client"]
        "Records appended; how many a request carries is their rate by that of the requests";
    KAFKA_FETCH_REQUESTS = Kafka Counter "postrider_kafka_fetch_requests_total" ["client"]
        "Requests for records";
    KAFKA_RECEIVED_RECORDS = Kafka Counter "postrider_kafka_received_records_total" ["client"]
        "Records read";
    KAFKA_SENT_BYTES = Kafka Counter "postrider_kafka_sent_bytes_total" ["client"]
        "Bytes sent to brokers";
    KAFKA_RECEIVED_BYTES = Kafka Counter "postrider_kafka_received_bytes_total" ["client"]
        "Bytes received from brokers";
    KAFKA_REQUEST_ERRORS = Kafka Counter "postrider_kafka_request_errors_total" ["client"]
        "Requests that could not be sent, and answers that could not be read";
    KAFKA_REQUEST_TIMEOUTS = Kafka Counter "postrider_kafka_request_timeouts_total" ["client"]
        "Requests that no broker answered in time";
    KAFKA_REQUEST_RETRIES = Kafka Counter "postrider_kafka_request_retries_total" ["client"]
        "Requests that were sent again";
    KAFKA_REBALANCES = Kafka Counter "postrider_kafka_rebalances_total" ["client"]
        "Rebalances of the group that this process took part in";

    EMBEDDED_WRITABLE = Embedded Gauge "postrider_embedded_log_writable" []
        "0 while the log in the directory cannot be written, as on a full disk";

    BUILD_INFO = Process Gauge "postrider_build_info" ["version" "role"]
        "What is running; always 1";
    EVENT_LOOP_LAG = Process Histogram "postrider_event_loop_lag_seconds" [] in LOOP_BUCKETS
        "By how much a timer of the event loop fires late, measured ten times a second";
    LOG_LINES_DROPPED = Process Counter "postrider_log_lines_dropped_total" []
        "Lines of the log that were dropped because nobody read those before them";
    PROCESS_CPU = Process Counter "process_cpu_seconds_total" []
        "CPU time used";
    PROCESS_MEMORY = Process Gauge "process_resident_memory_bytes" []
        "Memory in use";
    PROCESS_THREADS = Process Gauge "process_threads" []
        "Number of threads";
    PROCESS_FILES = Process Gauge "process_open_fds" []
        "Number of open file descriptors";
    PROCESS_FILES_MAX = Process Gauge "process_max_fds" []
        "Limit of open file descriptors";
}

/// Every name under which Prometheus stores something: those of the metrics, and of a histogram its
/// three series.
pub fn series_names() -> Vec<String> {
    let mut names = Vec::new();
    for metric in ALL {
        if metric.kind == Kind::Histogram {
            names.extend(
                ["_bucket", "_count", "_sum"].map(|series| format!("{}{series}", metric.name)),
            );
        } else {
            names.push(metric.name.to_owned());
        }
    }
    names
}

/// The names on which a registry and the catalogue disagree: metrics of these parts that are not
/// declared in it, and metrics of other parts that are.
pub fn disagreements(registry: &Registry, parts: &[Part]) -> Vec<&'static str> {
    let wrong = |metric: &&&Metric| metric.is_declared(registry) != parts.contains(&metric.part);
    ALL.iter().filter(wrong).map(|metric| metric.name).collect()
}
