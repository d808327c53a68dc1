//! Deliveries for unit tests.

use bytes::Bytes;
use postrider_log::{Offset, Record};
use postrider_model::delivery::Delivery;
use postrider_model::fixtures;

use super::step::Step;
use super::tally::Tally;

/// When the records of the deliveries were appended.
pub(super) const APPENDED_MS: i64 = 1_700_000_000_000;

/// The first attempt of an event of its own at `ep_a`, as it would stand at this offset.
pub(super) fn delivery(offset: Offset) -> Delivery {
    fixtures::delivery(fixtures::event(&format!("evt_{offset}")), "ep_a", offset)
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
