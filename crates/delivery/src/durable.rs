//! Appends that are repeated until the log has them.
//!
//! Repeating is harmless: every record that goes through here is named by its work and attempt, and
//! whoever reads a second copy drops it.
//!
//! Each append is a span of its trace, and the record's headers carry it on.

use std::time::Duration;

use futures_util::FutureExt;
use postrider_daemon::telemetry;
use postrider_log::{Append, AppendError, Backoff, NewRecord, Position, Producer, Target};
use tokio::time::sleep;
use tracing::{Instrument, Span};

/// Before an append that found the producer's queue full is tried again.
pub(crate) const QUEUE_FULL_PAUSE: Duration = BACKOFF.first;
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(20),
    longest: Duration::from_secs(1),
};

/// An append that waits until the producer's queue has room. If nothing later is appended before
/// it, order holds.
#[derive(Debug)]
pub(crate) struct Waiting {
    topic: &'static str,
    target: Target,
    record: NewRecord,
    span: Span,
}

impl Waiting {
    pub(crate) fn new(topic: &'static str, target: Target, mut record: NewRecord) -> Self {
        let span = telemetry::sending(topic);
        telemetry::carry(&span, &mut record.headers);
        Self {
            topic,
            target,
            record,
            span,
        }
    }

    /// Starts the append. None if the queue is full; then it may have room after
    /// [`QUEUE_FULL_PAUSE`].
    pub(crate) fn start(&self, producer: &dyn Producer) -> Option<Append> {
        let append = || producer.append(self.topic, self.target, self.record.clone());
        let mut append = self.span.in_scope(append);
        match (&mut append).now_or_never() {
            None => Some(append),
            Some(Err(AppendError::QueueFull)) => None,
            Some(fate) => Some(Append::ready(fate)),
        }
    }
}

/// The topic does not take a record of this size, now or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// Appends a record, again and again until it is acknowledged. Stops only by being dropped.
pub(crate) async fn append_durably(
    producer: &dyn Producer,
    topic: &str,
    target: Target,
    mut record: NewRecord,
) -> Result<Position, TooLarge> {
    let span = telemetry::sending(topic);
    telemetry::carry(&span, &mut record.headers);
    repeat_append(producer, topic, target, record)
        .instrument(span)
        .await
}

async fn repeat_append(
    producer: &dyn Producer,
    topic: &str,
    target: Target,
    record: NewRecord,
) -> Result<Position, TooLarge> {
    let mut failures = 0;
    loop {
        match producer.append(topic, target, record.clone()).await {
            Ok(position) => return Ok(position),
            Err(AppendError::TooLarge) => return Err(TooLarge),
            Err(AppendError::QueueFull) => {}
            Err(error @ (AppendError::Failed(_) | AppendError::Unknown(_))) => {
                tracing::warn!(topic, %error, "append not acknowledged, repeating it");
                failures += 1;
            }
        }
        sleep(BACKOFF.pause(failures)).await;
    }
}
