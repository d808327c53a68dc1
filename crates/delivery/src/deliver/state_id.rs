//! Under which id the states of a partition's lanes count.
//!
//! Nothing more is written under an id when the fate of a state is unknown: an old state could land
//! after a new one. All are written again under another id then, which the next commit names.

use bytes::Bytes;
use postrider_log::Offset;

use super::state::Written;

#[derive(Debug)]
pub(super) struct StateId {
    id: i64,
    /// Offset of the last state that was acknowledged.
    last: Offset,
    fate: Fate,
    /// Keys of states under former ids, to be removed when a commit has named the present one.
    stale: Vec<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// What was written is durable.
    Settled,
    /// States are on their way.
    Writing,
    /// What was written may be durable or not.
    InDoubt,
    /// All states are on their way, under another id.
    WritingAnew,
}

/// What may be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MayWrite {
    /// What has changed.
    Changes,
    /// All, under another id.
    AllAnew,
    /// Nothing: something is on its way.
    Nothing,
}

impl StateId {
    pub(super) fn new(written: Written, stale: Vec<Bytes>) -> Self {
        Self {
            id: written.id,
            last: written.last,
            fate: Fate::Settled,
            stale,
        }
    }

    /// What a commit names.
    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// Offset of the last state that was acknowledged.
    pub(super) fn last(&self) -> Offset {
        self.last
    }

    pub(super) fn may_write(&self) -> MayWrite {
        match self.fate {
            Fate::Settled => MayWrite::Changes,
            Fate::InDoubt => MayWrite::AllAnew,
            Fate::Writing | Fate::WritingAnew => MayWrite::Nothing,
        }
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(self.fate, Fate::InDoubt | Fate::WritingAnew)
    }

    /// Changes are on their way.
    pub(super) fn writing(&mut self) {
        self.fate = Fate::Writing;
    }

    /// All states are on their way under another id; these are the keys under the present one.
    pub(super) fn writing_anew(&mut self, keys: impl Iterator<Item = Bytes>) {
        self.fate = Fate::WritingAnew;
        self.stale.extend(keys);
    }

    /// What was sent is in the log. If it is below what was written before, the topic was made
    /// again or lost its end, and what it lost must be written again with everything else: then the
    /// answer is `false`.
    #[must_use]
    pub(super) fn acknowledged(&mut self, written: Written) -> bool {
        if written.id == self.id && written.first <= self.last {
            tracing::error!(
                offset = written.first,
                known = self.last,
                "endpoint-state was made again or lost records, writing all states of the partition again"
            );
            self.fate = Fate::InDoubt;
            return false;
        }
        (self.id, self.last, self.fate) = (written.id, written.last, Fate::Settled);
        true
    }

    pub(super) fn not_acknowledged(&mut self) {
        self.fate = Fate::InDoubt;
    }

    /// A commit that names this id is durable: the keys that nobody needs any more.
    pub(super) fn named(&mut self, id: Option<i64>) -> Vec<Bytes> {
        if id == Some(self.id) && !self.is_in_doubt() {
            std::mem::take(&mut self.stale)
        } else {
            Vec::new()
        }
    }
}
