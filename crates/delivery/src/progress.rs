//! How far each owned partition is done, what to commit, and whether we may still act as its owner.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postrider_log::tracker::OffsetTracker;
use postrider_log::{Assignment, Commit, Committed, Generation, Offset, Partition, Record};
use postrider_model::commit_note::{CommitNote, Mark};
use tokio::time::Instant;

/// The offsets of the partitions this stage owns.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    owned: BTreeMap<Partition, Owned>,
}

#[derive(Debug)]
struct Owned {
    generation: Generation,
    tracker: OffsetTracker,
    read: Read,
    committed: Option<Committed>,
    committed_at: Option<Instant>,
}

/// The records that commits name, to be found in the log again (`past.rs`).
#[derive(Debug)]
struct Read {
    /// The last one below the offset to commit.
    last: Option<Mark>,
    /// The first one that was read, or one that was `last` once and was found in the log after a
    /// later one was read.
    verified: Option<Mark>,
    /// Those from there on.
    ahead: VecDeque<Mark>,
}

/// Records remembered above the offset to commit, at most.
const AHEAD_MAX: usize = 1 << 16;

impl Read {
    /// Far above the commit every second record does.
    fn thin(&mut self) {
        if self.ahead.len() > AHEAD_MAX {
            let mut keeps = false;
            self.ahead.retain(|_| {
                keeps = !keeps;
                keeps
            });
        }
    }

    /// Notes that what is below this offset is committed next.
    fn come_up_to(&mut self, offset: Offset) {
        while self.ahead.front().is_some_and(|mark| mark.offset < offset) {
            self.last = self.ahead.pop_front();
        }
    }
}

/// An offset that was resolved, under the assignment it was read in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) partition: Partition,
    pub(crate) generation: Generation,
    pub(crate) offset: Offset,
}

/// A record that was read, to be found in the log again, and a later one that was read before it
/// was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ToVerify {
    pub(crate) partition: Partition,
    pub(crate) generation: Generation,
    pub(crate) known: Mark,
    pub(crate) next: Mark,
}

impl Progress {
    /// Takes a partition over, to be read from this offset on. `last` is a record below it that the
    /// log has.
    pub(crate) fn assign(&mut self, assignment: &Assignment, from: Offset, last: Option<Mark>) {
        let owned = Owned {
            generation: assignment.generation,
            tracker: OffsetTracker::new(from),
            read: Read {
                last,
                verified: last,
                ahead: VecDeque::new(),
            },
            committed: None,
            committed_at: None,
        };
        self.owned.insert(assignment.partition, owned);
    }

    pub(crate) fn remove(&mut self, partition: Partition) {
        self.owned.remove(&partition);
    }

    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.owned.keys().copied().collect()
    }

    pub(crate) fn generation(&self, partition: Partition) -> Option<Generation> {
        self.owned.get(&partition).map(|owned| owned.generation)
    }

    /// Notes that a record was read; from now on its offset holds the commit until it is resolved.
    /// False: the offset was read before under this assignment, and nothing is to be done.
    pub(crate) fn begin(&mut self, record: &Record) -> bool {
        let Some(owned) = self.owned.get_mut(&record.partition) else {
            return false;
        };
        let is_new = owned.tracker.begin(record.offset);
        if is_new {
            let mark = Mark {
                offset: record.offset,
                appended_at_ms: record.timestamp_ms,
            };
            // Where nothing below was known, the first record is what later ones are held against.
            owned.read.verified.get_or_insert(mark);
            owned.read.ahead.push_back(mark);
            owned.read.thin();
        }
        is_new
    }

    /// Notes that an offset is resolved. One from an earlier assignment says nothing.
    pub(crate) fn resolve(&mut self, resolved: Resolved) {
        if let Some(owned) = self.owned.get_mut(&resolved.partition)
            && owned.generation == resolved.generation
        {
            owned.tracker.resolve(resolved.offset);
        }
    }

    /// The commits to make: of partitions that moved, and of those whose last commit is older than
    /// `idle_interval`, since commits renew the lease.
    pub(crate) fn due(
        &mut self,
        only: Option<&[Partition]>,
        idle_interval: Duration,
        mut note: impl FnMut(Partition, Offset) -> CommitNote,
    ) -> Vec<Commit> {
        let now = Instant::now();
        let wanted = |partition: &Partition| only.is_none_or(|only| only.contains(partition));
        self.owned
            .iter_mut()
            .filter(|(partition, _)| wanted(partition))
            .filter_map(|(&partition, owned)| {
                let offset = owned.tracker.committable();
                owned.read.come_up_to(offset);
                let Read { last, verified, .. } = owned.read;
                let note = CommitNote {
                    last,
                    verified: verified.filter(|mark| mark.offset < offset && verified != last),
                    ..note(partition, offset)
                };
                let committed = Committed {
                    offset,
                    metadata: note.encode(),
                };
                let fresh = owned
                    .committed_at
                    .is_some_and(|at| now.duration_since(at) < idle_interval);
                let moved = owned
                    .committed
                    .as_ref()
                    .is_none_or(|last| last.offset != offset);
                (moved || !fresh).then_some(Commit {
                    partition,
                    generation: owned.generation,
                    committed,
                })
            })
            .collect()
    }

    /// What is to be found in the log again, for every partition: the record that was found last,
    /// and the one that may be told to be found when that is still there.
    pub(crate) fn to_verify(&self) -> Vec<ToVerify> {
        let owned = self.owned.iter();
        let to_verify = owned.filter_map(|(&partition, owned)| {
            Some(ToVerify {
                partition,
                generation: owned.generation,
                known: owned.read.verified?,
                next: owned.read.last?,
            })
        });
        to_verify.collect()
    }

    /// Notes that what was to be found is there.
    pub(crate) fn verified(&mut self, found: &ToVerify) {
        if let Some(owned) = self.owned.get_mut(&found.partition)
            && owned.generation == found.generation
        {
            owned.read.verified = Some(found.next);
        }
    }

    /// Notes that the log may have lost the last commit. False: one that is made again would name
    /// no record that was read.
    pub(crate) fn commit_again(&mut self, partition: Partition) -> bool {
        let Some(owned) = self.owned.get_mut(&partition) else {
            return false;
        };
        owned.committed = None;
        owned.committed_at = None;
        owned.read.come_up_to(owned.tracker.committable());
        owned.read.last.is_some()
    }

    /// Notes that commits are durable.
    pub(crate) fn committed(&mut self, commits: Vec<Commit>) {
        for commit in commits {
            if let Some(owned) = self.owned.get_mut(&commit.partition)
                && owned.generation == commit.generation
            {
                owned.committed = Some(commit.committed);
                owned.committed_at = Some(Instant::now());
            }
        }
    }
}

