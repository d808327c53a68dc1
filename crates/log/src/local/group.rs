//! A member of a group of the in-process broker.
//!
//! It reads on demand, one fetch at a time, so what is read ahead is at most that fetch. The fetch
//! lives in the member, not in the call of `next`: a caller that cancels `next` again and again
//! loses neither records nor progress.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::share::{Held, MemberId, Notice};
use super::storage::{Chunk, CommitFate};
use super::topic::Topic;
use super::{GroupKey, LocalLog};
use crate::port::{
    Assignment, Bounds, Commit, CommitAck, CommitError, Committed, Generation, Group, GroupEvent,
    GroupOptions, LogError, Offset, Partition,
};

/// A fetch larger than this gains nothing, and delays what else is to be told.
const FETCH_BYTES_MAX: usize = 1 << 20;
/// What a group remembers beside an offset, as Kafka's default.
const METADATA_BYTES_MAX: usize = 4096;

/// A member of a group.
pub(crate) struct LocalGroup {
    log: LocalLog,
    topic: Arc<Topic>,
    key: GroupKey,
    member: MemberId,
    fetch_bytes_max: usize,
    /// The partitions this member was told of.
    assigned: BTreeMap<Partition, Reading>,
    /// What the last `Revoke` named.
    revoked: Vec<Held>,
    fetching: Option<Fetching>,
    /// The partition served last, so that all get their turn.
    served: Partition,
    closed: bool,
}

#[derive(Debug)]
struct Reading {
    generation: Generation,
    position: Option<Offset>,
    paused: bool,
    /// Between `Revoke` and release: nothing more is read.
    revoked: bool,
}

struct Fetching {
    held: Held,
    from: Offset,
    chunk: BoxFuture<'static, Result<Chunk, LogError>>,
}

impl fmt::Debug for LocalGroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LocalGroup")
            .field("key", &self.key)
            .field("member", &self.member)
            .field("assigned", &self.assigned)
            .finish_non_exhaustive()
    }
}

impl LocalGroup {
    pub(super) fn join(
        log: &LocalLog,
        topic: Arc<Topic>,
        member: MemberId,
        options: GroupOptions,
    ) -> Self {
        let key = (options.group, options.topic);
        log.broker.change_group(&key, &topic, |group| {
            group.join(member, log.client.id, options.revoke_deadline);
        });
        Self {
            log: log.clone(),
            topic,
            key,
            member,
            fetch_bytes_max: options.prefetch_bytes_max.min(FETCH_BYTES_MAX),
            assigned: BTreeMap::new(),
            revoked: Vec::new(),
            fetching: None,
            served: -1,
            closed: false,
        }
    }

    /// The next thing to tell that still holds, and when something is due if there is none.
    fn next_notice(&mut self) -> (Option<GroupEvent>, Option<Instant>) {
        let Self {
            log,
            topic,
            key,
            member,
            assigned,
            revoked,
            ..
        } = self;
        log.broker.change_group(key, topic, |group| {
            while let Some(notice) = group.next_notice(*member) {
                let event = match notice {
                    Notice::Assigned(mut held) => {
                        held.retain(|held| group.holds(*member, *held));
                        let assign = |held: &Held| Assignment {
                            partition: held.partition,
                            generation: held.generation,
                            committed: group.committed_of(held.partition),
                            bounds: topic.bounds(held.partition),
                        };
                        let assignments: Vec<Assignment> = held.iter().map(assign).collect();
                        assigned
                            .extend(held.iter().map(|held| (held.partition, Reading::of(*held))));
                        (!held.is_empty()).then_some(GroupEvent::Assigned(assignments))
                    }
                    Notice::Revoke { mut held, until } => {
                        held.retain(|held| group.holds(*member, *held));
                        revoke(assigned, &held);
                        let partitions: Vec<Partition> =
                            held.iter().map(|held| held.partition).collect();
                        let deadline = until.saturating_duration_since(Instant::now());
                        let any = !held.is_empty();
                        *revoked = held;
                        any.then_some(GroupEvent::Revoke {
                            partitions,
                            deadline,
                        })
                    }
                    Notice::Lost(mut held) => {
                        held.retain(|held| forget(assigned, *held));
                        let partitions: Vec<Partition> =
                            held.iter().map(|held| held.partition).collect();
                        (!held.is_empty()).then_some(GroupEvent::Lost(partitions))
                    }
                };
                if event.is_some() {
                    return (event, None);
                }
            }
            (None, group.next_due())
        })
    }

