//! `postrider topic`: the topics in Kafka, created and checked against the configuration.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use postrider_delivery::standing::{self, DecideError};
use postrider_log::{Log, LogError, TopicDescription};
use postrider_model::topics::TopicPlan;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::finding::{self, Finding, Level};
use crate::config::Config;
use crate::output;
use crate::roles::{log, topics};

const REPLICATION_MIN: i32 = 3;
const MIN_INSYNC_MIN: i32 = 2;
const FOUNDED_WITHIN: Duration = Duration::from_secs(60);
const FOUND_AGAIN: Duration = Duration::from_secs(1);

/// Create and check the topics in Kafka, as the section `kafka` of the configuration names it.
#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create the topics that are missing; leave the others as they are.
    Create {
        /// Only say what would be created.
        #[arg(long)]
        dry_run: bool,
    },
    /// Compare the topics with the configuration, and warn of what may lose data.
    Check {
        /// Answer in JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &TopicCommand, config: &Config) -> anyhow::Result<ExitCode> {
    let log = log::kafka(config)?;
    let plans = config.topics.topics();
    let names: Vec<&str> = plans.iter().map(|plan| plan.name).collect();
    let present = log.describe_topics(&names).await?;
    let topics: Vec<_> = plans.into_iter().zip(present).collect();
    match command {
        TopicCommand::Create { dry_run } => create(&log, config, &topics, *dry_run).await,
        TopicCommand::Check { json } => {
            let unknown = unknown_standings(&*log, &topics).await?;
            Ok(check(config, &topics, &unknown, *json))
        }
    }
}

/// A topic as it should be and as it is.
pub(crate) type Topic = (TopicPlan, Option<TopicDescription>);

/// Commits the beginning for the groups. Which topics are new nobody knows later, so a broker that
/// is still busy with them is waited for.
async fn found(log: &dyn Log, created: &[String]) -> anyhow::Result<Vec<&'static str>> {
    let deadline = Instant::now() + FOUNDED_WITHIN;
    loop {
        match standing::found(log, created).await {
            Err(DecideError::Log(LogError::Unavailable(reason))) if Instant::now() < deadline => {
                tracing::warn!(reason, "the groups are not founded yet");
                sleep(FOUND_AGAIN).await;
            }
            founded => return founded.context("commit the beginning for the groups"),
        }
    }
}

