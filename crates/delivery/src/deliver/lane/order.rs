//! The ordering keys of an ordered endpoint: of each, one delivery at a time, in the order of the
//! log.
//!
//! The lane's queue holds only *heads*: of every key its lowest unsettled delivery. A few more of
//! the key wait here with their bodies; of the rest only the offsets are kept, and the bodies are
//! read from the log when their time comes. A head that failed keeps its place: its key waits until
//! the next attempt is due, and other keys go on.
//!
//! A key whose head failed, or that has more deliveries than may wait here, is *blocked*: the
//! lane's cursor passes its deliveries, and a cursor of its own is written beside it
//! ([`BlockedKey`]). So however long a key is blocked, the lane's cursor goes on. Where too many
//! keys are blocked, the lane reads no further.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use postrider_log::Offset;
use postrider_model::delivery::{BlockedKey, Cursor};

use crate::deliver::limits::OrderLimits;
use crate::deliver::step::{Now, Room, Step, Waiting};

/// Deliveries of one key that wait in memory behind its head.
const WAITING_MAX: usize = 8;

/// A wall clock that was wrong when a wait was measured makes it longer by no more than this.
const LOOK_AGAIN_MS: i64 = 60_000;

/// The next attempt of a head that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::deliver) struct NextAttempt {
    pub(in crate::deliver) number: u32,
    /// Not before this time, on the wall.
    pub(in crate::deliver) due_at_ms: i64,
    /// When the head failed first.
    pub(in crate::deliver) failed_at_ms: i64,
}

/// Where a delivery is in the order of its key.
#[derive(Debug)]
pub(in crate::deliver) enum Rank {
    /// It is the head, and may be attempted.
    Head(Step),
    /// It waits in memory behind the head.
    Waits,
    /// It stays in the log, or is in memory already.
    Stays,
}

#[derive(Debug, Default)]
struct Key {
    /// Its unsettled deliveries as far as they were read. The first is the head.
    unsettled: BTreeSet<Offset>,
    /// Everything of the key below is settled.
    cursor: Offset,
    /// The head is in the lane's queue or under way.
    head_is_out: bool,
    /// Bodies of what comes right after the head.
    waiting: VecDeque<Waiting>,
    /// If the head failed.
    next_attempt: Option<NextAttempt>,
    is_blocked: bool,
}

impl Key {
    /// Everything of the key below is settled.
    fn lowest(&self) -> Offset {
        self.unsettled.first().copied().unwrap_or(self.cursor)
    }

    /// When to look again, if the head is not due yet.
    fn due_later_ms(&self, now: Now) -> Option<i64> {
        let due_at_ms = self.next_attempt?.due_at_ms;
        (due_at_ms > now.wall_ms).then(|| mono_ms(due_at_ms, now))
    }

    /// The head and what follows it, as far as it is not in memory and would fit there.
    fn missing(&self) -> impl Iterator<Item = Offset> {
        let here = self.waiting.len() + usize::from(self.head_is_out);
        self.unsettled
            .iter()
            .take(1 + WAITING_MAX)
            .skip(here)
            .copied()
    }
}

/// The keys of a lane.
#[derive(Debug, Default)]
pub(in crate::deliver) struct Order {
    keys: BTreeMap<String, Key>,
    /// Where what waits in memory is counted.
    room: Room,
    /// Unsettled deliveries of keys that are not blocked.
    open: BTreeSet<Offset>,
    /// When heads that are not in memory are to be read, on the clock that never goes back.
    due: BTreeSet<(i64, String)>,
    /// What is to be read now.
    to_read: BTreeSet<Offset>,
    blocked_keys: usize,
    blocked_offsets: usize,
    /// The lane was taken over and is not read up to here yet: below, only blocked keys have
    /// unsettled deliveries.
    unread_below: Offset,
    /// Settled or failed since a state was last sent: no state reflects it.
    unreflected: BTreeSet<Offset>,
    /// The state on its way reflects it, the durable one does not.
    unreflected_by_durable: BTreeSet<Offset>,
}

