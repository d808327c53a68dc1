//! The one writer: group commit.
//!
//! While one transaction is being synced, the next one gathers in the queue; and where nobody waits
//! for anything, so does what may linger. A fate is told only
//! after [`Store::commit`] returned: acknowledged if it succeeded, unknown if it failed. If
//! something before the commit failed and was rolled back, nothing is in the log, and that is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::database::{offset_of, slot, slot_of};
use super::standing::Standing;
use super::tail::Tail;
use crate::clock::Clock;
use crate::local::storage::{Appending, CommitDone, CommitFate};
use crate::local::topic::Topic;
use crate::port::{
    AppendError, Commit, CommitError, LogError, NewRecord, Offset, Partition, Position, Record,
    TopicSpec,
};

/// What waits to be written, at most: some seconds of what a disk takes.
const QUEUE_BYTES_MAX: usize = 128 << 20;
const QUEUE_JOBS_MAX: usize = 1 << 17;
/// What lingers waits no longer once so much waits: those who append it have bounds too.
const GATHERED_BYTES_MAX: usize = 64 << 10;
/// What would linger shorter does not: it gathers while the transaction before it is synced.
const LINGER_MIN: Duration = Duration::from_millis(10);
/// What one transaction takes, at most, so that nobody waits long for it.
const TRANSACTION_BYTES_MAX: usize = 8 << 20;
const TRANSACTION_JOBS_MAX: usize = 1 << 14;

pub(super) type StoreError = rusqlite::Error;

/// First offset kept, next offset, and last time of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub(super) first: Offset,
    pub(super) next: Offset,
    pub(super) last_timestamp_ms: i64,
}

/// Heads by slot; a partition that was never written to has none.
pub(super) type Heads = BTreeMap<i64, Head>;

/// Where the writer writes.
pub(super) trait Store: Send + 'static {
    fn heads(&mut self) -> Result<Heads, StoreError>;
    fn begin(&mut self) -> Result<(), StoreError>;
    fn append(
        &mut self,
        slot: i64,
        offset: Offset,
        timestamp_ms: i64,
        record: &NewRecord,
    ) -> Result<(), StoreError>;
    fn save_head(&mut self, slot: i64, head: Head) -> Result<(), StoreError>;
    fn save_commits(
        &mut self,
        group: &str,
        topic_id: i64,
        commits: &[Commit],
    ) -> Result<(), StoreError>;
    /// Answers with the topic's id, whether it is new or not.
    fn create_topic(&mut self, spec: &TopicSpec) -> Result<i64, StoreError>;
    fn delete_before(
        &mut self,
        slot: i64,
        before: Offset,
        records_max: u32,
    ) -> Result<usize, StoreError>;
    fn delete(&mut self, row_ids: &[i64]) -> Result<usize, StoreError>;
    /// Writes something that nobody reads.
    fn write_probe(&mut self) -> Result<(), StoreError>;
    /// Removes it, if it is there.
    fn remove_probe(&mut self) -> Result<(), StoreError>;
    /// Returns when everything since [`Store::begin`] is durable.
    fn commit(&mut self) -> Result<(), StoreError>;
    /// Undoes what was done since [`Store::begin`]; harmless if there is nothing.
    fn rollback(&mut self) -> Result<(), StoreError>;
}

