//! The configuration of every role: one section per concern, from file, environment and flags.

mod memory;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use postrider_daemon::config::{self, ConfigError, Secret};
use postrider_daemon::http::Limits;
use postrider_daemon::telemetry::TelemetryConfig;
use postrider_delivery::DeliveryConfig;
use postrider_delivery::config::EgressConfig;
use postrider_exporter::ExporterConfig;
use postrider_ingest::IngestConfig;
use postrider_log::kafka::KafkaOptions;
use postrider_model::retry::RetrySchedule;
use postrider_model::topics::{DERIVED_OVERHEAD_BYTES, TopicLayout};
use postrider_model::wire::ORDERING_KEY_BYTES_MAX;
use postrider_registry::{Keyring, RegistryOptions};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cli::{HealthArgs, ListenArgs};
use memory::MemoryConfig;
pub(crate) use memory::Sum;

/// What every variable of the configuration begins with, before `_SECTION__KEY`.
const PREFIX: &str = "POSTRIDER";
/// Sections whose keys are librdkafka's, with dots in them.
const DOTTED: [&str; 1] = ["kafka"];
/// Variables of the command line, which are not of the configuration.
const OTHER_VARIABLES: [&str; 5] = [
    "POSTRIDER_CONFIG",
    "POSTRIDER_URL",
    "POSTRIDER_API_KEY",
    "POSTRIDER_TENANT",
    "POSTRIDER_CHECK_URL",
];

/// The whole configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The Kafka cluster, for every role but `up`.
    pub(crate) kafka: KafkaConfig,
    /// How the topics are created, and what they are checked against.
    pub(crate) topics: TopicLayout,
    /// Where the API listens.
    pub(crate) api: ListenConfig,
    /// The operator key and the limits of the API.
    pub(crate) ingest: IngestConfig,
    /// Limits of fan-out, deliver and the scheduler.
    pub(crate) delivery: DeliveryConfig,
    /// What a process may take of the machine's memory.
    pub(crate) memory: MemoryConfig,
    /// Limits of the exporter.
    pub(crate) exporter: ExporterConfig,
    /// How far clocks may differ.
    pub(crate) clock: ClockConfig,
    /// When to try again.
    pub(crate) retry: RetryConfig,
    /// Which addresses webhooks may leave for.
    pub(crate) egress: EgressConfig,
    /// Limits of the registry.
    pub(crate) registry: RegistryConfig,
    /// Logs and traces.
    pub(crate) telemetry: TelemetryConfig,
    /// Where health and metrics listen, and what they say.
    pub(crate) health: HealthConfig,
    /// The embedded log of `up`.
    pub(crate) embedded: EmbeddedConfig,
    /// Keys of the installation.
    pub(crate) keys: KeysConfig,
}

/// The Kafka cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct KafkaConfig {
    /// What the names of topics and groups begin with.
    pub(crate) prefix: String,
    /// Properties of librdkafka under their own names, such as `bootstrap.servers`.
    #[serde(flatten)]
    pub(crate) properties: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            prefix: "postrider.".to_owned(),
            properties: BTreeMap::new(),
        }
    }
}

impl KafkaConfig {
    /// Whether anybody said where the brokers are.
    pub(crate) fn has_address(&self) -> bool {
        self.properties.contains_key("bootstrap.servers")
    }
}

impl Serialize for KafkaConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = |(name, value): (&String, &String)| {
            let secret = postrider_log::kafka::is_secret(name);
            (
                name.clone(),
                if secret {
                    "***".to_owned()
                } else {
                    value.clone()
                },
            )
        };
        let prefix = ("prefix".to_owned(), self.prefix.clone());
        serializer.collect_map(std::iter::once(prefix).chain(self.properties.iter().map(shown)))
    }
}