    /// A partition whose next record is gone goes on at the start of the log, and says so; one that
    /// is beyond the end is read no more.
    fn next_truncation(&mut self) -> Option<GroupEvent> {
        let topic = &self.topic;
        let active = self
            .assigned
            .iter_mut()
            .filter(|(_, reading)| reading.wants_records());
        for (partition, reading) in active {
            let Bounds { start, end } = topic.bounds(*partition);
            if let Some(position) = reading.position.take_if(|position| *position > end) {
                return Some(GroupEvent::BeyondEnd {
                    partition: *partition,
                    position,
                    end,
                });
            }
            if let Some(from) = reading.position.filter(|from| *from < start) {
                reading.position = Some(start);
                return Some(GroupEvent::Truncated {
                    partition: *partition,
                    from,
                    to: start,
                });
            }
        }
        None
    }

    /// Begins to fetch from the next partition that has something, if no fetch is under way.
    fn begin_fetch(&mut self) {
        if self.fetching.is_some() {
            return;
        }
        let topic = &self.topic;
        let has_more = |(partition, reading): (&Partition, &Reading)| {
            let from = reading.position.filter(|_| reading.wants_records())?;
            let held = Held {
                partition: *partition,
                generation: reading.generation,
            };
            (from < topic.bounds(*partition).end).then_some((held, from))
        };
        let later = self.assigned.range(self.served + 1..);
        let earlier = self.assigned.range(..=self.served);
        let Some((held, from)) = later.chain(earlier).find_map(has_more) else {
            return;
        };
        self.served = held.partition;
        let storage = &self.log.broker.storage;
        let chunk = storage.read(topic, held.partition, from, self.fetch_bytes_max);
        self.fetching = Some(Fetching { held, from, chunk });
    }

    /// Takes a fetch in, unless the partition went or was started anew or truncated meanwhile.
    fn take_chunk(&mut self, held: Held, from: Offset, chunk: Chunk) -> Option<GroupEvent> {
        let reading = self.assigned.get_mut(&held.partition)?;
        let current = reading.generation == held.generation && reading.position == Some(from);
        let truncated = self.topic.bounds(held.partition).start > from;
        if !current || reading.revoked || truncated {
            return None;
        }
        reading.position = Some(chunk.next);
        (!chunk.records.is_empty()).then_some(GroupEvent::Records(chunk.records))
    }

    fn check(&self) -> Result<(), LogError> {
        if self.closed {
            return Err(LogError::Permanent("the member has left the group".into()));
        }
        self.log.client.check()
    }

    fn leave(&mut self) {
        // A dead client cannot say goodbye: its session runs out instead.
        if !self.closed && !self.log.client.killed() {
            let member = self.member;
            self.log
                .broker
                .change_group(&self.key, &self.topic, |group| group.leave(member));
        }
        self.closed = true;
        self.fetching = None;
    }
}

#[async_trait]
impl Group for LocalGroup {
    async fn next(&mut self) -> Result<GroupEvent, LogError> {
        // Records that are always there must not keep other tasks of the runtime from running.
        tokio::task::coop::consume_budget().await;
        loop {
            self.check()?;
            let topic = Arc::clone(&self.topic);
            let changed = topic.changed.notified();
            let (notice, due) = self.next_notice();
            if let Some(event) = notice.or_else(|| self.next_truncation()) {
                return Ok(event);
            }
            self.begin_fetch();
            tokio::select! {
                biased;
                (held, from, chunk) = fetched(&mut self.fetching) => {
                    self.fetching = None;
                    if let Some(event) = self.take_chunk(held, from, chunk?) {
                        return Ok(event);
                    }
                }
                () = changed => {}
                () = passed(due) => {}
            }
        }
    }

    async fn next_rebalance(&mut self) -> Result<GroupEvent, LogError> {
        loop {
            self.check()?;
            let topic = Arc::clone(&self.topic);
            let changed = topic.changed.notified();
            let (notice, due) = self.next_notice();
            if let Some(event) = notice {
                return Ok(event);
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = passed(due) => {}
            }
        }
    }

    fn start(&mut self, partition: Partition, from: Offset) {
        if let Some(reading) = self.assigned.get_mut(&partition) {
            reading.position = Some(from);
        }
    }

    fn pause(&mut self, partition: Partition) {
        if let Some(reading) = self.assigned.get_mut(&partition) {
            reading.paused = true;
        }
    }

