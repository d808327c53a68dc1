//! The registry's place in a process, and the readiness that comes with it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postrider_daemon::metrics::catalogue::{
    REGISTRY_CONFLICTS, REGISTRY_LOST, REGISTRY_READ_FAILURES, REGISTRY_STALE_RECORDS,
    REGISTRY_UNREADABLE, REGISTRY_UNSIGNABLE, REGISTRY_VIEW_AGE, REGISTRY_VIEW_POSITION,
};
use postrider_daemon::metrics::{Collected, Metric, Sample};
use postrider_log::{Log, SystemClock};
use postrider_model::topics::{GROUP_SCHEDULER, RETRY, TopicLayout};
use postrider_registry::{JoinError, Keyring, Registry};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::log::when_available;
use super::{Process, Stopped};
use crate::config::Config;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A log that has not answered for so long is not reachable: longer than an idle reader waits for a
/// record.
const LOG_SILENCE_MAX: Duration = Duration::from_secs(30);

/// Opens the registry and keeps it: its follower and the conditions that it tells.
pub(crate) async fn open(
    process: &mut Process,
    config: &Config,
    log: Arc<dyn Log>,
    keyring: Keyring,
) -> anyhow::Result<Registry> {
    let keyring = Arc::new(keyring);
    let (registry, follower) = when_available(&process.stop, async || {
        Registry::open(
            log.clone(),
            Arc::new(SystemClock),
            keyring.clone(),
            config.registry.options(),
        )
        .await
        .context("open the registry")
    })
    .await?;
    let stop = process.base.token().clone();
    process.base.critical("registry", async move {
        follower.run(stop).await;
        Ok::<(), Infallible>(())
    });
    watch(process, registry.clone());
    declare(process.metrics.registry(), registry.clone()).context("declare metrics")?;
    Ok(registry)
}

/// Takes part in the installation: refuses to where this process's keys are not the installation's,
/// and says what does not open.
pub(crate) async fn join(process: &Process, registry: &Registry) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = process.stop.cancelled() => return Err(anyhow::Error::msg(Stopped("reading the registry"))),
        joined = joined(registry) => joined.context("join the installation")?,
    }
    if let (endpoints, Some((first, error))) = registry.unsignable() {
        let error: &dyn std::error::Error = &error;
        tracing::error!(
            endpoints,
            %first,
            error,
            "signing secrets do not open, nothing is sent to their endpoints: add the key that sealed them to \
             `keys.encryption`, below the first"
        );
    }
    let shown = registry.clone();
    Collected::declare(
        process.metrics.registry(),
        &[&REGISTRY_UNSIGNABLE],
        move || {
            let (endpoints, _) = shown.unsignable();
            let sample = Sample::count(u64::try_from(endpoints).unwrap_or(u64::MAX));
            vec![(&REGISTRY_UNSIGNABLE, vec![sample])]
        },
    )
    .context("declare metrics")
}

async fn joined(registry: &Registry) -> Result<(), JoinError> {
    loop {
        registry.caught_up().await;
        match registry.join().await {
            Err(JoinError::Write(error)) => {
                tracing::warn!(%error, "the installation cannot be joined, trying again");
                sleep(CHECK_INTERVAL).await;
            }
            done => return done,
        }
    }
}

/// Shows how current the view is, and what became of reads and writes.
fn declare(metrics: &prometheus::Registry, registry: Registry) -> Result<(), prometheus::Error> {
    let declared: [&'static Metric; 7] = [
        &REGISTRY_VIEW_AGE,
        &REGISTRY_VIEW_POSITION,
        &REGISTRY_STALE_RECORDS,
        &REGISTRY_UNREADABLE,
        &REGISTRY_READ_FAILURES,
        &REGISTRY_CONFLICTS,
        &REGISTRY_LOST,
    ];
    Collected::declare(metrics, &declared, move || {
        let numbers = registry.counts();
        let stale = u64::try_from(numbers.stale_records).unwrap_or(u64::MAX);
        let samples = [
            Sample::plain(numbers.age.as_secs_f64()),
            Sample::count(numbers.position),
            Sample::count(stale),
            Sample::count(numbers.unreadable_total),
            Sample::count(numbers.read_failures_total),
            Sample::count(numbers.conflicts_total),
            Sample::count(u64::from(registry.loss().is_some())),
        ];
        declared
            .into_iter()
            .zip(samples.map(|sample| vec![sample]))
            .collect()
    })
}

/// The follower reads the log all the time, so what it sees tells whether the log can be reached.
fn watch(process: &mut Process, registry: Registry) {
    let caught_up = process.health.condition("registry_caught_up");
    let log_reachable = process.health.condition("log_reachable");
    let stop = process.base.token().clone();
    process.base.background("readiness", async move {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = registry.caught_up() => caught_up.set(true),
        }
        while !stop.is_cancelled() {
            log_reachable.set(registry.age() < LOG_SILENCE_MAX);
            caught_up.set(registry.ready());
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = ticks.tick() => {}
            }
        }
        Ok::<(), Infallible>(())
    });
}

/// Records which delay each partition of `retry` waits, so that no later configuration makes
/// deliveries wait for another time than they were put there for.
pub(crate) async fn record_retry_delays(
    process: &Process,
    registry: &Registry,
    log: &Arc<dyn Log>,
    layout: &TopicLayout,
) -> anyhow::Result<()> {
    let delays_ms: Vec<i64> = layout.retry_delays_ms.clone().into();
    tokio::select! {
        biased;
        () = process.stop.cancelled() => return Err(anyhow::Error::msg(Stopped("reading the registry"))),
        () = registry.caught_up() => {}
    }
    when_available(&process.stop, async || {
        record_delays(registry, log, &delays_ms).await
    })
    .await
}

async fn record_delays(
    registry: &Registry,
    log: &Arc<dyn Log>,
    delays_ms: &[i64],
) -> anyhow::Result<()> {
    let partitions = log.partition_count(RETRY).await?;
    anyhow::ensure!(
        usize::try_from(partitions).is_ok_and(|partitions| partitions >= delays_ms.len()),
        "the topic {RETRY} has {partitions} partitions, but `topics.retry_delays_ms` has {} delays, one for each",
        delays_ms.len()
    );
    let recorded = registry.retry_delays();
    if recorded.is_some_and(|recorded| *recorded.value == delays_ms) {
        return Ok(());
    }
    let empty = empty_retry_partitions(log, partitions).await?;
    registry
        .record_retry_delays(delays_ms, &empty)
        .await
        .context("record `topics.retry_delays_ms`")?;
    Ok(())
}

/// The partitions of `retry` in which nothing waits.
async fn empty_retry_partitions(log: &Arc<dyn Log>, partitions: i32) -> anyhow::Result<Vec<i32>> {
    let committed = log.committed(GROUP_SCHEDULER, RETRY).await?;
    let mut empty = Vec::new();
    for (partition, committed) in (0..partitions).zip(committed) {
        let bounds = log.bounds(RETRY, partition).await?;
        let done = committed.map_or(bounds.start, |committed| committed.offset.max(bounds.start));
        if done >= bounds.end {
            empty.push(partition);
        }
    }
    Ok(empty)
}