/// An address to listen at. It is no name: what a name means may change.
fn address<'de, D: Deserializer<'de>>(place: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(place)?;
    let address = text.parse().map_err(|_| {
        D::Error::custom(format!(
            "`{text}` is not an IP address with a port, such as `127.0.0.1:8080` or `[::]:8080`"
        ))
    });
    address.map(Some)
}

/// Where the API listens, and whom it lets connect.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListenConfig {
    /// Address and port. By default port 8080, at 127.0.0.1 in `up` and at 0.0.0.0 in the other
    /// roles.
    #[serde(deserialize_with = "address")]
    pub(crate) listen: Option<SocketAddr>,
    /// Connections at a time. A process that may open too few files for these and those to
    /// receivers has fewer.
    pub(crate) connections_max: usize,
    /// Of them from one address; clients that come through a proxy share its address.
    pub(crate) connections_per_address_max: usize,
    /// How long the first head of a connection may take.
    pub(crate) first_head_timeout_ms: u64,
    /// How long a connection is kept on which nothing is asked.
    pub(crate) idle_connection_ms: u64,
    /// Bytes of a request's head.
    pub(crate) head_bytes_max: usize,
}

impl Default for ListenConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            listen: None,
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            first_head_timeout_ms: milliseconds(limits.first_head_timeout),
            idle_connection_ms: milliseconds(limits.header_timeout),
            head_bytes_max: limits.head_bytes_max,
        }
    }
}

impl ListenConfig {
    /// The limits of a server that may have so many connections.
    pub(crate) fn limits(&self, connections_max: usize, drain: Duration) -> Limits {
        Limits {
            connections_max,
            connections_per_address_max: self.connections_per_address_max,
            first_head_timeout: Duration::from_millis(self.first_head_timeout_ms),
            header_timeout: Duration::from_millis(self.idle_connection_ms),
            head_bytes_max: self.head_bytes_max,
            drain,
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.connections_max == 0 || self.connections_per_address_max == 0 {
            return Err("`api`: numbers of connections must be at least 1".to_owned());
        }
        if !(1_024..=65_536).contains(&self.head_bytes_max) {
            return Err("`api.head_bytes_max`: must be from 1024 to 65536".to_owned());
        }
        let times = [self.first_head_timeout_ms, self.idle_connection_ms];
        if times
            .iter()
            .any(|time_ms| !(100..=86_400_000).contains(time_ms))
        {
            return Err("`api`: `first_head_timeout_ms` and `idle_connection_ms` must be from 100 to 86400000".to_owned());
        }
        Ok(())
    }
}

/// Where health and metrics listen, and what they say.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HealthConfig {
    /// Address and port, by default port 9464 at the same addresses as the API.
    #[serde(deserialize_with = "address")]
    pub(crate) listen: Option<SocketAddr>,
    /// How long a client of Kafka may be dead although brokers answer, and replaced again and
    /// again, until `/livez` says that this process is of no use.
    pub(crate) kafka_client_dead_max_ms: u64,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            listen: None,
            kafka_client_dead_max_ms: 600_000,
        }
    }
}

/// How far clocks may differ.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClockConfig {
    /// While the clocks of this machine and of the brokers differ by more, in milliseconds, nothing
    /// is given up because of its age: no delivery expires, and no endpoint is disabled for having
    /// failed for days.
    pub(crate) skew_ms_max: u64,
}

impl Default for ClockConfig {
    fn default() -> Self {
        Self {
            skew_ms_max: 60_000,
        }
    }
}

/// When to try again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RetryConfig {
    /// Waits in milliseconds before the second, third, … attempt, for endpoints without a schedule
    /// of their own.
    pub(crate) default_schedule_ms: Vec<i64>,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            default_schedule_ms: RetrySchedule::standard().delays_ms().to_vec(),
        }
    }
}

