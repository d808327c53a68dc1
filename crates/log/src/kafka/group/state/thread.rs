//! What the member's threads do to the shared state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Ended, Owned, Phase, Revoke, State};
use crate::kafka::group::commits::{Commits, Outcome};
use crate::kafka::group::queue::Waiting;
use crate::port::{Assignment, Generation, LogError, Offset, Partition};

impl State {
    pub(in crate::kafka::group) fn closing(&self) -> bool {
        self.closing
    }

    pub(in crate::kafka::group) fn topic(&self) -> &str {
        &self.topic
    }

    pub(in crate::kafka::group) fn commit_done(&mut self, outcome: Outcome) {
        self.commits.finish(outcome, Instant::now());
    }

    /// Whether a commit for one of the partitions is on its way to the broker.
    pub(in crate::kafka::group) fn commits(&self, partitions: &BTreeSet<Partition>) -> bool {
        self.commits.send(partitions)
    }

    pub(in crate::kafka::group) fn failed(&self) -> bool {
        self.failure.is_some()
    }

    pub(in crate::kafka::group) fn fail(&mut self, error: LogError) {
        self.failure.get_or_insert(error);
    }

    /// Takes over new partitions, under generations of their own.
    pub(in crate::kafka::group) fn assign(
        &mut self,
        partitions: &[Partition],
    ) -> BTreeMap<Partition, Generation> {
        let mut generations = BTreeMap::new();
        for partition in partitions {
            self.generation += 1;
            let owned = Owned {
                generation: self.generation,
                phase: Phase::Asking,
                paused: false,
            };
            self.owned.insert(*partition, owned);
            generations.insert(*partition, self.generation);
        }
        generations
    }

    /// Whether any of these assignments still waits to be told.
    pub(in crate::kafka::group) fn asks(
        &self,
        generations: &BTreeMap<Partition, Generation>,
    ) -> bool {
        !self.closing
            && generations
                .iter()
                .any(|(partition, generation)| self.is_asking(*partition, *generation))
    }

    fn is_asking(&self, partition: Partition, generation: Generation) -> bool {
        self.owned
            .get(&partition)
            .is_some_and(|owned| owned.generation == generation && owned.phase == Phase::Asking)
    }

    /// Tells the user of assignments, except those that are over already.
    pub(in crate::kafka::group) fn tell_assigned(&mut self, mut assignments: Vec<Assignment>) {
        assignments
            .retain(|assignment| self.is_asking(assignment.partition, assignment.generation));
        for assignment in &assignments {
            if let Some(owned) = self.owned.get_mut(&assignment.partition) {
                owned.phase = Phase::Queued;
            }
        }
        if !assignments.is_empty() {
            self.queue.push(Waiting::Assigned(assignments));
        }
    }

    /// Partitions to start, which count as started from now on.
    pub(in crate::kafka::group) fn take_starting(&mut self) -> Vec<(Partition, Offset)> {
        let mut starting = Vec::new();
        for (partition, owned) in &mut self.owned {
            if let Phase::Starting { from } = owned.phase {
                owned.phase = Phase::Running { next: from };
                starting.push((*partition, from));
            }
        }
        starting
    }

    /// Partitions that the client reads: where it goes on, and whether the user paused it.
    pub(in crate::kafka::group) fn running(
        &self,
    ) -> impl Iterator<Item = (Partition, Generation, Offset, bool)> {
        self.owned
            .iter()
            .filter_map(|(partition, owned)| match owned.phase {
                Phase::Running { next } => Some((*partition, owned.generation, next, owned.paused)),
                _ => None,
            })
    }

    /// Whether something is about to change, so that the thread should look again soon.
    pub(in crate::kafka::group) fn is_moving(&self) -> bool {
        let moving = |owned: &Owned| owned.paused || !matches!(owned.phase, Phase::Running { .. });
        self.revoke.is_some() || self.owned.values().any(moving)
    }

