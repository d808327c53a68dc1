//! From the installation's properties to the configuration of one librdkafka client.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::num::NonZeroU16;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::query;
use crate::port::{GroupOptions, LogError, ProducerOptions};

/// Where the brokers are: two names of one property.
pub const BROKERS: [&str; 2] = ["bootstrap.servers", "metadata.broker.list"];
/// How brokers are talked to, unless it is said.
const SECURITY_PROTOCOL: (&str, &str) = ("security.protocol", "plaintext");

/// How the members of a group agree: by electing one of them who shares the partitions out, or by
/// asking the broker.
const GROUP_PROTOCOL: &str = "group.protocol";
const CLASSIC: &str = "classic";
const CONSUMER: &str = "consumer";

/// How long a member of a group may be silent until others get its partitions.
const SESSION_TIMEOUT: (&str, &str) = ("session.timeout.ms", "45000");

/// What belongs to one of the two only. The client would refuse it, and not say where it comes
/// from.
const ONLY_CLASSIC: [&str; 4] = [
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
    "group.protocol.type",
];
const ONLY_CONSUMER: [&str; 1] = ["group.remote.assignor"];

/// What guarantees of the port rest on: properties with the only values they may have, in every
/// spelling.
const FIXED: &[(&str, &[&str])] = &[
    ("enable.idempotence", &["true"]),
    ("acks", &["all", "-1"]),
    ("request.required.acks", &["all", "-1"]),
    ("partitioner", &["murmur2"]),
    ("enable.auto.commit", &["false"]),
    ("enable.auto.offset.store", &["false"]),
    ("auto.offset.reset", &["error"]),
    ("partition.assignment.strategy", &["cooperative-sticky"]),
    (GROUP_PROTOCOL, &[CLASSIC, CONSUMER]),
    ("isolation.level", &["read_committed"]),
];

/// What is decided for each client from its own options.
const OWN: &[&str] = &[
    "group.id",
    "transactional.id",
    "enable.partition.eof",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "linger.ms",
    "queue.buffering.max.ms",
    "queue.buffering.max.kbytes",
    "queued.max.messages.kbytes",
];

/// Kafka's limit for a record is really one for a batch, and refuses it as a whole. So a batch of
/// several records must stay below the limit of every topic; a larger record has a batch of its
/// own.
pub(super) const BATCH_BYTES_MAX: u32 = 64 << 10;

/// How to reach Kafka, and how to name things in it.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// Stands before the name of every topic and group.
    pub prefix: String,
    /// Properties of librdkafka, given to every client. `bootstrap.servers` is needed.
    pub properties: BTreeMap<String, String>,
    /// Replicas of each partition of a topic to create; -1 is the broker's default.
    pub replication: i32,
    /// How the clients name themselves to the brokers, unless the properties have `client.id`.
    pub client_id: String,
    /// Over how many partitions of a topic, by its name without prefix, keys are spread, also when
    /// somebody has added partitions to it. Of a topic that is not here, the brokers say it.
    pub partitions: BTreeMap<String, i32>,
}

/// How often a producer, a member of a group, or the client that asks tells what it does.
const STATISTICS_INTERVAL: (&str, &str) = ("statistics.interval.ms", "5000");
/// Often enough to tell a client that is dead from one that waits.
const STATISTICS_INTERVALS_MS: std::ops::RangeInclusive<u64> = 1..=10_000;
/// Other clients are not polled for as long as nobody has a question, and would gather what they
/// tell.
const NO_STATISTICS: (&str, &str) = ("statistics.interval.ms", "0");

/// Parts of the names of properties whose values are secrets.
const SECRETS: [&str; 6] = ["password", "secret", "pem", "jaas", "token", "credential"];

/// Whether the value of a librdkafka property is a secret.
pub fn is_secret(property: &str) -> bool {
    SECRETS.iter().any(|part| property.contains(part))
}

