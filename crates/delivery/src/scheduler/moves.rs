//! What is written when a retry moves on.

use bytes::Bytes;
use postrider_log::{NewRecord, Producer, Record, Target};
use postrider_model::outcome::Reason;
use postrider_model::topics::RETRY;

use super::SchedulerContext;
use crate::dead_letter;
use crate::durable::append_durably;

/// Appends the record elsewhere, or a dead letter if it does not fit there.
pub(super) async fn append(
    producer: &dyn Producer,
    context: &SchedulerContext,
    record: &Record,
    topic: &'static str,
    target: Target,
    value: Option<Bytes>,
) {
    let copy = NewRecord {
        key: record.key.clone(),
        value,
        headers: record.headers.clone(),
    };
    let appended = append_durably(producer, topic, target, copy).await;
    if appended.is_err() {
        let detail = format!("the retry is larger than {topic} takes");
        bury(producer, context, record, Reason::TooLarge, detail).await;
    }
}

/// Writes a dead letter of a record that cannot go on.
pub(super) async fn bury(
    producer: &dyn Producer,
    context: &SchedulerContext,
    record: &Record,
    reason: Reason,
    detail: String,
) {
    let cap = context.raw_record_bytes_max;
    let letter = dead_letter::of_record(RETRY, record, reason, detail, cap, context.clock.now_ms());
    let place = (record.partition, record.offset);
    dead_letter::keep(producer, &context.metrics, RETRY, letter, place).await;
}