/// Limits of the registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RegistryConfig {
    /// How long a write may take, in milliseconds; below `topics.compaction_lag_s`.
    pub(crate) write_deadline_ms: u64,
    /// How long superseded records wait to be removed, in milliseconds.
    pub(crate) cleanup_delay_ms: u64,
    /// Tenants at most.
    pub(crate) tenants_max: usize,
    /// Endpoints of one tenant at most.
    pub(crate) endpoints_per_tenant_max: usize,
    /// Keys for the API of one tenant at most, and of all operators.
    pub(crate) api_keys_per_holder_max: usize,
    /// Bytes read at once, at most.
    pub(crate) read_bytes_max: usize,
    /// Bytes written but not yet acknowledged, at most.
    pub(crate) write_bytes_max: usize,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        let options = RegistryOptions::default();
        Self {
            write_deadline_ms: milliseconds(options.write_deadline),
            cleanup_delay_ms: milliseconds(options.cleanup_delay),
            tenants_max: options.tenants_max,
            endpoints_per_tenant_max: options.endpoints_per_tenant_max,
            api_keys_per_holder_max: options.api_keys_per_holder_max,
            read_bytes_max: options.read_bytes_max,
            write_bytes_max: options.write_bytes_max,
        }
    }
}

impl RegistryConfig {
    /// As the registry takes them.
    pub(crate) fn options(&self) -> RegistryOptions {
        RegistryOptions {
            write_deadline: Duration::from_millis(self.write_deadline_ms),
            cleanup_delay: Duration::from_millis(self.cleanup_delay_ms),
            tenants_max: self.tenants_max,
            endpoints_per_tenant_max: self.endpoints_per_tenant_max,
            api_keys_per_holder_max: self.api_keys_per_holder_max,
            read_bytes_max: self.read_bytes_max,
            write_bytes_max: self.write_bytes_max,
        }
    }
}

/// The embedded log of `up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EmbeddedConfig {
    /// Directory of the log and of the keys generated at first start.
    pub(crate) data_dir: PathBuf,
    /// How often retention and compaction run, in seconds.
    pub(crate) maintain_interval_s: u64,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./postrider-data"),
            maintain_interval_s: 60,
        }
    }
}

/// Keys of the installation: text, or `{ file = "path" }`. `up` generates what is not given in its
/// data directory; so it does with `ingest.operator_key`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KeysConfig {
    /// Keys under which signing secrets rest in the log: 32 bytes in base64 or hexadecimal, one a
    /// line; the first seals, all open.
    pub(crate) encryption: Option<Secret>,
}

