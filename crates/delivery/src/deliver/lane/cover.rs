//! What holds the partition's commit: each record of a lane, until it is settled or a cursor covers
//! it.
//!
//! A lane wants a cursor ([`Cursor`] in `endpoint-state`) when
//! - records of it stay in the log, because its queue or the memory is full, or it may not be
//!   called for now and gives its memory back;
//! - a record holds the commit too long; or
//! - a record holds the commit while the lane waits: it is paused, its breaker is open, or an
//!   ordering key is blocked.
//!
//! It is *behind* when the cursor is durable: whoever takes the partition over reads on from there,
//! so that no record at or after it has to hold the commit. The lane comes back when everything
//! that the cursor covered is settled and the commit has passed it: a state without cursor is sent,
//! and from then on nothing is released because of the cursor before it. Each record holds the
//! commit again.

use std::collections::BTreeMap;

use postrider_log::Offset;
use postrider_model::delivery::{Cursor, LaneState};

use super::recorded::Recorded;
use crate::deliver::step::Now;
use crate::deliver::tally::{Share, Tally};

#[derive(Debug)]
pub(super) struct Cover {
    phase: Phase,
    /// Offsets that hold the commit.
    held: BTreeMap<Offset, Held>,
    recorded: Recorded,
    sent_ms: i64,
}

#[derive(Debug)]
struct Held {
    since_ms: i64,
    _share: Share,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Each record holds the commit.
    Live,
    /// The lane wants a cursor. Each record holds the commit until one is durable.
    Wanted { since_ms: i64 },
    /// A durable cursor covers the lane. Only below `live_from` were records released because of
    /// it.
    Behind { since_ms: i64, live_from: Offset },
    /// A state without cursor was sent, and a new owner may find it. Each record holds the commit
    /// until that is acknowledged. The lane may want a cursor again by then.
    Ending { wanted_since_ms: Option<i64> },
}

impl Phase {
    fn want(self, wall_ms: i64) -> Self {
        match self {
            Self::Live => Self::Wanted { since_ms: wall_ms },
            Self::Ending {
                wanted_since_ms: None,
            } => Self::Ending {
                wanted_since_ms: Some(wall_ms),
            },
            Self::Wanted { .. } | Self::Behind { .. } | Self::Ending { .. } => self,
        }
    }

    /// Nothing needs a cursor any more.
    fn want_no_more(self) -> Self {
        match self {
            Self::Wanted { .. } => Self::Live,
            Self::Ending { .. } => Self::Ending {
                wanted_since_ms: None,
            },
            Self::Live | Self::Behind { .. } => self,
        }
    }

    fn sent(self, state: Option<&LaneState>) -> Self {
        match self {
            Self::Behind { .. } if !has_cursor(state) => Self::Ending {
                wanted_since_ms: None,
            },
            _ => self,
        }
    }

    /// The live stream is at `next`.
    fn acknowledged(self, state: Option<&LaneState>, next: Offset) -> Self {
        match (self, state.and_then(|state| state.cursor.as_ref())) {
            (Self::Behind { .. }, Some(_)) => self,
            (_, Some(cursor)) => Self::Behind {
                since_ms: cursor.behind_since_ms,
                live_from: next,
            },
            (Self::Wanted { since_ms }, None)
            | (
                Self::Ending {
                    wanted_since_ms: Some(since_ms),
                },
                None,
            ) => Self::Wanted { since_ms },
            (Self::Live | Self::Behind { .. } | Self::Ending { .. }, None) => Self::Live,
        }
    }
}

impl Cover {
    pub(super) fn new(now: Now) -> Self {
        Self {
            phase: Phase::Live,
            held: BTreeMap::new(),
            recorded: Recorded::default(),
            sent_ms: now.mono_ms,
        }
    }

    /// As a former owner left it, who may have released whatever is below `next`, where the live
    /// stream begins.
    pub(super) fn restored(state: LaneState, next: Offset, now: Now) -> Self {
        let phase = Phase::Live.acknowledged(Some(&state), next);
        Self {
            phase,
            recorded: Recorded::restored(state),
            ..Self::new(now)
        }
    }

    // ---- records hold the commit ----

    /// A record that came in live holds the commit.
    pub(super) fn hold(&mut self, offset: Offset, all_held: &Tally, now: Now) {
        let held = Held {
            since_ms: now.mono_ms,
            _share: all_held.share(1),
        };
        self.held.insert(offset, held);
    }