impl Order {
    /// What waits in memory is counted in `room`.
    pub(super) fn new(room: Room) -> Self {
        Self {
            room,
            ..Self::default()
        }
    }

    /// The keys as a former owner left them beside the lane's cursor. Those with nothing unsettled
    /// before the cursor are found again when the lane is read.
    pub(super) fn restored(
        blocked: Vec<BlockedKey>,
        cursor: &Cursor,
        room: Room,
        now: Now,
    ) -> Self {
        let unread_below = cursor.lowest_unsettled;
        let mut order = Self {
            unread_below,
            ..Self::new(room)
        };
        for blocked in blocked.into_iter().filter(|key| key.cursor < unread_below) {
            order.blocked_keys += 1;
            let next_attempt = blocked.failed_at_ms.map(|failed_at_ms| NextAttempt {
                number: blocked.attempt,
                due_at_ms: blocked.due_at_ms,
                failed_at_ms,
            });
            let due_ms = next_attempt.map_or(now.mono_ms, |next| mono_ms(next.due_at_ms, now));
            order.due.insert((due_ms, blocked.ordering_key.clone()));
            let key = Key {
                cursor: blocked.cursor,
                is_blocked: true,
                next_attempt,
                ..Key::default()
            };
            order.keys.insert(blocked.ordering_key, key);
        }
        order
    }

    // ---- deliveries come in ----

    /// Puts a delivery into the order of its key.
    pub(super) fn rank(&mut self, name: &str, step: Step, now: Now) -> Rank {
        let key = self.keys.entry(name.to_owned()).or_default();
        let offset = step.offset;
        self.to_read.remove(&offset);
        if key.unsettled.insert(offset) {
            if key.is_blocked {
                self.blocked_offsets += 1;
            } else {
                self.open.insert(offset);
            }
        }
        let rank = key.unsettled.range(..offset).count();
        if rank == 0 {
            if key.head_is_out {
                return Rank::Stays;
            }
            // It may have been read as due before the wall clock was set back.
            if let Some(due_ms) = key.due_later_ms(now) {
                self.due.insert((due_ms, name.to_owned()));
                return Rank::Stays;
            }
            key.head_is_out = true;
            return Rank::Head(step);
        }
        if rank <= key.waiting.len() {
            return Rank::Stays;
        }
        if key.head_is_out && rank == key.waiting.len() + 1 && rank <= WAITING_MAX {
            key.waiting.push_back(self.room.keep(step));
            return Rank::Waits;
        }
        self.mark_blocked(name);
        Rank::Stays
    }

    fn mark_blocked(&mut self, name: &str) {
        if let Some(key) = self.keys.get_mut(name)
            && !key.is_blocked
        {
            key.is_blocked = true;
            self.blocked_keys += 1;
            self.blocked_offsets += key.unsettled.len();
            for offset in &key.unsettled {
                self.open.remove(offset);
            }
        }
    }

    /// The next attempt of a key's head, if that failed.
    pub(super) fn next_attempt(&self, name: &str) -> Option<NextAttempt> {
        self.keys.get(name)?.next_attempt
    }

    // ---- heads end ----

    /// The head failed: its key is blocked. Answers with what is no longer in memory.
    pub(super) fn block(&mut self, name: &str, next: NextAttempt, now: Now) -> Vec<Step> {
        self.mark_blocked(name);
        let Some(key) = self.keys.get_mut(name) else {
            return Vec::new();
        };
        key.next_attempt = Some(next);
        key.head_is_out = false;
        self.unreflected.extend(key.unsettled.first());
        for offset in key.unsettled.iter().take(1 + WAITING_MAX) {
            self.to_read.remove(offset);
        }
        self.due
            .insert((mono_ms(next.due_at_ms, now), name.to_owned()));
        steps(&mut key.waiting)
    }

