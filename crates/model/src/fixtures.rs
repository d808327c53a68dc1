//! What tests begin with and change in part:
//! `Event { accepted_at_ms, ..fixtures::event("evt_1") }`.
//!
//! All of it belongs to the tenant `acme`; texts that are no ids panic.

use bytes::Bytes;

use crate::delivery::Delivery;
use crate::endpoint::{Endpoint, EndpointState};
use crate::event::{Event, EventPosition, TraceContext};
use crate::identity::RegistryStamp;

/// An endpoint that is enabled, wants everything and has no secret.
pub fn endpoint(id: &str) -> Endpoint {
    Endpoint {
        id: id.parse().expect("an id"),
        tenant: "acme".parse().expect("an id"),
        url: "https://example.com/hook".parse().expect("a URL"),
        description: String::new(),
        metadata: [].into(),
        event_types: Default::default(),
        format: Default::default(),
        retry_schedule: None,
        attempt_timeout_ms: None,
        rate_limit: None,
        ordered: None,
        secrets: vec![],
        state: EndpointState::Enabled,
        discard_matched_before: 0,
        created_at_ms: 1,
    }
}

/// A thing that happened, without an ordering key.
pub fn event(id: &str) -> Event {
    Event {
        id: id.parse().expect("an id"),
        tenant: "acme".parse().expect("an id"),
        event_type: "thing.happened".parse().expect("a type"),
        occurred_at_ms: 1,
        data: Bytes::from_static(b"{}"),
        ordering_key: String::new(),
        registry: RegistryStamp::default(),
        accepted_at_ms: 1,
        trace: TraceContext::default(),
    }
}

/// The first attempt of the event at this offset.
pub fn delivery(event: Event, endpoint: &str, offset: i64) -> Delivery {
    Delivery {
        event,
        endpoint: endpoint.parse().expect("an id"),
        position: EventPosition {
            partition: 0,
            offset,
            appended_at_ms: 5,
        },
        run: 0,
        attempt: 1,
        registry: RegistryStamp::default(),
        due_at_ms: 0,
        ordered: false,
    }
}
