//! Commits on their way: one at a time, with what is asked for meanwhile merged into the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::port::{Commit, CommitError, Committed, Partition};

/// Answers that may wait for one commit. Who asks for more without waiting is told so.
const TELLERS_MAX: usize = 4096;
/// Between a commit that the broker took for too early and its repetition.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often it is repeated: for 5 s.
const RETRIES_MAX: u32 = 100;

pub(super) type Teller = oneshot::Sender<Result<(), CommitError>>;

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Failed(CommitError),
    /// Not taken, but worth repeating.
    Early(CommitError),
}

#[derive(Debug, Default)]
pub(super) struct Commits {
    pending: Round,
    under_way: Option<Round>,
    /// Not before this.
    retry_at: Option<Instant>,
}

/// What is or will be sent together.
#[derive(Debug, Default)]
struct Round {
    offsets: BTreeMap<Partition, Committed>,
    tellers: Vec<(Teller, BTreeSet<Partition>)>,
    retries: u32,
}

impl Commits {
    /// Adds commits to the next round. The generations have been checked.
    pub(super) fn add(&mut self, commits: Vec<Commit>, teller: Teller) {
        if self.pending.tellers.len() >= TELLERS_MAX {
            let error = CommitError::Unknown("too many commits under way".into());
            return tell(teller, Err(error));
        }
        let partitions = commits.iter().map(|commit| commit.partition).collect();
        for commit in commits {
            self.pending
                .offsets
                .insert(commit.partition, commit.committed);
        }
        self.pending.tellers.push((teller, partitions));
    }

    /// The next round, if it is time for one. The caller sends it and tells the outcome to
    /// [`Commits::finish`].
    pub(super) fn begin(&mut self, now: Instant) -> Option<BTreeMap<Partition, Committed>> {
        if self.under_way.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.retry_at = None;
        let round = std::mem::take(&mut self.pending);
        if round.offsets.is_empty() {
            // Nothing to send: a commit of nothing succeeds.
            round.tell(&Ok(()));
            return None;
        }
        let offsets = round.offsets.clone();
        self.under_way = Some(round);
        Some(offsets)
    }

    pub(super) fn finish(&mut self, outcome: Outcome, now: Instant) {
        let Some(round) = self.under_way.take() else {
            return;
        };
        match outcome {
            Outcome::Committed => round.tell(&Ok(())),
            Outcome::Failed(error) => round.tell(&Err(error)),
            Outcome::Early(error) if round.retries >= RETRIES_MAX => round.tell(&Err(error)),
            Outcome::Early(_) => {
                self.retry_at = Some(now + RETRY_PAUSE);
                self.repeat(round);
            }
        }
    }

    /// Puts a round before the pending one; where both name a partition, the later one counts.
    fn repeat(&mut self, mut round: Round) {
        let later = std::mem::take(&mut self.pending);
        round.offsets.extend(later.offsets);
        round.tellers.extend(later.tellers);
        round.retries += 1;
        self.pending = round;
    }

    /// Takes out what is not sent yet for partitions whose generation is over.
    pub(super) fn fence(&mut self, partitions: &BTreeSet<Partition>) {
        self.pending
            .offsets
            .retain(|partition, _| !partitions.contains(partition));
        let (fenced, kept) = std::mem::take(&mut self.pending.tellers)
            .into_iter()
            .partition(|(_, named)| !named.is_disjoint(partitions));
        self.pending.tellers = kept;
        for (teller, _) in Vec::<(Teller, BTreeSet<Partition>)>::from_iter(fenced) {
            tell(teller, Err(CommitError::Fenced));
        }
    }

    /// Whether a commit for one of the partitions is still to be answered.
    pub(super) fn concern(&self, partitions: &BTreeSet<Partition>) -> bool {
        self.pending.concerns(partitions) || self.send(partitions)
    }

    /// Whether a commit for one of the partitions is on its way to the broker.
    pub(super) fn send(&self, partitions: &BTreeSet<Partition>) -> bool {
        self.under_way
            .as_ref()
            .is_some_and(|round| round.concerns(partitions))
    }

