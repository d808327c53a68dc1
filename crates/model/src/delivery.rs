//! Deliveries, the attempts made of them, and what they end in.

use bytes::Bytes;

use crate::endpoint::Endpoint;
use crate::event::{Event, EventPosition};
use crate::filter::EventTypeName;
use crate::identity::RegistryStamp;
use crate::ids::{EndpointId, EventId, TenantId};
use crate::work::WorkId;

/// Longest description of what went wrong, in bytes.
pub const DETAIL_BYTES_MAX: usize = 512;
/// How much of a response body is kept, in bytes.
pub const RESPONSE_EXCERPT_BYTES_MAX: usize = 1024;

/// One event on its way to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The event, whole.
    pub event: Event,
    /// Where it goes.
    pub endpoint: EndpointId,
    /// Where the event is in `events`.
    pub position: EventPosition,
    /// 0 for the first time; for a redrive, the hash of its command's id.
    pub run: u64,
    /// Number of the attempt to make next, from 1.
    pub attempt: u32,
    /// The registry view that the event was matched at.
    pub registry: RegistryStamp,
    /// While in `retry`: not before this time.
    pub due_at_ms: i64,
    /// The endpoint is ordered.
    pub ordered: bool,
}

impl Delivery {
    /// The piece of work that this record is a step of.
    pub fn work_id(&self) -> WorkId {
        WorkId {
            position: self.position,
            endpoint: self.endpoint.clone(),
            run: self.run,
        }
    }

    /// The ordering key of which one delivery at a time is made; `None` where order does not
    /// matter.
    pub fn order_key(&self) -> Option<&str> {
        let key = self.event.ordering_key.as_str();
        (self.ordered && !key.is_empty()).then_some(key)
    }

    /// Whether it belongs to a backlog that was discarded. What was redriven or replayed was asked
    /// for since, and is not.
    pub fn is_discarded_by(&self, endpoint: &Endpoint) -> bool {
        self.run == 0 && self.registry.position < endpoint.discard_matched_before
    }
}

/// How an attempt ended, or that none was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The endpoint answered 2xx.
    Succeeded,
    /// The endpoint refused, could not be reached or did not answer in time.
    Failed,
    /// Cut short by us; not counted.
    Interrupted,
    /// Settled without an attempt.
    None,
}

/// What durably ended a record of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The endpoint has it.
    Delivered,
    /// A later attempt is in `retry`, due then.
    RetryScheduled {
        /// When it is due.
        due_at_ms: i64,
    },
    /// It is in `dead-letters`.
    DeadLettered,
    /// Given up without a trace elsewhere.
    Dropped,
}

impl Settlement {
    /// Whether no later attempt of the same run can follow.
    pub fn is_end(self) -> bool {
        !matches!(self, Self::RetryScheduled { .. })
    }

    /// Its name, as the API and traces have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::RetryScheduled { .. } => "retry_scheduled",
            Self::DeadLettered => "dead_lettered",
            Self::Dropped => "dropped",
        }
    }
}

/// One attempt, or a settlement without one, as recorded in `attempts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The event's id.
    pub event_id: EventId,
    /// The event's tenant.
    pub tenant: TenantId,
    /// The event's type.
    pub event_type: EventTypeName,
    /// The endpoint, position and run.
    pub work: WorkId,
    /// Number of the attempt, from 1.
    pub number: u32,
    /// When the request started, or the decision fell.
    pub started_at_ms: i64,
    /// How long the request took.
    pub duration_ms: u32,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// Why.
    pub reason: crate::outcome::Reason,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What went wrong, for people: at most [`DETAIL_BYTES_MAX`].
    pub detail: String,
    /// The beginning of the response body: at most [`RESPONSE_EXCERPT_BYTES_MAX`].
    pub response_excerpt: Bytes,
    /// What became of the delivery; `None` for an interrupted attempt.
    pub settlement: Option<Settlement>,
    /// When the event was accepted.
    pub accepted_at_ms: i64,
    /// Trace context of the attempt, or of the delivery while no traces are exported.
    pub traceparent: String,
    /// Offset in `deliveries` of the record it was made for; `None` in records of older releases.
    pub delivery_offset: Option<i64>,
}

/// What the owner of a lane learned and the next owner must know, as recorded in `endpoint-state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneState {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Names the ownership under which it was written.
    pub state_id: i64,
    /// If the lane is behind, where it goes on.
    pub cursor: Option<Cursor>,
    /// Since when nothing succeeded; `None` if the last attempt did.
    pub failing_since_ms: Option<i64>,
    /// How often in a row the breaker opened.
    pub breaker_openings: u32,
    /// When the breaker lets the next attempt through.
    pub breaker_open_until_ms: i64,
    /// Of an ordered endpoint that is behind: keys with unsettled deliveries that the cursor has
    /// passed.
    pub blocked: Vec<BlockedKey>,
}

