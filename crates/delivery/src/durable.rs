//! Appends that are repeated until the log has them.
//!
//! Repeating is harmless: every record that goes through here is named by its work and attempt, and whoever reads a
//! second copy drops it.
//!
//! Each append is a span of its trace, and the record's headers carry it on.

use std::time::Duration;

use futures_util::FutureExt;
use postrider_daemon::telemetry;
use postrider_log::{Append, AppendError, NewRecord, Position, Producer, Target};
use tokio::time::sleep;
use tracing::Instrument;

const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Starts an append as soon as the producer's queue has room. Until then nothing later goes to the log, so order holds.
pub(crate) async fn append_when_room(
    producer: &dyn Producer,
    topic: &str,
    target: Target,
    mut record: NewRecord,
) -> Append {
    let span = telemetry::sending(topic);
    telemetry::carry(&span, &mut record.headers);
    loop {
        let mut append = span.in_scope(|| producer.append(topic, target, record.clone()));
        match (&mut append).now_or_never() {
            None => return append,
            Some(Err(AppendError::QueueFull)) => sleep(BACKOFF_MIN).await,
            Some(fate) => return Append::ready(fate),
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
    let mut backoff = BACKOFF_MIN;
    loop {
        match producer.append(topic, target, record.clone()).await {
            Ok(position) => return Ok(position),
            Err(AppendError::TooLarge) => return Err(TooLarge),
            Err(AppendError::QueueFull) => {}
            Err(error @ (AppendError::Failed(_) | AppendError::Unknown(_))) => {
                tracing::warn!(topic, %error, "append not acknowledged, repeating it");
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
        sleep(backoff).await;
    }
}
