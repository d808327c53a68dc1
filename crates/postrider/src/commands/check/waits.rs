//! Retention against the longest time that a record waits in a topic.

use std::time::Duration;

use postrider_model::topics::{DELIVERIES, RETRY};

use crate::commands::finding::{Finding, Level};
use crate::commands::topic::{Topic, describe_retention};
use crate::config::Config;

/// What an outage of everything may take of a weekend.
const RESERVE_MS: i64 = 24 * 60 * 60 * 1000;
/// What a receiver may ask for at most by Retry-After.
const RETRY_AFTER_MAX_MS: i64 = 24 * 60 * 60 * 1000;

/// Looks at what is kept of `retry` and `deliveries`. `waits_ms` is the longest of the endpoints'
/// own schedules.
pub(super) fn look(config: &Config, topics: &[Topic], waits_ms: Option<i64>) -> Vec<Finding> {
    let schedule_ms = config.retry.default_schedule_ms.iter().copied().max();
    let wait_ms = schedule_ms
        .into_iter()
        .chain(waits_ms)
        .fold(RETRY_AFTER_MAX_MS, i64::max);
    let delay_ms = config.topics.retry_delays_ms.delays_ms().last().copied();
    // What waits longer than the longest delay is written again after each.
    let in_retry_ms = delay_ms.map_or(wait_ms, |delay_ms| delay_ms.min(wait_ms));
    let behind_ms = i64::try_from(config.delivery.deliver.expires_after_ms).unwrap_or(i64::MAX);
    [
        (RETRY, in_retry_ms, "a retry waits there for up to"),
        (
            DELIVERIES,
            behind_ms,
            "an endpoint's backlog stays there for up to `delivery.deliver.expires_after_ms`,",
        ),
    ]
    .into_iter()
    .filter_map(|(name, wait_ms, what)| {
        let kept_ms = kept_ms(topics, name)?;
        let (level, detail) = judge(kept_ms, wait_ms, what);
        let name = format!("{}{name}", config.kafka.prefix);
        Some(Finding::new("retention", &name, level, detail))
    })
    .collect()
}

/// How long the topic keeps its records as it is; nothing if it is not there.
fn kept_ms(topics: &[Topic], name: &str) -> Option<i64> {
    let (_, present) = topics.iter().find(|(plan, _)| plan.name == name)?;
    let settings = &present.as_ref()?.settings;
    let (_, text) = settings.iter().find(|(name, _)| name == "retention.ms")?;
    text.parse().ok()
}

fn judge(kept_ms: i64, wait_ms: i64, what: &str) -> (Level, String) {
    let kept = describe_retention(kept_ms);
    let wait = text(wait_ms);
    if kept_ms < 0 || kept_ms >= wait_ms.saturating_add(RESERVE_MS) {
        return (Level::Ok, format!("{kept}; {what} {wait}"));
    }
    let minimum = text(wait_ms.saturating_add(RESERVE_MS));
    let todo =
        format!("set retention.ms to {minimum} or more, so that an outage of a day loses nothing");
    if kept_ms <= wait_ms {
        return (
            Level::Error,
            format!("{kept}, but {what} {wait}: it would be removed undelivered; {todo}"),
        );
    }
    (Level::Warn, format!("{kept}, and {what} {wait}; {todo}"))
}

fn text(wait_ms: i64) -> String {
    let seconds = Duration::from_millis(wait_ms.unsigned_abs()).as_secs();
    match seconds {
        86_400.. if seconds.is_multiple_of(86_400) => format!("{} d", seconds / 86_400),
        3_600.. if seconds.is_multiple_of(3_600) => format!("{} h", seconds / 3_600),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use postrider_log::TopicDescription;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn levels(retry_hours: i64, deliveries_hours: i64, own_schedule_ms: Option<i64>) -> Vec<Level> {
        let config = Config::default();
        let kept = |name: &str| match name {
            RETRY => retry_hours * HOUR_MS,
            _ => deliveries_hours * HOUR_MS,
        };
        let topics: Vec<Topic> = config
            .topics
            .topics()
            .into_iter()
            .map(|plan| {
                let present = TopicDescription {
                    name: plan.name.to_owned(),
                    partitions: plan.partitions,
                    replication: 3,
                    settings: vec![("retention.ms".to_owned(), kept(plan.name).to_string())],
                };
                (plan, Some(present))
            })
            .collect();
        let found = look(&config, &topics, own_schedule_ms);
        found.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn the_planned_retention_is_enough() {
        assert_eq!(levels(9 * 24, 7 * 24, None), [Level::Ok, Level::Ok]);
    }

    #[test]
    fn what_would_be_removed_while_it_waits_is_an_error() {
        // The longest delay is a day, and a backlog is given up after six.
        assert_eq!(levels(24, 6 * 24, None), [Level::Error, Level::Error]);
        assert_eq!(levels(25, 6 * 24 + 1, None), [Level::Warn, Level::Warn]);
        // A longer wait is several of the longest delay.
        assert_eq!(
            levels(9 * 24, 7 * 24, Some(30 * 24 * HOUR_MS)),
            [Level::Ok, Level::Ok]
        );
    }
}
