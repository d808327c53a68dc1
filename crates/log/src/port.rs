//! What a log does: Kafka's semantics, not the least common denominator.
//!
//! Actors: a [`Producer`] appends and learns the fate of each append; a [`Group`] shares the
//! partitions of a topic among its members and remembers how far each partition is done; a
//! [`Reader`] reads any partition from any offset, without a group.
//!
//! Guaranteed:
//! - An append that is acknowledged is durable: it survives kill -9 of this process and, as far as
//!   the log is replicated, of the log.
//! - Appends of one producer to one partition are in the log in the order of the calls. If one
//!   fails, later ones may still succeed, so a caller that needs order repeats from the failed one
//!   on; and one for which order must hold through any failure gives appends no time limit, since
//!   then the log refuses none that it may take later.
//! - Offsets grow but may have gaps (compaction, transaction markers): the next offset is the one
//!   that a batch names, never the last one plus one.
//! - Between `Assigned` and the end of the following `Revoke` (or `Lost`) no other member of the
//!   group is assigned the partition. After `Lost` another member may already have it.
//! - A commit whose generation is not the partition's present one is refused.
//!
//! Not guaranteed: that an append of unknown fate is absent. It may be there, or come to be there
//! later.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

/// Number of a partition, from 0.
pub type Partition = i32;
/// Place of a record in its partition, from 0, with gaps.
pub type Offset = i64;
/// Counts the assignments of a partition to this member; a commit names it.
pub type Generation = u64;

/// A log with its topics. Topic and group names are given without the installation's prefix.
#[async_trait]
pub trait Log: Debug + Send + Sync + 'static {
    /// Creates the topics that do not exist, and names them; leaves the others as they are.
    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError>;
    /// Describes the named topics; one that does not exist has no description.
    async fn describe_topics(
        &self,
        topics: &[&str],
    ) -> Result<Vec<Option<TopicDescription>>, LogError>;
    /// How many partitions the topic has.
    async fn partition_count(&self, topic: &str) -> Result<i32, LogError>;
    /// Over how many partitions, the first ones, [`Target::Key`] spreads keys: all, unless some
    /// were added later.
    async fn key_partitions(&self, topic: &str) -> Result<i32, LogError> {
        self.partition_count(topic).await
    }
    /// First offset kept, and the offset the next record gets.
    async fn bounds(&self, topic: &str, partition: Partition) -> Result<Bounds, LogError>;
    /// The bounds of every partition, by number, with as few questions as the log allows.
    async fn all_bounds(&self, topic: &str) -> Result<Vec<Bounds>, LogError> {
        let mut bounds = Vec::new();
        for partition in 0..self.partition_count(topic).await? {
            bounds.push(self.bounds(topic, partition).await?);
        }
        Ok(bounds)
    }
    /// First offset whose record was appended at or after the time; the end if there is none.
    async fn offset_for_time(
        &self,
        topic: &str,
        partition: Partition,
        timestamp_ms: i64,
    ) -> Result<Offset, LogError>;
    /// What a group has committed, for every partition of the topic.
    async fn committed(&self, group: &str, topic: &str)
    -> Result<Vec<Option<Committed>>, LogError>;
    /// Commits for a group from outside. Refused with [`LogError::GroupHasMembers`] while anybody
    /// is in it: only its members know what is done.
    async fn set_committed(
        &self,
        group: &str,
        topic: &str,
        commits: &[(Partition, Committed)],
    ) -> Result<(), LogError>;
    /// A new producer. Must be called inside a tokio runtime.
    async fn producer(&self, options: ProducerOptions) -> Result<Box<dyn Producer>, LogError>;
    /// A new reader of a topic.
    async fn reader(&self, topic: &str) -> Result<Box<dyn Reader>, LogError>;
    /// Joins a group.
    async fn group(&self, options: GroupOptions) -> Result<Box<dyn Group>, LogError>;
}

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Name without prefix.
    pub name: String,
    /// Number of partitions, fixed at creation.
    pub partitions: i32,
    /// How long records are kept; `None` for a compacted topic, where the latest record of each key
    /// is.
    pub retention: Option<Duration>,
    /// Largest record in bytes.
    pub message_bytes_max: u32,
    /// Further settings under Kafka's names, such as `min.compaction.lag.ms`; other adapters ignore
    /// them.
    pub settings: Vec<(String, String)>,
}

/// A topic as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// Name without prefix.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of each partition; 1 where the adapter has no replication.
    pub replication: i32,
    /// Settings under Kafka's names, as far as the adapter has them.
    pub settings: Vec<(String, String)>,
}

