//! The topics as they are, against what the roles count on: how many partitions they have, and
//! which records they take.
//!
//! A key's partition is its hash modulo the count, and the owner of `deliveries` writes its
//! attempts and states to the partitions of the same number. With another count an endpoint has two
//! owners, and a key two orders. So no role starts with one. Whoever adds partitions to a topic
//! while roles run is noticed within seconds: the stages drain and do nothing more, the API takes
//! nothing more, and the process stays, not ready, to say why. Keys move at no time, since
//! producers go by the configured count.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postrider_daemon::metrics::catalogue::TOPIC_PARTITIONS_UNEXPECTED;
use postrider_log::{Log, LogError, TopicDescription};
use postrider_model::topics::{RETRY, TopicLayout, TopicPlan, check_sizes};
use tokio::time::{MissedTickBehavior, interval};

use super::Process;
use super::log::when_available;
use crate::config::Config;

const LOOK_EVERY: Duration = Duration::from_secs(5);
const ALARM_EVERY: u64 = 12;
/// The condition of readiness that every topic has the partitions that it should.
const CONDITION: &str = "partitions_as_configured";

/// The topics whose partitions are counted on. What `retry` must have, the registry remembers.
pub(crate) fn counted_on(layout: &TopicLayout) -> impl Iterator<Item = TopicPlan> {
    layout
        .topics()
        .into_iter()
        .filter(|plan| plan.name != RETRY)
}

/// Whether a topic has other partitions than it should. Those of `retry` beyond the delays stay
/// empty.
pub(crate) fn is_unexpected(plan: &TopicPlan, present: i32) -> bool {
    match plan.name {
        RETRY => present < plan.partitions,
        _ => present != plan.partitions,
    }
}

/// What is wrong with a topic that has so many partitions, and what to do.
pub(crate) fn differ(plan: &TopicPlan, present: i32) -> String {
    let planned = plan.partitions;
    if plan.name == RETRY {
        return format!(
            "has {present} partitions, but `topics.retry_delays_ms` has {planned} delays, one for each; put the list back \
             as it was, or stop everything, let the topic run empty, delete it, and create it again"
        );
    }
    format!(
        "has {present} partitions, configured are {planned}. The count is fixed at creation, since keys would move and \
         lose their order: set `topics.partitions` back; where partitions are added, every topic gets as many, and \
         `topics.partitions_added` says how many (docs/runbooks/PostriderPartitionsChanged.md); for more, create topics under another \
         `kafka.prefix`, let ingest write there, and stop the old processes when the old topics are done"
    )
}

/// Refuses to go on with topics that have other partitions than configured, or that do not take
/// what will be written to them. Waits for the log.
pub(crate) async fn ensure(
    process: &Process,
    log: &Arc<dyn Log>,
    config: &Config,
) -> anyhow::Result<()> {
    let counted = when_available(&process.stop, async || {
        let counted = count(&**log, &config.topics).await;
        counted.context("count the partitions of the topics")
    })
    .await?;
    let refused: Vec<String> = counted
        .iter()
        .filter(|(plan, present)| plan.partitions != *present)
        .map(|(plan, present)| format!("the topic {} {}", plan.name, differ(plan, *present)))
        .collect();
    anyhow::ensure!(refused.is_empty(), refused.join("; "));
    let plans = config.topics.topics();
    let names: Vec<&str> = plans.iter().map(|plan| plan.name).collect();
    let described = when_available(&process.stop, async || {
        match log.describe_topics(&names).await {
            Err(error @ LogError::Unavailable(_)) => Err(error.into()),
            described => Ok(described),
        }
    })
    .await?;
    match described {
        Ok(present) => {
            let topics: Vec<_> = plans.into_iter().zip(present).collect();
            sizes(&topics, config).map_err(anyhow::Error::msg)
        }
        // The right to do so is needed for nothing else.
        Err(error) => {
            tracing::warn!(%error, "the settings of the topics could not be looked at");
            Ok(())
        }
    }
}

