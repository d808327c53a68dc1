//! The ordering keys of an ordered endpoint: of each, one delivery at a time, in the order of the log.
//!
//! The lane's queue holds only *heads*: of every key its lowest unsettled delivery. A few more of the key wait here with
//! their bodies; of the rest only the offsets are kept, and the bodies are read from the log when their time comes. A head
//! that failed keeps its place: its key waits until the next attempt is due, and other keys go on.
//!
//! A key whose head failed, or that has more deliveries than fit into memory, *stands aside*: the lane's cursor passes its
//! deliveries, and a cursor of its own is written beside ([`BlockedKey`]). So however long a key is held back, the lane's
//! cursor goes on. Where too many stand aside, the lane reads no further.
//!
//! Nothing here knows a runtime, a log or a network.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use postrider_log::Offset;
use postrider_model::delivery::{BlockedKey, Cursor};

use super::lane::{Now, Step};

/// Deliveries of one key that wait in memory behind its head.
const WAITING_MAX: usize = 8;

/// A wall clock that was wrong when a wait was measured makes it longer by no more than this.
const LOOK_AGAIN_MS: i64 = 60_000;

/// The limits of what stands aside at one endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OrderLimits {
    /// Keys.
    pub(crate) keys_max: usize,
    /// Their deliveries.
    pub(crate) offsets_max: usize,
}

/// How a head that failed goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    /// Number of its next attempt.
    pub(super) attempt: u32,
    /// Not before this time, on the wall.
    pub(super) due_at_ms: i64,
    /// When it failed first.
    pub(super) failed_at_ms: i64,
}

/// What became of a delivery that was offered.
#[derive(Debug)]
pub(super) enum Placed {
    /// It is its key's head, and may be attempted.
    Head(Step),
    /// It waits in memory.
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
    waiting: VecDeque<Step>,
    /// How the head goes on, if it failed.
    again: Option<Again>,
    stands_aside: bool,
}

impl Key {
    /// Everything of the key below is settled.
    fn lowest(&self) -> Offset {
        self.unsettled.first().copied().unwrap_or(self.cursor)
    }

