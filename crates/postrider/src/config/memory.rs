//! What a `deliver` process may take in memory: the sum of its limits, and limits that fit into one
//! number.
//!
//! The constants were measured, or read in the code that they speak of, and rounded up. The
//! end-to-end test `memory` holds a process to its limit.

use std::fmt;

use postrider_daemon::config::{Table, Value};
use serde::{Deserialize, Serialize};

use super::Config;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Each has a member of a group and a producer.
const STAGES: u64 = 3;

/// A process that does nothing yet: its program, its threads, and what the allocator does not give
/// back.
const PROCESS_BYTES: u64 = 40 * MIB;
/// A client of Kafka before it holds a record.
const CLIENT_BYTES: u64 = 256 * KIB;
/// Those of the stages and the registry, and one for questions.
const CLIENTS: u64 = 2 * STAGES + 4;
/// What a reader's client holds: its queue, and a fetch on its way there.
const READER_BYTES: u64 = MIB;
/// What a member gets of one partition beyond its queue, in fetches that were asked for when there
/// was room.
const FETCH_BYTES_OF_PARTITION: u64 = 256 * KIB;
const FETCH_BYTES_MAX: u64 = 8 * MIB;
/// An attempt: its connection's buffers, and the head of the answer, of which the sender takes up
/// to 64 KiB.
const ATTEMPT_BYTES: u64 = 256 * KIB;
/// A connection on which nothing is asked, with TLS.
const IDLE_CONNECTION_BYTES: u64 = 24 * KIB;
/// A settlement that is remembered, with its texts and its place in two trees.
const REMEMBERED_BYTES: u64 = 320;
/// An event id that is remembered: two hashes, and its place in a tree and in a queue.
const EVENT_ID_BYTES: u64 = 128;
/// A record in memory, and what is made of it while it is under way.
const COPIES: u64 = 2;

/// Section of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MemoryConfig {
    /// What a `deliver` process may take, in bytes; in Kubernetes the limit of its container.
    /// Limits that are not set themselves are chosen so that their sum fits, and a sum that does
    /// not fit is refused.
    pub(crate) limit_bytes: Option<u64>,
}

/// What the limits of a `deliver` process with all stages add up to, by part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sum(Vec<(&'static str, u64)>);

impl Sum {
    /// Adds them up.
    pub(crate) fn of(config: &Config) -> Self {
        let (stage, deliver) = (&config.delivery.stage, &config.delivery.deliver);
        let (fan_out, scheduler) = (&config.delivery.fan_out, &config.delivery.scheduler);
        let partitions = partitions(config);
        let remembered = |count: usize| partitions * bytes(count) * REMEMBERED_BYTES;
        // What the commit has not passed is not forgotten.
        let settled = deliver.settled_max.max(deliver.partition_unsettled_max);
        let read_again = READER_BYTES + bytes(deliver.catch_up_read_bytes_max);
        let written =
            STAGES * bytes(stage.producer_queue_bytes_max) + bytes(config.registry.write_bytes_max);
        Self(vec![
            ("process", PROCESS_BYTES),
            ("kafka clients", (CLIENTS + partitions) * CLIENT_BYTES),
            ("read ahead", read_ahead(config)),
            ("read again", readers(config) * read_again),
            ("appends", COPIES * written),
            (
                "events under way",
                COPIES * bytes(fan_out.events_in_flight_bytes_max),
            ),
            // Endpoints that had nothing in memory may take a quarter more.
            (
                "deliveries",
                COPIES * (bytes(deliver.unsettled_bytes_max) / 4 * 5),
            ),
            (
                "attempts",
                bytes(deliver.attempts_in_flight_max) * ATTEMPT_BYTES,
            ),
            (
                "connections",
                bytes(config.egress.connections_max) * IDLE_CONNECTION_BYTES,
            ),
            ("retries", bytes(scheduler.timer_bytes_max)),
            ("settlements remembered", remembered(settled)),
            (
                "event ids remembered",
                partitions * bytes(fan_out.repeat_window_ids_max) * EVENT_ID_BYTES,
            ),
            ("log lines", bytes(config.telemetry.log_queue_bytes_max)),
            (
                "registry",
                registry_bytes(config.memory.limit_bytes.unwrap_or(0)),
            ),
        ])
    }

    pub(crate) fn total(&self) -> u64 {
        self.0
            .iter()
            .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// As comments of TOML.
impl fmt::Display for Sum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "# Memory of `deliver` at most, in KiB:")?;
        for (name, bytes) in &self.0 {
            writeln!(formatter, "# {name:<24}{:>10}", bytes / KIB)?;
        }
        write!(formatter, "# {:<24}{:>10}", "sum", self.total() / KIB)
    }
}

