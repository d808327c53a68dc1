//! Permits for the attempts under way, and how many of them are at slow endpoints.

use super::tally::{Share, Tally};

#[derive(Debug, Default)]
pub(super) struct Permits {
    given: Tally,
    slow: Tally,
}

/// Lets an attempt be under way, for as long as it lives.
#[derive(Debug)]
pub(super) struct Permit(#[expect(dead_code, reason = "it is held")] Share);

/// Counts an attempt among those at slow endpoints, or not.
#[derive(Debug)]
pub(super) struct SlowShare {
    share: Option<Share>,
    all: Tally,
}

impl Permits {
    pub(super) fn give(&self) -> Permit {
        Permit(self.given.share(1))
    }

    pub(super) fn given(&self) -> usize {
        self.given.amount()
    }

    pub(super) fn count(&self, slow: bool) -> SlowShare {
        let mut share = SlowShare {
            share: None,
            all: self.slow.clone(),
        };
        share.count_as(slow);
        share
    }

    pub(super) fn slow(&self) -> usize {
        self.slow.amount()
    }
}

impl SlowShare {
    pub(super) fn count_as(&mut self, slow: bool) {
        if slow != self.share.is_some() {
            self.share = slow.then(|| self.all.share(1));
        }
    }
}