/// What the writer is asked for.
pub(super) enum Job {
    Append(Appending),
    Commit {
        group: String,
        topic: Arc<Topic>,
        commits: Vec<Commit>,
        done: CommitDone,
    },
    CreateTopic {
        spec: TopicSpec,
        reply: Reply<i64>,
    },
    /// Moves the start of a partition and deletes some of what is before it; answers with how many.
    DeleteBefore {
        topic: Arc<Topic>,
        partition: Partition,
        before: Offset,
        records_max: u32,
        reply: Reply<usize>,
    },
    Delete {
        row_ids: Vec<i64>,
        reply: Reply<usize>,
    },
    /// Shows, by an answer, that the log can be written.
    Probe {
        reply: Reply<usize>,
    },
    /// Removes what a probe left.
    ProbeEnd {
        reply: Reply<usize>,
    },
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, LogError>>;

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Append(appending) => appending.fate.bytes(),
            Self::Commit { .. }
            | Self::CreateTopic { .. }
            | Self::DeleteBefore { .. }
            | Self::Delete { .. }
            | Self::Probe { .. }
            | Self::ProbeEnd { .. } => 0,
        }
    }

    /// How long it may wait for others that are written with it.
    fn linger(&self) -> Duration {
        match self {
            Self::Append(appending) if appending.linger >= LINGER_MIN => appending.linger,
            _ => Duration::ZERO,
        }
    }

    /// Whether it deletes what the tail has.
    fn cuts(&self, tail: &Tail) -> bool {
        match self {
            Self::DeleteBefore {
                topic,
                partition,
                before,
                ..
            } => tail.reaches(slot(topic.id, *partition), before - 1),
            Self::Delete { row_ids, .. } => {
                let mut deleted = row_ids.iter();
                deleted.any(|id| tail.reaches(slot_of(*id), offset_of(*id)))
            }
            _ => false,
        }
    }

    /// Tells that it was not done. A caller that is not interested has dropped its end.
    fn refuse(self, error: Refusal) {
        let unavailable = || LogError::Unavailable(error.to_string());
        match self {
            Self::Append(appending) => appending.fate.tell(Err(match error {
                Refusal::Full => AppendError::QueueFull,
                Refusal::Failed(reason) => AppendError::Failed(reason),
                Refusal::Unknown(reason) => AppendError::Unknown(reason),
            })),
            Self::Commit { done, .. } => {
                done(CommitFate {
                    landed: false,
                    told: Err(CommitError::Unknown(error.to_string())),
                });
            }
            Self::CreateTopic { reply, .. } => drop(reply.send(Err(unavailable()))),
            Self::DeleteBefore { reply, .. }
            | Self::Delete { reply, .. }
            | Self::Probe { reply }
            | Self::ProbeEnd { reply } => {
                drop(reply.send(Err(unavailable())));
            }
        }
    }
}

/// Why a job was not done.
#[derive(Debug, Clone, thiserror::Error)]
enum Refusal {
    #[error("the writer's queue is full")]
    Full,
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Unknown(String),
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
    pub(super) standing: Standing,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Queue").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    bytes: usize,
    /// When the first of them that is due, wherever it stands, waits no longer. What a transaction
    /// had no room for is due.
    due: Option<Instant>,
    closed: bool,
}

impl Queue {
    /// Hands a job to the writer, or refuses it at once.
    pub(super) fn push(&self, job: Job) {
        let mut waiting = self.waiting.lock();
        let refusal = if waiting.closed {
            Some(Refusal::Failed("the log is closed".into()))
        } else {
            let full = waiting.bytes + job.bytes() > QUEUE_BYTES_MAX
                || waiting.jobs.len() >= QUEUE_JOBS_MAX;
            full.then_some(Refusal::Full)
        };
        if let Some(refusal) = refusal {
            drop(waiting);
            job.refuse(refusal);
            return;
        }
        waiting.bytes += job.bytes();
        let enough = waiting.bytes >= GATHERED_BYTES_MAX;
        let linger = if enough { Duration::ZERO } else { job.linger() };
        let due = Instant::now() + linger;
        waiting.jobs.push_back(job);
        let sooner = waiting.due.is_none_or(|before| due < before);
        if sooner {
            waiting.due = Some(due);
        }
        drop(waiting);
        if sooner {
            self.more.notify_one();
        }
    }

    /// The writer finishes what waits and ends.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.more.notify_all();
    }

    /// Waits for the next transaction's jobs: all that wait, once one of them is due. None when the
    /// queue is closed and empty.
    fn take(&self) -> Vec<Job> {
        let mut waiting = self.waiting.lock();
        while !waiting.closed {
            match waiting.due {
                None => self.more.wait(&mut waiting),
                Some(due) if due > Instant::now() => {
                    self.more.wait_until(&mut waiting, due);
                }
                Some(_) => break,
            }
        }
        let mut bytes = 0;
        let mut jobs = Vec::new();
        while jobs.len() < TRANSACTION_JOBS_MAX
            && bytes < TRANSACTION_BYTES_MAX
            && let Some(job) = waiting.jobs.pop_front()
        {
            bytes += job.bytes();
            jobs.push(job);
        }
        waiting.bytes -= bytes;
        if waiting.jobs.is_empty() {
            waiting.due = None;
        }
        jobs
    }

    /// Tells everybody who still waits that the writer is gone.
    fn abandon(&self) {
        self.close();
        let jobs = std::mem::take(&mut self.waiting.lock().jobs);
        for job in jobs {
            job.refuse(Refusal::Failed("the log is closed".into()));
        }
    }
}

