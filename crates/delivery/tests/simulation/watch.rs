//! The log as one life of a worker sees it: every call is passed on, what the auditor must know is
//! noted.
//!
//! The auditor looks at the topics in the very moment a commit lands, not some time later, and it
//! knows who was assigned a partition of `deliveries` when a request leaves.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use postrider_log::memory::{MemoryLog, MemoryProcess, SplitMix64};
use postrider_log::{
    Assignment, Batch, Bounds, Clock, Commit, CommitAck, Committed, Group, GroupEvent,
    GroupOptions, Log, LogError, Offset, Partition, Producer, ProducerOptions, Reader,
    TopicDescription, TopicSpec, partition_for,
};
use postrider_model::topics::{ATTEMPTS, GROUP_DELIVER, REGISTRY};
use tokio::time::{Instant, sleep, sleep_until};

use super::audit::Audit;
use super::chronicle::Tenure;
use super::freeze::Gate;

/// Two reads of it are less than the time after which everybody knows a change.
const REGISTRY_LATE_MS_MAX: u64 = 900;

/// A member hears late that it lost partitions: until then it may take itself for their owner.
const LOSS_LATE_MS_MAX: u64 = 1_000;

/// What is known of who owns what.
#[derive(Debug)]
pub(crate) struct Watch {
    log: Arc<MemoryLog>,
    clock: Arc<dyn Clock>,
    /// A lock that notes that a promise was broken under it.
    audit: std::sync::Mutex<Audit>,
    owners: Mutex<Owners>,
    partitions: i32,
}

#[derive(Debug, Default)]
struct Owners {
    tenures: usize,
    /// Who was told last that a partition is theirs, and when.
    latest: BTreeMap<Partition, (usize, Instant)>,
    of_life: BTreeMap<(usize, Partition), Tenure>,
}

impl Watch {
    pub(crate) fn new(
        log: Arc<MemoryLog>,
        clock: Arc<dyn Clock>,
        audit: Audit,
        partitions: i32,
    ) -> Arc<Self> {
        Arc::new(Self {
            log,
            clock,
            audit: std::sync::Mutex::new(audit),
            owners: Mutex::default(),
            partitions,
        })
    }

    pub(crate) fn audit<T>(&self, look: impl FnOnce(&mut Audit) -> T) -> T {
        let Some(mut audit) = self.whole_audit() else {
            // A promise was broken, and that was shown; whoever comes later has nothing to add.
            resume_unwind(Box::new("a promise was broken before"));
        };
        look(&mut audit)
    }

    /// The same, unless a promise was broken: then nothing can be broken on the way down.
    pub(crate) fn audit_if_whole(&self, look: impl FnOnce(&mut Audit)) {
        if let Some(mut audit) = self.whole_audit() {
            look(&mut audit);
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "that the lock is poisoned says something here"
    )]
    fn whole_audit(&self) -> Option<std::sync::MutexGuard<'_, Audit>> {
        self.audit.lock().ok()
    }

    /// Under which assignment a life calls an endpoint, and how long another life has owned its
    /// partition.
    pub(crate) fn standing(&self, life: usize, endpoint: &str) -> (Partition, Option<Tenure>, i64) {
        let partition = partition_for(format!("ep_{endpoint}").as_bytes(), self.partitions);
        let owners = self.owners.lock();
        let foreign = owners
            .latest
            .get(&partition)
            .filter(|(owner, _)| *owner != life);
        let foreign_ms = foreign.map_or(0, |(_, since)| since.elapsed().as_millis());
        (
            partition,
            owners.of_life.get(&(life, partition)).copied(),
            i64::try_from(foreign_ms).expect("short"),
        )
    }

    async fn assigned(&self, life: usize, assignments: &[Assignment]) {
        for assignment in assignments {
            let partition = assignment.partition;
            let known = self.log.bounds(ATTEMPTS, partition).await.expect("bounds");
            let by_member = |committed: &&Committed| !committed.metadata.is_empty();
            let from = assignment.committed.as_ref().filter(by_member);
            let from = from.map(|committed| committed.offset);
            let number = {
                let mut owners = self.owners.lock();
                owners.tenures += 1;
                owners.tenures
            };
            let committed = assignment.committed.as_ref();
            self.audit(|audit| audit.assigned(number, partition, committed));
            let mut owners = self.owners.lock();
            let tenure = Tenure {
                number,
                since_wall_ms: self.clock.now_ms(),
                from,
                known_to: known.end,
            };
            owners.latest.insert(partition, (life, Instant::now()));
            owners.of_life.insert((life, partition), tenure);
        }
    }
}

