//! Questions to the brokers. They block, so they run beside the async threads.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::errors::{code_error, commit_error, coordinator_moved, leader_moved, log_error};
use crate::port::{Bounds, CommitError, Committed, LogError, Offset, Partition};

/// How long a question may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a leader may take to answer, until somebody is asked who leads now.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long brokers may take to show that they are there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Before a question is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Runs blocking calls beside the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(ask)
        .await
        .unwrap_or_else(|error| {
            Err(LogError::Unavailable(format!(
                "asking kafka ended early: {error}"
            )))
        })
}

/// What any broker knows of the cluster.
pub(super) fn cluster<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    timeout: Duration,
) -> KafkaResult<Metadata> {
    // Every answer lists the brokers; a name that no topic has keeps the rest of it small.
    client.fetch_metadata(Some("postrider-no-such-topic"), timeout)
}

/// Whether a broker answers that knows of brokers: one that has just started may know of none.
pub(super) fn brokers_answer<C: ConsumerContext>(client: &BaseConsumer<C>) -> bool {
    cluster(client, PROBE_TIMEOUT).is_ok_and(|cluster| !cluster.brokers().is_empty())
}

/// A topic's partitions as (number, replicas), or nothing if the topic does not exist. `topic` has
/// the prefix.
pub(super) fn partitions<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
) -> Result<Option<Vec<(Partition, usize)>>, LogError> {
    let metadata = client
        .fetch_metadata(Some(topic), TIMEOUT)
        .map_err(|error| log_error(topic, &error))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(None);
    };
    match topic_error(topic, found) {
        Some(LogError::NoSuchTopic(_)) => Ok(None),
        Some(error) => Err(error),
        None => Ok(Some(
            found
                .partitions()
                .iter()
                .map(|one| (one.id(), one.replicas().len()))
                .collect(),
        )),
    }
}

fn topic_error(topic: &str, found: &MetadataTopic) -> Option<LogError> {
    found.error().map(|error| code_error(topic, error.into()))
}

/// The bounds of partitions of a topic, by one question for the starts and one for the ends. The
/// end is that of the last transaction that is over, as readers see no further.
pub(super) fn bounds<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, Bounds>, LogError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Starts first: a start that moves in between must not exceed the end.
    let starts = offsets(client, topic, partitions, KafkaOffset::Beginning)?;
    let ends = offsets(client, topic, partitions, KafkaOffset::End)?;
    partitions
        .iter()
        .map(
            |partition| match (starts.get(partition), ends.get(partition)) {
                (Some(&start), Some(&end)) => Ok((
                    *partition,
                    Bounds {
                        start,
                        end: end.max(start),
                    },
                )),
                _ => Err(LogError::Unavailable(format!(
                    "no bounds of partition {partition} of {topic}"
                ))),
            },
        )
        .collect()
}

/// Where a partition ends, as [`bounds`] tells it.
pub(super) fn end<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partition: Partition,
) -> Result<Offset, LogError> {
    let ends = offsets(client, topic, &[partition], KafkaOffset::End)?;
    let end = ends.get(&partition).copied();
    end.ok_or_else(|| LogError::Unavailable(format!("no end of partition {partition} of {topic}")))
}

/// First offset at or after a time, none if there is none.
pub(super) fn offset_for_time<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partition: Partition,
    timestamp_ms: i64,
) -> Result<Option<Offset>, LogError> {
    // Negative times mean something else to Kafka, and nothing is that old.
    let time = KafkaOffset::Offset(timestamp_ms.max(0));
    Ok(offsets(client, topic, &[partition], time)?
        .get(&partition)
        .copied())
}