/// Writes what the queue gives until it is closed.
pub(super) fn run(store: impl Store, clock: &dyn Clock, queue: &Queue, tail: &Tail) {
    /// Nobody must wait for a writer that panicked.
    struct Abandon<'a>(&'a Queue);
    impl Drop for Abandon<'_> {
        fn drop(&mut self) {
            self.0.abandon();
        }
    }
    let _abandon = Abandon(queue);
    let mut writer = Writer {
        store,
        tail,
        heads: None,
        stale: BTreeMap::new(),
    };
    loop {
        let jobs = queue.take();
        if jobs.is_empty() {
            return;
        }
        let was_probe = jobs.iter().any(|job| matches!(job, Job::Probe { .. }));
        queue.standing.begins();
        let fate = writer.write(&jobs, clock.now_ms());
        // Whoever hears of the fate finds it told.
        let result = fate.as_ref().map(drop).map_err(Refusal::to_string);
        queue.standing.ended(result, was_probe);
        match fate {
            Ok(transaction) => writer.tell(transaction, jobs),
            Err(refusal) => refuse_all(jobs, &refusal),
        }
    }
}

struct Writer<'a, S> {
    store: S,
    tail: &'a Tail,
    /// As the store has them; none when that must be read again.
    heads: Option<Heads>,
    /// Partitions whose end consumers were not told, because the fate of a transaction was unknown.
    stale: BTreeMap<i64, (Arc<Topic>, Partition)>,
}

/// What a transaction did, to be told when it is durable.
#[derive(Default)]
struct Transaction {
    heads: Heads,
    touched: BTreeMap<i64, (Arc<Topic>, Partition)>,
    answers: Vec<Answer>,
}

/// What to tell about a job.
enum Answer {
    Position(Position),
    Committed,
    Number(i64),
    Count(usize),
}