impl KafkaOptions {
    /// Whether clients can be made from these: without it they are not.
    ///
    /// # Errors
    /// When the address is missing or impossible, librdkafka does not know a property or refuses
    /// its value, or a value would break a guarantee. The error names the property, and shows no
    /// value that may be a secret.
    pub fn check(&self) -> Result<(), LogError> {
        validate(self)?;
        self.properties
            .iter()
            .try_for_each(|(name, value)| is_understood(name, value))
    }

    /// How long a session lasts; zero if what is set is no number. In the consumer protocol the
    /// broker says it, by default the same.
    pub fn session(&self) -> Duration {
        let (name, default) = SESSION_TIMEOUT;
        let chosen = self.properties.get(name).map_or(default, String::as_str);
        Duration::from_millis(chosen.parse().unwrap_or_default())
    }
}

/// Whether librdkafka knows the property and takes the value. A name that it does not know may be
/// that of a secret, spelt wrong, so the value is not shown.
fn is_understood(name: &str, value: &str) -> Result<(), LogError> {
    let refused = |text: String| Err(LogError::Permanent(text));
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            refused(format!("librdkafka knows no property {name}"))
        }
        Err(_) if is_secret(name) => refused(format!(
            "librdkafka does not take the value of the property {name}"
        )),
        Err(KafkaError::ClientConfig(_, why, ..)) => refused(format!(
            "librdkafka does not take the value of the property {name}: {why}"
        )),
        Err(error) => refused(error.to_string()),
    }
}

/// Refuses addresses that no broker can have: librdkafka leaves them out, or takes port 0 or
/// localhost for what is not there.
fn check_brokers(options: &KafkaOptions) -> Result<(), LogError> {
    let properties = &options.properties;
    let security = properties.get(SECURITY_PROTOCOL.0);
    let security = security.map_or(SECURITY_PROTOCOL.1, |name| name.trim_start());
    let mut is_there = false;
    for name in BROKERS {
        let Some(brokers) = properties.get(name) else {
            continue;
        };
        is_there = true;
        let mut entries = brokers
            .split(',')
            .map(|entry| entry.trim_start_matches(' '))
            .filter(|entry| !entry.is_empty())
            .peekable();
        let wrong = match entries.peek() {
            None => Some(brokers.as_str()),
            Some(_) => entries.find(|entry| !is_broker(entry, security)),
        };
        if let Some(wrong) = wrong {
            // What stands before it may be a user's password.
            let wrong = wrong.rsplit_once('@').map_or(wrong, |(_, address)| address);
            return Err(LogError::Permanent(format!(
                "the Kafka property {name} must be host:port, several of them separated by commas, where a missing port \
                 is 9092 and a protocol before it, as in ssl://host:port, that of {}; it has `{wrong}`",
                SECURITY_PROTOCOL.0
            )));
        }
    }
    if is_there {
        return Ok(());
    }
    Err(LogError::Permanent(
        "the Kafka property bootstrap.servers is missing".into(),
    ))
}

/// Whether librdkafka finds a host and a port in this. It takes no other protocol before them than
/// that of its connections, and ignores a path after them only if there is one.
fn is_broker(entry: &str, security: &str) -> bool {
    let address = match entry.split_once("://") {
        Some((protocol, rest)) if protocol.eq_ignore_ascii_case(security) => {
            rest.split_once('/').map_or(rest, |(address, _)| address)
        }
        Some(_) => return false,
        None => entry,
    };
    if let Some(rest) = address.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(host, port)| {
            is_ipv6(host) && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    if is_ipv6(address) {
        return true;
    }
    let (host, port) = match address.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (address, None),
    };
    let is_host = !host.is_empty() && !host.contains([' ', '\t', '\r', '\n', '/']);
    is_host && port.is_none_or(is_port)
}

