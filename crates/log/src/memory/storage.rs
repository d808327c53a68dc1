//! Records in maps, and the adversary's decisions on their way there.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::faults::{AppendPlan, AppendSite, CommitFault, CommitSite, DecideAppend, DecideCommit};
use super::random::SplitMix64;
use super::state::{Late, State, Tell, UnderWay};
use crate::clock::Clock;
use crate::local::storage::{Appending, Chunk, CommitDone, CommitFate, Origin, Storage};
use crate::local::topic::Topic;
use crate::port::{Commit, CommitError, LogError, Offset, Partition, Record, TopicSpec};

/// Records in maps.
#[derive(Debug)]
pub(super) struct MemoryStorage {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    under_way: Arc<Notify>,
    this: Weak<Self>,
}

impl MemoryStorage {
    pub(super) fn new(clock: Arc<dyn Clock>, random: SplitMix64) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            clock,
            state: Mutex::new(State::new(random)),
            under_way: Arc::new(Notify::new()),
            this: this.clone(),
        })
    }

    /// Changes the state, then tells.
    fn change(&self, change: impl FnOnce(&mut State, &mut Tell, i64)) {
        let mut tell = Tell::default();
        let now_ms = self.clock.now_ms();
        change(&mut self.state.lock(), &mut tell, now_ms);
        tell.all();
    }

    /// Lets happen what is due, and says when to come again.
    fn progress(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut next = None;
        self.change(|state, tell, now_ms| {
            while let Some(entry) = state.under_way.first_entry() {
                if entry.key().0 > now {
                    next = Some(entry.key().0);
                    break;
                }
                entry.remove().happen(state, tell, now_ms);
            }
        });
        next
    }

    /// Gives up what matches. Of each producer and partition the first so many land, as the seed
    /// decides; nobody is told.
    fn abandon(&self, matches: impl Fn(&Origin) -> bool) {
        self.change(|state, tell, now_ms| {
            let under_way = std::mem::take(&mut state.under_way);
            let (given_up, kept): (BTreeMap<_, _>, _) = under_way
                .into_iter()
                .partition(|(_, step)| matches(step.origin()));
            state.under_way = kept;
            let mut cut: BTreeMap<(u64, i64, Partition), bool> = BTreeMap::new();
            for step in given_up.into_values() {
                let UnderWay::Land { append, plan, .. } = step else {
                    continue;
                };
                let stream = (append.origin.producer, append.topic.id, append.partition);
                let cut = cut.entry(stream).or_default();
                *cut = *cut || state.random.once_in(2);
                if !*cut {
                    UnderWay::Land {
                        append,
                        plan,
                        fate: None,
                    }
                    .happen(state, tell, now_ms);
                }
            }
        });
    }

    pub(super) fn set_decide_append(&self, decide: Option<DecideAppend>) {
        self.state.lock().decide_append = decide;
    }

    pub(super) fn set_decide_commit(&self, decide: Option<DecideCommit>) {
        self.state.lock().decide_commit = decide;
    }

    pub(super) fn queue_append_plan(&self, topic: &str, plan: AppendPlan) {
        self.state
            .lock()
            .append_plans
            .entry(topic.to_owned())
            .or_default()
            .push_back(plan);
    }

    pub(super) fn queue_commit_fault(&self, group: &str, fault: CommitFault) {
        self.state
            .lock()
            .commit_faults
            .entry(group.to_owned())
            .or_default()
            .push_back(fault);
    }

    pub(super) fn calm(&self) {
        let mut state = self.state.lock();
        state.decide_append = None;
        state.decide_commit = None;
        state.append_plans.clear();
        state.commit_faults.clear();
    }

    pub(super) fn late(&self) -> usize {
        self.state.lock().late.len()
    }

    pub(super) fn release_late(&self) -> bool {
        let mut released = false;
        self.change(|state, tell, now_ms| {
            if let Some(late) = state.late.pop_front() {
                state.land(late, tell, now_ms);
                released = true;
            }
        });
        released
    }

    pub(super) fn forget_late(&self) {
        self.state.lock().late.clear();
    }

    pub(super) fn set_session_timeout(&self, timeout: Duration) {
        self.state.lock().session_timeout = timeout;
    }

    pub(super) fn session_timeout(&self) -> Duration {
        self.state.lock().session_timeout
    }

    /// Removes the records before `to`.
    pub(super) fn truncate(&self, topic: &Topic, partition: Partition, to: Offset) {
        let mut state = self.state.lock();
        let to = to.min(topic.bounds(partition).end);
        topic.set_start(partition, to);
        let log = state.partitions.entry((topic.id, partition)).or_default();
        log.records = log.records.split_off(&to);
    }

    /// Removes the records from `end` on, and lets the log end there.
    pub(super) fn cut(&self, topic: &Topic, partition: Partition, end: Offset) {
        let mut state = self.state.lock();
        let end = end.min(topic.bounds(partition).end);
        let log = state.partitions.entry((topic.id, partition)).or_default();
        log.records.split_off(&end);
        topic.end_at(partition, end);
    }

    /// Leaves out offsets at the end.
    pub(super) fn gap(&self, topic: &Topic, partition: Partition, offsets: i64) {
        let _state = self.state.lock();
        topic.set_end(partition, topic.bounds(partition).end + offsets);
    }

    pub(super) fn snapshot(&self, topic: &Topic) -> Vec<Record> {
        let state = self.state.lock();
        let partitions = state.partitions.range((topic.id, 0)..(topic.id + 1, 0));
        partitions
            .flat_map(|(_, log)| log.records.values().cloned())
            .collect()
    }

    /// Keeps the latest record of each key.
    pub(super) fn compact(&self, topic: &Topic) {
        let mut state = self.state.lock();
        for (_, log) in state.partitions.range_mut((topic.id, 0)..(topic.id + 1, 0)) {
            let latest: BTreeMap<Bytes, Offset> = log
                .records
                .values()
                .map(|record| (record.key.clone(), record.offset))
                .collect();
            log.records
                .retain(|offset, record| latest.get(&record.key) == Some(offset));
        }
    }
}

