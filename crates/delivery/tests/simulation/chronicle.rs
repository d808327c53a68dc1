//! What happened, in order: compared between two runs of one seed, checked by the auditor, shown
//! when a promise breaks.

use std::fmt::Write;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use postrider_log::{Offset, Partition};

const REQUESTS_SHOWN: usize = 80;

/// A request that reached the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Since the beginning, whatever the wall clock says.
    pub(crate) at_ms: i64,
    pub(crate) wall_ms: i64,
    /// When the worker began with it, by the wall clock.
    pub(crate) begun_wall_ms: i64,
    /// Which life of which worker sent it.
    pub(crate) life: usize,
    pub(crate) event_id: String,
    pub(crate) endpoint: String,
    pub(crate) attempt: u32,
    /// The endpoint's partition of `deliveries`.
    pub(crate) partition: Partition,
    /// Under which assignment of the endpoint's partition.
    pub(crate) tenure: Option<Tenure>,
    /// How long another life had owned the partition.
    pub(crate) foreign_ms: i64,
    /// How long ago the life was last thawed.
    pub(crate) thawed_ms: i64,
}

/// One assignment of a partition of `deliveries` to one life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tenure {
    pub(crate) number: usize,
    /// When it began, by the wall clock.
    pub(crate) since_wall_ms: i64,
    /// Where a member of the group had committed, if one had.
    pub(crate) from: Option<Offset>,
    /// The end of the partition of `attempts`: what is below it the life can know.
    pub(crate) known_to: Offset,
}

#[derive(Debug, Default)]
pub(crate) struct Chronicle(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    moves: Vec<(i64, String)>,
    sent: Vec<Sent>,
}

impl Chronicle {
    pub(crate) fn start() -> Arc<Self> {
        Arc::default()
    }

    /// The adversary, or the world, did something.
    pub(crate) fn note(&self, at_ms: i64, what: String) {
        self.entries().moves.push((at_ms, what));
    }

    pub(crate) fn sent(&self, sent: Sent) {
        self.entries().sent.push(sent);
    }

    /// The requests from this one on.
    pub(crate) fn requests_from(&self, index: usize) -> Vec<Sent> {
        self.entries().sent[index..].to_vec()
    }

    pub(crate) fn requests(&self) -> usize {
        self.entries().sent.len()
    }

    /// Every move and the last requests, for people.
    pub(crate) fn show(&self) -> String {
        let entries = self.entries();
        let mut lines: Vec<(i64, String)> = entries.moves.clone();
        let skipped = entries.sent.len().saturating_sub(REQUESTS_SHOWN);
        let requests = entries.sent[skipped..].iter().map(|sent| {
            let Sent {
                life,
                event_id,
                endpoint,
                attempt,
                ..
            } = sent;
            (
                sent.at_ms,
                format!("    life {life} sends {event_id} to {endpoint}, attempt {attempt}"),
            )
        });
        lines.extend(requests);
        lines.sort_by_key(|(at_ms, _)| *at_ms);
        let mut shown = format!("{skipped} requests are left out\n");
        for (at_ms, line) in lines {
            writeln!(shown, "{:>9} ms  {line}", at_ms).expect("memory");
        }
        shown
    }

    /// A panic elsewhere breaks nothing here.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock()
    }
}
