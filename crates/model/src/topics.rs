//! The topics: their names, keys and how they are created.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{EventId, ID_BYTES_MAX, TenantId};
use crate::retry::DelayLadder;

/// Events as accepted, by tenant and ordering key.
pub const EVENTS: &str = "events";
/// Which endpoints each event matched, by event.
pub const ROUTES: &str = "routes";
/// Events on their way to one endpoint each, by endpoint.
pub const DELIVERIES: &str = "deliveries";
/// Deliveries that wait, one partition per delay.
pub const RETRY: &str = "retry";
/// What was given up, by endpoint.
pub const DEAD_LETTERS: &str = "dead-letters";
/// Every attempt and settlement, by endpoint.
pub const ATTEMPTS: &str = "attempts";
/// Tenants, endpoints and keys for the API, compacted.
pub const REGISTRY: &str = "registry";
/// Who changed what by the API, by tenant.
pub const AUDIT: &str = "audit";
/// What the owner of an endpoint learned, by endpoint, compacted.
pub const ENDPOINT_STATE: &str = "endpoint-state";

/// The group that reads [`EVENTS`] and matches endpoints.
pub const GROUP_FAN_OUT: &str = "fan-out";
/// The group that reads [`DELIVERIES`] and calls endpoints.
pub const GROUP_DELIVER: &str = "deliver";
/// The group that reads [`RETRY`] and returns what is due.
pub const GROUP_SCHEDULER: &str = "scheduler";

const HOUR_MS: i64 = 60 * 60 * 1000;
const DAY_HOURS: u32 = 24;

/// By how much a record that holds an event may exceed the event's own record, in bytes: ids,
/// times, the end of a delivery with its detail, trace context, and what Kafka puts around a
/// record. An attempt, which holds no event, fits into it.
pub const DERIVED_OVERHEAD_BYTES: u32 = 4 * 1024;
/// What an endpoint takes in a route at most, in bytes.
const ROUTED_ENDPOINT_BYTES: u64 = 2 + ID_BYTES_MAX as u64;

/// Why the sizes of records do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSizes {
    /// An event of the largest size would be accepted, and could be neither delivered nor
    /// dead-lettered.
    #[error(
        "the largest record of {topic} is {found} bytes: must be at least {least}, the largest record of `events` and \
         {DERIVED_OVERHEAD_BYTES} bytes for what surrounds an event"
    )]
    Derived {
        /// Name without prefix.
        topic: &'static str,
        /// Its largest record.
        found: u64,
        /// What it must take.
        least: u64,
    },
    /// The route of an event that every endpoint of a tenant wants.
    #[error(
        "the largest record of {ROUTES} is {found} bytes: must be at least {least} for {endpoints} endpoints of a tenant"
    )]
    Route {
        /// Its largest record.
        found: u64,
        /// What it must take.
        least: u64,
        /// Endpoints that one event may match.
        endpoints: u64,
    },
}