impl Config {
    /// Loads the configuration from a file, if there is one, and from the environment. Where these
    /// say how much memory there is, but not how it is shared out, that follows.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::read(file, environment.collect::<Vec<_>>().into_iter())
    }

    fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)> + Clone,
    ) -> Result<Self, ConfigError> {
        config::check_variables::<Self>(environment.clone(), PREFIX, &DOTTED, &OTHER_VARIABLES)?;
        let said: Self = config::load(file, environment.clone(), PREFIX, &DOTTED)?;
        let Some(limit_bytes) = said.memory.limit_bytes else {
            return Ok(said);
        };
        let limits = memory::limits_for(&said, limit_bytes);
        config::load_over(limits, file, environment, PREFIX, &DOTTED)
    }

    /// What a `deliver` process does not start with: limits that do not fit into its memory.
    pub(crate) fn check_memory(&self) -> Result<(), String> {
        memory::check(self)
    }

    /// What a process on Kafka does not start with: properties that no client can be made from.
    pub(crate) fn check_kafka(&self) -> Result<(), String> {
        let hint = if self.kafka.has_address() {
            ""
        } else {
            "; give it for example as POSTRIDER_KAFKA__BOOTSTRAP_SERVERS"
        };
        let checked = self.kafka_options().check();
        checked.map_err(|error| format!("`kafka`: {error}{hint}"))
    }

    /// How to reach Kafka.
    pub(crate) fn kafka_options(&self) -> KafkaOptions {
        KafkaOptions {
            prefix: self.kafka.prefix.clone(),
            properties: self.kafka.properties.clone(),
            replication: self.topics.replication,
            client_id: "postrider".to_owned(),
            partitions: BTreeMap::new(),
        }
    }

    /// The keys under which signing secrets rest. Only `up` generates one: processes that share a
    /// log share them.
    pub(crate) fn keyring(&self) -> anyhow::Result<Keyring> {
        let keyring = self.keys.encryption.as_ref().context(
            "`keys.encryption` is not set: generate a key once by `postrider key generate encryption` and give it to \
             every process, for example as POSTRIDER_KEYS__ENCRYPTION",
        )?;
        Keyring::from_text(keyring.expose()).context("read `keys.encryption`")
    }

    /// Flags go over everything else.
    pub(crate) fn listen(&mut self, args: &ListenArgs) {
        self.api.listen = args.listen.or(self.api.listen);
        self.listen_health(&args.health);
    }

    /// Flags go over everything else.
    pub(crate) fn listen_health(&mut self, args: &HealthArgs) {
        self.health.listen = args.health_listen.or(self.health.listen);
    }

    /// What the types of the fields cannot say. The text names the key and the reason.
    pub(crate) fn check(&self) -> Result<(), String> {
        RetrySchedule::try_new(self.retry.default_schedule_ms.clone())
            .map_err(|error| format!("`retry.default_schedule_ms`: {error}"))?;
        self.delivery
            .check()
            .map_err(|error| format!("`delivery`: {error}"))?;
        self.api.check()?;
        self.egress
            .check()
            .map_err(|error| format!("`egress`: {error}"))?;
        self.check_lease()?;
        if self.topics.partitions < 1 || self.topics.partitions_added < 0 {
            return Err(
                "`topics`: `partitions` must be at least 1, `partitions_added` 0".to_owned(),
            );
        }
        self.check_sizes()?;
        self.egress
            .policy()
            .map_err(|error| format!("`egress.allow_cidrs`: {error}"))?;
        let compaction_lag_ms = u64::from(self.topics.compaction_lag_s) * 1000;
        if self.registry.write_deadline_ms >= compaction_lag_ms {
            return Err(format!(
                "`registry.write_deadline_ms`: must be below `topics.compaction_lag_s` ({} s), or a reader could miss \
                 who won",
                self.topics.compaction_lag_s
            ));
        }
        if self.embedded.maintain_interval_s == 0 {
            return Err("`embedded.maintain_interval_s`: must be at least 1".to_owned());
        }
        self.ingest.check().map_err(|error| error.to_string())?;
        self.telemetry
            .check()
            .map_err(|error| postrider_daemon::errors::chain(&error))?;
        if let Some(keyring) = &self.keys.encryption {
            Keyring::from_text(keyring.expose())
                .map_err(|error| format!("`keys.encryption`: {error}"))?;
        }
        Ok(())
    }
}

/// What librdkafka's producers take at most, unless configured.
const PRODUCED_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// What a state of a lane takes at most: of a key that is held back, and of an offset that is
/// settled.
const BLOCKED_KEY_BYTES: usize = ORDERING_KEY_BYTES_MAX + 48;
const SETTLED_OFFSET_BYTES: usize = 10;