    /// When [`Commits::begin`] should be called again without a new commit, if ever.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

impl Round {
    fn concerns(&self, partitions: &BTreeSet<Partition>) -> bool {
        self.offsets
            .keys()
            .any(|partition| partitions.contains(partition))
    }

    fn tell(self, answer: &Result<(), CommitError>) {
        for (teller, _) in self.tellers {
            tell(teller, answer.clone());
        }
    }
}

pub(super) fn tell(teller: Teller, answer: Result<(), CommitError>) {
    // Nobody needs to wait for a commit.
    drop(teller.send(answer));
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = oneshot::Receiver<Result<(), CommitError>>;

    fn ask(commits: &mut Commits, partition: Partition, offset: i64) -> Answer {
        let (teller, answer) = oneshot::channel();
        let committed = Committed {
            offset,
            metadata: String::new(),
        };
        commits.add(
            vec![Commit {
                partition,
                generation: 1,
                committed,
            }],
            teller,
        );
        answer
    }

    fn offsets(round: Option<BTreeMap<Partition, Committed>>) -> Vec<(Partition, i64)> {
        round
            .into_iter()
            .flatten()
            .map(|(partition, committed)| (partition, committed.offset))
            .collect()
    }

    #[test]
    fn merges_what_is_asked_while_one_is_under_way() {
        let (mut commits, now) = (Commits::default(), Instant::now());
        let mut first = ask(&mut commits, 0, 10);
        assert_eq!(offsets(commits.begin(now)), [(0, 10)]);
        let mut second = ask(&mut commits, 0, 20);
        let mut third = ask(&mut commits, 0, 30);
        assert_eq!(commits.begin(now), None, "one at a time");
        commits.finish(Outcome::Committed, now);
        assert_eq!(first.try_recv(), Ok(Ok(())));
        assert!(second.try_recv().is_err(), "not committed yet");
        assert_eq!(offsets(commits.begin(now)), [(0, 30)]);
        commits.finish(Outcome::Committed, now);
        assert_eq!(
            (second.try_recv(), third.try_recv()),
            (Ok(Ok(())), Ok(Ok(())))
        );
    }

    #[test]
    fn repeats_an_early_commit_without_going_back() {
        let (mut commits, now) = (Commits::default(), Instant::now());
        let mut first = ask(&mut commits, 0, 10);
        assert_eq!(offsets(commits.begin(now)), [(0, 10)]);
        let mut second = ask(&mut commits, 0, 20);
        commits.finish(Outcome::Early(CommitError::Unknown("early".into())), now);
        assert_eq!(commits.begin(now), None, "not at once");
        assert_eq!(offsets(commits.begin(now + RETRY_PAUSE)), [(0, 20)]);
        commits.finish(Outcome::Committed, now);
        assert_eq!(
            (first.try_recv(), second.try_recv()),
            (Ok(Ok(())), Ok(Ok(())))
        );
    }

    #[test]
    fn gives_up_repeating() {
        let (mut commits, mut now) = (Commits::default(), Instant::now());
        let mut answer = ask(&mut commits, 0, 10);
        let early = CommitError::Unknown("early".into());
        for _ in 0..=RETRIES_MAX {
            now += RETRY_PAUSE;
            assert!(commits.begin(now).is_some());
            commits.finish(Outcome::Early(early.clone()), now);
        }
        assert_eq!(answer.try_recv(), Ok(Err(early)));
        assert_eq!(commits.begin(now + RETRY_PAUSE), None);
    }

    #[test]
    fn fences_what_is_not_sent() {
        let (mut commits, now) = (Commits::default(), Instant::now());
        let mut lost = ask(&mut commits, 0, 10);
        let mut kept = ask(&mut commits, 1, 10);
        commits.fence(&BTreeSet::from([0]));
        assert_eq!(lost.try_recv(), Ok(Err(CommitError::Fenced)));
        assert!(!commits.concern(&BTreeSet::from([0])));
        assert!(commits.concern(&BTreeSet::from([1])));
        assert_eq!(offsets(commits.begin(now)), [(1, 10)]);
        commits.finish(Outcome::Committed, now);
        assert_eq!(kept.try_recv(), Ok(Ok(())));
    }
}
