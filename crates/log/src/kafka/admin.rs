//! Topics: creating and describing them.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::RDKafkaErrorCode;
use tokio::runtime::Handle;

use super::config::BATCH_BYTES_MAX;
use super::context::Context;
use super::errors::{code_error, log_error};
use super::query;
use crate::port::{LogError, TopicDescription, TopicSpec};

/// How long brokers may take to know a topic that was created.
const VISIBLE_TIMEOUT: Duration = Duration::from_secs(15);

/// What of a topic's settings is of interest to us.
const SETTINGS: [&str; 9] = [
    "cleanup.policy",
    "delete.retention.ms",
    "max.message.bytes",
    "message.timestamp.type",
    "min.compaction.lag.ms",
    "min.insync.replicas",
    "retention.bytes",
    "retention.ms",
    "unclean.leader.election.enable",
];

/// A topic under its full name, with its settings under Kafka's names.
struct Settled {
    name: String,
    partitions: i32,
    settings: Vec<(String, String)>,
}

impl Settled {
    fn new(prefix: &str, spec: &TopicSpec) -> Self {
        let mut settings = vec![(
            "max.message.bytes".to_owned(),
            spec.message_bytes_max.to_string(),
        )];
        match spec.retention {
            Some(retention) => {
                settings.push(("cleanup.policy".into(), "delete".into()));
                settings.push(("retention.ms".into(), retention.as_millis().to_string()));
            }
            None => settings.push(("cleanup.policy".into(), "compact".into())),
        }
        settings.extend(spec.settings.iter().cloned());
        Self {
            name: format!("{prefix}{}", spec.name),
            partitions: spec.partitions,
            settings,
        }
    }
}

/// Creates what does not exist, waits until the brokers know it, and names it. Blocks; needs a
/// runtime.
pub(super) fn create(
    config: &ClientConfig,
    context: Context,
    client: &BaseConsumer<Context>,
    prefix: &str,
    replication: i32,
    specs: &[TopicSpec],
) -> Result<Vec<String>, LogError> {
    let topics: Vec<Settled> = specs
        .iter()
        .map(|spec| Settled::new(prefix, spec))
        .collect();
    let news: Vec<NewTopic<'_>> = topics
        .iter()
        .map(|topic| NewTopic {
            name: &topic.name,
            num_partitions: topic.partitions,
            replication: TopicReplication::Fixed(replication),
            config: topic
                .settings
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
        })
        .collect();
    if news.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(spec) = specs
        .iter()
        .find(|spec| spec.message_bytes_max < BATCH_BYTES_MAX)
    {
        return Err(LogError::Permanent(format!(
            "topic {} must take records of at least {BATCH_BYTES_MAX} bytes, the size of a batch",
            spec.name
        )));
    }
    let admin = admin(config, context)?;
    let options = AdminOptions::new()
        .request_timeout(Some(query::TIMEOUT))
        .operation_timeout(Some(query::TIMEOUT));
    let results = Handle::current()
        .block_on(admin.create_topics(&news, &options))
        .map_err(|error| log_error("", &error))?;
    let mut created = Vec::new();
    for result in results {
        match result {
            Ok(full) => created.extend(full.strip_prefix(prefix).map(str::to_owned)),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                return Err(match code_error(&topic, code) {
                    LogError::Permanent(reason) => {
                        LogError::Permanent(format!("topic {topic} was not created: {reason}"))
                    }
                    error => error,
                });
            }
        }
    }
    topics
        .iter()
        .try_for_each(|topic| await_visible(client, &topic.name))?;
    Ok(created)
}

fn await_visible(client: &BaseConsumer<Context>, topic: &str) -> Result<(), LogError> {
    let deadline = Instant::now() + VISIBLE_TIMEOUT;
    while query::partitions(client, topic)?.is_none() {
        if Instant::now() >= deadline {
            return Err(LogError::Unavailable(format!(
                "topic {topic} was created but is not seen yet"
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Describes topics by their names without prefix. Blocks; needs a runtime.
pub(super) fn describe(
    config: &ClientConfig,
    context: Context,
    client: &BaseConsumer<Context>,
    prefix: &str,
    topics: &[String],
) -> Result<Vec<Option<TopicDescription>>, LogError> {
    let mut described = Vec::with_capacity(topics.len());
    for name in topics {
        let partitions = query::partitions(client, &format!("{prefix}{name}"))?;
        described.push(partitions.map(|partitions| {
            TopicDescription {
                name: name.clone(),
                partitions: count(partitions.len()),
                replication: count(
                    partitions
                        .iter()
                        .map(|(_, replicas)| *replicas)
                        .min()
                        .unwrap_or(0),
                ),
                settings: Vec::new(),
            }
        }));
    }
    let full: Vec<String> = described
        .iter()
        .flatten()
        .map(|topic| format!("{prefix}{}", topic.name))
        .collect();
    if full.is_empty() {
        return Ok(described);
    }
    let admin = admin(config, context)?;
    let resources: Vec<_> = full
        .iter()
        .map(|name| ResourceSpecifier::Topic(name))
        .collect();
    let options = AdminOptions::new().request_timeout(Some(query::TIMEOUT));
    let configs = Handle::current()
        .block_on(admin.describe_configs(&resources, &options))
        .map_err(|error| log_error("", &error))?;
    for (topic, config) in described.iter_mut().flatten().zip(configs) {
        let config = config.map_err(|code| code_error(&topic.name, code))?;
        topic.settings = SETTINGS
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), config.get(name)?.value.clone()?)))
            .collect();
    }
    Ok(described)
}

/// Made for each use: it is seldom needed, and nothing would read its log in between.
fn admin(config: &ClientConfig, context: Context) -> Result<AdminClient<Context>, LogError> {
    config
        .create_with_context(context)
        .map_err(|error| log_error("", &error))
}

fn count(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}
