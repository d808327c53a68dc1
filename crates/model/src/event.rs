//! Events: what happened, and where in the log it was written down.

use bytes::Bytes;

use crate::filter::EventTypeName;
use crate::identity::RegistryStamp;
use crate::ids::{EventId, TenantId};

/// Something that happened, accepted for delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Unique within the tenant.
    pub id: EventId,
    /// Whose endpoints are asked.
    pub tenant: TenantId,
    /// What kind of thing.
    pub event_type: EventTypeName,
    /// When it happened.
    pub occurred_at_ms: i64,
    /// The payload as received.
    pub data: Bytes,
    /// Events of one tenant and key are kept in order; empty for none.
    pub ordering_key: String,
    /// The registry view that ingest knew.
    pub registry: RegistryStamp,
    /// When it was accepted.
    pub accepted_at_ms: i64,
    /// Trace context of the producer's call.
    pub trace: TraceContext,
}

/// W3C Trace Context as it came, carried on unread.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceContext {
    /// `traceparent`, empty for none.
    pub traceparent: String,
    /// `tracestate`, empty for none.
    pub tracestate: String,
}

/// Which record of the `events` topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventPosition {
    /// Partition of `events`.
    pub partition: i32,
    /// Offset in that partition.
    pub offset: i64,
    /// When the log got the record, the same each time it is read. A topic that is made again, or
    /// lost its end, gives an offset a second time, never with the same time. 0: written by an
    /// older release, which did not note it.
    pub appended_at_ms: i64,
}

impl EventPosition {
    /// As older releases wrote it.
    #[must_use]
    pub fn without_time(self) -> Self {
        Self {
            appended_at_ms: 0,
            ..self
        }
    }

    /// Whether both name the same record, as far as one that an older release wrote can say.
    #[must_use]
    pub fn names_same_as(self, other: Self) -> bool {
        self == other
            || (self.without_time() == other.without_time()
                && (self.appended_at_ms == 0 || other.appended_at_ms == 0))
    }
}