async fn create(
    log: &Arc<dyn Log>,
    config: &Config,
    topics: &[Topic],
    dry_run: bool,
) -> anyhow::Result<ExitCode> {
    if !dry_run {
        let created = log.create_topics(&log::topic_specs(&config.topics)).await?;
        for topic in found(&**log, &created).await? {
            output::talk(format!(
                "WARNING: {topic} was there before, as other topics show: what was not done of it is lost. Its partitions are \
                 stopped until you decide by `postrider recover`; docs/topics.md says more"
            ));
        }
    }
    let prefix = &config.kafka.prefix;
    let mut refused = false;
    for (plan, present) in topics {
        let done = match (present, dry_run) {
            (Some(present), _) if topics::is_unexpected(plan, present.partitions) => {
                refused = true;
                &format!("ERROR: {}", topics::differ(plan, present.partitions))
            }
            (Some(_), _) => "present",
            (None, true) => "would be created",
            (None, false) => "created",
        };
        let retention = plan
            .retention_ms
            .map_or("compacted".to_owned(), describe_retention);
        output::data(format!(
            "{prefix}{:<15} {:>3} partitions, {retention}: {done}",
            plan.name, plan.partitions
        ));
    }
    let missing = topics
        .iter()
        .filter(|(_, present)| present.is_none())
        .count();
    let created = if dry_run { "to create" } else { "created" };
    output::data(format!(
        "{missing} {created}, {} present",
        topics.len() - missing
    ));
    Ok(if refused {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The topics with partitions of which nobody knows where their group goes on, as text.
pub(crate) async fn unknown_standings(
    log: &dyn Log,
    topics: &[Topic],
) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let mut unknown = BTreeMap::new();
    for (group, topic) in standing::GROUPS {
        let is_there = |(plan, present): &Topic| plan.name == topic && present.is_some();
        if !topics.iter().any(is_there) {
            continue;
        }
        let standings = standing::standings(log, group, topic).await?;
        let partitions: Vec<i32> = standings
            .iter()
            .filter(|one| one.standing.is_unknown())
            .map(|one| one.partition)
            .collect();
        if !partitions.is_empty() {
            let text = format!(
                "the group {group} has no committed offset within the log for partitions {partitions:?}, so they are \
                 stopped; `postrider recover --stage {group}` decides where they go on"
            );
            unknown.insert(topic, text);
        }
    }
    Ok(unknown)
}

fn check(
    config: &Config,
    topics: &[Topic],
    unknown: &BTreeMap<&str, String>,
    as_json: bool,
) -> ExitCode {
    let mut all = Vec::new();
    for (plan, present) in topics {
        let name = format!("{}{}", config.kafka.prefix, plan.name);
        let stopped = unknown
            .get(plan.name)
            .map(|text| (Level::Error, text.clone()));
        let said = findings(plan, present.as_ref()).into_iter().chain(stopped);
        all.extend(said.map(|(level, detail)| Finding::new("topic", &name, level, detail)));
    }
    all.extend(sizes(config, topics));
    if as_json {
        let list = all.iter().map(|finding| {
            json!({
                "topic": finding.subject,
                "level": finding.level.as_str(),
                "detail": finding.detail,
            })
        });
        output::json(&json!({ "data": list.collect::<Vec<_>>() }));
    } else {
        for finding in &all {
            let Finding { level, detail, .. } = finding;
            output::data(format!(
                "{:<5} {}: {detail}",
                level.as_str(),
                finding.subject
            ));
        }
    }
    finding::verdict(&all)
}

/// That the topics do not take what follows from what another takes, if it is so.
pub(crate) fn sizes(config: &Config, topics: &[Topic]) -> Option<Finding> {
    let detail = topics::sizes(topics, config).err()?;
    Some(Finding::new("topic", "*", Level::Error, detail))
}

/// What is to be said of a topic; at least that it is well.
pub(crate) fn findings(
    plan: &TopicPlan,
    present: Option<&TopicDescription>,
) -> Vec<(Level, String)> {
    let Some(present) = present else {
        return vec![(
            Level::Error,
            "does not exist; `postrider topic create` creates it".to_owned(),
        )];
    };
    let settings: BTreeMap<&str, &str> = present
        .settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut findings = Vec::new();
    if topics::is_unexpected(plan, present.partitions) {
        findings.push((Level::Error, topics::differ(plan, present.partitions)));
    }
    findings.extend(durability(present, &settings));
    findings.extend(retention(plan, &settings));
    findings.extend(limited_in_bytes(plan, &settings));
    let bytes_max = settings
        .get("max.message.bytes")
        .and_then(|text| text.parse::<u32>().ok());
    if let Some(bytes_max) = bytes_max.filter(|bytes_max| *bytes_max < plan.message_bytes_max) {
        let planned = plan.message_bytes_max;
        findings.push((Level::Error, format!("max.message.bytes is {bytes_max}, configured are {planned}: what fits one topic would not fit the next")));
    }
    for (name, planned) in &plan.settings {
        match settings.get(name.as_str()) {
            Some(value) if value != planned => {
                let level = if name == "min.compaction.lag.ms" {
                    Level::Warn
                } else {
                    Level::Error
                };
                findings.push((level, format!("{name} is {value}, not {planned}")));
            }
            Some(_) | None => {}
        }
    }
    if findings.is_empty() {
        findings.push((
            Level::Ok,
            format!(
                "{} partitions, replication factor {}",
                present.partitions, present.replication
            ),
        ));
    }
    findings
}

fn durability(present: &TopicDescription, settings: &BTreeMap<&str, &str>) -> Vec<(Level, String)> {
    let mut findings = Vec::new();
    let replication = present.replication;
    if replication < REPLICATION_MIN {
        findings.push((
            Level::Warn,
            format!(
                "replication factor {replication}: below {REPLICATION_MIN}, losing brokers may lose what was accepted"
            ),
        ));
    }
    let min_insync = settings
        .get("min.insync.replicas")
        .and_then(|text| text.parse::<i32>().ok());
    if let Some(min_insync) = min_insync.filter(|min_insync| *min_insync < MIN_INSYNC_MIN) {
        findings.push((
            Level::Warn,
            format!("min.insync.replicas is {min_insync}: below {MIN_INSYNC_MIN} an acknowledged record may be on one broker only"),
        ));
    }
    if settings.get("unclean.leader.election.enable") == Some(&"true") {
        let text = "unclean.leader.election.enable is true: a broker that missed records may become leader and lose them";
        findings.push((Level::Warn, text.to_owned()));
    }
    findings
}

fn retention(plan: &TopicPlan, settings: &BTreeMap<&str, &str>) -> Option<(Level, String)> {
    let planned_ms = plan.retention_ms?;
    let present_ms: i64 = settings.get("retention.ms")?.parse().ok()?;
    if present_ms == planned_ms {
        return None;
    }
    let (present, planned) = (
        describe_retention(present_ms),
        describe_retention(planned_ms),
    );
    // -1 is without end. What is kept for less time than planned may be gone before it was
    // delivered.
    let shorter = present_ms >= 0 && present_ms < planned_ms;
    let level = if shorter { Level::Error } else { Level::Warn };
    Some((level, format!("{present}, configured is: {planned}")))
}

/// A limit in bytes takes records before their time when there is much to keep.
fn limited_in_bytes(plan: &TopicPlan, settings: &BTreeMap<&str, &str>) -> Option<(Level, String)> {
    plan.retention_ms?;
    let bytes: i64 = settings.get("retention.bytes")?.parse().ok()?;
    let detail = format!(
        "retention.bytes is {bytes}: what is kept longer than this allows is removed before its time, delivered or not; \
         set it to -1"
    );
    (bytes >= 0).then_some((Level::Warn, detail))
}

pub(crate) fn describe_retention(retention_ms: i64) -> String {
    if retention_ms < 0 {
        return "kept without end".to_owned();
    }
    let hours = Duration::from_millis(retention_ms.unsigned_abs()).as_secs() / 3600;
    if hours.is_multiple_of(24) {
        format!("kept {} d", hours / 24)
    } else {
        format!("kept {hours} h")
    }
}

#[cfg(test)]
mod tests {
    use postrider_model::topics::TopicLayout;

    use super::*;

    fn plan() -> TopicPlan {
        TopicLayout::default().topics().remove(0)
    }

    fn sound() -> TopicDescription {
        let plan = plan();
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut settings = plan.settings;
        settings.extend([
            setting("retention.ms", &plan.retention_ms.unwrap().to_string()),
            setting("retention.bytes", "-1"),
            setting("max.message.bytes", &plan.message_bytes_max.to_string()),
            setting("min.insync.replicas", "2"),
            setting("unclean.leader.election.enable", "false"),
        ]);
        TopicDescription {
            name: plan.name.to_owned(),
            partitions: plan.partitions,
            replication: 3,
            settings,
        }
    }

    fn levels(present: Option<&TopicDescription>) -> Vec<Level> {
        findings(&plan(), present)
            .into_iter()
            .map(|(level, _)| level)
            .collect()
    }

    fn with(name: &str, value: &str) -> TopicDescription {
        let mut present = sound();
        for (setting, present) in &mut present.settings {
            if setting == name {
                value.clone_into(present);
            }
        }
        present
    }

    #[test]
    fn a_sound_topic_is_ok() {
        assert_eq!(levels(Some(&sound())), [Level::Ok]);
    }

    #[test]
    fn what_breaks_postrider_is_an_error() {
        assert_eq!(levels(None), [Level::Error]);
        assert_eq!(
            levels(Some(&TopicDescription {
                partitions: 6,
                ..sound()
            })),
            [Level::Error]
        );
        assert_eq!(
            levels(Some(&with("retention.ms", "3600000"))),
            [Level::Error]
        );
        assert_eq!(
            levels(Some(&with("max.message.bytes", "1000"))),
            [Level::Error]
        );
        assert_eq!(
            levels(Some(&with("message.timestamp.type", "CreateTime"))),
            [Level::Error]
        );
    }

    #[test]
    fn what_may_lose_data_is_a_warning() {
        assert_eq!(
            levels(Some(&TopicDescription {
                replication: 2,
                ..sound()
            })),
            [Level::Warn]
        );
        assert_eq!(
            levels(Some(&with("min.insync.replicas", "1"))),
            [Level::Warn]
        );
        assert_eq!(
            levels(Some(&with("unclean.leader.election.enable", "true"))),
            [Level::Warn]
        );
        assert_eq!(levels(Some(&with("retention.ms", "-1"))), [Level::Warn]);
        assert_eq!(
            levels(Some(&with("retention.bytes", "1000000"))),
            [Level::Warn]
        );
    }
}