/// First offset kept, and the offset the next record gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// First offset kept.
    pub start: Offset,
    /// Offset the next record gets.
    pub end: Offset,
}

/// A record to append. A value of `None` is a tombstone. The log sets the time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewRecord {
    /// Key; records of one key go to one partition unless the target names another.
    pub key: Bytes,
    /// Value.
    pub value: Option<Bytes>,
    /// Headers.
    pub headers: Vec<(String, Bytes)>,
}

/// A record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Partition it is in.
    pub partition: Partition,
    /// Its offset.
    pub offset: Offset,
    /// When it was appended, Unix milliseconds.
    pub timestamp_ms: i64,
    /// Key, empty if it has none.
    pub key: Bytes,
    /// Value, `None` for a tombstone.
    pub value: Option<Bytes>,
    /// Headers.
    pub headers: Vec<(String, Bytes)>,
}

impl Record {
    /// What the record takes in memory, roughly.
    pub fn size_bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + headers + size_of::<Self>()
    }
}

/// Which partition an append goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The one the key hashes to: `(murmur2(key) & 0x7fffffff) % partitions`, as Kafka's Java
    /// clients do.
    Key,
    /// This one.
    Partition(Partition),
}

/// Where an acknowledged append is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Partition.
    pub partition: Partition,
    /// Offset.
    pub offset: Offset,
    /// The time that the log gave the record, Unix milliseconds; `None` where its topic keeps the
    /// writers' times.
    pub timestamp_ms: Option<i64>,
}

/// How a producer behaves.
#[derive(Debug, Clone)]
pub struct ProducerOptions {
    /// For logs and metrics.
    pub name: &'static str,
    /// How long an append may take before its fate is given up as unknown; `None`: as long as the
    /// log needs, so that order holds through any outage.
    pub append_timeout: Option<Duration>,
    /// How long to gather records into a batch.
    pub linger: Duration,
    /// Bytes not yet acknowledged, at most.
    pub queue_bytes_max: usize,
}

/// Appends records. Dropping it gives up what is not acknowledged; call [`Producer::flush`] first.
#[async_trait]
pub trait Producer: Debug + Send + Sync + 'static {
    /// Starts an append. The order of calls is the order in the log; the fate comes by the returned
    /// future, which need not be polled for the append to go on.
    fn append(&self, topic: &str, target: Target, record: NewRecord) -> Append;
    /// Waits until the fate of every append so far is known, at most this long.
    async fn flush(&self, timeout: Duration);
}

/// The fate of an append, to be awaited.
#[derive(Debug)]
pub struct Append(oneshot::Receiver<Result<Position, AppendError>>);

impl Append {
    /// A fate that is told later. Dropping the sender tells [`AppendError::Unknown`].
    pub fn pending() -> (oneshot::Sender<Result<Position, AppendError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }

    /// A fate that is known already.
    pub fn ready(fate: Result<Position, AppendError>) -> Self {
        let (sender, append) = Self::pending();
        if sender.send(fate).is_err() {
            unreachable!("the receiver is held");
        }
        append
    }
}

impl Future for Append {
    type Output = Result<Position, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|told| {
            told.unwrap_or_else(|_| Err(AppendError::Unknown("the producer was dropped".into())))
        })
    }
}

/// Why an append was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The queue is full; the record was not taken.
    #[error("the producer's queue is full")]
    QueueFull,
    /// The record exceeds what the topic takes. It is not in the log.
    #[error("the record is larger than the topic takes")]
    TooLarge,
    /// It is not in the log and never will be.
    #[error("the append failed: {0}")]
    Failed(String),
    /// It may be in the log, or come to be there.
    #[error("the fate of the append is unknown: {0}")]
    Unknown(String),
}

/// Reads a topic without a group.
#[async_trait]
pub trait Reader: Debug + Send + 'static {
    /// Reads on from an offset: at most `bytes_max` of records, but at least one if there is any.
    /// At the end of the partition it waits up to `wait` for a record and then answers with an
    /// empty batch. An offset before the start of the log reads from the start; the batch's `from`
    /// says so.
    async fn read(
        &mut self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Batch, LogError>;
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Where the read began: the offset asked for, or the start of the log if that is later.
    pub from: Offset,
    /// Records in order.
    pub records: Vec<Record>,
    /// Where the next read goes on; past gaps.
    pub next: Offset,
    /// The end of the partition as known at the time of the read: `next >= end` means caught up.
    pub end: Offset,
}