/// Checks that what follows from the largest event fits into the topics that it is written to.
/// `largest` says the largest record of a topic in bytes, `endpoints_max` how many endpoints one
/// event may match.
///
/// # Errors
/// The first topic that is too small.
pub fn check_sizes(
    largest: impl Fn(&'static str) -> u64,
    endpoints_max: u64,
) -> Result<(), InvalidSizes> {
    let overhead = u64::from(DERIVED_OVERHEAD_BYTES);
    let event = largest(EVENTS);
    let holding_events = [DELIVERIES, RETRY, DEAD_LETTERS].map(|topic| (topic, event + overhead));
    for (topic, least) in holding_events.into_iter().chain([(ATTEMPTS, overhead)]) {
        let found = largest(topic);
        if found < least {
            return Err(InvalidSizes::Derived {
                topic,
                found,
                least,
            });
        }
    }
    let (found, least) = (
        largest(ROUTES),
        overhead.saturating_add(endpoints_max.saturating_mul(ROUTED_ENDPOINT_BYTES)),
    );
    if found < least {
        return Err(InvalidSizes::Route {
            found,
            least,
            endpoints: endpoints_max,
        });
    }
    Ok(())
}

/// The key of an event: one partition, and so one order, per tenant and ordering key; events
/// without one are spread.
pub fn event_key(tenant: &TenantId, ordering_key: &str, event_id: &EventId) -> Bytes {
    let key = if ordering_key.is_empty() {
        event_id.as_str()
    } else {
        ordering_key
    };
    format!("{tenant}/{key}").into()
}

/// How the topics are created, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicLayout {
    /// Partitions of every topic but `registry`, `audit` and `retry`, over which keys are spread.
    /// Fixed at creation.
    pub partitions: i32,
    /// Partitions that somebody has added to each of them since. No key is put there.
    pub partitions_added: i32,
    /// Replicas of each partition; -1 for the broker's default.
    pub replication: i32,
    /// How long `events` are kept.
    pub events_retention_hours: u32,
    /// How long `routes` are kept.
    pub routes_retention_hours: u32,
    /// How long `deliveries` are kept.
    pub deliveries_retention_hours: u32,
    /// How long `retry` is kept: longer than any wait in it.
    pub retry_retention_hours: u32,
    /// How long `dead-letters` are kept.
    pub dead_letters_retention_hours: u32,
    /// How long `attempts` are kept.
    pub attempts_retention_hours: u32,
    /// How long `audit` is kept.
    pub audit_retention_hours: u32,
    /// Largest record of `events`.
    pub event_bytes_max: u32,
    /// Largest record of what derives from events: larger by [`DERIVED_OVERHEAD_BYTES`] at least,
    /// since it adds to what it holds.
    pub derived_bytes_max: u32,
    /// How long `registry` and `endpoint-state` keep superseded records: longer than any write is
    /// waited for.
    pub compaction_lag_s: u32,
    /// The delays of the partitions of `retry`.
    pub retry_delays_ms: DelayLadder,
}

impl Default for TopicLayout {
    fn default() -> Self {
        Self {
            partitions: 12,
            partitions_added: 0,
            replication: -1,
            events_retention_hours: 7 * DAY_HOURS,
            routes_retention_hours: 7 * DAY_HOURS,
            deliveries_retention_hours: 7 * DAY_HOURS,
            retry_retention_hours: 9 * DAY_HOURS,
            dead_letters_retention_hours: 30 * DAY_HOURS,
            attempts_retention_hours: 7 * DAY_HOURS,
            audit_retention_hours: 365 * DAY_HOURS,
            event_bytes_max: 1024 * 1024,
            derived_bytes_max: 2 * 1024 * 1024,
            compaction_lag_s: 3600,
            retry_delays_ms: DelayLadder::standard(),
        }
    }
}

/// A topic to create or check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPlan {
    /// Name without prefix.
    pub name: &'static str,
    /// Number of partitions.
    pub partitions: i32,
    /// How long records are kept; `None` for a compacted topic.
    pub retention_ms: Option<i64>,
    /// Largest record in bytes.
    pub message_bytes_max: u32,
    /// Further settings under Kafka's names.
    pub settings: Vec<(String, String)>,
}

impl TopicLayout {
    /// Every topic.
    pub fn topics(&self) -> Vec<TopicPlan> {
        let partitions = self.partitions.saturating_add(self.partitions_added);
        let derived =
            |name, retention_hours| plan(name, partitions, retention_hours, self.derived_bytes_max);
        let retry_partitions = i32::try_from(self.retry_delays_ms.len()).unwrap_or(i32::MAX);
        vec![
            plan(
                EVENTS,
                partitions,
                self.events_retention_hours,
                self.event_bytes_max,
            ),
            derived(ROUTES, self.routes_retention_hours),
            derived(DELIVERIES, self.deliveries_retention_hours),
            TopicPlan {
                partitions: retry_partitions,
                ..derived(RETRY, self.retry_retention_hours)
            },
            derived(DEAD_LETTERS, self.dead_letters_retention_hours),
            derived(ATTEMPTS, self.attempts_retention_hours),
            plan(AUDIT, 1, self.audit_retention_hours, self.event_bytes_max),
            self.compacted(REGISTRY, 1),
            self.compacted(ENDPOINT_STATE, partitions),
        ]
    }

    /// Checks that the sizes of records go together, as [`check_sizes`] does.
    ///
    /// # Errors
    /// The first topic that is too small.
    pub fn check_sizes(&self, endpoints_max: u64) -> Result<(), InvalidSizes> {
        let largest = |topic| {
            let of_events = topic == EVENTS;
            u64::from(if of_events {
                self.event_bytes_max
            } else {
                self.derived_bytes_max
            })
        };
        check_sizes(largest, endpoints_max)
    }