    fn resume(&mut self, partition: Partition) {
        if let Some(reading) = self.assigned.get_mut(&partition) {
            reading.paused = false;
        }
    }

    fn commit(&mut self, commits: Vec<Commit>) -> CommitAck {
        let (sender, ack) = CommitAck::pending();
        let refusal = if self.check().is_err() {
            Some(CommitError::Unknown("the member is gone".into()))
        } else if commits
            .iter()
            .any(|commit| commit.committed.metadata.len() > METADATA_BYTES_MAX)
        {
            Some(CommitError::Unknown(
                "the metadata is longer than 4 KiB".into(),
            ))
        } else {
            let taken = self
                .log
                .broker
                .change_group(&self.key, &self.topic, |group| {
                    group.begin_commit(self.member, &commits)
                });
            (!taken).then_some(CommitError::Fenced)
        };
        if let Some(refusal) = refusal {
            // The caller may have dropped its end; then nobody wants to know.
            sender.send(Err(refusal)).ok();
            return ack;
        }
        let (broker, topic, key) = (
            Arc::clone(&self.log.broker),
            Arc::clone(&self.topic),
            self.key.clone(),
        );
        let kept = commits.clone();
        let done = move |fate: CommitFate| {
            broker.change_group(&key, &topic, |group| group.end_commit(kept, fate.landed));
            // Who hears of it may close the log, and then must hold the last reference to it.
            drop(broker);
            sender.send(fate.told).ok();
        };
        self.log
            .broker
            .storage
            .commit(&self.key.0, &self.topic, commits, Box::new(done));
        ack
    }

    fn release(&mut self) {
        let released = std::mem::take(&mut self.revoked);
        for held in &released {
            forget(&mut self.assigned, *held);
        }
        if !self.closed && !self.log.client.killed() {
            let member = self.member;
            self.log
                .broker
                .change_group(&self.key, &self.topic, |group| {
                    group.release(member, &released);
                });
        }
    }

    async fn close(&mut self) {
        self.leave();
    }
}

impl Drop for LocalGroup {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Reading {
    fn of(held: Held) -> Self {
        Self {
            generation: held.generation,
            position: None,
            paused: false,
            revoked: false,
        }
    }

    fn wants_records(&self) -> bool {
        !self.paused && !self.revoked
    }
}

/// Commits for a group that has no members.
pub(super) async fn commit_from_outside(
    log: &LocalLog,
    group: &str,
    topic: &Arc<Topic>,
    commits: &[(Partition, Committed)],
) -> Result<(), LogError> {
    let key = (group.to_owned(), topic.spec.name.clone());
    let commits: Vec<Commit> = commits
        .iter()
        .map(|(partition, committed)| Commit {
            partition: *partition,
            generation: 0,
            committed: committed.clone(),
        })
        .collect();
    let taken = log.broker.change_group(&key, topic, |group| {
        group.begin_commit_from_outside(&commits)
    });
    if !taken {
        return Err(LogError::GroupHasMembers(group.to_owned()));
    }
    let (sender, told) = oneshot::channel();
    let (broker, kept) = (Arc::clone(&log.broker), commits.clone());
    let of_topic = Arc::clone(topic);
    let done = move |fate: CommitFate| {
        broker.change_group(&key, &of_topic, |group| group.end_commit(kept, fate.landed));
        drop(broker);
        sender.send(fate.told).ok();
    };
    let storage = &log.broker.storage;
    storage.commit(group, topic, commits, Box::new(done));
    match told.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(LogError::Unavailable(error.to_string())),
        Err(_) => Err(LogError::Unavailable("the log was closed".into())),
    }
}

fn revoke(assigned: &mut BTreeMap<Partition, Reading>, held: &[Held]) {
    for held in held {
        if let Some(reading) = assigned.get_mut(&held.partition) {
            reading.revoked = true;
        }
    }
}

/// Removes an assignment; false if the member does not know it.
fn forget(assigned: &mut BTreeMap<Partition, Reading>, held: Held) -> bool {
    let known = assigned
        .get(&held.partition)
        .is_some_and(|reading| reading.generation == held.generation);
    if known {
        assigned.remove(&held.partition);
    }
    known
}

async fn fetched(fetching: &mut Option<Fetching>) -> (Held, Offset, Result<Chunk, LogError>) {
    match fetching {
        Some(Fetching { held, from, chunk }) => {
            let read = chunk.await;
            (*held, *from, read)
        }
        None => std::future::pending().await,
    }
}

async fn passed(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
