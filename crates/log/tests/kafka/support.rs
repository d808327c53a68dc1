//! Logs, topics and records for these tests.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_log::kafka::{KafkaLog, KafkaOptions};
use postrider_log::{
    Group, GroupEvent, GroupOptions, Log, NewRecord, Partition, Producer, ProducerOptions, Record,
    Stretch, TopicSpec,
};
use tokio::time::Instant;

pub(crate) const TOPIC: &str = "topic";
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A log under a prefix of its own.
pub(crate) fn connect(bootstrap: &str, properties: &[(&str, &str)]) -> Arc<KafkaLog> {
    let prefix = format!("test-{:016x}.", RandomState::new().hash_one(bootstrap));
    connect_to(&prefix, bootstrap, properties)
}

/// The log under this prefix, as another process sees it.
pub(crate) fn connect_to(
    prefix: &str,
    bootstrap: &str,
    properties: &[(&str, &str)],
) -> Arc<KafkaLog> {
    let mut all = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap.to_owned())]);
    all.extend(
        properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    let options = KafkaOptions {
        prefix: prefix.to_owned(),
        properties: all,
        replication: 1,
        client_id: "test".into(),
        partitions: [].into(),
    };
    KafkaLog::connect(options).expect("the options are good")
}

pub(crate) async fn create(log: &KafkaLog, partitions: i32) {
    let spec = TopicSpec {
        name: TOPIC.into(),
        partitions,
        retention: Some(Duration::from_secs(3600)),
        message_bytes_max: 1 << 20,
        settings: Vec::new(),
    };
    log.create_topics(&[spec])
        .await
        .expect("the topic is created");
}

pub(crate) async fn producer(
    log: &KafkaLog,
    append_timeout: Option<Duration>,
) -> Box<dyn Producer> {
    let options = ProducerOptions {
        name: "test",
        append_timeout,
        linger: Duration::ZERO,
        queue_bytes_max: 16 << 20,
    };
    log.producer(options).await.expect("a producer is made")
}

pub(crate) async fn join(log: &KafkaLog, revoke_deadline: Duration) -> Box<dyn Group> {
    let options = GroupOptions {
        group: "group".into(),
        topic: TOPIC.into(),
        revoke_deadline,
        prefetch_bytes_max: 1 << 20,
    };
    log.group(options).await.expect("the group is joined")
}

pub(crate) fn numbered(number: usize) -> NewRecord {
    NewRecord {
        key: Bytes::from(format!("key-{number}")),
        value: Some(Bytes::from(number.to_string())),
        headers: Vec::new(),
    }
}

pub(crate) fn number(record: &Record) -> usize {
    let value = record
        .value
        .as_ref()
        .expect("numbered records have a value");
    std::str::from_utf8(value)
        .expect("digits")
        .parse()
        .expect("a number")
}

/// Reads all there is of a partition.
pub(crate) async fn read_all(log: &KafkaLog, partition: Partition) -> Vec<Record> {
    let mut reader = log.reader(TOPIC).await.expect("a reader is made");
    let bounds = log.bounds(TOPIC, partition).await;
    let bounds = bounds.expect("the log knows its bounds");
    let mut stretch = Stretch::new(partition, bounds.start..bounds.end);
    let mut records = Vec::new();
    while let Some(more) = stretch.read(&mut *reader).await.expect("records come") {
        records.extend(more);
    }
    records
}

/// Takes events until all partitions were assigned, and starts each at its beginning.
pub(crate) async fn start_all(group: &mut dyn Group, partitions: usize) {
    let mut started = 0;
    let deadline = Instant::now() + PATIENCE;
    while started < partitions {
        let event = tokio::time::timeout_at(deadline, group.next()).await;
        if let GroupEvent::Assigned(assignments) =
            event.expect("in time").expect("the group goes on")
        {
            for assignment in assignments {
                group.start(assignment.partition, assignment.bounds.start);
                started += 1;
            }
        }
    }
}
