//! What the adversary can do.

use std::sync::Arc;
use std::time::Duration;

use super::MemoryLog;
use super::random::SplitMix64;
use crate::local::topic::Topic;
use crate::port::{Offset, Partition};

/// An append that the adversary is asked about.
#[derive(Debug)]
pub struct AppendSite<'a> {
    /// The process that appends.
    pub process: &'a str,
    /// The producer, and what it is called.
    pub producer: (u64, &'a str),
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: Partition,
    /// The key.
    pub key: &'a [u8],
}

/// A commit that the adversary is asked about.
#[derive(Debug)]
pub struct CommitSite<'a> {
    /// The group.
    pub group: &'a str,
    /// The topic.
    pub topic: &'a str,
}

/// What is to become of an append, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppendPlan {
    /// How long until it lands and its fate is told. Later appends of the producer to the partition
    /// wait behind it.
    pub delay: Duration,
    /// What becomes of it.
    pub fate: AppendFate,
}

/// What is to become of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendFate {
    /// It lands and is acknowledged.
    #[default]
    Acked,
    /// It does not land; `Failed` is told.
    Failed,
    /// It lands; `Unknown` is told.
    UnknownLanded,
    /// It does not land; `Unknown` is told.
    UnknownAbsent,
    /// `Unknown` is told, and it is held until [`Faults::release_late`]. If its producer lands
    /// another record in the partition first, the seed decides whether it lands before that one or
    /// never: a producer's order holds.
    UnknownLate,
}

impl From<AppendFate> for AppendPlan {
    fn from(fate: AppendFate) -> Self {
        Self {
            delay: Duration::ZERO,
            fate,
        }
    }
}

/// What is to become of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CommitFault {
    /// It lands and is acknowledged.
    #[default]
    Acked,
    /// It lands; `Unknown` is told.
    UnknownLanded,
    /// It does not land; `Unknown` is told.
    UnknownAbsent,
}

pub(super) type DecideAppend =
    Box<dyn FnMut(&AppendSite<'_>, &mut SplitMix64) -> AppendPlan + Send>;
pub(super) type DecideCommit =
    Box<dyn FnMut(&CommitSite<'_>, &mut SplitMix64) -> CommitFault + Send>;

/// The adversary's handle. Everything happens at once, inside the call.
#[derive(Debug, Clone)]
pub struct Faults(pub(super) Arc<MemoryLog>);

impl Faults {
    /// Decides about every append from now on. The function must not call the log.
    pub fn on_append(
        &self,
        decide: impl FnMut(&AppendSite<'_>, &mut SplitMix64) -> AppendPlan + Send + 'static,
    ) {
        self.0.storage.set_decide_append(Some(Box::new(decide)));
    }

    /// Decides about every commit from now on. The function must not call the log.
    pub fn on_commit(
        &self,
        decide: impl FnMut(&CommitSite<'_>, &mut SplitMix64) -> CommitFault + Send + 'static,
    ) {
        self.0.storage.set_decide_commit(Some(Box::new(decide)));
    }

    /// Decides about the next append to the topic that has no decision yet; repeated calls queue
    /// up. Such decisions come before [`Faults::on_append`].
    pub fn next_append(&self, topic: &str, plan: impl Into<AppendPlan>) {
        self.0.storage.queue_append_plan(topic, plan.into());
    }

    /// Decides about the next commit of the group that has no decision yet; repeated calls queue
    /// up.
    pub fn next_commit(&self, group: &str, fault: CommitFault) {
        self.0.storage.queue_commit_fault(group, fault);
    }

    /// Takes all decisions back. Late appends stay held.
    pub fn calm(&self) {
        self.0.storage.calm();
    }

    /// How many late appends are held.
    pub fn late(&self) -> usize {
        self.0.storage.late()
    }

    /// Lands the oldest late append; false if there is none.
    pub fn release_late(&self) -> bool {
        self.0.storage.release_late()
    }

    /// Forgets all late appends: they never land.
    pub fn forget_late(&self) {
        self.0.storage.forget_late();
    }

    /// Asks every member of the group for all its partitions; each goes to the next member, or back
    /// if there is one member only.
    pub fn rebalance(&self, group: &str) {
        self.0
            .broker
            .disturb(group, crate::local::GroupState::rotate);
    }

    /// Takes all partitions of the group from a process without asking. The next member may have
    /// them before the process hears `Lost`.
    pub fn lose(&self, process: &super::MemoryProcess, group: &str) {
        let client = process.client_id();
        self.0.broker.disturb(group, |state| state.lose(client));
    }

    /// Forgets what the group committed for a partition, as a log does whose commits expired.
    ///
    /// # Panics
    /// If there is no such partition, as for all calls that name one.
    pub fn forget_commit(&self, group: &str, topic: &str, partition: Partition) {
        self.topic(topic, partition);
        self.0
            .broker
            .disturb(group, |state| state.forget_commit(partition));
    }

    /// Leaves out offsets, as transaction markers do.
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn gap(&self, topic: &str, partition: Partition, offsets: i64) {
        let topic = self.topic(topic, partition);
        self.0.storage.gap(&topic, partition, offsets);
        topic.changed.notify_waiters();
    }

    /// Removes all records before `to`, as retention does; at most up to the end.
    pub fn truncate(&self, topic: &str, partition: Partition, to: Offset) {
        let topic = self.topic(topic, partition);
        self.0.storage.truncate(&topic, partition, to);
        topic.changed.notify_waiters();
    }

    /// Takes all records from `end` on away, so that their offsets are given again: as an unclean
    /// election does, and, with 0, who makes a topic again. The broker keeps what was committed.
    pub fn cut(&self, topic: &str, partition: Partition, end: Offset) {
        let topic = self.topic(topic, partition);
        self.0.storage.cut(&topic, partition, end);
        topic.changed.notify_waiters();
    }

    /// How long a killed process still counts as a member of its groups; 10 s if never set.
    pub fn session_timeout(&self, timeout: Duration) {
        self.0.storage.set_session_timeout(timeout);
    }

    fn topic(&self, topic: &str, partition: Partition) -> Arc<Topic> {
        let topic = self
            .0
            .broker
            .topic(topic)
            .expect("the adversary names topics that exist");
        topic
            .check(partition)
            .expect("the adversary names partitions that exist");
        topic
    }
}