/// How to join a group.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// Name without prefix.
    pub group: String,
    /// The topic whose partitions are shared.
    pub topic: String,
    /// How long a revoked partition may take to drain before it is lost.
    pub revoke_deadline: Duration,
    /// Bytes read ahead of [`Group::next`], at most (one fetch may overshoot).
    pub prefetch_bytes_max: usize,
}

/// A member of a group.
#[async_trait]
pub trait Group: Debug + Send + 'static {
    /// What happens next. Cancel-safe.
    async fn next(&mut self) -> Result<GroupEvent, LogError>;
    /// What happens next to the member's partitions: the next `Assigned`, `Revoke` or `Lost`, ahead
    /// of everything else that waits to be taken, which stays. For a user who has no room for
    /// records but must hear of these. Cancel-safe.
    async fn next_rebalance(&mut self) -> Result<GroupEvent, LogError>;
    /// Begins reading an assigned partition. Before it no record of the partition comes.
    fn start(&mut self, partition: Partition, from: Offset);
    /// Stops reading a partition for a while; what was read ahead may still come. Harmless when
    /// repeated.
    fn pause(&mut self, partition: Partition);
    /// Goes on reading after [`Group::pause`]. Harmless when not paused.
    fn resume(&mut self, partition: Partition);
    /// Commits. Also allowed between `Revoke` and [`Group::release`].
    fn commit(&mut self, commits: Vec<Commit>) -> CommitAck;
    /// Ends a `Revoke`: everything is drained and committed. Waits for the commits under way.
    fn release(&mut self);
    /// Leaves the group at once, without a further event. Commit before it.
    async fn close(&mut self);
}

/// What happens to a member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEvent {
    /// Partitions this member owns from now on; each waits for [`Group::start`].
    Assigned(Vec<Assignment>),
    /// Records, in order within each partition.
    Records(Vec<Record>),
    /// Records before `to` are gone by retention; reading went on at `to`.
    Truncated {
        /// Partition.
        partition: Partition,
        /// First offset missed.
        from: Offset,
        /// First offset there is.
        to: Offset,
    },
    /// The log ends before where the member is: its topic was made again, or it lost records. The
    /// partition is read no more under this assignment.
    BeyondEnd {
        /// Partition.
        partition: Partition,
        /// Where the member is.
        position: Offset,
        /// Where the log ends.
        end: Offset,
    },
    /// Another member wants these: drain, commit, then [`Group::release`], all before the deadline.
    Revoke {
        /// The partitions.
        partitions: Vec<Partition>,
        /// How long there is.
        deadline: Duration,
    },
    /// These are gone, perhaps owned by another already: commit nothing for them.
    Lost(Vec<Partition>),
}

/// A partition that was assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Partition.
    pub partition: Partition,
    /// Names this assignment in commits.
    pub generation: Generation,
    /// What the group committed last, if anything.
    pub committed: Option<Committed>,
    /// The partition's bounds.
    pub bounds: Bounds,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read.
    pub offset: Offset,
    /// What the member wrote beside it, at most 4 KiB.
    pub metadata: String,
}

/// A commit to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Partition.
    pub partition: Partition,
    /// The assignment it is made under.
    pub generation: Generation,
    /// The next offset to read, and what to remember beside it.
    pub committed: Committed,
}

/// Whether a commit became durable, to be awaited.
#[derive(Debug)]
pub struct CommitAck(oneshot::Receiver<Result<(), CommitError>>);

impl CommitAck {
    /// An answer that is told later. Dropping the sender tells [`CommitError::Unknown`].
    pub fn pending() -> (oneshot::Sender<Result<(), CommitError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }
}

impl Future for CommitAck {
    type Output = Result<(), CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|told| {
            told.unwrap_or_else(|_| Err(CommitError::Unknown("the member was closed".into())))
        })
    }
}

/// Why a commit was not acknowledged. None of its partitions can be taken as committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Its generation is over for at least one partition.
    #[error("the partition is no longer owned under that generation")]
    Fenced,
    /// It may or may not be there.
    #[error("the fate of the commit is unknown: {0}")]
    Unknown(String),
}

/// Why the log could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The topic does not exist.
    #[error("topic {0} does not exist; `postrider topic create` creates it")]
    NoSuchTopic(String),
    /// The log cannot be reached at present; asking again may help.
    #[error("the log is not available: {0}")]
    Unavailable(String),
    /// The group has members, and they alone commit for it.
    #[error("group {0} has members, and only they commit for it")]
    GroupHasMembers(String),
    /// Asking again will not help.
    #[error("{0}")]
    Permanent(String),
}