    /// Whether a record is wanted: its partition is read, not being revoked, and it was not handed
    /// over before.
    pub(in crate::kafka::group) fn admit(&mut self, partition: Partition, offset: Offset) -> bool {
        if self
            .revoke
            .as_ref()
            .is_some_and(|revoke| revoke.partitions.contains(&partition))
        {
            return false;
        }
        match self.owned.get_mut(&partition).map(|owned| &mut owned.phase) {
            Some(Phase::Running { next }) if offset >= *next => {
                *next = offset + 1;
                true
            }
            _ => false,
        }
    }

    /// Moves a partition to another offset, if the assignment is still the same.
    pub(in crate::kafka::group) fn move_to(
        &mut self,
        partition: Partition,
        generation: Generation,
        to: Offset,
    ) -> bool {
        let Some(owned) = self.owned.get_mut(&partition) else {
            return false;
        };
        let Phase::Running { next: from } = owned.phase else {
            return false;
        };
        if owned.generation != generation {
            return false;
        }
        owned.phase = Phase::Running { next: to };
        if from != to {
            tracing::error!(partition, from, to, "records are gone from the log");
            self.queue.push(Waiting::Truncated {
                partition,
                from,
                to,
            });
        }
        true
    }

    /// Begins a revoke. What the user does not know of, or what is lost already, is given up at
    /// once.
    pub(in crate::kafka::group) fn revoke(
        &mut self,
        partitions: &[Partition],
        lost: bool,
        until: Instant,
    ) -> Option<Ended> {
        let told: BTreeSet<Partition> = partitions
            .iter()
            .copied()
            .filter(|one| self.knows(*one))
            .collect();
        if lost || told.is_empty() {
            return Some(self.lose(partitions));
        }
        self.queue.forget(&told);
        self.revokes += 1;
        self.queue.push(Waiting::Revoke {
            revoke: self.revokes,
            partitions: told.iter().copied().collect(),
            until,
        });
        self.revoke = Some(Revoke {
            number: self.revokes,
            partitions: partitions.iter().copied().collect(),
            until,
            released: false,
        });
        None
    }

    /// Ends the revoke under way, if it is time: all is released and committed, or it is too late.
    pub(in crate::kafka::group) fn end_revoke(
        &mut self,
        lost: bool,
        now: Instant,
    ) -> Option<Ended> {
        let revoke = self.revoke.as_ref()?;
        if revoke.released && !self.commits.concern(&revoke.partitions) && !lost {
            let revoke = self.revoke.take()?;
            return Some(self.end(&revoke.partitions));
        }
        if lost || now >= revoke.until {
            let revoke = self.revoke.take()?;
            tracing::warn!(partitions = ?revoke.partitions, lost, "partitions are lost before they were released");
            return Some(self.lose(&Vec::from_iter(revoke.partitions)));
        }
        None
    }

    /// Gives partitions up and tells the user, as far as he knows of them.
    pub(in crate::kafka::group) fn lose(&mut self, partitions: &[Partition]) -> Ended {
        let told: Vec<Partition> = partitions
            .iter()
            .copied()
            .filter(|one| self.knows(*one))
            .collect();
        let ended = self.end(&partitions.iter().copied().collect());
        if !told.is_empty() {
            self.queue.push(Waiting::Lost(told));
        }
        ended
    }

    /// Gives everything up without a word.
    pub(in crate::kafka::group) fn close(&mut self) -> Ended {
        self.closing = true;
        self.revoke = None;
        let all = self.owned.keys().copied().collect();
        let ended = self.end(&all);
        self.commits = Commits::default();
        ended
    }

    pub(in crate::kafka::group) fn set_closed(&mut self) {
        self.closed = true;
    }

    fn knows(&self, partition: Partition) -> bool {
        self.owned
            .get(&partition)
            .is_some_and(|owned| owned.phase != Phase::Asking)
    }

    fn end(&mut self, partitions: &BTreeSet<Partition>) -> Ended {
        let mut ended = Ended {
            partitions: partitions.clone(),
            running: Vec::new(),
        };
        for partition in partitions {
            if let Some(Owned {
                phase: Phase::Running { .. },
                ..
            }) = self.owned.remove(partition)
            {
                ended.running.push(*partition);
            }
        }
        self.commits.fence(partitions);
        self.queue.forget(partitions);
        ended
    }
}