fn offsets<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partitions: &[Partition],
    time: KafkaOffset,
) -> Result<BTreeMap<Partition, Offset>, LogError> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let left = || deadline.saturating_duration_since(Instant::now());
        let asked = list(topic, partitions.iter().map(|partition| (*partition, time)));
        match offsets_once(client, topic, asked, left().min(LEADER_TIMEOUT)) {
            Err(error) if leader_moved(&error) && !left().is_zero() => {
                // Whether this succeeds shows in the next answer. Nothing else makes a client ask
                // who leads a partition that it neither reads nor writes.
                drop(client.fetch_metadata(Some(topic), left().min(LEADER_TIMEOUT)));
                std::thread::sleep(left().min(RETRY_PAUSE));
            }
            answer => return answer.map_err(|error| log_error(topic, &error)),
        }
    }
}

fn offsets_once<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    asked: TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<BTreeMap<Partition, Offset>> {
    let answer = client.offsets_for_times(asked, timeout)?;
    let mut offsets = BTreeMap::new();
    for element in answer.elements_for_topic(topic) {
        element.error()?;
        if let KafkaOffset::Offset(offset) = element.offset() {
            offsets.insert(element.partition(), offset);
        }
    }
    Ok(offsets)
}

/// What the client's group has committed.
pub(super) fn committed<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, Committed>, LogError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let asked = list(
        topic,
        partitions
            .iter()
            .map(|partition| (*partition, KafkaOffset::Invalid)),
    );
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match committed_once(client, topic, asked.clone()) {
            Err(error) if coordinator_moved(&error) && Instant::now() < deadline => {
                std::thread::sleep(RETRY_PAUSE);
            }
            answer => return answer.map_err(|error| log_error(topic, &error)),
        }
    }
}

fn committed_once<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    asked: TopicPartitionList,
) -> KafkaResult<BTreeMap<Partition, Committed>> {
    let answer = client.committed_offsets(asked, TIMEOUT)?;
    let mut committed = BTreeMap::new();
    for element in answer.elements_for_topic(topic) {
        element.error()?;
        if let KafkaOffset::Offset(offset) = element.offset() {
            let metadata = element.metadata().to_owned();
            committed.insert(element.partition(), Committed { offset, metadata });
        }
    }
    Ok(committed)
}

/// Commits for the client's group, which must have no members.
pub(super) fn set_committed<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    group: &str,
    topic: &str,
    commits: &BTreeMap<Partition, Committed>,
) -> Result<(), LogError> {
    if commits.is_empty() {
        return Ok(());
    }
    let list = commit_list(topic, commits);
    let deadline = Instant::now() + TIMEOUT;
    while let Err(error) = client.commit(&list, CommitMode::Sync) {
        match commit_error(&error) {
            CommitError::Fenced => return Err(LogError::GroupHasMembers(group.to_owned())),
            CommitError::Unknown(_) if coordinator_moved(&error) && Instant::now() < deadline => {
                std::thread::sleep(RETRY_PAUSE);
            }
            CommitError::Unknown(_) => return Err(log_error(topic, &error)),
        }
    }
    // The client does not say so when the broker refused some of the partitions only.
    let partitions: Vec<Partition> = commits.keys().copied().collect();
    if committed(client, topic, &partitions)? == *commits {
        Ok(())
    } else {
        Err(LogError::Unavailable(format!(
            "not every commit for group {group} was taken"
        )))
    }
}

/// What to commit, as a list.
pub(super) fn commit_list(
    topic: &str,
    commits: &BTreeMap<Partition, Committed>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for (partition, Committed { offset, metadata }) in commits {
        let mut element = list.add_partition(topic, *partition);
        if let Err(error) = element.set_offset(KafkaOffset::Offset(*offset)) {
            tracing::error!(partition, offset, %error, "a commit names an impossible offset");
        }
        if !metadata.is_empty() {
            element.set_metadata(metadata);
        }
    }
    list
}

/// A list of partitions of one topic with an offset each.
pub(super) fn list(
    topic: &str,
    partitions: impl IntoIterator<Item = (Partition, KafkaOffset)>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        let set = list.add_partition(topic, partition).set_offset(offset);
        assert!(set.is_ok(), "offset {offset:?} cannot be written in a list");
    }
    list
}