impl Config {
    /// What one part accepts, the next must be able to write: otherwise it would wait or be lost
    /// for ever.
    fn check_sizes(&self) -> Result<(), String> {
        let topics = &self.topics;
        let endpoints_max = u64::try_from(self.registry.endpoints_per_tenant_max);
        topics
            .check_sizes(endpoints_max.unwrap_or(u64::MAX))
            .map_err(|error| {
                format!("`topics.event_bytes_max` and `topics.derived_bytes_max`: {error}")
            })?;
        let produced = self.kafka.properties.get("message.max.bytes");
        let produced = produced.and_then(|bytes| bytes.parse().ok());
        let (event, derived) = (topics.event_bytes_max, topics.derived_bytes_max);
        if derived > produced.unwrap_or(PRODUCED_BYTES_MAX) {
            return Err(format!(
                "`topics.derived_bytes_max`: must be at most `kafka.\"message.max.bytes\"` ({PRODUCED_BYTES_MAX} unless set), \
                 which is what a producer takes"
            ));
        }
        let (event, derived) = (event as usize, derived as usize);
        let overhead = DERIVED_OVERHEAD_BYTES as usize;
        let deliver = &self.delivery.deliver;
        let lane_state = deliver
            .lane_blocked_keys_max
            .saturating_mul(BLOCKED_KEY_BYTES);
        let settled = deliver
            .lane_queue_max
            .saturating_mul(2 * SETTLED_OFFSET_BYTES);
        let within = [
            (
                "ingest.event_bytes_max",
                self.ingest.event_bytes_max,
                "topics.event_bytes_max",
                event,
            ),
            (
                "delivery.stage.raw_record_bytes_max",
                self.delivery.stage.raw_record_bytes_max,
                "topics.derived_bytes_max",
                derived,
            ),
            (
                "delivery.deliver.lane_blocked_keys_max` and `lane_queue_max",
                lane_state.saturating_add(settled),
                "topics.event_bytes_max",
                event,
            ),
        ];
        for (key, bytes, limit_key, limit) in within {
            if bytes.saturating_add(overhead) > limit {
                return Err(format!(
                    "`{key}`: {bytes} bytes and {overhead} around them do not fit into `{limit_key}` ({limit})"
                ));
            }
        }
        self.check_queues(event, derived)
    }

    /// A queue that is smaller than a record would never take it.
    fn check_queues(&self, event: usize, derived: usize) -> Result<(), String> {
        let queues = [
            (
                "delivery.stage.producer_queue_bytes_max",
                self.delivery.stage.producer_queue_bytes_max,
                derived,
            ),
            (
                "ingest.append_queue_bytes_max",
                self.ingest.append_queue_bytes_max,
                derived,
            ),
            (
                "registry.write_bytes_max",
                self.registry.write_bytes_max,
                event,
            ),
        ];
        for (key, bytes, largest) in queues {
            if bytes < largest {
                return Err(format!(
                    "`{key}`: must be at least {largest}, the largest record that goes through it"
                ));
            }
        }
        Ok(())
    }

    /// A worker that is cut off must stop before its partitions go to another.
    fn check_lease(&self) -> Result<(), String> {
        let property = |name: &str| self.kafka.properties.get(name).map(String::as_str);
        if property("group.protocol") == Some("consumer")
            && property("session.timeout.ms").is_none()
        {
            // The session is a setting of the brokers.
            return Ok(());
        }
        let lease_ms = self.delivery.deliver.lease_ms;
        let session_ms = milliseconds(self.kafka_options().session());
        if lease_ms < session_ms {
            return Ok(());
        }
        Err(format!(
            "`kafka.session.timeout.ms`: must be a number above `delivery.deliver.lease_ms` ({lease_ms} ms); it counts as \
             {session_ms} ms"
        ))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::read(None, variables)
    }

    #[test]
    fn limits_follow_from_the_memory_there_is_and_fit_into_it() {
        let limit = |mib: u64| (mib << 20).to_string();
        for mib in [176, 192, 256, 512, 1_536, 8_192, 65_536] {
            for partitions in ["1", "12", "48"] {
                let variables = [
                    ("POSTRIDER_MEMORY__LIMIT_BYTES", limit(mib)),
                    ("POSTRIDER_TOPICS__PARTITIONS", partitions.to_owned()),
                ];
                let variables = variables
                    .each_ref()
                    .map(|(name, text)| (*name, text.as_str()));
                let config = load(&variables).unwrap();
                config.check().unwrap();
                if partitions != "48" || mib > 192 {
                    config.check_memory().unwrap();
                }
            }
        }
        let all = load(&[("POSTRIDER_MEMORY__LIMIT_BYTES", &limit(65_536))]).unwrap();
        assert_eq!(all.delivery, Config::default().delivery);
    }