impl LaneState {
    /// Whether the record at this offset is settled as far as the state knows; a lane without
    /// cursor knows nothing.
    pub fn has_settled(&self, offset: i64, order_key: Option<&str>) -> bool {
        let is_of_key = |blocked: &&BlockedKey| Some(blocked.ordering_key.as_str()) == order_key;
        match self.blocked.iter().find(is_of_key) {
            Some(blocked) => offset < blocked.cursor,
            None => self
                .cursor
                .as_ref()
                .is_some_and(|cursor| cursor.has_settled(offset)),
        }
    }

    /// Where its unsettled records begin, if it is behind.
    pub fn lowest_unsettled(&self) -> Option<i64> {
        let cursor = self.cursor.as_ref()?.lowest_unsettled;
        let blocked = self.blocked.iter().map(|blocked| blocked.cursor);
        Some(blocked.fold(cursor, i64::min))
    }

    /// How far it is behind, if it is.
    pub fn behind(&self) -> Option<Behind> {
        Some(Behind {
            from: self.lowest_unsettled()?,
            since_ms: self.cursor.as_ref()?.behind_since_ms,
        })
    }
}

/// How far a lane is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// Where its unsettled records begin, those of blocked ordering keys included.
    pub from: i64,
    /// Since when.
    pub since_ms: i64,
}

impl Behind {
    /// By how many offsets, in a partition that ends there: an upper bound for its deliveries,
    /// since some of the records are settled or of other endpoints.
    pub fn offsets(self, end: i64) -> i64 {
        end.saturating_sub(self.from).max(0)
    }
}

/// An ordering key that is held back by its lowest unsettled delivery: what the key has before it
/// is settled, what comes from there on is not, whatever the cursor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedKey {
    /// The ordering key.
    pub ordering_key: String,
    /// Offset in `deliveries` of its lowest unsettled delivery.
    pub cursor: i64,
    /// Number of that delivery's next attempt.
    pub attempt: u32,
    /// When that is due; 0: at once.
    pub due_at_ms: i64,
    /// When that delivery failed first; `None`: it did not.
    pub failed_at_ms: Option<i64>,
}

/// How far a lane that is behind is served: below `lowest_unsettled` everything is settled, and so
/// is what `settled` names; every other record of the lane is to be read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The lane's lowest unsettled offset in `deliveries`.
    pub lowest_unsettled: i64,
    /// Settled offsets above it.
    pub settled: std::collections::BTreeSet<i64>,
    /// Since when the lane is behind.
    pub behind_since_ms: i64,
}

impl Cursor {
    /// Whether the record at this offset is settled as far as the cursor knows.
    pub fn has_settled(&self, offset: i64) -> bool {
        offset < self.lowest_unsettled || self.settled.contains(&offset)
    }
}

/// A delivery given up, or a record that could not be understood.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// `dl_…`, the same when the same thing is written twice.
    pub id: String,
    /// Why.
    pub reason: crate::outcome::Reason,
    /// What went wrong, for people: at most [`DETAIL_BYTES_MAX`].
    pub detail: String,
    /// When it was given up.
    pub dead_lettered_at_ms: i64,
    /// HTTP status of the last attempt, if there was an answer.
    pub last_status: Option<u16>,
    /// What was given up.
    pub content: DeadLetterContent,
}

/// What a dead letter holds.
#[derive(Debug, Clone, PartialEq)]
pub enum DeadLetterContent {
    /// A delivery, as it was at its last attempt.
    Delivery(Box<Delivery>),
    /// A record of the log, as it was: one that could not be understood, or of which `dead-letters`
    /// took no more.
    Raw(RawRecord),
}

/// A record of the log, kept without understanding it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// Topic, without prefix.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Its key, cut to 1 KiB.
    pub key: Bytes,
    /// Its value, cut to the configured cap.
    pub value: Bytes,
    /// How long the value was.
    pub value_bytes: u64,
}

/// Which event was asked of which endpoints, as recorded in `routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The event's id.
    pub event_id: EventId,
    /// The event's tenant.
    pub tenant: TenantId,
    /// The event's type.
    pub event_type: EventTypeName,
    /// Where the event is.
    pub position: EventPosition,
    /// Position of the registry it was matched at.
    pub registry_position: u64,
    /// The endpoints matched.
    pub endpoints: Vec<EndpointId>,
    /// When the event was accepted.
    pub accepted_at_ms: i64,
    /// When it was matched.
    pub routed_at_ms: i64,
    /// A repeat of an event id inside the window; nothing was delivered for this record.
    pub repeated_event: bool,
    /// Trace context of the event.
    pub traceparent: String,
}