impl Storage for MemoryStorage {
    fn create_topic(&self, spec: TopicSpec) -> BoxFuture<'static, Result<Arc<Topic>, LogError>> {
        let mut state = self.state.lock();
        let existing = state
            .topics
            .iter()
            .find(|topic| topic.spec.name == spec.name)
            .cloned();
        let topic = existing.unwrap_or_else(|| {
            let topic = Arc::new(Topic::new(state.topics.len() as i64, spec));
            state.topics.push(Arc::clone(&topic));
            topic
        });
        ready(Ok(topic)).boxed()
    }

    fn append(&self, appending: Appending) {
        let Appending {
            origin,
            topic,
            partition,
            record,
            timeout,
            linger: _,
            fate,
        } = appending;
        let append = Late {
            origin,
            topic,
            partition,
            record,
        };
        self.change(|state, tell, now_ms| {
            let site = AppendSite {
                process: &append.origin.client.name,
                producer: (append.origin.producer, append.origin.name),
                topic: &append.topic.spec.name,
                partition,
                key: &append.record.key,
            };
            let AppendPlan { delay, fate: plan } = state.plan(&site);
            let now = Instant::now();
            // Behind an earlier append of the stream even if that is due already: order is part of
            // the port.
            let behind = state.last_under_way(&append);
            if delay.is_zero() && behind.is_none() {
                UnderWay::Land {
                    append,
                    plan,
                    fate: Some(fate),
                }
                .happen(state, tell, now_ms);
                return;
            }
            let due = behind.map_or(now + delay, |last| last.max(now + delay));
            let gives_up = timeout
                .map(|timeout| now + timeout)
                .filter(|gives_up| *gives_up < due);
            let fate = match gives_up {
                Some(at) => {
                    let origin = append.origin.clone();
                    state.put_under_way(at, UnderWay::GiveUp { origin, fate });
                    None
                }
                None => Some(fate),
            };
            state.put_under_way(due, UnderWay::Land { append, plan, fate });
        });
        self.under_way.notify_waiters();
    }

    fn read(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Chunk, LogError>> {
        let state = self.state.lock();
        let mut chunk = Chunk {
            records: Vec::new(),
            next: from,
        };
        let mut bytes = 0;
        let log = state.partitions.get(&(topic.id, partition));
        for record in log.iter().flat_map(|log| log.records.range(from..)) {
            bytes += record.1.size_bytes();
            if bytes > bytes_max && !chunk.records.is_empty() {
                return ready(Ok(chunk)).boxed();
            }
            chunk.next = record.0 + 1;
            chunk.records.push(record.1.clone());
        }
        chunk.next = topic.bounds(partition).end;
        ready(Ok(chunk)).boxed()
    }

    fn offset_for_time(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        timestamp_ms: i64,
    ) -> BoxFuture<'static, Result<Offset, LogError>> {
        let state = self.state.lock();
        let log = state.partitions.get(&(topic.id, partition));
        let found = log
            .iter()
            .flat_map(|log| log.records.values())
            .find(|record| record.timestamp_ms >= timestamp_ms)
            .map(|record| record.offset);
        ready(Ok(found.unwrap_or_else(|| topic.bounds(partition).end))).boxed()
    }

    fn commit(&self, group: &str, topic: &Arc<Topic>, _commits: Vec<Commit>, done: CommitDone) {
        let site = CommitSite {
            group,
            topic: &topic.spec.name,
        };
        let fault = self.state.lock().commit_fault(&site);
        let unknown = Err(CommitError::Unknown("the adversary does not tell".into()));
        done(match fault {
            CommitFault::Acked => CommitFate {
                landed: true,
                told: Ok(()),
            },
            CommitFault::UnknownLanded => CommitFate {
                landed: true,
                told: unknown,
            },
            CommitFault::UnknownAbsent => CommitFate {
                landed: false,
                told: unknown,
            },
        });
    }

    fn abandon_producer(&self, producer: u64) {
        self.abandon(|origin| origin.producer == producer);
    }

    fn abandon_client(&self, client: u64) {
        self.abandon(|origin| origin.client.id == client);
    }

    fn background(&self) -> Option<BoxFuture<'static, ()>> {
        let (this, under_way) = (self.this.clone(), Arc::clone(&self.under_way));
        let work = async move {
            loop {
                let more = under_way.notified();
                // The log is gone with everybody who could wait for it.
                let Some(due) = this.upgrade().map(|storage| storage.progress()) else {
                    return;
                };
                match due {
                    Some(due) => {
                        tokio::time::timeout_at(due, more).await.unwrap_or_default();
                    }
                    None => more.await,
                }
            }
        };
        Some(work.boxed())
    }
}
