//! Which offsets of a lane are unsettled, and where their records are: in the queue, under way,
//! behind the head of an ordering key, or in the log.

use std::collections::{BTreeSet, VecDeque};

use postrider_log::Offset;
use postrider_model::delivery::{BlockedKey, Cursor, LaneState};

use super::order::{NextAttempt, Order, Rank};
use crate::deliver::limits::LaneLimits;
use crate::deliver::step::{Now, Room, Step, Waiting};

#[derive(Debug)]
pub(super) struct Backlog {
    queue: VecDeque<Waiting>,
    /// What waits in memory, in the queue and behind heads.
    room: Room,
    /// In memory and not settled, of a lane without order: queued, under way, or beside work that
    /// is.
    in_memory: BTreeSet<Offset>,
    /// The ordering keys, if order matters to the endpoint.
    order: Order,
    /// Settled, but above an offset that is not.
    settled: BTreeSet<Offset>,
    /// Everything below was settled when the lane was taken over.
    floor: Offset,
    /// From here on records stay in the log; `None` if all are taken.
    unread_from: Option<Offset>,
}

impl Backlog {
    pub(super) fn new() -> Self {
        let room = Room::default();
        Self {
            queue: VecDeque::new(),
            order: Order::new(room.clone()),
            room,
            in_memory: BTreeSet::new(),
            settled: BTreeSet::new(),
            floor: 0,
            unread_from: None,
        }
    }

    /// As a former owner left it: all of it is in the log.
    pub(super) fn restored(state: &LaneState, now: Now) -> Self {
        let mut backlog = Self::new();
        if let Some(cursor) = &state.cursor {
            let (blocked, room) = (state.blocked.clone(), backlog.room.clone());
            backlog.order = Order::restored(blocked, cursor, room, now);
            let blocked_from = backlog.order.lowest().unwrap_or(cursor.lowest_unsettled);
            backlog.unread_from = Some(blocked_from.min(cursor.lowest_unsettled));
            backlog.settled.clone_from(&cursor.settled);
            backlog.floor = cursor.lowest_unsettled;
        }
        backlog
    }

    // ---- records come in ----

    /// Whether the record at this offset is settled or in memory already, so that it is not to be
    /// taken again.
    pub(super) fn knows(&self, offset: Offset) -> bool {
        (offset < self.floor && self.order.unread_below() == 0)
            || self.settled.contains(&offset)
            || self.in_memory.contains(&offset)
    }

    /// Whether this record was settled before the lane was taken over, which for an ordered
    /// endpoint its key decides.
    pub(super) fn has_passed(&self, offset: Offset, key: Option<&str>) -> bool {
        offset < self.order.unread_below() && self.order.has_passed(key, offset)
    }

    /// Whether a record that comes in live fits into memory.
    pub(super) fn has_room(&self, limits: &LaneLimits) -> bool {
        self.room.steps() < limits.queue_max
            && self.room.bytes() < limits.queue_bytes_max
            && !self.order.is_full(&limits.order)
    }

    /// Takes a record into memory.
    pub(super) fn take(&mut self, step: Step) {
        self.in_memory.insert(step.offset);
        self.enqueue(step);
    }

    /// Puts a delivery in its place in the queue.
    pub(super) fn enqueue(&mut self, step: Step) {
        let before = |queued: &Waiting| queued.step.offset < step.offset;
        let place = self.queue.partition_point(before);
        self.queue.insert(place, self.room.keep(step));
    }

    /// A record waits beside work that is under way: it is in memory, but not in the queue.
    pub(super) fn take_beside(&mut self, offset: Offset) {
        self.in_memory.insert(offset);
    }

    /// The lane's records from here on stay in the log for now.
    pub(super) fn leave_in_log(&mut self, offset: Offset) {
        let unread_from = self.unread_from.unwrap_or(offset);
        self.unread_from = Some(unread_from.min(offset));
    }

    // ---- ordering keys ----