impl<S: Store> Writer<'_, S> {
    /// Writes the jobs as one transaction; when it returns one, that is durable.
    fn write(&mut self, jobs: &[Job], now_ms: i64) -> Result<Transaction, Refusal> {
        self.know_heads()
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        let mut transaction = Transaction::default();
        if let Err(error) = self.fill(&mut transaction, jobs, now_ms) {
            return Err(match self.store.rollback() {
                Ok(()) => Refusal::Failed(error.to_string()),
                Err(_) => self.doubt(transaction, &error),
            });
        }
        self.store.commit().map_err(|error| {
            // Whether that works does not matter: the heads are read again from what there is.
            self.store.rollback().ok();
            self.doubt(std::mem::take(&mut transaction), &error)
        })?;
        Ok(transaction)
    }

    /// The store may or may not have the transaction.
    fn doubt(&mut self, transaction: Transaction, error: &StoreError) -> Refusal {
        self.heads = None;
        self.tail.clear();
        self.stale.extend(transaction.touched);
        Refusal::Unknown(error.to_string())
    }

    fn know_heads(&mut self) -> Result<(), StoreError> {
        if self.heads.is_some() {
            return Ok(());
        }
        self.store.rollback()?;
        let heads = self.store.heads()?;
        for (slot, (topic, partition)) in std::mem::take(&mut self.stale) {
            let head = heads.get(&slot).copied().unwrap_or_default();
            show(&topic, partition, head);
        }
        self.heads = Some(heads);
        Ok(())
    }

    fn fill(
        &mut self,
        transaction: &mut Transaction,
        jobs: &[Job],
        now_ms: i64,
    ) -> Result<(), StoreError> {
        self.store.begin()?;
        for job in jobs {
            let answer = match job {
                Job::Append(Appending {
                    topic,
                    partition,
                    record,
                    ..
                }) => {
                    let slot = slot(topic.id, *partition);
                    let head = self.touch(transaction, topic, *partition);
                    let offset = head.next;
                    head.next += 1;
                    head.last_timestamp_ms = head.last_timestamp_ms.max(now_ms);
                    let timestamp_ms = head.last_timestamp_ms;
                    self.store.append(slot, offset, timestamp_ms, record)?;
                    Answer::Position(Position {
                        partition: *partition,
                        offset,
                        timestamp_ms: Some(timestamp_ms),
                    })
                }
                Job::Commit {
                    group,
                    topic,
                    commits,
                    ..
                } => {
                    self.store.save_commits(group, topic.id, commits)?;
                    Answer::Committed
                }
                Job::CreateTopic { spec, .. } => Answer::Number(self.store.create_topic(spec)?),
                Job::DeleteBefore {
                    topic,
                    partition,
                    before,
                    records_max,
                    ..
                } => {
                    let head = self.touch(transaction, topic, *partition);
                    head.first = head.first.max(*before);
                    let slot = slot(topic.id, *partition);
                    Answer::Count(self.store.delete_before(slot, *before, *records_max)?)
                }
                Job::Delete { row_ids, .. } => Answer::Count(self.store.delete(row_ids)?),
                Job::Probe { .. } => self.store.write_probe().map(|()| Answer::Count(0))?,
                Job::ProbeEnd { .. } => self.store.remove_probe().map(|()| Answer::Count(0))?,
            };
            transaction.answers.push(answer);
        }
        for (slot, head) in &transaction.heads {
            self.store.save_head(*slot, *head)?;
        }
        Ok(())
    }

    /// The head of a partition as this transaction leaves it.
    fn touch<'a>(
        &self,
        transaction: &'a mut Transaction,
        topic: &Arc<Topic>,
        partition: Partition,
    ) -> &'a mut Head {
        let slot = slot(topic.id, partition);
        let before = || {
            self.heads
                .as_ref()
                .and_then(|heads| heads.get(&slot))
                .copied()
                .unwrap_or_default()
        };
        transaction
            .touched
            .entry(slot)
            .or_insert_with(|| (Arc::clone(topic), partition));
        transaction.heads.entry(slot).or_insert_with(before)
    }

    /// The transaction is durable: consumers may see it, and everybody hears.
    fn tell(&mut self, transaction: Transaction, mut jobs: Vec<Job>) {
        if jobs.iter().any(|job| job.cuts(self.tail)) {
            self.tail.clear();
        }
        self.tail.extend(appended(&mut jobs, &transaction.answers));
        for (slot, (topic, partition)) in &transaction.touched {
            show(topic, *partition, transaction.heads[slot]);
        }
        self.heads.get_or_insert_default().extend(transaction.heads);
        for (job, answer) in jobs.into_iter().zip(transaction.answers) {
            match (job, answer) {
                (Job::Append(appending), Answer::Position(position)) => {
                    appending.fate.tell(Ok(position));
                }
                (Job::Commit { done, .. }, Answer::Committed) => {
                    done(CommitFate {
                        landed: true,
                        told: Ok(()),
                    });
                }
                (Job::CreateTopic { reply, .. }, Answer::Number(id)) => drop(reply.send(Ok(id))),
                (
                    Job::DeleteBefore { reply, .. }
                    | Job::Delete { reply, .. }
                    | Job::Probe { reply }
                    | Job::ProbeEnd { reply },
                    Answer::Count(count),
                ) => {
                    drop(reply.send(Ok(count)));
                }
                _ => unreachable!("each job was answered in its kind"),
            }
        }
        let mut topics: BTreeMap<i64, Arc<Topic>> = BTreeMap::new();
        topics.extend(
            transaction
                .touched
                .into_values()
                .map(|(topic, _)| (topic.id, topic)),
        );
        for topic in topics.values() {
            topic.changed.notify_waiters();
        }
    }
}

/// The records that were appended, by their slots.
fn appended<'a>(
    jobs: &'a mut [Job],
    answers: &'a [Answer],
) -> impl Iterator<Item = (i64, Record)> + 'a {
    let appended = |(job, answer): (&'a mut Job, &Answer)| match (job, answer) {
        (Job::Append(appending), Answer::Position(position)) => {
            let NewRecord {
                key,
                value,
                headers,
            } = std::mem::take(&mut appending.record);
            let record = Record {
                partition: position.partition,
                offset: position.offset,
                timestamp_ms: position.timestamp_ms.expect("each has a time"),
                key,
                value,
                headers,
            };
            Some((slot(appending.topic.id, position.partition), record))
        }
        _ => None,
    };
    jobs.iter_mut().zip(answers).filter_map(appended)
}

fn show(topic: &Topic, partition: Partition, head: Head) {
    topic.set_end(partition, head.next);
    topic.set_start(partition, head.first);
}

fn refuse_all(jobs: Vec<Job>, refusal: &Refusal) {
    for job in jobs {
        job.refuse(refusal.clone());
    }
}

#[cfg(test)]
mod tests;
