//! Opening the log: in a directory or on Kafka.

mod kafka_clients;
mod kafka_metrics;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postrider_daemon::CancellationToken;
use postrider_daemon::metrics::catalogue::EMBEDDED_WRITABLE;
use postrider_delivery::standing;
use postrider_log::embedded::EmbeddedLog;
use postrider_log::kafka::{KafkaLog, KafkaOptions};
use postrider_log::{Log, LogError, SystemClock, TopicSpec};
use postrider_model::topics::{AUDIT, REGISTRY, TopicLayout, TopicPlan};
use postrider_registry::WriteError;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Process, Stopped, topics};
use crate::config::Config;

const AVAILABLE_CHECK: Duration = Duration::from_secs(1);

/// Opens the log in the data directory, creates its topics and keeps it in shape.
pub(crate) async fn embedded(
    process: &mut Process,
    config: &Config,
) -> anyhow::Result<Arc<dyn Log>> {
    let log = open_embedded(config).await?;
    maintain(
        process,
        log.clone(),
        Duration::from_secs(config.embedded.maintain_interval_s),
    );
    watch(process, log.clone()).context("declare metrics")?;
    Ok(log)
}

/// Opens the log in the data directory and creates its topics. Nobody else may have it open.
pub(crate) async fn open_embedded(config: &Config) -> anyhow::Result<Arc<EmbeddedLog>> {
    let data_dir = config.embedded.data_dir.clone();
    let log = open(&data_dir).await.with_context(|| {
        format!(
            "open the data directory {}; --data-dir names another",
            data_dir.display()
        )
    })?;
    let created = log
        .create_topics(&topic_specs(&config.topics))
        .await
        .context("create the topics")?;
    standing::found(&*log, &created)
        .await
        .context("found the groups")?;
    Ok(log)
}

/// Opening waits for the disk.
async fn open(data_dir: &Path) -> anyhow::Result<Arc<EmbeddedLog>> {
    let data_dir = data_dir.to_owned();
    let opened =
        tokio::task::spawn_blocking(move || EmbeddedLog::open(&data_dir, Arc::new(SystemClock)));
    Ok(opened.await??)
}

fn maintain(process: &mut Process, log: Arc<EmbeddedLog>, every: Duration) {
    let stop = process.base.token().clone();
    process.base.background("maintain-log", async move {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok::<(), LogError>(()),
                _ = ticks.tick() => {}
            }
            match log.maintain().await {
                Ok(maintained) => tracing::debug!(
                    expired = maintained.expired,
                    compacted = maintained.compacted,
                    "log maintained"
                ),
                Err(error) => {
                    tracing::warn!(%error, "the log could not be maintained, trying again later");
                }
            }
        }
    });
}

/// Sees to it that the process is not ready while the log cannot be written.
fn watch(process: &mut Process, log: Arc<EmbeddedLog>) -> Result<(), prometheus::Error> {
    let writable = process.health.condition("log_writable");
    let shown = EMBEDDED_WRITABLE.gauge(process.metrics.registry())?;
    let stop = process.base.token().clone();
    process.base.background("log-writable", async move {
        let mut was_writable = true;
        while !stop.is_cancelled() {
            let trouble = log.trouble();
            let is_writable = trouble.is_none();
            writable.set(is_writable);
            shown.set(i64::from(is_writable));
            match trouble {
                Some(reason) if was_writable => {
                    tracing::error!(reason, "the log cannot be written");
                }
                None if !was_writable => tracing::info!("the log can be written again"),
                Some(_) | None => {}
            }
            was_writable = is_writable;
            let next = async {
                sleep(AVAILABLE_CHECK).await;
                if !is_writable {
                    // What became of it, the log remembers.
                    drop(log.probe().await);
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = next => {}
            }
        }
        Ok::<(), Infallible>(())
    });
    Ok(())
}

/// Begins something that needs the log, again and again for as long as only the log's absence makes
/// it fail: a process that starts before its brokers waits for them, and is not ready until then.
/// It ends at once when asked to.
pub(crate) async fn when_available<T>(
    stop: &CancellationToken,
    mut begin: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let again_and_again = async {
        loop {
            match begin().await {
                Err(error) if is_passing(&error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "the log is not available, trying again"
                ),
                begun => return begun,
            }
            sleep(AVAILABLE_CHECK).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(anyhow::Error::msg(Stopped("waiting for the log"))),
        begun = again_and_again => begun,
    }
}

fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(LogError::Unavailable(_)))
            || matches!(cause.downcast_ref(), Some(WriteError::Unavailable { .. }))
    })
}

/// The topics of the layout as the log creates them.
pub(crate) fn topic_specs(layout: &TopicLayout) -> Vec<TopicSpec> {
    layout.topics().into_iter().map(topic_spec).collect()
}

fn topic_spec(plan: TopicPlan) -> TopicSpec {
    let retention = plan
        .retention_ms
        .map(|ms| Duration::from_millis(ms.unsigned_abs()));
    TopicSpec {
        name: plan.name.to_owned(),
        partitions: plan.partitions,
        retention,
        message_bytes_max: plan.message_bytes_max,
        settings: plan.settings,
    }
}

/// The log on Kafka for a role, which shows what its clients do and how they are.
pub(crate) fn kafka_of(process: &mut Process, config: &Config) -> anyhow::Result<Arc<dyn Log>> {
    let log = connect(config)?;
    let dead_max = Duration::from_millis(config.health.kafka_client_dead_max_ms);
    kafka_clients::watch(process, log.clone(), dead_max);
    kafka_metrics::declare(process.metrics.registry(), log.clone()).context("declare metrics")?;
    Ok(log)
}

/// The log on Kafka. Does not wait for a broker.
pub(crate) fn kafka(config: &Config) -> anyhow::Result<Arc<dyn Log>> {
    Ok(connect(config)?)
}

/// The same, for questions that only Kafka answers.
pub(crate) fn connect(config: &Config) -> anyhow::Result<Arc<KafkaLog>> {
    let options = KafkaOptions {
        partitions: topics::counted_on(&config.topics)
            .filter(|plan| ![REGISTRY, AUDIT].contains(&plan.name))
            .map(|plan| (plan.name.to_owned(), config.topics.partitions))
            .collect(),
        ..config.kafka_options()
    };
    KafkaLog::connect(options)
        .context("connect to Kafka as the section `kafka` says, for example by POSTRIDER_KAFKA__BOOTSTRAP_SERVERS")
}
