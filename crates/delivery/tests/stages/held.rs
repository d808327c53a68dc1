//! A log of which a test holds parts back: a call that is held does not answer until it is let go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use postrider_log::memory::MemoryProcess;
use postrider_log::{
    Append, AppendError, Batch, Bounds, Committed, Group, GroupOptions, Log, LogError, NewRecord,
    Offset, Partition, Producer, ProducerOptions, Reader, Target, TopicDescription, TopicSpec,
};
use postrider_model::topics::REGISTRY;
use tokio::sync::Notify;
use tokio::time::sleep;

/// What somebody waits for lingers shorter.
const GATHERS: Duration = Duration::from_millis(50);

/// What can be held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Joining a group.
    Groups,
    /// Making a producer.
    Producers,
    /// How many partitions a topic has.
    Counts,
    /// Reading a topic, its bounds included.
    Reads(&'static str),
    /// The bounds of one partition, which is unavailable for as long as it is held.
    Partition(&'static str, Partition),
    /// Room in the queue for appends to a topic.
    Room(&'static str),
}

/// The parts that are held back, and how often what was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    held: Mutex<BTreeSet<Part>>,
    changed: Notify,
    /// By topic.
    reads: Mutex<BTreeMap<String, usize>>,
    /// Appends by topic and by how long they may linger.
    appends: Mutex<BTreeMap<(String, Duration), usize>>,
}

impl Held {
    pub(crate) fn hold(&self, part: Part) {
        self.0.held.lock().insert(part);
    }

    pub(crate) fn let_go(&self, part: Part) {
        self.0.held.lock().remove(&part);
        self.0.changed.notify_waiters();
    }

    /// How many reads of a topic have ended, but for those of members of groups.
    pub(crate) fn reads(&self, topic: &str) -> usize {
        self.0.reads.lock().get(topic).copied().unwrap_or_default()
    }

    /// How many appends to a topic went through a producer for what nobody waits for.
    pub(crate) fn gathered(&self, topic: &str) -> usize {
        let appends = self.0.appends.lock();
        let gathered = appends
            .iter()
            .filter(|((of, linger), _)| of == topic && *linger >= GATHERS);
        gathered.map(|(_, count)| count).sum()
    }

    fn holds(&self, is_meant: impl Fn(&Part) -> bool) -> bool {
        self.0.held.lock().iter().any(is_meant)
    }

    async fn passed(&self, is_meant: impl Fn(&Part) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if !self.holds(&is_meant) {
                return;
            }
            changed.await;
        }
    }

    async fn read_of(&self, topic: &str) {
        self.passed(|part| matches!(part, Part::Reads(held) if *held == topic))
            .await;
    }
}

#[derive(Debug)]
pub(crate) struct HeldLog {
    pub(crate) process: Arc<MemoryProcess>,
    pub(crate) held: Held,
    /// How late the records of the registry come.
    pub(crate) registry_late: Duration,
}

#[async_trait]
impl Log for HeldLog {
    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        self.process.create_topics(topics).await
    }

    async fn describe_topics(
        &self,
        topics: &[&str],
    ) -> Result<Vec<Option<TopicDescription>>, LogError> {
        self.process.describe_topics(topics).await
    }

    async fn partition_count(&self, topic: &str) -> Result<i32, LogError> {
        self.held.passed(|part| *part == Part::Counts).await;
        self.process.partition_count(topic).await
    }

    async fn bounds(&self, topic: &str, partition: Partition) -> Result<Bounds, LogError> {
        self.held.read_of(topic).await;
        let is_meant = |part: &Part| matches!(part, Part::Partition(held, of) if (*held, *of) == (topic, partition));
        if self.held.holds(is_meant) {
            return Err(LogError::Unavailable("held".to_owned()));
        }
        self.process.bounds(topic, partition).await
    }

    async fn offset_for_time(
        &self,
        topic: &str,
        partition: Partition,
        timestamp_ms: i64,
    ) -> Result<Offset, LogError> {
        self.held.read_of(topic).await;
        self.process
            .offset_for_time(topic, partition, timestamp_ms)
            .await
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<Option<Committed>>, LogError> {
        self.process.committed(group, topic).await
    }

    async fn set_committed(
        &self,
        group: &str,
        topic: &str,
        commits: &[(Partition, Committed)],
    ) -> Result<(), LogError> {
        self.process.set_committed(group, topic, commits).await
    }

    async fn producer(&self, options: ProducerOptions) -> Result<Box<dyn Producer>, LogError> {
        self.held.passed(|part| *part == Part::Producers).await;
        Ok(Box::new(HeldProducer {
            linger: options.linger,
            inner: self.process.producer(options).await?,
            held: self.held.clone(),
        }))
    }

    async fn reader(&self, topic: &str) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(HeldReader {
            inner: self.process.reader(topic).await?,
            topic: topic.to_owned(),
            held: self.held.clone(),
            registry_late: self.registry_late,
        }))
    }

    async fn group(&self, options: GroupOptions) -> Result<Box<dyn Group>, LogError> {
        self.held.passed(|part| *part == Part::Groups).await;
        self.process.group(options).await
    }
}

#[derive(Debug)]
struct HeldReader {
    inner: Box<dyn Reader>,
    topic: String,
    held: Held,
    registry_late: Duration,
}

#[async_trait]
impl Reader for HeldReader {
    async fn read(
        &mut self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Batch, LogError> {
        let batch = self.inner.read(partition, from, bytes_max, wait).await;
        if self.topic == REGISTRY {
            sleep(self.registry_late).await;
        }
        // Also what was on its way when it was held back.
        self.held.read_of(&self.topic).await;
        *self
            .held
            .0
            .reads
            .lock()
            .entry(self.topic.clone())
            .or_default() += 1;
        batch
    }
}

#[derive(Debug)]
struct HeldProducer {
    linger: Duration,
    inner: Box<dyn Producer>,
    held: Held,
}

#[async_trait]
impl Producer for HeldProducer {
    fn append(&self, topic: &str, target: Target, record: NewRecord) -> Append {
        let is_full = |part: &Part| matches!(part, Part::Room(held) if *held == topic);
        if self.held.holds(is_full) {
            return Append::ready(Err(AppendError::QueueFull));
        }
        let place = (topic.to_owned(), self.linger);
        *self.held.0.appends.lock().entry(place).or_default() += 1;
        self.inner.append(topic, target, record)
    }

    async fn flush(&self, timeout: Duration) {
        self.inner.flush(timeout).await;
    }
}