    /// Puts a record into the order of its key. A head is the caller's, who may
    /// [`Backlog::enqueue`] it.
    pub(super) fn rank(&mut self, key: &str, step: Step, now: Now) -> Rank {
        self.order.rank(key, step, now)
    }

    /// The head of a key failed, and the key is blocked.
    pub(super) fn block(&mut self, key: &str, next: NextAttempt, now: Now) {
        drop(self.order.block(key, next, now));
    }

    pub(super) fn order(&self) -> &Order {
        &self.order
    }

    /// Where to read the heads of blocked keys that are due, so many of them at most.
    pub(super) fn plan_reads(
        &mut self,
        heads_max: usize,
        next: Offset,
        now: Now,
    ) -> Option<Offset> {
        self.order.plan_reads(heads_max, next, now)
    }

    // ---- reading again ----

    pub(super) fn unread_from(&self) -> Option<Offset> {
        self.unread_from
    }

    /// Whether nothing more may be read for now, but heads of blocked keys.
    pub(super) fn is_full(&self, limits: &LaneLimits) -> bool {
        // What is settled above the lowest unsettled record is remembered one by one, so it must
        // not become too much.
        let window_is_full =
            self.settled.len() >= limits.window_max && self.lowest_in_memory().is_some();
        window_is_full
            || self.room.bytes() >= limits.queue_bytes_max
            || self.room.steps() - self.queue.len() >= limits.queue_max
            || self.order.is_full(&limits.order)
    }

    pub(super) fn bytes(&self) -> usize {
        self.room.bytes()
    }

    /// Everything up to `to` was read; at `next`, where the live stream is, nothing is left in the
    /// log.
    pub(super) fn read_up_to(&mut self, to: Offset, next: Offset) {
        self.unread_from = (to < next).then_some(to);
        self.came_up_to(next);
    }

    /// The live stream has come up to `next`.
    pub(super) fn came_up_to(&mut self, next: Offset) {
        // A former owner may have read it further than was committed: what comes live follows at
        // once.
        if self.unread_from == Some(next) {
            self.unread_from = None;
        }
        let unread_below = self.order.unread_below();
        if unread_below > 0 && self.unread_from.unwrap_or(next) >= unread_below {
            self.order.all_read();
        }
    }

    /// The log no longer has what is before `start`. Answers with where the lane was, if that is
    /// before.
    pub(super) fn truncated(&mut self, start: Offset, next: Offset, now: Now) -> Option<Offset> {
        let beginnings = [self.unread_from, self.order.lowest()];
        let lost_from = beginnings.into_iter().flatten().min();
        let lost_from = lost_from.filter(|from| *from < start)?;
        self.order.truncated(start, now);
        if self.unread_from.is_some_and(|from| from < start) {
            self.read_up_to(start, next);
        }
        Some(lost_from)
    }

    /// Gives the memory of what waits back to the log. Answers with what was taken out.
    pub(super) fn evict(&mut self, now: Now) -> Vec<Step> {
        let queued = std::mem::take(&mut self.queue);
        let mut evicted: Vec<_> = queued.into_iter().map(|waiting| waiting.step).collect();
        let mut behind_heads = Vec::new();
        for step in &evicted {
            let is_read_again = match step.delivery.order_key() {
                Some(key) => {
                    let (freed, is_read_again) = self.order.evict(key, now);
                    behind_heads.extend(freed);
                    is_read_again
                }
                None => self.in_memory.remove(&step.offset),
            };
            if is_read_again {
                let unread_from = self.unread_from.unwrap_or(step.offset);
                self.unread_from = Some(unread_from.min(step.offset));
            }
        }
        evicted.extend(behind_heads);
        evicted
    }

    /// A record that waited beside work is given back to the log with it.
    pub(super) fn evict_beside(&mut self, offset: Offset) {
        self.in_memory.remove(&offset);
        self.leave_in_log(offset);
    }

