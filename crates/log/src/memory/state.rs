//! What the memory log holds, and how an append under way ends.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::faults::{
    AppendFate, AppendPlan, AppendSite, CommitFault, CommitSite, DecideAppend, DecideCommit,
};
use super::random::SplitMix64;
use crate::local::producer::Fate;
use crate::local::storage::Origin;
use crate::local::topic::Topic;
use crate::port::{AppendError, NewRecord, Offset, Partition, Position, Record};

pub(super) struct State {
    pub(super) random: SplitMix64,
    pub(super) topics: Vec<Arc<Topic>>,
    pub(super) partitions: BTreeMap<(i64, Partition), PartitionLog>,
    pub(super) decide_append: Option<DecideAppend>,
    pub(super) decide_commit: Option<DecideCommit>,
    pub(super) append_plans: BTreeMap<String, VecDeque<AppendPlan>>,
    pub(super) commit_faults: BTreeMap<String, VecDeque<CommitFault>>,
    /// Appends that have not landed yet, by when they will.
    pub(super) under_way: BTreeMap<(Instant, u64), UnderWay>,
    pub(super) sequence: u64,
    pub(super) late: VecDeque<Late>,
    pub(super) session_timeout: Duration,
}

impl fmt::Debug for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("State")
            .field("random", &self.random)
            .field("under_way", &self.under_way.len())
            .field("late", &self.late.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(super) struct PartitionLog {
    pub(super) records: BTreeMap<Offset, Record>,
    pub(super) last_timestamp_ms: i64,
}

/// A record, by whom, and whither.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) origin: Origin,
    pub(super) topic: Arc<Topic>,
    pub(super) partition: Partition,
    pub(super) record: NewRecord,
}

/// What happens at its time.
#[derive(Debug)]
pub(super) enum UnderWay {
    /// The record lands, or whatever its plan says; the fate is told unless that was done before.
    Land {
        append: Late,
        plan: AppendFate,
        fate: Option<Fate>,
    },
    /// The producer gives the fate up as unknown.
    GiveUp { origin: Origin, fate: Fate },
}

impl UnderWay {
    pub(super) fn origin(&self) -> &Origin {
        match self {
            Self::Land { append, .. } => &append.origin,
            Self::GiveUp { origin, .. } => origin,
        }
    }
}

/// What to do when the lock is released: a caller may be woken by it, and come back.
#[derive(Debug, Default)]
pub(super) struct Tell {
    pub(super) fates: Vec<(Fate, Result<Position, AppendError>)>,
    pub(super) changed: Vec<Arc<Topic>>,
}

impl Tell {
    pub(super) fn all(self) {
        for (fate, told) in self.fates {
            fate.tell(told);
        }
        for topic in self.changed {
            topic.changed.notify_waiters();
        }
    }
}

impl State {
    pub(super) fn new(random: SplitMix64) -> Self {
        Self {
            random,
            topics: Vec::new(),
            partitions: BTreeMap::new(),
            decide_append: None,
            decide_commit: None,
            append_plans: BTreeMap::new(),
            commit_faults: BTreeMap::new(),
            under_way: BTreeMap::new(),
            sequence: 0,
            late: VecDeque::new(),
            session_timeout: Duration::from_secs(10),
        }
    }

    pub(super) fn plan(&mut self, site: &AppendSite<'_>) -> AppendPlan {
        let queued = self
            .append_plans
            .get_mut(site.topic)
            .and_then(VecDeque::pop_front);
        let Self {
            decide_append,
            random,
            ..
        } = self;
        queued
            .or_else(|| decide_append.as_mut().map(|decide| decide(site, random)))
            .unwrap_or_default()
    }

    pub(super) fn commit_fault(&mut self, site: &CommitSite<'_>) -> CommitFault {
        let queued = self
            .commit_faults
            .get_mut(site.group)
            .and_then(VecDeque::pop_front);
        let Self {
            decide_commit,
            random,
            ..
        } = self;
        queued
            .or_else(|| decide_commit.as_mut().map(|decide| decide(site, random)))
            .unwrap_or_default()
    }

    /// When the last append of this producer to this partition lands that has not yet.
    pub(super) fn last_under_way(&self, append: &Late) -> Option<Instant> {
        let mut behind = self
            .under_way
            .iter()
            .rev()
            .filter_map(|((due, _), step)| match step {
                UnderWay::Land {
                    append: earlier, ..
                } => Some((due, earlier)),
                UnderWay::GiveUp { .. } => None,
            });
        behind
            .find(|(_, earlier)| earlier.same_stream(append))
            .map(|(due, _)| *due)
    }

    pub(super) fn put_under_way(&mut self, due: Instant, step: UnderWay) {
        self.sequence += 1;
        self.under_way.insert((due, self.sequence), step);
    }

    /// Before a producer lands a record, its late ones of the partition land now or never.
    pub(super) fn resolve_late(&mut self, append: &Late, tell: &mut Tell, now_ms: i64) {
        let (same, other): (VecDeque<_>, _) = std::mem::take(&mut self.late)
            .into_iter()
            .partition(|late| late.same_stream(append));
        self.late = other;
        for late in same {
            if self.random.once_in(2) {
                self.land(late, tell, now_ms);
            }
        }
    }

    pub(super) fn land(&mut self, append: Late, tell: &mut Tell, now_ms: i64) -> Position {
        let Late {
            topic,
            partition,
            record,
            ..
        } = append;
        let log = self.partitions.entry((topic.id, partition)).or_default();
        let offset = topic.bounds(partition).end;
        log.last_timestamp_ms = log.last_timestamp_ms.max(now_ms);
        let NewRecord {
            key,
            value,
            headers,
        } = record;
        let timestamp_ms = log.last_timestamp_ms;
        log.records.insert(
            offset,
            Record {
                partition,
                offset,
                timestamp_ms,
                key,
                value,
                headers,
            },
        );
        topic.set_end(partition, offset + 1);
        tell.changed.push(topic);
        Position {
            partition,
            offset,
            timestamp_ms: Some(timestamp_ms),
        }
    }
}

impl Late {
    pub(super) fn same_stream(&self, other: &Self) -> bool {
        self.origin.producer == other.origin.producer
            && self.topic.id == other.topic.id
            && self.partition == other.partition
    }
}

impl UnderWay {
    pub(super) fn happen(self, state: &mut State, tell: &mut Tell, now_ms: i64) {
        let unknown = || Err(AppendError::Unknown("the adversary does not tell".into()));
        let (append, plan, fate) = match self {
            Self::GiveUp { fate, .. } => {
                tell.fates.push((fate, unknown()));
                return;
            }
            Self::Land { append, plan, fate } => (append, plan, fate),
        };
        if matches!(plan, AppendFate::Acked | AppendFate::UnknownLanded) {
            state.resolve_late(&append, tell, now_ms);
        }
        let told = match plan {
            AppendFate::Acked => Ok(state.land(append, tell, now_ms)),
            AppendFate::Failed => Err(AppendError::Failed("the adversary refused it".into())),
            AppendFate::UnknownLanded => {
                state.land(append, tell, now_ms);
                unknown()
            }
            AppendFate::UnknownAbsent => unknown(),
            AppendFate::UnknownLate => {
                state.late.push_back(append);
                unknown()
            }
        };
        if let Some(fate) = fate {
            tell.fates.push((fate, told));
        }
    }
}
