//! Reads the topic on for ever, and removes what this process's writes left behind.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use postrider_log::{Batch, LogError, Reader, Target};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::record::{self, RecordKey};
use crate::registry::{PARTITION, Shared, TOPIC};
use crate::view::Applied;

/// How long a read waits for news; the view counts as current that long at least.
const READ_WAIT: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Tombstones under way at once, at most.
const TOMBSTONES_MAX: usize = 1_000;

/// Keeps the view of a [`Registry`](crate::Registry).
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    reader: Box<dyn Reader>,
}

impl Follower {
    pub(crate) fn new(shared: Arc<Shared>, reader: Box<dyn Reader>) -> Self {
        Self { shared, reader }
    }

    /// Follows the topic until stopped. While the log cannot be read the view stays as it is and grows old.
    pub async fn run(self, stop: CancellationToken) {
        let Self { shared, reader } = self;
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            never = follow(&shared, reader) => match never {},
            never = clean(&shared) => match never {},
        }
    }
}

async fn follow(shared: &Shared, mut reader: Box<dyn Reader>) -> Infallible {
    let mut backoff = BACKOFF_MIN;
    let mut failing = false;
    loop {
        let position = shared.view().position();
        let from = i64::try_from(position).unwrap_or(i64::MAX);
        match reader
            .read(PARTITION, from, shared.options.read_bytes_max, READ_WAIT)
            .await
        {
            Ok(batch) => {
                if failing {
                    tracing::info!(position, "registry topic can be read again");
                    (failing, backoff) = (false, BACKOFF_MIN);
                }
                apply(shared, &batch);
            }
            Err(error) => {
                shared
                    .counters
                    .read_failures
                    .fetch_add(1, Ordering::Relaxed);
                if !failing {
                    failing = true;
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(
                        position,
                        error,
                        "registry topic cannot be read, its view is stale"
                    );
                }
                sleep(backoff).await;
                backoff = BACKOFF_MAX.min(backoff * 2);
                if !matches!(error, LogError::Unavailable(_)) {
                    // The reader itself may be what is broken.
                    if let Ok(renewed) = shared.log.reader(TOPIC).await {
                        reader = renewed;
                    }
                }
            }
        }
    }
}

/// Applies a batch at once: a view is always at a position between two reads.
fn apply(shared: &Shared, batch: &Batch) {
    let reads: Vec<_> = batch
        .records
        .iter()
        .map(|record| (record, record::decode(record)))
        .collect();
    let mut outcomes = Vec::new();
    let (position, to_clean) = {
        let mut view = shared.view_mut();
        for (record, read) in reads {
            match view.apply(read) {
                Applied::Counted | Applied::Passed => {}
                outcome => outcomes.push((record.offset, outcome)),
            }
        }
        view.advance(batch.next.unsigned_abs());
        (view.position(), view.has_to_clean())
    };
    shared.progressed(position, batch.next >= batch.end);
    if to_clean {
        shared.cleaning.notify_one();
    }
    for (offset, outcome) in outcomes {
        report(shared, offset, outcome);
    }
}

fn report(shared: &Shared, offset: i64, outcome: Applied) {
    match outcome {
        Applied::Counted | Applied::Passed => {}
        Applied::Unreadable(entity, error) => {
            shared.counters.unreadable.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(offset, %entity, %error, "registry record is not understood, the one before stays");
        }
        Applied::Foreign => {
            shared.counters.unreadable.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                offset,
                "registry record has a key that is not understood, it is skipped"
            );
        }
        Applied::WinnerTombstoned(entity) => {
            tracing::error!(offset, %entity, "registry record that counts was removed by somebody else");
        }
    }
}

/// Tombstones what this process's winning records superseded or beat. What fails stays until the next write of the
/// same entity: nothing depends on it.
async fn clean(shared: &Shared) -> Infallible {
    loop {
        shared.cleaning.notified().await;
        sleep(shared.options.cleanup_delay).await;
        let stale = shared.view_mut().take_stale();
        for chunk in stale.chunks(TOMBSTONES_MAX) {
            remove(shared, chunk).await;
        }
    }
}

async fn remove(shared: &Shared, stale: &[RecordKey]) {
    let producer = match shared.producer().await {
        Ok(producer) => producer,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                error,
                "superseded registry records stay, there is no producer"
            );
            return;
        }
    };
    let target = Target::Partition(PARTITION);
    let appends = stale
        .iter()
        .map(|key| producer.append(TOPIC, target, record::tombstone(key)));
    // Collected first, so that all are under way before the first is awaited.
    let appends: Vec<_> = appends.collect();
    let fates = join_all(appends).await;
    let removed = fates.iter().filter(|fate| fate.is_ok()).count();
    shared
        .counters
        .tombstones
        .fetch_add(removed as u64, Ordering::Relaxed);
    if let Some(Err(error)) = fates.iter().find(|fate| fate.is_err()) {
        let left = stale.len() - removed;
        let error: &dyn std::error::Error = error;
        tracing::warn!(
            left,
            error,
            "superseded registry records stay, they could not be removed"
        );
        shared.give_up_producer(&producer);
    }
}