    /// When to look again, if the head is not due yet.
    fn due_later_ms(&self, now: Now) -> Option<i64> {
        let again = self.again.filter(|again| again.due_at_ms > now.wall_ms)?;
        Some(mono_ms(again.due_at_ms, now))
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
pub(super) struct Order {
    keys: BTreeMap<String, Key>,
    /// Unsettled deliveries of keys that do not stand aside.
    open: BTreeSet<Offset>,
    /// When heads that are not in memory are to be read, on the clock that never goes back.
    due: BTreeSet<(i64, String)>,
    /// What is to be read now.
    wanted: BTreeSet<Offset>,
    aside: usize,
    offsets_aside: usize,
    waiting: usize,
    /// The lane was taken over and is not read up to here yet: below, only keys that stand aside have unsettled deliveries.
    unread_below: Offset,
    /// Settled or failed since a state was last made; and before that, but not in the state that is durable.
    news: BTreeSet<Offset>,
    news_sent: BTreeSet<Offset>,
}

impl Order {
    /// The keys as a former owner left them beside the lane's cursor. Those with nothing unsettled before the cursor are
    /// found again when the lane is read.
    pub(super) fn restored(blocked: Vec<BlockedKey>, cursor: &Cursor, now: Now) -> Self {
        let unread_below = cursor.lowest_unsettled;
        let mut order = Self {
            unread_below,
            ..Self::default()
        };
        for blocked in blocked.into_iter().filter(|key| key.cursor < unread_below) {
            order.aside += 1;
            let again = blocked.failed_at_ms.map(|failed_at_ms| Again {
                attempt: blocked.attempt,
                due_at_ms: blocked.due_at_ms,
                failed_at_ms,
            });
            let due_ms = again.map_or(now.mono_ms, |again| mono_ms(again.due_at_ms, now));
            order.due.insert((due_ms, blocked.ordering_key.clone()));
            let key = Key {
                cursor: blocked.cursor,
                stands_aside: true,
                again,
                ..Key::default()
            };
            order.keys.insert(blocked.ordering_key, key);
        }
        order
    }

    // ---- deliveries come in ----

    /// Puts a delivery into its key's order.
    pub(super) fn place(&mut self, name: &str, step: Step, now: Now) -> Placed {
        let key = self.keys.entry(name.to_owned()).or_default();
        let offset = step.offset;
        self.wanted.remove(&offset);
        if key.unsettled.insert(offset) {
            if key.stands_aside {
                self.offsets_aside += 1;
            } else {
                self.open.insert(offset);
            }
        }
        let rank = key.unsettled.range(..offset).count();
        if rank == 0 {
            if key.head_is_out {
                return Placed::Stays;
            }
            // It may have been read as due before the wall clock was set back.
            if let Some(due_ms) = key.due_later_ms(now) {
                self.due.insert((due_ms, name.to_owned()));
                return Placed::Stays;
            }
            key.head_is_out = true;
            return Placed::Head(step);
        }
        if rank <= key.waiting.len() {
            return Placed::Stays;
        }
        if key.head_is_out && rank == key.waiting.len() + 1 && rank <= WAITING_MAX {
            key.waiting.push_back(step);
            self.waiting += 1;
            return Placed::Waits;
        }
        self.stand_aside(name);
        Placed::Stays
    }

    fn stand_aside(&mut self, name: &str) {
        if let Some(key) = self.keys.get_mut(name)
            && !key.stands_aside
        {
            key.stands_aside = true;
            self.aside += 1;
            self.offsets_aside += key.unsettled.len();
            for offset in &key.unsettled {
                self.open.remove(offset);
            }
        }
    }

    /// How the head of a key goes on, if it failed.
    pub(super) fn again(&self, name: &str) -> Option<Again> {
        self.keys.get(name)?.again
    }

    // ---- heads end ----

    /// The head failed: its key waits. Answers with what is no longer in memory.
    pub(super) fn block(&mut self, name: &str, again: Again, now: Now) -> Vec<Step> {
        self.stand_aside(name);
        let Some(key) = self.keys.get_mut(name) else {
            return Vec::new();
        };
        key.again = Some(again);
        key.head_is_out = false;
        self.news.extend(key.unsettled.first());
        for offset in key.unsettled.iter().take(1 + WAITING_MAX) {
            self.wanted.remove(offset);
        }
        self.due
            .insert((mono_ms(again.due_at_ms, now), name.to_owned()));
        self.waiting -= key.waiting.len();
        std::mem::take(&mut key.waiting).into()
    }

    /// A delivery of the key is settled. Answers with the key's next head, if that is in memory.
    pub(super) fn settle(&mut self, name: &str, offset: Offset, now: Now) -> Option<Step> {
        let key = self.keys.get_mut(name)?;
        if !key.unsettled.remove(&offset) {
            return None;
        }
        self.open.remove(&offset);
        self.wanted.remove(&offset);
        self.news.insert(offset);
        self.offsets_aside -= usize::from(key.stands_aside);
        key.cursor = offset + 1;
        key.again = None;
        key.head_is_out = false;
        let next = key.waiting.pop_front();
        if next.is_some() {
            key.head_is_out = true;
            self.waiting -= 1;
        } else if !key.unsettled.is_empty() {
            self.due.insert((now.mono_ms, name.to_owned()));
        } else if !key.stands_aside || self.unread_below == 0 {
            self.aside -= usize::from(key.stands_aside);
            self.keys.remove(name);
        }
        next
    }

    /// A head that was in the queue goes back to the log with what waits behind it. Answers with what is no longer in
    /// memory, and with whether the lane must read it again: a key that stands aside reads for itself.
    pub(super) fn shed(&mut self, name: &str, now: Now) -> (Vec<Step>, bool) {
        let Some(key) = self.keys.get_mut(name) else {
            return (Vec::new(), false);
        };
        key.head_is_out = false;
        self.waiting -= key.waiting.len();
        let freed = std::mem::take(&mut key.waiting).into();
        if key.stands_aside {
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
        self.waiting = 0;
        for key in self.keys.values_mut() {
            key.waiting.clear();
        }
    }

    // ---- reading for keys that stand aside ----

    /// When the next head is to be read, on the clock that never goes back.
    pub(super) fn next_due_ms(&self) -> Option<i64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// Whether something is to be read now. At `next` is the live stream, which comes first.
    pub(super) fn wants(&self, next: Offset, now: Now) -> bool {
        self.wanted.first().is_some_and(|wanted| *wanted < next)
            || self
                .next_due_ms()
                .is_some_and(|due_ms| due_ms <= now.mono_ms)
    }

    /// What is to be read now: the heads that are due, `heads_max` of them at most, and what comes right after them. Answers
    /// with the lowest.
    pub(super) fn want(&mut self, heads_max: usize, next: Offset, now: Now) -> Option<Offset> {
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
            self.wanted.extend(key.missing());
            heads += 1;
        }
        self.wanted.first().copied().filter(|wanted| *wanted < next)
    }

    /// Whether it is to be read although the lane's cursor has passed it.
    pub(super) fn is_wanted(&self, offset: Offset) -> bool {
        self.wanted.contains(&offset)
    }

    /// The log no longer has what is before `start`: the keys go on without it.
    pub(super) fn truncated(&mut self, start: Offset, now: Now) {
        self.wanted = self.wanted.split_off(&start);
        let names: Vec<_> = self.keys.keys().cloned().collect();
        for name in names {
            while let Some(key) = self.keys.get(&name)
                && let Some(first) = key
                    .unsettled
                    .first()
                    .filter(|first| **first < start)
                    .copied()
                && key.stands_aside
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

    /// Keys that stand aside.
    pub(super) fn aside(&self) -> usize {
        self.aside
    }

    /// Deliveries that wait in memory behind heads.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether so much stands aside that nothing more is to be read, but for what was read before.
    pub(super) fn is_full(&self, limits: &OrderLimits) -> bool {
        let is_full = self.aside >= limits.keys_max || self.offsets_aside >= limits.offsets_max;
        is_full && self.unread_below == 0
    }

    /// The lowest unsettled delivery of the keys that do not stand aside.
    pub(super) fn lowest_open(&self) -> Option<Offset> {
        self.open.first().copied()
    }

    /// Where the unsettled deliveries of all keys begin.
    pub(super) fn lowest(&self) -> Option<Offset> {
        self.keys.values().map(Key::lowest).min()
    }

    /// Of a lane taken over: what is below was passed by its cursor, and is not all read yet. Otherwise 0.
    pub(super) fn unread_below(&self) -> Offset {
        self.unread_below
    }

    /// Whether a delivery that the cursor of a lane taken over has passed is settled.
    pub(super) fn has_passed(&self, name: Option<&str>, offset: Offset) -> bool {
        let key = name.and_then(|name| self.keys.get(name));
        key.is_none_or(|key| !key.stands_aside || offset < key.cursor)
    }

    /// The lane is read up to where it was taken over: all deliveries of the keys are known.
    pub(super) fn all_read(&mut self) {
        self.unread_below = 0;
        let before = self.keys.len();
        self.keys.retain(|_, key| !key.unsettled.is_empty());
        self.aside -= before - self.keys.len();
    }

    // ---- what is written ----

    /// What stands aside, to be written beside the cursor; from now on the state on its way knows everything.
    pub(super) fn blocked(&self) -> Vec<BlockedKey> {
        let aside = self.keys.iter().filter(|(_, key)| key.stands_aside);
        aside
            .map(|(name, key)| BlockedKey {
                ordering_key: name.clone(),
                cursor: key.lowest(),
                attempt: key.again.map_or(1, |again| again.attempt),
                due_at_ms: key.again.map_or(0, |again| again.due_at_ms),
                failed_at_ms: key.again.map(|again| again.failed_at_ms),
            })
            .collect()
    }

    /// A state that knows everything is on its way.
    pub(super) fn sent(&mut self) {
        self.news_sent.append(&mut self.news);
    }

    /// What is durable knows everything up to when it was sent.
    pub(super) fn written(&mut self) {
        self.news_sent.clear();
    }

    /// What is durable knows everything.
    pub(super) fn nothing_new(&mut self) {
        self.news.clear();
    }

    /// What was sent may not be durable.
    pub(super) fn not_written(&mut self) {
        self.news.append(&mut self.news_sent);
    }

    /// Whether the durable state may not know how it stands with this offset. `position` is where the lane is read on.
    pub(super) fn has_news_of(&self, offset: Offset, position: Option<Offset>) -> bool {
        let is_unread =
            offset < self.unread_below && position.is_some_and(|unread| offset >= unread);
        // What a former owner settled is unsettled here until its turn comes to be recognised.
        let is_open = || {
            let mut keys = self.keys.values();
            keys.any(|key| key.unsettled.contains(&offset))
        };
        is_unread || self.news.contains(&offset) || self.news_sent.contains(&offset) || is_open()
    }
}

/// When to look at what is due then: not much later than the wall clock could be set right.
fn mono_ms(wall_ms: i64, now: Now) -> i64 {
    let wait_ms = wall_ms.saturating_sub(now.wall_ms).min(LOOK_AGAIN_MS);
    now.mono_ms.saturating_add(wait_ms)
}

#[cfg(test)]
mod tests;
