//! Amounts that are what their holders hold together. Nobody counts them up and down.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all shares of it amount to. Clones are the same tally.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally(Arc<AtomicUsize>);

impl Tally {
    pub(super) fn amount(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds so much, until the share is dropped.
    pub(super) fn share(&self, amount: usize) -> Share {
        self.0.fetch_add(amount, Ordering::Relaxed);
        Share {
            tally: self.clone(),
            amount,
        }
    }
}

/// A part of a tally.
#[derive(Debug)]
pub(super) struct Share {
    tally: Tally,
    amount: usize,
}

impl Share {
    pub(super) fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.tally.0.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_what_its_shares_amount_to() {
        let tally = Tally::default();
        let (three, four) = (tally.share(3), tally.share(4));
        assert_eq!((tally.amount(), four.amount()), (7, 4));
        drop(three);
        assert_eq!(tally.amount(), 4);
        drop(four);
        assert_eq!(tally.amount(), 0);
    }
}
