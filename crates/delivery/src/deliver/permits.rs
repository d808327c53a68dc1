//! Permits for the attempts under way.

use super::tally::{Share, Tally};

/// What was given. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Permits {
    all: Tally,
    slow: Tally,
}

impl Permits {
    pub(super) fn give(&self, slow: bool) -> Permit {
        let mut permit = Permit {
            _one: self.all.share(1),
            slow: None,
            all_slow: self.slow.clone(),
        };
        permit.count_as(slow);
        permit
    }

    pub(super) fn given(&self) -> usize {
        self.all.amount()
    }

    pub(super) fn given_to_slow(&self) -> usize {
        self.slow.amount()
    }
}

/// Lets an attempt be under way, for as long as it lives.
#[derive(Debug)]
pub(super) struct Permit {
    _one: Share,
    slow: Option<Share>,
    all_slow: Tally,
}

impl Permit {
    /// Counts it among the slow, or no longer.
    pub(super) fn count_as(&mut self, slow: bool) {
        if slow != self.slow.is_some() {
            self.slow = slow.then(|| self.all_slow.share(1));
        }
    }
}
