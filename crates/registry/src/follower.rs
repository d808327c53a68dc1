//! Reads the topic on for ever, and removes what this process's writes left behind.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use postrider_log::{Backoff, Batch, LogError, Reader, Target};
use postrider_model::identity::{Identity, RegistryLoss};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::past::Past;
use crate::record::{self, RecordKey};
use crate::registry::{PARTITION, Registry, Shared, TOPIC};
use crate::view::{Applied, Versioned, View};
use crate::write::is_settled;

/// How long a read waits for news; the view counts as current that long at least.
const READ_WAIT: Duration = Duration::from_secs(1);
/// How often the follower looks whether the topic is still the one that it read; it looks at once
/// after an error.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
};
/// Tombstones under way at once, at most.
const TOMBSTONES_MAX: usize = 1_000;

/// Keeps the view of a [`Registry`].
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    reader: Box<dyn Reader>,
}

impl Follower {
    pub(crate) fn new(shared: Arc<Shared>, reader: Box<dyn Reader>) -> Self {
        Self { shared, reader }
    }

    /// Follows the topic until stopped. While the log cannot be read the view stays as it is and
    /// grows old.
    pub async fn run(self, stop: CancellationToken) {
        let Self { shared, reader } = self;
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            never = follow(&shared, reader) => match never {},
            never = clean(&shared) => match never {},
            never = tell_losses(&shared) => match never {},
        }
    }
}

async fn follow(shared: &Shared, reader: Box<dyn Reader>) -> Infallible {
    let mut following = Following {
        shared,
        reader,
        past: Past::default(),
        look_at: Instant::now() + LOOK_INTERVAL,
        looks_first: false,
        contradicted: None,
    };
    let mut failures = 0;
    loop {
        let position = shared.view().position();
        match following.step(position).await {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!(position, "registry topic can be read again");
                    failures = 0;
                }
            }
            Err(error) => {
                shared
                    .counters
                    .read_failures
                    .fetch_add(1, Ordering::Relaxed);
                // What was away may come back as another.
                following.looks_first = true;
                failures += 1;
                if failures == 1 {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(
                        position,
                        error,
                        "registry topic cannot be read, its view is stale"
                    );
                }
                sleep(BACKOFF.pause(failures)).await;
                if !matches!(error, LogError::Unavailable(_)) {
                    // The reader itself may be what is broken.
                    if let Ok(renewed) = shared.log.reader(TOPIC).await {
                        following.reader = renewed;
                    }
                }
            }
        }
    }
}

struct Following<'a> {
    shared: &'a Shared,
    reader: Box<dyn Reader>,
    past: Past,
    /// When to look next whether the log's past is still the one that was read.
    look_at: Instant,
    /// It is to be looked before anything more is applied.
    looks_first: bool,
    /// How the log contradicts what was read, from when that is known until all of it is read
    /// again.
    contradicted: Option<String>,
}

impl Following<'_> {
    /// Reads on and applies what came, unless the log turns out to be another than the one read
    /// before.
    async fn step(&mut self, position: u64) -> Result<(), LogError> {
        if let Some(detail) = self.contradicted.clone() {
            return self.reload(detail).await;
        }
        let batch = self.read(position, READ_WAIT).await?;
        let ends_before = batch.end.unsigned_abs() < position;
        if ends_before || self.looks_first {
            self.look().await?;
        }
        if self.contradicted.is_some() {
            return Ok(());
        }
        // Somebody may have found that records were lost: then all look at once, and soon show the
        // same.
        let is_told = self.past.note(&batch);
        apply(self.shared, &batch);
        // What came is not kept waiting for that.
        if is_told || self.past.is_full() || Instant::now() >= self.look_at {
            self.look().await?;
        }
        Ok(())
    }

    /// Looks whether the log still has what was read from it.
    async fn look(&mut self) -> Result<(), LogError> {
        let look = self.past.contradiction(self.shared, &mut *self.reader);
        self.contradicted = look.await?;
        self.looks_first = false;
        self.look_at = Instant::now() + LOOK_INTERVAL;
        if self.contradicted.is_some() {
            self.shared.distrust_view();
        }
        Ok(())
    }

    async fn read(&mut self, from: u64, wait: Duration) -> Result<Batch, LogError> {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let bytes_max = self.shared.options.read_bytes_max;
        self.reader.read(PARTITION, from, bytes_max, wait).await
    }

    /// Reads the topic from its start into a view of its own and takes that over.
    async fn reload(&mut self, detail: String) -> Result<(), LogError> {
        let known = self.shared.view().stamp();
        tracing::error!(
            detail,
            position = known.position,
            "registry topic is not the one that was read before, reading all of it again"
        );
        let mut fresh = View::default();
        let mut past = Past::default();
        loop {
            let batch = self.read(fresh.position(), READ_WAIT).await?;
            past.note(&batch);
            for record in &batch.records {
                let outcome = fresh.apply(record::decode(record));
                report(self.shared, record.offset, outcome);
            }
            fresh.advance(batch.next.unsigned_abs());
            if batch.next >= batch.end {
                break;
            }
        }
        let loss = RegistryLoss {
            found_at_ms: self.shared.clock.now_ms(),
            detail,
            lost_id: known.registry_id,
        };
        let is_accepted = |identity: &Versioned<Identity>| is_settled(&identity.value, &loss);
        if known.registry_id != 0 && !fresh.identity().is_some_and(is_accepted) {
            self.shared.lose(loss);
        }
        self.past = past;
        self.contradicted = None;
        self.look_at = Instant::now() + LOOK_INTERVAL;
        self.shared.replace_view(fresh);
        Ok(())
    }
}

/// Applies a batch at once: a view is always at a position between two reads.
fn apply(shared: &Shared, batch: &Batch) {
    let reads: Vec<_> = batch
        .records
        .iter()
        .map(|record| (record, record::decode(record)))
        .collect();
    let endpoints: Vec<_> = reads
        .iter()
        .filter_map(|(_, read)| read.endpoint())
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
    shared.note_secrets(&endpoints);
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

/// Tombstones what this process's winning records superseded or beat. What fails stays until the
/// next write of the same entity: nothing depends on it.
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

/// Writes down each loss that was found, until it is there.
async fn tell_losses(shared: &Arc<Shared>) -> Infallible {
    let registry = Registry {
        shared: Arc::clone(shared),
    };
    loop {
        shared.losing.notified().await;
        while !told(&registry).await {
            sleep(BACKOFF.longest).await;
        }
    }
}

async fn told(registry: &Registry) -> bool {
    let found = registry.shared.found_loss.lock().clone();
    let Some(found) = found else { return true };
    match registry.record_loss(&found).await {
        Ok(()) => {
            registry
                .shared
                .found_loss
                .lock()
                .take_if(|loss| *loss == found);
            true
        }
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "loss of registry records is not written down yet");
            false
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