    /// A delivery of the key is settled. Answers with the key's next head, if that is in memory.
    pub(super) fn settle(&mut self, name: &str, offset: Offset, now: Now) -> Option<Step> {
        let key = self.keys.get_mut(name)?;
        if !key.unsettled.remove(&offset) {
            return None;
        }
        self.open.remove(&offset);
        self.to_read.remove(&offset);
        self.unreflected.insert(offset);
        self.blocked_offsets -= usize::from(key.is_blocked);
        key.cursor = offset + 1;
        key.next_attempt = None;
        key.head_is_out = false;
        let next = key.waiting.pop_front().map(|waiting| waiting.step);
        if next.is_some() {
            key.head_is_out = true;
        } else if !key.unsettled.is_empty() {
            self.due.insert((now.mono_ms, name.to_owned()));
        } else if !key.is_blocked || self.unread_below == 0 {
            self.blocked_keys -= usize::from(key.is_blocked);
            self.keys.remove(name);
        }
        next
    }

    /// A head that was in the queue goes back to the log with what waits behind it. Answers with
    /// what is no longer in memory, and with whether the lane must read it again: a blocked key
    /// reads for itself.
    pub(super) fn evict(&mut self, name: &str, now: Now) -> (Vec<Step>, bool) {
        let Some(key) = self.keys.get_mut(name) else {
            return (Vec::new(), false);
        };
        key.head_is_out = false;
        let freed = steps(&mut key.waiting);
        if key.is_blocked {
            self.due.insert((now.mono_ms, name.to_owned()));
            return (freed, false);
        }
        for offset in &key.unsettled {
            self.open.remove(offset);
        }
        self.keys.remove(name);
        (freed, true)
    }

    /// Forgets what waits in memory: the partition leaves.
    pub(super) fn clear(&mut self) {
        for key in self.keys.values_mut() {
            key.waiting.clear();
        }
    }

    // ---- reading for blocked keys ----

    /// When the next head is to be read, on the clock that never goes back.
    pub(super) fn next_due_ms(&self) -> Option<i64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// When the first head that is to be read is due, on the wall.
    pub(super) fn next_due_at_ms(&self, now: Now) -> Option<i64> {
        let heads = self.due.iter().filter_map(|(_, name)| self.keys.get(name));
        let due = heads.map(|key| key.next_attempt.map_or(now.wall_ms, |next| next.due_at_ms));
        due.min()
    }

    /// Whether something is to be read now. At `next` is the live stream, which comes first.
    pub(super) fn has_to_read(&self, next: Offset, now: Now) -> bool {
        self.to_read.first().is_some_and(|offset| *offset < next)
            || self
                .next_due_ms()
                .is_some_and(|due_ms| due_ms <= now.mono_ms)
    }

    /// What is to be read now: the heads that are due, `heads_max` of them at most, and what comes
    /// right after them. Answers with the lowest.
    pub(super) fn plan_reads(
        &mut self,
        heads_max: usize,
        next: Offset,
        now: Now,
    ) -> Option<Offset> {
        let mut heads = 0;
        while heads < heads_max
            && let Some((due_ms, _)) = self.due.first()
            && *due_ms <= now.mono_ms
            && let Some((_, name)) = self.due.pop_first()
        {
            let Some(key) = self.keys.get(&name).filter(|key| !key.head_is_out) else {
                continue;
            };
            if let Some(due_ms) = key.due_later_ms(now) {
                self.due.insert((due_ms, name));
                continue;
            }
            self.to_read.extend(key.missing());
            heads += 1;
        }
        self.to_read
            .first()
            .copied()
            .filter(|offset| *offset < next)
    }

    /// Whether it is to be read although the lane's cursor has passed it.
    pub(super) fn is_to_read(&self, offset: Offset) -> bool {
        self.to_read.contains(&offset)
    }

    /// The log no longer has what is before `start`: the keys go on without it.
    pub(super) fn truncated(&mut self, start: Offset, now: Now) {
        self.to_read = self.to_read.split_off(&start);
        let names: Vec<_> = self.keys.keys().cloned().collect();
        for name in names {
            while let Some(key) = self.keys.get(&name)
                && let Some(first) = key
                    .unsettled
                    .first()
                    .filter(|first| **first < start)
                    .copied()
                && key.is_blocked
                && !key.head_is_out
            {
                self.settle(&name, first, now);
            }
        }
    }