    #[test]
    fn limits_that_do_not_fit_into_memory_are_refused() {
        let limit = (192_u64 << 20).to_string();
        let small = ("POSTRIDER_MEMORY__LIMIT_BYTES", limit.as_str());
        let own = (
            "POSTRIDER_DELIVERY__DELIVER__ATTEMPTS_IN_FLIGHT_MAX",
            "2048",
        );
        let refused = load(&[small, own]).unwrap().check_memory().unwrap_err();
        assert!(
            refused.contains("196608 KiB") && refused.contains("# attempts"),
            "{refused}"
        );
        let own = ("POSTRIDER_DELIVERY__DELIVER__ATTEMPTS_IN_FLIGHT_MAX", "20");
        let fits = load(&[small, own]).unwrap();
        fits.check_memory().unwrap();
        assert_eq!(fits.delivery.deliver.attempts_in_flight_max, 20);
        let tiny = load(&[("POSTRIDER_MEMORY__LIMIT_BYTES", "67108864")]).unwrap();
        assert!(tiny.check_memory().is_err());
    }

    #[test]
    fn defaults_are_valid_and_read_back() {
        let text = config::render(&Config::default());
        let file = tempfile(&text);
        let read: Config = config::load(Some(&file), std::iter::empty(), PREFIX, &DOTTED).unwrap();
        read.check().unwrap();
        assert_eq!(config::render(&read), text);
        std::fs::remove_file(file).unwrap();
    }

    fn tempfile(text: &str) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("postrider-config-{}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn an_address_to_listen_at_is_an_ip_address_with_a_port() {
        for wrong in ["foo", ":8091", "localhost:8091", "127.0.0.1"] {
            for name in ["POSTRIDER_API__LISTEN", "POSTRIDER_HEALTH__LISTEN"] {
                let said = load(&[(name, wrong)]).unwrap_err().to_string();
                assert!(said.contains(name), "{said}");
                assert!(
                    said.contains(&format!("`{wrong}` is not an IP address with a port")),
                    "{said}"
                );
            }
        }
        let known = load(&[("POSTRIDER_API__LISTEN", "[::1]:80")]).unwrap();
        assert_eq!(known.api.listen, "[::1]:80".parse().ok());
    }

    #[test]
    fn librdkafka_properties_come_from_the_environment() {
        let config = load(&[
            ("POSTRIDER_KAFKA__BOOTSTRAP_SERVERS", "broker:9092"),
            ("POSTRIDER_KAFKA__SASL_PASSWORD", "hush"),
            ("POSTRIDER_KAFKA__PREFIX", "hooks."),
            ("POSTRIDER_EGRESS__ALLOW_CIDRS", "127.0.0.0/8,10.0.0.0/8"),
        ])
        .unwrap();
        assert_eq!(config.kafka.properties["bootstrap.servers"], "broker:9092");
        assert_eq!(config.kafka.prefix, "hooks.");
        assert_eq!(config.egress.allow_cidrs.len(), 2);
        let shown = config::render(&config);
        assert!(
            shown.contains("broker:9092") && !shown.contains("hush"),
            "{shown}"
        );
    }