/// An address, and perhaps the interface that it is reached by.
fn is_ipv6(text: &str) -> bool {
    let address = text.split_once('%').map_or(text, |(address, _)| address);
    address.parse::<Ipv6Addr>().is_ok()
}

fn is_port(text: &str) -> bool {
    let text = text.trim_end();
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<NonZeroU16>().is_ok()
}

/// Refuses properties that would break a guarantee, and addresses that are missing or impossible.
fn validate(options: &KafkaOptions) -> Result<(), LogError> {
    check_brokers(options)?;
    let properties = &options.properties;
    for (name, allowed) in FIXED {
        let Some(value) = properties.get(*name) else {
            continue;
        };
        if !allowed.contains(&value.as_str()) {
            return Err(LogError::Permanent(format!(
                "the Kafka property {name} must be {}, as guarantees rest on it; it is set to {value}",
                allowed.join(" or ")
            )));
        }
    }
    let protocol = group_protocol(options);
    let others: &[&str] = if protocol == CONSUMER {
        &ONLY_CLASSIC
    } else {
        &ONLY_CONSUMER
    };
    if let Some(name) = others.iter().find(|name| properties.contains_key(**name)) {
        return Err(LogError::Permanent(format!(
            "the Kafka property {name} is not for groups of the {protocol} protocol, which group.protocol chooses"
        )));
    }
    if let Some(told) = properties.get(STATISTICS_INTERVAL.0) {
        let ms = told.parse::<u64>().unwrap_or_default();
        if !STATISTICS_INTERVALS_MS.contains(&ms) {
            return Err(LogError::Permanent(format!(
                "the Kafka property {} must be from 1 to {}, as dead clients are found by it; it is set to {told}",
                STATISTICS_INTERVAL.0,
                STATISTICS_INTERVALS_MS.end()
            )));
        }
    }
    for name in OWN {
        if properties.contains_key(*name) {
            return Err(LogError::Permanent(format!(
                "the Kafka property {name} is chosen for each client and cannot be set"
            )));
        }
    }
    Ok(())
}

fn group_protocol(options: &KafkaOptions) -> &str {
    let chosen = options.properties.get(GROUP_PROTOCOL);
    chosen.map_or(CLASSIC, String::as_str)
}

/// For asking brokers: metadata, offsets, administration.
pub(super) fn query(options: &KafkaOptions) -> ClientConfig {
    let mut config = base(options, &[]);
    set(
        &mut config,
        &[("isolation.level", "read_committed"), NO_STATISTICS],
    );
    config
}

/// For the client that asks all the time.
pub(super) fn questions(options: &KafkaOptions) -> ClientConfig {
    let mut config = query(options);
    set(&mut config, &[STATISTICS_INTERVAL]);
    config
}

/// For asking what a group committed, without joining it.
pub(super) fn committed_query(options: &KafkaOptions, group: &str) -> ClientConfig {
    let mut config = query(options);
    set(
        &mut config,
        &[
            ("group.id", &prefixed(options, group)),
            ("enable.auto.commit", "false"),
        ],
    );
    config
}

/// For committing for a group without joining it.
pub(super) fn outside_commit(options: &KafkaOptions, group: &str) -> ClientConfig {
    let mut config = committed_query(options, group);
    // The client waits for the group's coordinator for as long as a session.
    let patience = query::TIMEOUT.as_millis().to_string();
    set(&mut config, &[("session.timeout.ms", &patience)]);
    config
}