/// Whether the topics as they are take what follows from the largest event that `events` takes; if
/// not, why.
pub(crate) fn sizes(
    topics: &[(TopicPlan, Option<TopicDescription>)],
    config: &Config,
) -> Result<(), String> {
    let largest = |name: &'static str| {
        let topic = topics.iter().find(|(plan, _)| plan.name == name);
        let (plan, present) = topic.expect("every topic has a plan");
        let settings = present.iter().flat_map(|present| &present.settings);
        let mut settings = settings.filter(|(name, _)| name == "max.message.bytes");
        let bytes = settings.find_map(|(_, value)| value.parse().ok());
        bytes.unwrap_or(u64::from(plan.message_bytes_max))
    };
    let endpoints_max = u64::try_from(config.registry.endpoints_per_tenant_max);
    check_sizes(largest, endpoints_max.unwrap_or(u64::MAX)).map_err(|error| {
        format!("`max.message.bytes` of topics does not go together: {error}; raise that of the one or lower that of `events`")
    })
}

/// Looks again and again. When a topic has other partitions than configured, `process.halt` is
/// cancelled, and only a new start goes on.
pub(crate) fn watch(
    process: &mut Process,
    log: Arc<dyn Log>,
    layout: TopicLayout,
) -> anyhow::Result<()> {
    let gauge = TOPIC_PARTITIONS_UNEXPECTED.gauges(process.metrics.registry())?;
    for plan in counted_on(&layout) {
        gauge.with_label_values(&[plan.name]).set(0);
    }
    let condition = process.health.condition(CONDITION);
    condition.set(true);
    let (stop, halt) = (process.base.token().clone(), process.halt.clone());
    process.base.background("partitions", async move {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut wrong_looks, mut missing_looks) = (0_u64, 0_u64);
        loop {
            let counted = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok::<(), Infallible>(()),
                counted = async { ticks.tick().await; count(&*log, &layout).await } => counted,
            };
            let counted = match counted {
                Ok(counted) => counted,
                Err(LogError::NoSuchTopic(topic)) => {
                    missing_looks += 1;
                    // As below. It may come again, so nothing is halted: who needs the topic fails
                    // and tries again.
                    if missing_looks > 1 {
                        condition.set(false);
                        for plan in counted_on(&layout).filter(|plan| topic.ends_with(plan.name)) {
                            gauge.with_label_values(&[plan.name]).set(-i64::from(plan.partitions));
                        }
                    }
                    continue;
                }
                // A log that cannot be asked shows elsewhere.
                Err(_) => continue,
            };
            if std::mem::take(&mut missing_looks) > 0 && !halt.is_cancelled() {
                condition.set(true);
            }
            let mut wrong = false;
            for (plan, present) in counted {
                let beyond = i64::from(present - plan.partitions);
                gauge.with_label_values(&[plan.name]).set(beyond);
                wrong |= beyond != 0;
                if beyond != 0 && wrong_looks % ALARM_EVERY == 1 {
                    tracing::error!(
                        topic = plan.name,
                        found = present,
                        expected = plan.partitions,
                        "the partitions of a topic were changed, so nothing is accepted or delivered; \
                         docs/runbooks/PostriderPartitionsChanged.md says what to do"
                    );
                }
            }
            // One answer may be that of a broker that is behind.
            if wrong && wrong_looks > 0 {
                condition.set(false);
                halt.cancel();
            }
            wrong_looks = if wrong { wrong_looks + 1 } else { 0 };
        }
    });
    Ok(())
}

/// The topics that are counted on, with the partitions that they have.
async fn count(log: &dyn Log, layout: &TopicLayout) -> Result<Vec<(TopicPlan, i32)>, LogError> {
    let mut counted = Vec::new();
    for plan in counted_on(layout) {
        let present = log.partition_count(plan.name).await?;
        counted.push((plan, present));
    }
    Ok(counted)
}