    #[test]
    fn sizes_of_which_something_accepted_could_not_be_written_on_are_refused() {
        let refused =
            |name: &str, value: &str| load(&[(name, value)]).unwrap().check().unwrap_err();
        for (name, value, key) in [
            (
                "TOPICS__EVENT_BYTES_MAX",
                "2097152",
                "topics.event_bytes_max",
            ),
            (
                "TOPICS__EVENT_BYTES_MAX",
                "100000",
                "ingest.event_bytes_max",
            ),
            (
                "INGEST__EVENTS_IN_FLIGHT_MAX",
                "0",
                "ingest.events_in_flight_max",
            ),
            (
                "INGEST__EVENTS_IN_FLIGHT_BYTES_MAX",
                "1000",
                "ingest.event_bytes_max",
            ),
            (
                "INGEST__APPEND_LINGER_MS",
                "100",
                "ingest.events_wait_max_ms",
            ),
            ("INGEST__AGAIN_AFTER_MAX_S", "0", "ingest.again_after_max_s"),
            (
                "TOPICS__DERIVED_BYTES_MAX",
                "30000000",
                "topics.derived_bytes_max",
            ),
            ("REGISTRY__ENDPOINTS_PER_TENANT_MAX", "1000000", "routes"),
            (
                "DELIVERY__STAGE__RAW_RECORD_BYTES_MAX",
                "3000000",
                "raw_record_bytes_max",
            ),
            (
                "DELIVERY__DELIVER__LANE_BLOCKED_KEYS_MAX",
                "20000",
                "lane_blocked_keys_max",
            ),
            (
                "DELIVERY__STAGE__PRODUCER_QUEUE_BYTES_MAX",
                "1000000",
                "producer_queue_bytes_max",
            ),
            (
                "INGEST__APPEND_QUEUE_BYTES_MAX",
                "1000000",
                "append_queue_bytes_max",
            ),
            (
                "REGISTRY__WRITE_BYTES_MAX",
                "1000",
                "registry.write_bytes_max",
            ),
        ] {
            let error = refused(&format!("POSTRIDER_{name}"), value);
            assert!(error.contains(key), "{name}: {error}");
        }
    }

    #[test]
    fn an_unknown_variable_is_told_what_it_may_have_meant() {
        for (name, meant) in [
            ("INGEST_EVENT_BYTES_MAX", "INGEST__EVENT_BYTES_MAX"),
            ("DELIVERY_DELIVER_LEASE_MS", "DELIVERY__DELIVER__LEASE_MS"),
            ("API_LISTEN", "API__LISTEN"),
            ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA__BOOTSTRAP_SERVERS"),
        ] {
            let said = load(&[(&format!("POSTRIDER_{name}"), "1")]).unwrap_err();
            let said = said.to_string();
            assert!(
                said.contains("two underscores")
                    && said.ends_with(&format!("as in POSTRIDER_{meant}")),
                "{said}"
            );
        }
        for (name, meant) in [
            ("POSTRIDER_API_URL", "understood; known besides"),
            ("POSTRIDER_CONFGI", "did you mean `POSTRIDER_CONFIG`?"),
            (
                "POSTRIDER_INGEST_EVENT_BYTE_MAX",
                "did you mean `POSTRIDER_INGEST__EVENT_BYTES_MAX`?",
            ),
            ("POSTRIDER_TELEMETRY_LOG_LEVEL", "POSTRIDER_URL"),
            ("POSTRIDER_X", "POSTRIDER_URL"),
        ] {
            let said = load(&[(name, "1")]).unwrap_err().to_string();
            assert!(
                said.contains(name) && said.contains(meant) && !said.contains("two underscores"),
                "{said}"
            );
        }
    }

    #[test]
    fn unknown_keys_and_bad_values_name_their_place() {
        let error = load(&[("POSTRIDER_REGISTRY__TENANT_MAX", "5")])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("registry.tenant_max") && error.contains("tenants_max"),
            "{error}"
        );
        let config = load(&[("POSTRIDER_RETRY__DEFAULT_SCHEDULE_MS", "[5]")]).unwrap();
        assert!(
            config
                .check()
                .unwrap_err()
                .contains("retry.default_schedule_ms")
        );
        let config = load(&[("POSTRIDER_KEYS__ENCRYPTION", "short")]).unwrap();
        let error = config.check().unwrap_err();
        assert!(
            error.contains("keys.encryption") && !error.contains("short"),
            "{error}"
        );
    }
}