/// The log as a life sees it.
#[derive(Debug)]
pub(crate) struct WatchedLog {
    pub(crate) process: Arc<MemoryProcess>,
    pub(crate) life: usize,
    pub(crate) gate: Arc<Gate>,
    pub(crate) watch: Arc<Watch>,
}

#[async_trait]
impl Log for WatchedLog {
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
        self.process.partition_count(topic).await
    }

    async fn bounds(&self, topic: &str, partition: Partition) -> Result<Bounds, LogError> {
        self.gate.passed().await;
        self.process.bounds(topic, partition).await
    }

    async fn offset_for_time(
        &self,
        topic: &str,
        partition: Partition,
        timestamp_ms: i64,
    ) -> Result<Offset, LogError> {
        self.gate.passed().await;
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
        self.process.producer(options).await
    }

    async fn reader(&self, topic: &str) -> Result<Box<dyn Reader>, LogError> {
        let mut random = SplitMix64::new(self.life as u64);
        // The registry comes late, so that views are stale.
        let late_ms_max = if topic == REGISTRY {
            REGISTRY_LATE_MS_MAX
        } else {
            0
        };
        Ok(Box::new(WatchedReader {
            inner: self.process.reader(topic).await?,
            gate: self.gate.clone(),
            late_ms: random.below(late_ms_max),
        }))
    }

    async fn group(&self, options: GroupOptions) -> Result<Box<dyn Group>, LogError> {
        let of_deliver = options.group == GROUP_DELIVER;
        Ok(Box::new(WatchedGroup {
            inner: self.process.group(options).await?,
            life: self.life,
            of_deliver,
            watch: self.watch.clone(),
            random: SplitMix64::new(self.life as u64),
            losing: None,
        }))
    }
}

/// Tasks of a life run beside its own future, which is what is frozen: what they read waits until
/// it thaws.
#[derive(Debug)]
struct WatchedReader {
    inner: Box<dyn Reader>,
    gate: Arc<Gate>,
    late_ms: u64,
}

#[async_trait]
impl Reader for WatchedReader {
    async fn read(
        &mut self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Batch, LogError> {
        let batch = self.inner.read(partition, from, bytes_max, wait).await;
        if self.late_ms > 0 {
            sleep(Duration::from_millis(self.late_ms)).await;
        }
        self.gate.passed().await;
        batch
    }
}

#[derive(Debug)]
struct WatchedGroup {
    inner: Box<dyn Group>,
    life: usize,
    of_deliver: bool,
    watch: Arc<Watch>,
    random: SplitMix64,
    /// Partitions that are lost, which the member hears then.
    losing: Option<(Instant, Vec<Partition>)>,
}

impl WatchedGroup {
    /// The event as the stage hears it now; a loss it hears late.
    async fn watched(&mut self, event: GroupEvent) -> Option<GroupEvent> {
        let GroupEvent::Lost(partitions) = event else {
            if let GroupEvent::Assigned(assignments) = &event
                && self.of_deliver
            {
                self.watch.assigned(self.life, assignments).await;
            }
            return Some(event);
        };
        let late = Duration::from_millis(self.random.below(LOSS_LATE_MS_MAX));
        self.losing = Some((Instant::now() + late, partitions));
        None
    }

    async fn lost_late(&mut self) -> GroupEvent {
        if let Some((told_at, _)) = &self.losing {
            sleep_until(*told_at).await;
        }
        let lost = self.losing.take().map(|(_, partitions)| partitions);
        GroupEvent::Lost(lost.unwrap_or_default())
    }
}

#[async_trait]
impl Group for WatchedGroup {
    async fn next(&mut self) -> Result<GroupEvent, LogError> {
        if self.losing.is_none() {
            let event = self.inner.next().await?;
            if let Some(event) = self.watched(event).await {
                return Ok(event);
            }
        }
        Ok(self.lost_late().await)
    }

    async fn next_rebalance(&mut self) -> Result<GroupEvent, LogError> {
        if self.losing.is_none() {
            let event = self.inner.next_rebalance().await?;
            if let Some(event) = self.watched(event).await {
                return Ok(event);
            }
        }
        Ok(self.lost_late().await)
    }

    fn start(&mut self, partition: Partition, from: Offset) {
        self.inner.start(partition, from);
    }

    fn pause(&mut self, partition: Partition) {
        self.inner.pause(partition);
    }

    fn resume(&mut self, partition: Partition) {
        self.inner.resume(partition);
    }

    fn commit(&mut self, commits: Vec<Commit>) -> CommitAck {
        let ack = self.inner.commit(commits);
        self.watch.audit(Audit::check_commits);
        ack
    }

    fn release(&mut self) {
        self.inner.release();
    }

    async fn close(&mut self) {
        self.inner.close().await;
    }
}
