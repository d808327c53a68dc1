//! `postrider check`: what is wrong with the environment that Postrider is to run in on Kafka.
//!
//! It looks from where it runs, with the configuration that the roles get: run it where they run.
//! It leaves things behind that nothing reads: two records without a value in `routes`, whose
//! appends tell whether the brokers take a durable write and what time they have, and the commit of
//! a group named `check`.

mod brokers;
mod clock;
mod egress;
mod keys;
mod rights;
mod waits;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use postrider_log::Log;
use postrider_log::kafka::KafkaLog;
use reqwest::Url;
use serde_json::json;

use super::finding::{self, Finding, Level};
use super::topic::{self, Topic};
use crate::config::Config;
use crate::output;
use crate::roles::log;

/// Say what is wrong with the environment: brokers, topics, rights, clock, keys, the way out.
///
/// Each line is `ok`, `skip`, or says what to do. It fails when there is an error; a warning may be
/// meant.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Send a POST there, as webhooks leave. Can be repeated.
    #[arg(
        long = "url",
        value_name = "URL",
        env = "POSTRIDER_CHECK_URL",
        value_delimiter = ','
    )]
    urls: Vec<Url>,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) async fn run(args: &CheckArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let mut findings = keys::configured(config);
    match log::connect(config) {
        Ok(log) => findings.extend(kafka(&log, config).await),
        Err(error) => {
            let detail = format!("{error:#}");
            findings.push(Finding::new("broker", "", Level::Error, detail));
        }
    }
    findings.extend(egress::look(config, &args.urls).await);
    findings.sort_by_key(|finding| place(finding.check));
    if args.json {
        print_json(&findings);
    } else {
        print_text(&findings);
    }
    Ok(finding::verdict(&findings))
}

/// From what everything stands on to what stands on it.
const ORDER: [&str; 8] = [
    "dns",
    "broker",
    "topic",
    "rights",
    "clock",
    "retention",
    "keys",
    "egress",
];

fn place(check: &str) -> usize {
    let place = ORDER.iter().position(|one| *one == check);
    place.unwrap_or(ORDER.len())
}

/// All that needs the brokers. Without them the rest is not looked at.
async fn kafka(log: &Arc<KafkaLog>, config: &Config) -> Vec<Finding> {
    let (mut findings, reached) = brokers::look(log, config).await;
    if !reached {
        let checks = ["topic", "rights", "clock", "retention"];
        let skipped =
            checks.map(|check| Finding::new(check, "", Level::Skip, "no broker to ask about it"));
        findings.extend(skipped);
        return findings;
    }
    let (topics, described) = topics(log, config).await;
    findings.extend(described);
    findings.extend(rights::look(&**log, config, &topics).await);
    findings.extend(clock::look(&**log, &topics).await);
    let (registry, waits_ms) = keys::in_registry(log, config, &topics).await;
    findings.extend(registry);
    findings.extend(waits::look(config, &topics, waits_ms));
    findings
}

/// The topics, one by one: the right to describe may be missing for one of them.
async fn topics(log: &KafkaLog, config: &Config) -> (Vec<Topic>, Vec<Finding>) {
    let (mut topics, mut findings): (Vec<Topic>, _) = (Vec::new(), Vec::new());
    for plan in config.topics.topics() {
        let name = format!("{}{}", config.kafka.prefix, plan.name);
        match log.describe_topics(&[plan.name]).await {
            Ok(mut described) => {
                let present = described.pop().flatten();
                let said = topic::findings(&plan, present.as_ref());
                findings.extend(
                    said.into_iter()
                        .map(|(level, detail)| Finding::new("topic", &name, level, detail)),
                );
                topics.push((plan, present));
            }
            Err(error) => {
                let detail = format!(
                    "cannot be described: {error}; allow Describe and DescribeConfigs on it"
                );
                findings.push(Finding::new("topic", &name, Level::Error, detail));
                topics.push((plan, None));
            }
        }
    }
    match topic::unknown_standings(log, &topics).await {
        Ok(unknown) => findings.extend(unknown.into_iter().map(|(name, detail)| {
            let name = format!("{}{name}", config.kafka.prefix);
            Finding::new("topic", &name, Level::Error, detail)
        })),
        Err(error) => {
            let detail = format!(
                "what the groups have committed cannot be read: {error}; allow Describe on the groups"
            );
            findings.push(Finding::new("rights", "groups", Level::Error, detail));
        }
    }
    findings.extend(topic::sizes(config, &topics));
    (topics, findings)
}

fn print_text(findings: &[Finding]) {
    for finding in findings {
        let Finding {
            check,
            subject,
            level,
            detail,
        } = finding;
        let space = if subject.is_empty() { "" } else { " " };
        output::data(format!(
            "{:<5} {check}{space}{subject}: {detail}",
            level.as_str()
        ));
    }
}

fn print_json(findings: &[Finding]) {
    let list = findings.iter().map(|finding| {
        json!({
            "check": finding.check,
            "subject": finding.subject,
            "level": finding.level.as_str(),
            "detail": finding.detail,
        })
    });
    output::json(&json!({ "data": list.collect::<Vec<_>>() }));
}