/// For a producer.
pub(super) fn producer(options: &KafkaOptions, producer: &ProducerOptions) -> ClientConfig {
    let mut config = base(
        options,
        &[
            // The topic's own limit decides what is too large, not the client's.
            ("message.max.bytes", "16777216"),
            ("batch.size", &BATCH_BYTES_MAX.to_string()),
            // A topic that is not there after so long does not exist.
            ("topic.metadata.propagation.max.ms", "10000"),
            ("queue.buffering.max.messages", "1000000"),
            ("max.in.flight.requests.per.connection", "5"),
            STATISTICS_INTERVAL,
        ],
    );
    // Zero is for ever.
    let timeout = producer
        .append_timeout
        .map_or(0, |timeout| millis(timeout).max(1));
    // The producer counts what is in its queue; the client, which counts more than that, is not to
    // refuse before it.
    let queue_kib = (producer.queue_bytes_max / 512).clamp(1 << 14, 1 << 30);
    set(
        &mut config,
        &[
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("partitioner", "murmur2"),
            ("message.timeout.ms", &timeout.to_string()),
            ("linger.ms", &millis(producer.linger).to_string()),
            ("queue.buffering.max.kbytes", &queue_kib.to_string()),
        ],
    );
    config
}

/// For a reader: one partition at a time, and word of reaching the end. There is one for each
/// partition that is read again, so what each holds is small: up to a mebibyte, half in its queue
/// and half on the way there.
pub(super) fn reader(options: &KafkaOptions) -> ClientConfig {
    let mut config = base(
        options,
        &[
            ("max.partition.fetch.bytes", "524288"),
            ("fetch.max.bytes", "1048576"),
            ("queued.min.messages", "5000"),
            ("fetch.wait.max.ms", "100"),
            ("fetch.queue.backoff.ms", "20"),
        ],
    );
    set_consumer(&mut config);
    set(
        &mut config,
        &[
            // Librdkafka reads nothing without the name of a group; this one is never joined.
            ("group.id", &prefixed(options, "reader")),
            ("enable.partition.eof", "true"),
            ("queued.max.messages.kbytes", "512"),
            NO_STATISTICS,
        ],
    );
    config
}

/// For a member of a group. Half of what may be read ahead lies in the client, half in our own
/// queue.
pub(super) fn group(options: &KafkaOptions, group: &GroupOptions) -> ClientConfig {
    let ahead = (group.prefetch_bytes_max / 2).clamp(64 << 10, 1 << 30);
    let mut config = base(
        options,
        &[
            ("queued.min.messages", "5000"),
            (
                "fetch.max.bytes",
                &ahead.clamp(1 << 20, 8 << 20).to_string(),
            ),
            ("max.partition.fetch.bytes", "262144"),
            STATISTICS_INTERVAL,
            // Where nothing comes, the broker is asked this often. A partition that is started
            // waits for the question under way.
            ("fetch.wait.max.ms", "500"),
            ("fetch.queue.backoff.ms", "20"),
        ],
    );
    set_consumer(&mut config);
    set(
        &mut config,
        &[
            ("group.id", &prefixed(options, &group.group)),
            ("enable.partition.eof", "false"),
            ("queued.max.messages.kbytes", &(ahead / 1024).to_string()),
        ],
    );
    set_protocol(&mut config, options);
    config
}

/// The session and the heartbeat are the member's in one protocol and the broker's in the other.
fn set_protocol(config: &mut ClientConfig, options: &KafkaOptions) {
    let protocol = group_protocol(options);
    set(config, &[(GROUP_PROTOCOL, protocol)]);
    if protocol == CONSUMER {
        for name in ONLY_CONSUMER {
            if let Some(value) = options.properties.get(name) {
                config.set(name, value);
            }
        }
        return;
    }
    set(
        config,
        &[("partition.assignment.strategy", "cooperative-sticky")],
    );
    for (name, default) in [SESSION_TIMEOUT, ("heartbeat.interval.ms", "3000")] {
        if config.get(name).is_none() {
            config.set(name, default);
        }
    }
}

/// The name that Kafka knows a topic or group by.
pub(super) fn prefixed(options: &KafkaOptions, name: &str) -> String {
    format!("{}{name}", options.prefix)
}

fn set_consumer(config: &mut ClientConfig) {
    set(
        config,
        &[
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
            ("allow.auto.create.topics", "false"),
            ("check.crcs", "true"),
        ],
    );
}