/// The limits that the number leaves, for those that nobody set: the parts' shares of what the
/// process itself does not take, none beyond its default.
#[expect(clippy::too_many_lines, reason = "one table")]
pub(crate) fn limits_for(config: &Config, limit_bytes: u64) -> Table {
    let defaults = Config::default();
    let (stage, deliver) = (&defaults.delivery.stage, &defaults.delivery.deliver);
    let (fan_out, scheduler) = (&defaults.delivery.fan_out, &defaults.delivery.scheduler);
    let partitions = partitions(config);
    let fixed = PROCESS_BYTES
        + (CLIENTS + partitions) * CLIENT_BYTES
        + readers(config) * READER_BYTES
        + fetches(config, 0)
        + registry_bytes(limit_bytes)
        + bytes(config.telemetry.log_queue_bytes_max);
    let left = limit_bytes.saturating_sub(fixed);
    let integer = |limit: u64| Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX));
    let part = |percent: u64, of: u64| (left / 100 * percent / of).max(1);
    let share =
        |percent: u64, of: u64, at_most: usize| integer(part(percent, of).min(bytes(at_most)));
    // A queue takes at least one of the largest records.
    let queue = |percent: u64, of: u64, record: u32, at_most: usize| {
        let share = part(percent, of).min(bytes(at_most));
        integer(share.max(u64::from(record)))
    };
    let topics = &config.topics;
    let section = |limits: Vec<(&str, Value)>| {
        let limits = limits.into_iter();
        Value::Table(limits.map(|(key, limit)| (key.to_owned(), limit)).collect())
    };
    let delivery = section(vec![
        (
            "stage",
            section(vec![
                // With what fetches grow by: at most twice as much again.
                (
                    "prefetch_bytes_max",
                    share(10, STAGES * 3, stage.prefetch_bytes_max),
                ),
                (
                    "producer_queue_bytes_max",
                    queue(
                        14,
                        STAGES * COPIES,
                        topics.derived_bytes_max,
                        stage.producer_queue_bytes_max,
                    ),
                ),
            ]),
        ),
        (
            "fan_out",
            section(vec![
                (
                    "events_in_flight_bytes_max",
                    share(5, COPIES, fan_out.events_in_flight_bytes_max),
                ),
                (
                    "repeat_window_ids_max",
                    share(
                        9,
                        partitions * EVENT_ID_BYTES,
                        fan_out.repeat_window_ids_max,
                    ),
                ),
            ]),
        ),
        (
            "deliver",
            section(vec![
                (
                    "attempts_in_flight_max",
                    share(18, ATTEMPT_BYTES, deliver.attempts_in_flight_max),
                ),
                (
                    "unsettled_bytes_max",
                    share(2 * 30, 2 * COPIES * 5 / 4, deliver.unsettled_bytes_max),
                ),
                (
                    "lane_queue_bytes_max",
                    share(2, 1, deliver.lane_queue_bytes_max),
                ),
                (
                    "catch_up_read_bytes_max",
                    share(3, readers(config), deliver.catch_up_read_bytes_max),
                ),
                (
                    "settled_max",
                    share(3, partitions * REMEMBERED_BYTES, deliver.settled_max),
                ),
                (
                    "partition_unsettled_max",
                    share(
                        3,
                        partitions * REMEMBERED_BYTES,
                        deliver.partition_unsettled_max,
                    ),
                ),
            ]),
        ),
        (
            "scheduler",
            section(vec![(
                "timer_bytes_max",
                share(4, 1, scheduler.timer_bytes_max),
            )]),
        ),
    ]);
    let registry = section(vec![(
        "write_bytes_max",
        queue(
            2,
            COPIES,
            topics.event_bytes_max,
            defaults.registry.write_bytes_max,
        ),
    )]);
    let egress = section(vec![(
        "connections_max",
        share(2, IDLE_CONNECTION_BYTES, defaults.egress.connections_max),
    )]);
    Table::from_iter([
        ("delivery".to_owned(), delivery),
        ("egress".to_owned(), egress),
        ("registry".to_owned(), registry),
    ])
}

/// Refuses what does not fit: limits that somebody set, or a number that is too small for anything.
pub(crate) fn check(config: &Config) -> Result<(), String> {
    let Some(limit_bytes) = config.memory.limit_bytes else {
        return Ok(());
    };
    let sum = Sum::of(config);
    if sum.total() > limit_bytes {
        return Err(format!(
            "`memory.limit_bytes`: is {} KiB, and the limits add up to {} KiB; raise it, or lower or unset those that are \
             set:\n{sum}",
            limit_bytes / KIB,
            sum.total() / KIB
        ));
    }
    let record = config.topics.derived_bytes_max;
    if bytes(config.delivery.stage.producer_queue_bytes_max) < u64::from(record) {
        return Err(format!(
            "`memory.limit_bytes`: leaves no room for appending one record of `topics.derived_bytes_max` ({record} bytes)"
        ));
    }
    Ok(())
}

/// Members' queues, and fetches beyond them.
fn read_ahead(config: &Config) -> u64 {
    let queue = bytes(config.delivery.stage.prefetch_bytes_max);
    STAGES * queue + fetches(config, queue)
}

/// What was asked for when a queue of this size had room: of each partition no more than one asks
/// for, and of each of three brokers no more than a fetch, but a whole record in any case.
fn fetches(config: &Config, queue: u64) -> u64 {
    let fetch = (queue / 2).clamp(MIB, FETCH_BYTES_MAX);
    let of_topic = |partitions: u64, record: u32| {
        let of_partitions = partitions * FETCH_BYTES_OF_PARTITION;
        of_partitions.min(3 * fetch).max(u64::from(record))
    };
    let topics = &config.topics;
    of_topic(partitions(config), topics.event_bytes_max)
        + of_topic(partitions(config), topics.derived_bytes_max)
        + of_topic(retry_partitions(config), topics.derived_bytes_max)
}

/// The view of the registry: of some thousand endpoints.
fn registry_bytes(limit_bytes: u64) -> u64 {
    (limit_bytes / 40).max(4 * MIB)
}

/// One reads a partition again; while it is taken over, there are two. And the registry's.
fn readers(config: &Config) -> u64 {
    let prepared = bytes(config.delivery.stage.partitions_prepared_at_once_max);
    partitions(config) + prepared.min(partitions(config)) + 1
}

fn partitions(config: &Config) -> u64 {
    u64::from(config.topics.partitions.unsigned_abs())
}

fn retry_partitions(config: &Config) -> u64 {
    let delays: Vec<i64> = config.topics.retry_delays_ms.clone().into();
    bytes(delays.len())
}

fn bytes(limit: usize) -> u64 {
    u64::try_from(limit).unwrap_or(u64::MAX)
}
