//! Deliveries for unit tests.

use bytes::Bytes;
use postrider_log::{Offset, Record};
use postrider_model::delivery::Delivery;
use postrider_model::event::{Event, EventPosition, TraceContext};
use postrider_model::identity::RegistryStamp;

use super::step::Step;
use super::tally::Tally;

/// When the records of the deliveries were appended.
pub(super) const APPENDED_MS: i64 = 1_700_000_000_000;

/// The first attempt of an event of its own at `ep_a`, as it would stand at this offset.
pub(super) fn delivery(offset: Offset) -> Delivery {
    let event = Event {
        id: format!("evt_{offset}").parse().unwrap(),
        tenant: "acme".parse().unwrap(),
        event_type: "a".parse().unwrap(),
        occurred_at_ms: 1,
        data: Bytes::from_static(b"1"),
        ordering_key: String::new(),
        registry: RegistryStamp::of_unknown(1),
        accepted_at_ms: 1,
        trace: TraceContext::default(),
    };
    Delivery {
        ordered: false,
        event,
        endpoint: "ep_a".parse().unwrap(),
        position: EventPosition {
            partition: 0,
            offset,
            appended_at_ms: 5,
        },
        run: 0,
        attempt: 1,
        registry: RegistryStamp::of_unknown(1),
        due_at_ms: 0,
    }
}

/// The same where order matters, with an ordering key.
pub(super) fn ordered(offset: Offset, key: &str) -> Delivery {
    let mut delivery = delivery(offset);
    delivery.ordered = true;
    key.clone_into(&mut delivery.event.ordering_key);
    delivery
}

/// The record of a delivery.
pub(super) fn record_of(offset: Offset, delivery: &Delivery) -> Record {
    Record {
        partition: 0,
        offset,
        timestamp_ms: APPENDED_MS,
        key: Bytes::copy_from_slice(delivery.endpoint.as_str().as_bytes()),
        value: Some(delivery.encode()),
        headers: Vec::new(),
    }
}

/// A delivery in memory.
pub(super) fn step_of(offset: Offset, delivery: Delivery) -> Step {
    let record = record_of(offset, &delivery);
    Step::new(&record, delivery, &Tally::default())
}