    fn compacted(&self, name: &'static str, partitions: i32) -> TopicPlan {
        let lag_ms = i64::from(self.compaction_lag_s) * 1000;
        let mut settings = common_settings();
        settings.push(setting("cleanup.policy", "compact"));
        settings.push(setting("min.compaction.lag.ms", &lag_ms.to_string()));
        TopicPlan {
            name,
            partitions,
            retention_ms: None,
            message_bytes_max: self.event_bytes_max,
            settings,
        }
    }
}

fn plan(
    name: &'static str,
    partitions: i32,
    retention_hours: u32,
    message_bytes_max: u32,
) -> TopicPlan {
    TopicPlan {
        name,
        partitions,
        retention_ms: Some(i64::from(retention_hours) * HOUR_MS),
        message_bytes_max,
        settings: common_settings(),
    }
}

/// Reads by time and the ages of records rely on the time of the log, not of its writers.
fn common_settings() -> Vec<(String, String)> {
    vec![setting("message.timestamp.type", "LogAppendTime")]
}

fn setting(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_is_stamped_by_the_log() {
        let topics = TopicLayout::default().topics();
        assert_eq!(topics.len(), 9);
        for topic in topics {
            assert!(
                topic
                    .settings
                    .contains(&setting("message.timestamp.type", "LogAppendTime"))
            );
        }
    }

    #[test]
    fn only_registry_and_endpoint_state_are_compacted() {
        for topic in TopicLayout::default().topics() {
            let compacts = topic
                .settings
                .contains(&setting("cleanup.policy", "compact"));
            assert_eq!(compacts, topic.retention_ms.is_none());
            assert_eq!(compacts, [REGISTRY, ENDPOINT_STATE].contains(&topic.name));
        }
    }

    #[test]
    fn retry_has_a_partition_per_delay_and_registry_and_audit_one() {
        let layout = TopicLayout {
            retry_delays_ms: DelayLadder::try_new(vec![1, 20, 300]).unwrap(),
            ..TopicLayout::default()
        };
        for topic in layout.topics() {
            let expected = match topic.name {
                RETRY => 3,
                REGISTRY | AUDIT => 1,
                _ => 12,
            };
            assert_eq!(topic.partitions, expected, "{}", topic.name);
        }
    }

    #[test]
    fn limits_under_which_an_accepted_event_does_not_fit_the_next_topic_are_refused() {
        let layout = TopicLayout::default();
        assert_eq!(layout.check_sizes(10_000), Ok(()));
        let equal = TopicLayout {
            event_bytes_max: layout.derived_bytes_max,
            ..layout.clone()
        };
        assert!(matches!(
            equal.check_sizes(1),
            Err(InvalidSizes::Derived {
                topic: DELIVERIES,
                ..
            })
        ));
        let just = TopicLayout {
            event_bytes_max: layout.derived_bytes_max - DERIVED_OVERHEAD_BYTES,
            ..layout.clone()
        };
        assert_eq!(just.check_sizes(1), Ok(()));
        assert!(matches!(
            layout.check_sizes(1_000_000),
            Err(InvalidSizes::Route { .. })
        ));
        let lowered = |lowered: &'static str| {
            move |topic: &'static str| if topic == lowered { 1_000 } else { 1 << 20 }
        };
        for topic in [DELIVERIES, RETRY, DEAD_LETTERS, ATTEMPTS, ROUTES] {
            assert!(check_sizes(lowered(topic), 100).is_err(), "{topic}");
        }
    }

    #[test]
    fn unknown_keys_and_bad_ladders_are_refused() {
        let read = serde_json::from_str::<TopicLayout>;
        assert_eq!(read(r#"{"partitions":3}"#).unwrap().partitions, 3);
        assert!(read(r#"{"partition":3}"#).is_err());
        assert!(read(r#"{"retry_delays_ms":[5,5]}"#).is_err());
        let written = serde_json::to_string(&TopicLayout::default()).unwrap();
        assert_eq!(read(&written).unwrap(), TopicLayout::default());
    }

    #[test]
    fn events_of_one_ordering_key_share_a_key_within_their_tenant() {
        let tenant = TenantId::try_new("acme").unwrap();
        let event = EventId::try_new("evt_1").unwrap();
        assert_eq!(event_key(&tenant, "order-7", &event), "acme/order-7");
        assert_eq!(event_key(&tenant, "", &event), "acme/evt_1");
    }
}
