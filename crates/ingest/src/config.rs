//! Every limit of the API, with defaults that are safe.

use std::time::Duration;

use postrider_daemon::config::Secret;
use serde::{Deserialize, Serialize};

use crate::operator_key::{ConfiguredKey, InvalidOperatorKey};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Limits of the API, and the key that opens it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestConfig {
    /// The key by which an installation begins. At least 16 bytes.
    pub operator_key: Option<Secret>,
    /// How often one address may present a key that is none, in a minute, until it is told to wait.
    pub failed_keys_per_minute_max: u32,
    /// Body of an event.
    pub event_bytes_max: usize,
    /// Body of a batch of events.
    pub batch_bytes_max: usize,
    /// Events of one batch.
    pub batch_events_max: usize,
    /// Body of an import of endpoints.
    pub import_bytes_max: usize,
    /// Endpoints of one import.
    pub import_endpoints_max: usize,
    /// Any other body.
    pub body_bytes_max: usize,
    /// How long a body may take to arrive.
    pub body_timeout_ms: u64,
    /// Events received and not yet acknowledged by the log. While this process or the log does not
    /// keep up, fewer.
    pub events_in_flight_max: usize,
    /// Bytes of their bodies.
    pub events_in_flight_bytes_max: usize,
    /// How long events may wait for the log, on average, until fewer are let in at a time.
    pub events_wait_max_ms: u64,
    /// How many seconds later, at most, whoever is refused because there are too many is told to
    /// come again.
    pub again_after_max_s: u32,
    /// How long the log may take to acknowledge an event before its fate counts as unknown.
    pub append_timeout_ms: u64,
    /// How long events are gathered into one write.
    pub append_linger_ms: u64,
    /// Bytes handed to the log and not yet acknowledged.
    pub append_queue_bytes_max: usize,
    /// Requests that change something at a time.
    pub changes_in_flight_max: usize,
    /// Requests that read topics at a time. Each may hold a batch and its answer in memory.
    pub reads_in_flight_max: usize,
    /// Bytes that one request reads from topics before its answer is cut.
    pub read_bytes_max: usize,
    /// How long one request reads from topics before its answer is cut.
    pub read_timeout_ms: u64,
    /// How far back is read when a request does not say.
    pub read_since_default_s: u64,
    /// Dead letters that one request redrives.
    pub redrive_dead_letters_max: usize,
    /// Deliveries that one request replays.
    pub replay_deliveries_max: usize,
    /// How long a replaced secret goes on signing when a request does not say.
    pub secret_overlap_default_s: u64,
}

/// What is wrong with the section.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIngest {
    /// The key cannot be used.
    #[error("`ingest.operator_key`: {0}")]
    OperatorKey(#[from] InvalidOperatorKey),
    /// A limit allows nothing, or does not go with another.
    #[error("`ingest.{key}`: {why}")]
    Limit {
        /// Its key in the section.
        key: &'static str,
        /// What it must be.
        why: &'static str,
    },
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            operator_key: None,
            failed_keys_per_minute_max: 60,
            event_bytes_max: 256 * KIB,
            batch_bytes_max: 4 * MIB,
            batch_events_max: 500,
            import_bytes_max: 16 * MIB,
            import_endpoints_max: 10_000,
            body_bytes_max: 64 * KIB,
            body_timeout_ms: 10_000,
            events_in_flight_max: 1_024,
            events_in_flight_bytes_max: 8 * MIB,
            events_wait_max_ms: 100,
            again_after_max_s: 15,
            append_timeout_ms: 10_000,
            append_linger_ms: 0,
            append_queue_bytes_max: 64 * MIB,
            changes_in_flight_max: 256,
            reads_in_flight_max: 8,
            read_bytes_max: 64 * MIB,
            read_timeout_ms: 5_000,
            read_since_default_s: 24 * 60 * 60,
            redrive_dead_letters_max: 10_000,
            replay_deliveries_max: 10_000,
            secret_overlap_default_s: 24 * 60 * 60,
        }
    }
}

impl IngestConfig {
    /// Whether the limits let anything in, and the operator key, if there is one, can be used.
    ///
    /// # Errors
    /// When they don't, or it could be guessed or not be sent.
    pub fn check(&self) -> Result<(), InvalidIngest> {
        let wrong = |key, why| Err(InvalidIngest::Limit { key, why });
        if self.events_in_flight_max == 0 {
            return wrong("events_in_flight_max", "must be at least 1");
        }
        if self.changes_in_flight_max == 0 {
            return wrong("changes_in_flight_max", "must be at least 1");
        }
        if self.failed_keys_per_minute_max == 0 {
            return wrong("failed_keys_per_minute_max", "must be at least 1");
        }
        if self.again_after_max_s == 0 {
            return wrong("again_after_max_s", "must be at least 1");
        }
        // An event waits for others on purpose for as long as the linger.
        if self.events_wait_max_ms <= self.append_linger_ms {
            return wrong(
                "events_wait_max_ms",
                "must exceed `ingest.append_linger_ms`",
            );
        }
        if self.events_in_flight_bytes_max < self.event_bytes_max {
            return wrong(
                "events_in_flight_bytes_max",
                "must be at least `ingest.event_bytes_max`, or the largest event would never be let in",
            );
        }
        if self.batch_events_max == 0 {
            return wrong("batch_events_max", "must be at least 1");
        }
        if self.batch_bytes_max < self.event_bytes_max {
            return wrong(
                "batch_bytes_max",
                "must be at least `ingest.event_bytes_max`, or the largest event would fit into no batch",
            );
        }
        if self.events_in_flight_bytes_max < self.batch_bytes_max {
            return wrong(
                "events_in_flight_bytes_max",
                "must be at least `ingest.batch_bytes_max`, or the largest batch would never be let in",
            );
        }
        ConfiguredKey::of(self.operator_key.as_ref())?;
        Ok(())
    }

    pub(crate) fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }

    pub(crate) fn events_wait_max(&self) -> Duration {
        Duration::from_millis(self.events_wait_max_ms)
    }

    pub(crate) fn append_timeout(&self) -> Duration {
        Duration::from_millis(self.append_timeout_ms)
    }

    pub(crate) fn append_linger(&self) -> Duration {
        Duration::from_millis(self.append_linger_ms)
    }

    pub(crate) fn read_timeout(&self) -> Duration {
        Duration::from_millis(self.read_timeout_ms)
    }
}