    /// Forgets what is not under way: the partition leaves.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.order.clear();
    }

    // ---- attempts ----

    /// What is attempted next.
    pub(super) fn head(&self) -> Option<&Step> {
        self.queue.front().map(|waiting| &waiting.step)
    }

    /// Takes the head out; it stays in memory until it is settled.
    pub(super) fn pop(&mut self) -> Option<Step> {
        self.queue.pop_front().map(|waiting| waiting.step)
    }

    /// Whether the head waits until something lower is settled: the lowest unsettled record may
    /// always start, since that is what a full window waits for.
    pub(super) fn window_holds_back(&self, head: &Step, window_max: usize) -> bool {
        let lowest = self.lowest_in_memory();
        self.settled.len() >= window_max && lowest.is_some_and(|lowest| head.offset > lowest)
    }

    /// A record is settled; the live stream is at `next`. Answers with the next head of its
    /// ordering key, if that is in memory.
    pub(super) fn settle(&mut self, step: &Step, next: Offset, now: Now) -> Option<Step> {
        let offset = step.offset;
        self.in_memory.remove(&offset);
        let key = step.delivery.order_key();
        let next_head = key.and_then(|key| self.order.settle(key, offset, now));
        let lowest = self.lowest_unsettled(next);
        if offset > lowest {
            self.settled.insert(offset);
        }
        if self.settled.first().is_some_and(|first| *first < lowest) {
            self.settled = self.settled.split_off(&lowest);
        }
        next_head
    }

    // ---- what is unsettled ----

    /// The lowest offset that is not settled, but for blocked keys; where the live stream is, if
    /// all are. Once written down, it never moves back.
    pub(super) fn lowest_unsettled(&self, next: Offset) -> Offset {
        let in_memory = self.lowest_in_memory().unwrap_or(next);
        let lowest = self.unread_from.unwrap_or(in_memory).min(in_memory);
        lowest.max(self.order.unread_below())
    }

    /// The same, as far as it is in memory.
    fn lowest_in_memory(&self) -> Option<Offset> {
        let lowest = [self.in_memory.first().copied(), self.order.lowest_open()];
        lowest.into_iter().flatten().min()
    }

    /// The lowest offset that is not settled, blocked keys included.
    pub(super) fn lowest_of_all(&self, next: Offset) -> Offset {
        let blocked_from = self.order.lowest().unwrap_or(next);
        self.lowest_unsettled(next).min(blocked_from)
    }

    /// Whether everything below this offset is settled, and nothing is left in the log.
    pub(super) fn is_settled_below(&self, offset: Offset) -> bool {
        self.unread_from.is_none()
            && self.order.blocked_keys() == 0
            && self
                .lowest_in_memory()
                .is_none_or(|lowest| lowest >= offset)
    }

    /// Deliveries that wait in memory.
    pub(super) fn waiting(&self) -> usize {
        self.room.steps()
    }

    /// Those of them that may be attempted.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing of it is unsettled.
    pub(super) fn is_empty(&self) -> bool {
        self.in_memory.is_empty() && self.order.is_empty() && self.unread_from.is_none()
    }

    // ---- what is written ----

    /// Where a new owner would go on; the live stream is at `next`.
    pub(super) fn cursor(&self, behind_since_ms: i64, next: Offset) -> Cursor {
        Cursor {
            lowest_unsettled: self.lowest_unsettled(next),
            settled: self.settled.clone(),
            behind_since_ms,
        }
    }

    pub(super) fn blocked(&self) -> Vec<BlockedKey> {
        self.order.blocked()
    }

    pub(super) fn state_sent(&mut self) {
        self.order.state_sent();
    }

    pub(super) fn state_acknowledged(&mut self) {
        self.order.state_acknowledged();
    }

    pub(super) fn state_is_current(&mut self) {
        self.order.state_is_current();
    }

    pub(super) fn state_not_acknowledged(&mut self) {
        self.order.state_not_acknowledged();
    }

    /// Whether a new owner that finds this cursor would know that this offset is settled.
    pub(super) fn is_reflected_by(&self, cursor: &Cursor, offset: Offset) -> bool {
        cursor.has_settled(offset) && !self.order.is_unreflected(offset, self.unread_from)
    }
}