    /// A record is settled.
    pub(super) fn settled(&mut self, offset: Offset) {
        self.held.remove(&offset);
    }

    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether a record holds the commit longer than that, or at all while the lane `waits`.
    pub(super) fn holds_too_long(&self, waits: bool, ms_max: i64, now: Now) -> bool {
        let first = self.held.first_key_value();
        first.is_some_and(|(_, held)| waits || now.mono_ms - held.since_ms >= ms_max)
    }

    /// The lane must not hold the commit. Answers with the offsets that a durable cursor covers;
    /// where there is none, one is wanted from now on. The live stream is at `next`.
    pub(super) fn release(&mut self, next: Offset, now: Now) -> Vec<Offset> {
        self.phase = self.phase.want(now.wall_ms);
        self.release_covered(next)
    }

    /// Wants no first cursor if nothing holds the commit.
    pub(super) fn want_no_more(&mut self) {
        if self.held.is_empty() {
            self.phase = self.phase.want_no_more();
        }
    }

    fn release_covered(&mut self, next: Offset) -> Vec<Offset> {
        match &mut self.phase {
            Phase::Behind { live_from, .. } if !self.held.is_empty() => {
                *live_from = next;
                std::mem::take(&mut self.held).into_keys().collect()
            }
            _ => Vec::new(),
        }
    }

    // ---- the cursor ----

    /// Since when the lane is behind.
    pub(super) fn behind_since_ms(&self) -> Option<i64> {
        match self.phase {
            Phase::Behind { since_ms, .. } => Some(since_ms),
            _ => None,
        }
    }

    /// Since when the lane is to have a cursor, if it is.
    pub(super) fn wanted_since_ms(&self) -> Option<i64> {
        match self.phase {
            Phase::Live => None,
            Phase::Wanted { since_ms } | Phase::Behind { since_ms, .. } => Some(since_ms),
            Phase::Ending { wanted_since_ms } => wanted_since_ms,
        }
    }

    /// Below this offset the cursor stood for records of which the commit was not held; everything
    /// there must be settled before the lane can come back.
    pub(super) fn live_from(&self) -> Option<Offset> {
        match self.phase {
            Phase::Behind { live_from, .. } => Some(live_from),
            _ => None,
        }
    }

    /// Whether the commit has passed all that the durable cursor says is settled, so that nobody
    /// will read it again.
    pub(super) fn is_passed_by(&self, committed: Offset) -> bool {
        let known_to = self.durable_cursor().map_or(0, known_to);
        let live_from = self.live_from();
        live_from.is_some_and(|live_from| committed >= live_from.max(known_to))
    }

    fn durable_cursor(&self) -> Option<&Cursor> {
        self.recorded.durable()?.cursor.as_ref()
    }

    // ---- what is written ----

    pub(super) fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    /// Whether this is to be written now: a first cursor at once, the rest no more often than
    /// `interval_ms`.
    pub(super) fn is_due(&self, state: Option<&LaneState>, interval_ms: i64, now: Now) -> bool {
        let is_first = has_cursor(state) && !has_cursor(self.recorded.durable());
        is_first || now.mono_ms - self.sent_ms >= interval_ms
    }

    pub(super) fn send(&mut self, state: Option<LaneState>, now: Now) {
        self.sent_ms = now.mono_ms;
        self.phase = self.phase.sent(state.as_ref());
        self.recorded.send(state);
    }

    /// What was sent is durable under this id. Answers with the offsets that need not hold the
    /// commit any more.
    pub(super) fn acknowledged(&mut self, state_id: i64, next: Offset) -> Vec<Offset> {
        if !self.recorded.is_on_its_way() {
            return Vec::new();
        }
        self.recorded.acknowledged(state_id);
        let was_behind = matches!(self.phase, Phase::Behind { .. });
        self.phase = self.phase.acknowledged(self.recorded.durable(), next);
        if was_behind {
            return Vec::new();
        }
        self.release_covered(next)
    }

    pub(super) fn not_acknowledged(&mut self) {
        self.recorded.not_acknowledged();
    }
}

fn has_cursor(state: Option<&LaneState>) -> bool {
    state.is_some_and(|state| state.cursor.is_some())
}

/// Nothing at or after this offset is settled as far as the cursor tells.
fn known_to(cursor: &Cursor) -> Offset {
    let above = cursor.settled.last().map_or(0, |last| last + 1);
    above.max(cursor.lowest_unsettled)
}

#[cfg(test)]
mod tests;
