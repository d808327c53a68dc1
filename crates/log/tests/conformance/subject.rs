//! What the suite is given of a log.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_log::{
    Append, GroupOptions, Log, NewRecord, Offset, Partition, Position, Producer, ProducerOptions,
    Record, Target, TopicSpec,
};

use crate::member::Member;

/// A log under test.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) log: Arc<dyn Log>,
    /// Begins every topic and group name, so that runs on a shared log do not meet.
    pub(crate) prefix: String,
    /// The longest that anything may take.
    pub(crate) patience: Duration,
    /// What one fetch may bring beyond the prefetch bound.
    pub(crate) fetch_bytes_max: usize,
    pub(crate) control: Box<dyn Control>,
}

/// What the suite does to a log from outside. False, or none, where the adapter has no such thing.
#[async_trait]
pub(crate) trait Control: Debug + Send + Sync {
    /// Closes the log and opens it again. The caller has dropped everything it had of it.
    async fn reopen(&mut self) -> Option<Arc<dyn Log>>;
    /// Removes the records before `to`.
    async fn truncate(&self, topic: &str, partition: Partition, to: Offset) -> bool;
    /// Leaves out at least one offset, at or near the end; records it needs for it have the key
    /// `gap`.
    async fn gap(&self, topic: &str, partition: Partition) -> bool;
    /// Compacts the topic.
    async fn compact(&self, topic: &str) -> bool;
}

/// How a topic is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    ForDays,
    Compacted,
}

impl Subject {
    pub(crate) async fn topic(&self, name: &str, partitions: i32, kept: Kept) -> String {
        let spec = self.spec(name, partitions, kept);
        self.log
            .create_topics(std::slice::from_ref(&spec))
            .await
            .expect("the topic is created");
        spec.name
    }

    pub(crate) fn spec(&self, name: &str, partitions: i32, kept: Kept) -> TopicSpec {
        TopicSpec {
            name: format!("{}{name}", self.prefix),
            partitions,
            retention: (kept == Kept::ForDays).then_some(Duration::from_secs(7 * 24 * 3600)),
            message_bytes_max: 100_000,
            settings: Vec::new(),
        }
    }

    pub(crate) async fn producer(&self) -> Box<dyn Producer> {
        self.producer_with_queue(64 << 20).await
    }

    pub(crate) async fn producer_with_queue(&self, queue_bytes_max: usize) -> Box<dyn Producer> {
        let options = ProducerOptions {
            name: "conformance",
            append_timeout: None,
            linger: Duration::from_millis(1),
            queue_bytes_max,
        };
        self.log
            .producer(options)
            .await
            .expect("a producer is made")
    }

    /// Appends records to one partition and waits until they are durable.
    pub(crate) async fn fill(
        &self,
        topic: &str,
        partition: Partition,
        records: impl IntoIterator<Item = NewRecord>,
    ) -> Vec<Position> {
        let producer = self.producer().await;
        let target = Target::Partition(partition);
        let appends: Vec<Append> = records
            .into_iter()
            .map(|record| producer.append(topic, target, record))
            .collect();
        let mut positions = Vec::new();
        for append in appends {
            positions.push(
                self.in_time(append)
                    .await
                    .expect("the append is acknowledged"),
            );
        }
        positions
    }

    /// Reads all there is of a partition.
    pub(crate) async fn read_all(&self, topic: &str, partition: Partition) -> Vec<Record> {
        let mut reader = self.log.reader(topic).await.expect("a reader is made");
        let end = self
            .log
            .bounds(topic, partition)
            .await
            .expect("the log knows its bounds")
            .end;
        let (mut records, mut from) = (Vec::new(), 0);
        while from < end {
            let read = reader.read(partition, from, 1 << 20, self.patience);
            let batch = self.in_time(read).await.expect("the read is answered");
            from = batch.next;
            records.extend(batch.records);
        }
        records
    }

    pub(crate) async fn join(&self, topic: &str) -> Member {
        self.join_with(topic, Duration::from_secs(20), 1 << 20)
            .await
    }

    pub(crate) async fn join_with(
        &self,
        topic: &str,
        revoke_deadline: Duration,
        prefetch_bytes_max: usize,
    ) -> Member {
        let options = GroupOptions {
            group: format!("{topic}-group"),
            topic: topic.to_owned(),
            revoke_deadline,
            prefetch_bytes_max,
        };
        let group = self.log.group(options).await.expect("the group is joined");
        Member::new(group, self.patience)
    }

    pub(crate) async fn in_time<T>(&self, future: impl Future<Output = T>) -> T {
        tokio::time::timeout(self.patience, future)
            .await
            .expect("it happens in time")
    }
}

pub(crate) fn record(key: &str, value: &str) -> NewRecord {
    NewRecord {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Vec::new(),
    }
}

/// `count` records with keys of their own and values `0`, `1`, …
pub(crate) fn numbered(count: usize) -> impl Iterator<Item = NewRecord> {
    (0..count).map(|number| record(&format!("key-{number}"), &number.to_string()))
}

/// The number that a record of [`numbered`] carries.
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

/// Whether it is not one that [`Control::gap`] left behind.
pub(crate) fn is_ours(record: &Record) -> bool {
    record.key != "gap"
}