    // ---- what is known ----

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn blocked_keys(&self) -> usize {
        self.blocked_keys
    }

    /// Whether so much is blocked that nothing more is to be read, but for what was read before.
    pub(super) fn is_full(&self, limits: &OrderLimits) -> bool {
        let is_full =
            self.blocked_keys >= limits.keys_max || self.blocked_offsets >= limits.offsets_max;
        is_full && self.unread_below == 0
    }

    /// The lowest unsettled delivery of the keys that are not blocked.
    pub(super) fn lowest_open(&self) -> Option<Offset> {
        self.open.first().copied()
    }

    /// Where the unsettled deliveries of all keys begin.
    pub(super) fn lowest(&self) -> Option<Offset> {
        self.keys.values().map(Key::lowest).min()
    }

    /// Of a lane taken over: what is below was passed by its cursor, and is not all read yet.
    /// Otherwise 0.
    pub(super) fn unread_below(&self) -> Offset {
        self.unread_below
    }

    /// Whether a delivery that the cursor of a lane taken over has passed is settled.
    pub(super) fn has_passed(&self, name: Option<&str>, offset: Offset) -> bool {
        let key = name.and_then(|name| self.keys.get(name));
        key.is_none_or(|key| !key.is_blocked || offset < key.cursor)
    }

    /// The lane is read up to where it was taken over: all deliveries of the keys are known.
    pub(super) fn all_read(&mut self) {
        self.unread_below = 0;
        let before = self.keys.len();
        self.keys.retain(|_, key| !key.unsettled.is_empty());
        self.blocked_keys -= before - self.keys.len();
    }

    // ---- what is written ----

    /// The blocked keys, to be written beside the cursor.
    pub(super) fn blocked(&self) -> Vec<BlockedKey> {
        let blocked = self.keys.iter().filter(|(_, key)| key.is_blocked);
        let written = blocked.map(|(name, key)| BlockedKey {
            ordering_key: name.clone(),
            cursor: key.lowest(),
            attempt: key.next_attempt.map_or(1, |next| next.number),
            due_at_ms: key.next_attempt.map_or(0, |next| next.due_at_ms),
            failed_at_ms: key.next_attempt.map(|next| next.failed_at_ms),
        });
        written.collect()
    }

    /// A state that reflects everything is on its way.
    pub(super) fn state_sent(&mut self) {
        self.unreflected_by_durable.append(&mut self.unreflected);
    }

    /// The state that was sent is durable.
    pub(super) fn state_acknowledged(&mut self) {
        self.unreflected_by_durable.clear();
    }

    /// The durable state is as a new one would be.
    pub(super) fn state_is_current(&mut self) {
        self.unreflected.clear();
    }

    /// The state that was sent may not be durable.
    pub(super) fn state_not_acknowledged(&mut self) {
        self.unreflected.append(&mut self.unreflected_by_durable);
    }

    /// Whether the durable state may not reflect how it stands with this offset. From `unread_from`
    /// on the lane is not read.
    pub(super) fn is_unreflected(&self, offset: Offset, unread_from: Option<Offset>) -> bool {
        let is_unread =
            offset < self.unread_below && unread_from.is_some_and(|unread| offset >= unread);
        // What a former owner settled is unsettled here until its turn comes to be recognised.
        let is_open = || {
            let mut keys = self.keys.values();
            keys.any(|key| key.unsettled.contains(&offset))
        };
        is_unread
            || self.unreflected.contains(&offset)
            || self.unreflected_by_durable.contains(&offset)
            || is_open()
    }
}

fn steps(waiting: &mut VecDeque<Waiting>) -> Vec<Step> {
    waiting.drain(..).map(|waiting| waiting.step).collect()
}

/// When to look at what is due then: not much later than the wall clock could be set right.
fn mono_ms(wall_ms: i64, now: Now) -> i64 {
    let wait_ms = wall_ms.saturating_sub(now.wall_ms).min(LOOK_AGAIN_MS);
    now.mono_ms.saturating_add(wait_ms)
}

#[cfg(test)]
mod tests;