/// Our defaults below, the installation's properties above.
fn base(options: &KafkaOptions, defaults: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    set(
        &mut config,
        &[
            ("client.id", options.client_id.as_str()),
            // A broker that restarts is found again within 2 s instead of 10 s.
            ("reconnect.backoff.max.ms", "2000"),
            // A frozen broker is left after this time instead of 60 s; its kernel still takes
            // connections, of which the first question is not answered.
            (
                "socket.timeout.ms",
                &millis(answer_timeout(options)).to_string(),
            ),
            ("api.version.request.timeout.ms", "3000"),
            // One whose machine is gone answers nothing at all.
            ("socket.connection.setup.timeout.ms", "10000"),
            ("socket.nagle.disable", "true"),
        ],
    );
    set(&mut config, defaults);
    for (name, value) in &options.properties {
        // Only members of a group may have these.
        if name != GROUP_PROTOCOL && !ONLY_CONSUMER.contains(&name.as_str()) {
            config.set(name, value);
        }
    }
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

/// How long a broker may take for an answer. A coordinator that is frozen is to be left, and the
/// next one to be asked, within the session: a member whose session ended joins anew, and its
/// partitions wait until its old session has ended there too.
fn answer_timeout(options: &KafkaOptions) -> Duration {
    (options.session() / 2).clamp(Duration::from_secs(5), Duration::from_secs(10))
}

fn set(config: &mut ClientConfig, properties: &[(&str, &str)]) {
    for (name, value) in properties {
        config.set(*name, *value);
    }
}

/// Milliseconds within what librdkafka takes.
fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(properties: &[(&str, &str)]) -> KafkaOptions {
        KafkaOptions {
            prefix: "p.".into(),
            properties: properties
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            replication: -1,
            client_id: "test".into(),
            partitions: BTreeMap::new(),
        }
    }

    fn group_options() -> GroupOptions {
        GroupOptions {
            group: "g".into(),
            topic: "t".into(),
            revoke_deadline: Duration::from_secs(5),
            prefetch_bytes_max: 8 << 20,
        }
    }

    #[test]
    fn refuses_properties_that_break_a_guarantee() {
        for (name, value) in [
            ("acks", "1"),
            ("enable.idempotence", "false"),
            ("group.id", "mine"),
            ("statistics.interval.ms", "0"),
        ] {
            let refused = validate(&options(&[("bootstrap.servers", "b"), (name, value)]));
            assert!(matches!(refused, Err(LogError::Permanent(reason)) if reason.contains(name)));
        }
        assert_eq!(
            validate(&options(&[("bootstrap.servers", "b"), ("acks", "all")])),
            Ok(())
        );
    }

    #[test]
    fn a_frozen_coordinator_is_left_within_a_session_of_ten_seconds() {
        let left_after_ms = |session: &[(&str, &str)]| {
            let config = group(&options(session), &group_options());
            let of = |name: &str| config.get(name).unwrap().parse::<u64>().unwrap();
            of("socket.timeout.ms") + of("api.version.request.timeout.ms")
        };
        assert_eq!(left_after_ms(&[]), 13_000);
        assert_eq!(left_after_ms(&[("session.timeout.ms", "10000")]), 8_000);
        // Whoever loads a broker so much that it takes longer is not to be told that it is dead.
        assert_eq!(left_after_ms(&[("session.timeout.ms", "6000")]), 8_000);
        assert_eq!(left_after_ms(&[("socket.timeout.ms", "7000")]), 10_000);
    }

    #[test]
    fn each_group_protocol_has_its_own_properties() {
        let both = |protocol: &str, name: &str| {
            validate(&options(&[
                ("bootstrap.servers", "b"),
                ("group.protocol", protocol),
                (name, "6000"),
            ]))
        };
        assert_eq!(both("classic", "session.timeout.ms"), Ok(()));
        assert_eq!(both("consumer", "group.remote.assignor"), Ok(()));
        for (protocol, name) in [
            ("consumer", "session.timeout.ms"),
            ("consumer", "heartbeat.interval.ms"),
            ("classic", "group.remote.assignor"),
            ("share", "client.rack"),
        ] {
            assert!(both(protocol, name).is_err(), "{protocol} {name}");
        }
    }

    #[test]
    fn only_members_of_groups_know_the_protocol() {
        let options = options(&[
            ("bootstrap.servers", "b"),
            ("group.protocol", "consumer"),
            ("group.remote.assignor", "uniform"),
        ]);
        let member = group(&options, &group_options());
        assert_eq!(member.get("group.protocol"), Some("consumer"));
        assert_eq!(member.get("group.remote.assignor"), Some("uniform"));
        assert_eq!(member.get("session.timeout.ms"), None);
        for other in [
            query(&options),
            reader(&options),
            outside_commit(&options, "g"),
        ] {
            assert_eq!(other.get("group.protocol"), None);
            assert_eq!(other.get("group.remote.assignor"), None);
        }
    }

    #[test]
    fn needs_an_address() {
        assert!(validate(&options(&[])).is_err());
    }

    #[test]
    fn an_address_that_no_broker_can_have_is_refused() {
        let both = |name: &str, brokers: &str| {
            validate(&options(&[
                (name, brokers),
                ("security.protocol", "sasl_ssl"),
            ]))
        };
        for (brokers, entry) in [
            ("", "``"),
            (" ", "` `"),
            (",", "`,`"),
            ("http://127.0.0.1:9092", "`http://127.0.0.1:9092`"),
            ("plaintext://b:9092", "`plaintext://b:9092`"),
            ("://b:9092", "`://b:9092`"),
            ("a:9092, b:abc", "`b:abc`"),
            ("b:0", "`b:0`"),
            ("b:65536", "`b:65536`"),
            ("b:-1", "`b:-1`"),
            ("b:+1", "`b:+1`"),
            ("b:", "`b:`"),
            (":9092", "`:9092`"),
            ("b:9092:9092", "`b:9092:9092`"),
            ("a b", "`a b`"),
            ("b/a:9092", "`b/a:9092`"),
            ("[::1", "`[::1`"),
            ("[::1]9092", "`[::1]9092`"),
            ("[::1]:abc", "`[::1]:abc`"),
            ("[b]:9092", "`[b]:9092`"),
            ("sasl_ssl://user:hunter2@b:9093", "`b:9093`"),
        ] {
            for name in ["bootstrap.servers", "metadata.broker.list"] {
                let Err(LogError::Permanent(reason)) = both(name, brokers) else {
                    panic!("{brokers:?} is taken");
                };
                assert!(
                    reason.contains(name) && reason.contains(entry) && reason.contains("host:port"),
                    "{reason}"
                );
                assert!(!reason.contains("hunter2"), "{reason}");
            }
        }
        for brokers in [
            "b",
            "b:1",
            "a-1.example.com:65535, b_2:9093 ,127.0.0.1",
            "a:9092,",
            "[::1]",
            "[::1]:9092",
            "[fe80::1%eth0]:9092",
            "::1",
            "sasl_ssl://b:9093,SASL_SSL://[::1]:9093/",
        ] {
            assert_eq!(both("bootstrap.servers", brokers), Ok(()), "{brokers}");
        }
    }

    #[test]
    fn properties_win_over_defaults_but_not_over_options() {
        let options = options(&[("bootstrap.servers", "b"), ("session.timeout.ms", "6000")]);
        let config = group(&options, &group_options());
        assert_eq!(config.get("session.timeout.ms"), Some("6000"));
        assert_eq!(config.get("group.id"), Some("p.g"));
        assert_eq!(config.get("queued.max.messages.kbytes"), Some("4096"));
    }
}
