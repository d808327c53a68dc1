//! Reading a log that nobody works on, topic by topic, in batches.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postrider_daemon::CancellationToken;
use postrider_delivery::deliver::PendingDeliveries;
use postrider_log::{Clock, Committed, Log, Offset, Partition, Record, Stretch, SystemClock};
use postrider_model::delivery::{Delivery, Route};
use postrider_model::event::EventPosition;
use postrider_model::topics::{
    DEAD_LETTERS, DELIVERIES, EVENTS, GROUP_FAN_OUT, GROUP_SCHEDULER, REGISTRY, RETRY, ROUTES,
};
use postrider_registry::{Lookup, Registry};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::file::{Counts, Header, Writer};
use crate::config::Config;
use crate::data_dir::random_bytes;

const REGISTRY_WITHIN: Duration = Duration::from_secs(60);

/// Writes the file.
pub(super) async fn run(
    log: Arc<dyn Log>,
    config: &Config,
    path: &Path,
    registry_only: bool,
) -> anyhow::Result<Counts> {
    let id: String = random_bytes::<16>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut file = Writer::create(path, &Header::new(id, registry_only))?;
    all(&*log, REGISTRY, &mut file).await?;
    if !registry_only {
        let mut tasks = JoinSet::new();
        let registry = registry(&log, config, &mut tasks).await?;
        let settled = deliveries(&*log, config, &registry, &mut file).await?;
        retries(&*log, &registry, &settled, &mut file).await?;
        events(&*log, &mut file).await?;
        all(&*log, DEAD_LETTERS, &mut file).await?;
    }
    file.finish()
}

/// The registry as it is, to know what its endpoints discard. No secret is opened.
async fn registry(
    log: &Arc<dyn Log>,
    config: &Config,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Registry> {
    let keyring = Arc::new(postrider_registry::Keyring::from_bytes([0; 32], Vec::new()));
    let opened = Registry::open(
        log.clone(),
        Arc::new(SystemClock),
        keyring,
        config.registry.options(),
    );
    let (registry, follower) = opened.await.context("open the registry")?;
    tasks.spawn(follower.run(CancellationToken::new()));
    timeout(REGISTRY_WITHIN, registry.caught_up())
        .await
        .with_context(|| format!("the registry could not be read within {REGISTRY_WITHIN:?}"))?;
    Ok(registry)
}

/// Writes those that are not settled, and answers with what knows which are.
async fn deliveries(
    log: &dyn Log,
    config: &Config,
    registry: &Registry,
    file: &mut Writer,
) -> anyhow::Result<Vec<PendingDeliveries>> {
    let (limits, now_ms) = (&config.delivery.deliver, SystemClock.now_ms());
    let mut all = Vec::new();
    for partition in 0..log.partition_count(DELIVERIES).await? {
        let mut pending = PendingDeliveries::open(log, limits, partition, now_ms).await?;
        while let Some(records) = pending.next().await? {
            for record in &records {
                let delivery = decode(record);
                if !delivery.is_some_and(|delivery| is_discarded(&delivery, registry)) {
                    file.write(DELIVERIES, record)?;
                }
            }
        }
        all.push(pending);
    }
    Ok(all)
}

/// Writes those that were not released, or of which the scheduler has not committed that it did.
async fn retries(
    log: &dyn Log,
    registry: &Registry,
    settled: &[PendingDeliveries],
    file: &mut Writer,
) -> anyhow::Result<()> {
    let committed = log.committed(GROUP_SCHEDULER, RETRY).await?;
    each(log, RETRY, &committed, |record| {
        let is_done = decode(&record).is_some_and(|delivery| {
            is_discarded(&delivery, registry) || settled.iter().any(|one| one.is_settled(&delivery))
        });
        if is_done {
            return Ok(());
        }
        file.write(RETRY, &record)
    })
    .await
}

/// Writes those that were not fanned out. Fan-out may have done more than it has committed: then
/// there is a route.
async fn events(log: &dyn Log, file: &mut Writer) -> anyhow::Result<()> {
    let committed = log.committed(GROUP_FAN_OUT, EVENTS).await?;
    let mut routed = BTreeSet::new();
    each(log, ROUTES, &[], |record| {
        let route = Route::decode(record.value.as_deref().unwrap_or_default());
        let position = route.ok().map(|route| route.position);
        routed.extend(position.filter(|at| at.offset >= offset(&committed, at.partition)));
        Ok(())
    })
    .await?;
    each(log, EVENTS, &committed, |record| {
        let position = EventPosition {
            partition: record.partition,
            offset: record.offset,
            appended_at_ms: record.timestamp_ms,
        };
        // An older release wrote routes without the time.
        if routed.contains(&position) || routed.contains(&position.without_time()) {
            return Ok(());
        }
        file.write(EVENTS, &record)
    })
    .await
}

/// Writes all of a topic.
async fn all(log: &dyn Log, topic: &str, file: &mut Writer) -> anyhow::Result<()> {
    each(log, topic, &[], |record| file.write(topic, &record)).await
}

/// Reads a topic from what is committed of it to its end.
async fn each(
    log: &dyn Log,
    topic: &str,
    committed: &[Option<Committed>],
    mut take: impl FnMut(Record) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut reader = log.reader(topic).await?;
    for partition in 0..log.partition_count(topic).await? {
        let bounds = log.bounds(topic, partition).await?;
        let from = bounds.start.max(offset(committed, partition));
        let mut stretch = Stretch::new(partition, from..bounds.end);
        while let Some(records) = stretch.read(&mut *reader).await? {
            records.into_iter().try_for_each(&mut take)?;
        }
    }
    Ok(())
}

fn offset(committed: &[Option<Committed>], partition: Partition) -> Offset {
    let index = usize::try_from(partition).unwrap_or_default();
    let committed = committed.get(index).and_then(Option::as_ref);
    committed.map_or(0, |committed| committed.offset)
}

fn decode(record: &Record) -> Option<Delivery> {
    Delivery::decode(record.value.as_deref().unwrap_or_default()).ok()
}

/// Whether the endpoint was enabled without it. In another log nobody could tell.
fn is_discarded(delivery: &Delivery, registry: &Registry) -> bool {
    match registry.endpoint(&delivery.endpoint) {
        Lookup::Found(endpoint) => delivery.is_discarded_by(&endpoint.value),
        Lookup::Deleted | Lookup::Unknown => false,
    }
}
