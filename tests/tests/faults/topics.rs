//! The topics, read past the processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use postrider_log::kafka::{KafkaLog, KafkaOptions};
use postrider_log::{Log, LogError, Offset, Partition, Record, Stretch};
use postrider_tests::{Cluster, eventually};

const DRAINED_WITHIN: Duration = Duration::from_secs(120);
const READERS: usize = 16;
/// Every group, and the topic it reads.
const GROUPS: [(&str, &str); 3] = [
    ("fan-out", "events"),
    ("deliver", "deliveries"),
    ("scheduler", "retry"),
];

pub(crate) fn log_of(cluster: &Cluster) -> Arc<dyn Log> {
    let options = KafkaOptions {
        prefix: cluster.prefix().to_owned(),
        properties: [("bootstrap.servers".to_owned(), cluster.broker().bootstrap())].into(),
        replication: -1,
        client_id: "auditor".to_owned(),
        partitions: [].into(),
    };
    KafkaLog::connect(options).unwrap()
}

/// Everything that a topic holds, several partitions at once: the first record of each takes a
/// while.
pub(crate) async fn records(log: &dyn Log, topic: &str) -> Vec<Record> {
    let partitions = 0..log.partition_count(topic).await.unwrap();
    stream::iter(partitions)
        .map(|partition| partition_records(log, topic, partition))
        .buffered(READERS)
        .concat()
        .await
}

async fn partition_records(log: &dyn Log, topic: &str, partition: Partition) -> Vec<Record> {
    let bounds = log.bounds(topic, partition).await.unwrap();
    let mut records = Vec::new();
    if bounds.start == bounds.end {
        return records;
    }
    let mut reader = log.reader(topic).await.unwrap();
    let mut stretch = Stretch::new(partition, bounds.start..bounds.end);
    while let Some(more) = stretch.read(&mut *reader).await.unwrap() {
        records.extend(more);
    }
    records
}

/// What a group has committed.
pub(crate) async fn committed(
    log: &dyn Log,
    group: &str,
    topic: &str,
) -> BTreeMap<Partition, Offset> {
    let committed = log.committed(group, topic).await.unwrap();
    (0..)
        .zip(committed)
        .filter_map(|(partition, committed)| Some((partition, committed?.offset)))
        .collect()
}

/// Waits until every group has committed the end of its topic: whatever was to come, also a second
/// time, has come. A broker that was frozen may not know every topic yet.
pub(crate) async fn drained(log: &dyn Log) {
    eventually("all is done", DRAINED_WITHIN, async || {
        match undone(log).await {
            Ok(undone) if undone.is_empty() => Ok(()),
            undone => Err(undone),
        }
    })
    .await;
}

/// The partitions whose ends are not committed, with what is and the end.
async fn undone(log: &dyn Log) -> Result<Vec<(&'static str, Partition, Offset, Offset)>, LogError> {
    let mut undone = Vec::new();
    for (group, topic) in GROUPS {
        let committed = log.committed(group, topic).await?;
        for (partition, bounds) in (0..).zip(log.all_bounds(topic).await?) {
            let committed = committed.get(usize::try_from(partition).unwrap());
            let done = committed.and_then(Option::as_ref);
            let done = done.map_or(0, |committed| committed.offset);
            if bounds.end > bounds.start && done < bounds.end {
                undone.push((group, partition, done, bounds.end));
            }
        }
    }
    Ok(undone)
}