/// Whether this process may still act as an owner: its last successful commit is young enough. A
/// process that was frozen or cut off finds its lease expired before it sends anything.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    base: Instant,
    renewed_ms: Arc<AtomicU64>,
    term: Duration,
}

impl Lease {
    /// A lease that runs from now.
    pub(crate) fn new(term: Duration) -> Self {
        Self {
            base: Instant::now(),
            renewed_ms: Arc::default(),
            term,
        }
    }

    /// Renews it as of the moment the successful commit was sent.
    pub(crate) fn renew(&self, sent_at: Instant) {
        let since_base = sent_at.saturating_duration_since(self.base).as_millis();
        self.renewed_ms.fetch_max(
            u64::try_from(since_base).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// Whether it still runs.
    pub(crate) fn holds(&self) -> bool {
        let renewed_at = self.base + Duration::from_millis(self.renewed_ms.load(Ordering::Relaxed));
        renewed_at.elapsed() < self.term
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postrider_log::Bounds;

    use super::*;

    fn record(offset: Offset, timestamp_ms: i64) -> Record {
        Record {
            partition: 0,
            offset,
            timestamp_ms,
            key: Bytes::new(),
            value: None,
            headers: Vec::new(),
        }
    }

    fn read(progress: &mut Progress, offset: Offset, timestamp_ms: i64) {
        assert!(progress.begin(&record(offset, timestamp_ms)));
        progress.resolve(Resolved {
            partition: 0,
            generation: 1,
            offset,
        });
        progress.due(None, Duration::MAX, |_, _| CommitNote::default());
    }

    #[test]
    fn a_log_that_is_another_before_the_first_check_is_held_against_the_first_record() {
        let mut progress = Progress::default();
        let assignment = Assignment {
            partition: 0,
            generation: 1,
            committed: None,
            bounds: Bounds { start: 0, end: 0 },
        };
        progress.assign(&assignment, 0, None);
        read(&mut progress, 0, 10);
        // The topic was made again and has grown past what was read.
        read(&mut progress, 1, 99);
        let mark = |offset, appended_at_ms| Mark {
            offset,
            appended_at_ms,
        };
        let asked = progress.to_verify().remove(0);
        assert_eq!((asked.known, asked.next), (mark(0, 10), mark(1, 99)));
        let commit = progress.due(None, Duration::ZERO, |_, _| CommitNote::default());
        let note = CommitNote::decode(&commit[0].committed.metadata);
        let named: Vec<Mark> = note.verified.into_iter().chain(note.last).collect();
        assert_eq!(named, [mark(0, 10), mark(1, 99)]);
    }
}
