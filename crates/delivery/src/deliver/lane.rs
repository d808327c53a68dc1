//! The lane of an endpoint: its deliveries in the order of the log, and how it is called.
//!
//! A lane holds the beginning of its deliveries in memory. While that is all there is, it is *live*: each of its records
//! holds the partition's commit until it is settled. When it cannot keep up (its queue is full, it is parked, its breaker
//! is open, or its oldest record waits too long) it goes *behind*: a [`Cursor`] in `endpoint-state` says where its unsettled
//! records begin, and from then on they hold nothing up, because whoever owns the partition next will read on from there.
//! What does not fit into memory stays in the log, and [`Lane::position`] is where it is read on.
//!
//! A cursor that is durable *covers* the lane: what is at or after it needs no commit to wait. The cover ends only when the
//! lane is live again: everything below `live_from` is settled, the commit has passed it, and a record without cursor is
//! sent. From that moment nothing is resolved by cover until a later cursor is acknowledged.
//!
//! Nothing here knows a runtime, a log or a network.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use postrider_log::Offset;
use postrider_model::delivery::{Cursor, Delivery, LaneState};
use postrider_model::flow::breaker::{Admission, Breaker, BreakerLimits};
use postrider_model::flow::bucket::TokenBucket;
use postrider_model::flow::concurrency::{ConcurrencyLimit, ConcurrencyLimits};
use postrider_model::ids::{EndpointId, TenantId};

use super::order::{Again, Order, OrderLimits, Placed};
use super::status::LaneStatus;

/// A delivery that waits for its attempt.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Its record's offset in `deliveries`.
    pub(super) offset: Offset,
    /// What it takes in memory.
    pub(super) bytes: usize,
    /// When its record was appended.
    pub(super) appended_ms: i64,
    /// The delivery.
    pub(super) delivery: Box<Delivery>,
}

/// A moment: on a clock that never goes back, and on the wall.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) mono_ms: i64,
    pub(super) wall_ms: i64,
    /// Whether ages on the wall tell anything; see [`postrider_log::Clock::ages_tell`].
    pub(super) ages_tell: bool,
}

/// How much room the deliveries in memory leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Enough.
    Free,
    /// More than half is taken: lanes that may not start anything give theirs back.
    Tight,
    /// None: what comes stays in the log, unless its endpoint has nothing in memory yet.
    Full,
    /// Endpoints that had nothing took a quarter beyond: whatever comes stays in the log.
    Exceeded,
}

/// The limits of every lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneLimits {
    /// Deliveries that wait in memory.
    pub(crate) queue_max: usize,
    /// Their bytes.
    pub(crate) queue_bytes_max: usize,
    /// Settled offsets beyond one that is not settled.
    pub(crate) window_max: usize,
    /// How long a record may hold the commit.
    pub(crate) hold_ms_max: i64,
    /// Age of a record at which retention comes near: it is dead-lettered before the log loses it.
    pub(crate) expires_after_ms: i64,
    /// What may stand aside at an ordered endpoint.
    pub(crate) order: OrderLimits,
    pub(crate) breaker: BreakerLimits,
    pub(crate) concurrency: ConcurrencyLimits,
}

/// An attempt under way.
#[derive(Debug)]
struct Flight {
    /// Its record in `attempts` will not have a lower offset.
    attempts_from: Offset,
    started_ms: i64,
}

/// When the lane may start its next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Now.
    Now,
    /// Not before this time, on the clock that never goes back.
    At(i64),
    /// When something else happened to it.
    Later,
}

/// How an attempt went, as far as it says something about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The endpoint took it.
    Succeeded {
        /// How long that took.
        latency_ms: u32,
    },
    /// It did not.
    Failed {
        /// It is overwhelmed.
        throttles: bool,
        /// How long it asked to be left alone.
        hold_ms: Option<i64>,
    },
    /// The endpoint was not asked, or the answer was cut off.
    Nothing,
}

/// A lane. See the module.
#[derive(Debug)]
pub(super) struct Lane {
    /// Whose it is; known from the first record on.
    tenant: Option<TenantId>,
    queue: VecDeque<Step>,
    queue_bytes: usize,
    in_flight: BTreeMap<Offset, Flight>,
    /// In memory and not settled: in the queue, under way, or waiting beside work that is.
    open: BTreeSet<Offset>,
    /// The ordering keys, if order matters to the endpoint.
    order: Order,
    /// Settled, but above an offset that is not.
    done: BTreeSet<Offset>,
    /// Everything below is settled.
    floor: Offset,
    /// Where records stay in the log; `None` if all are taken.
    position: Option<Offset>,
    /// Offsets that hold the partition's commit, and since when.
    held: BTreeMap<Offset, i64>,
    /// Only below this offset were records resolved by cover.
    live_from: Offset,
    /// The lane is to have a cursor.
    wants_cover: bool,
    /// Records hold the commit too long.
    presses: bool,
    behind_since_ms: i64,
    /// What `endpoint-state` has for certain.
    durable: Option<LaneState>,
    /// What is on its way there; the inner `None` is a tombstone.
    sent: Option<Option<LaneState>>,
    /// The first state with a cursor of which the fate is not known, under the id that commits still name.
    unacknowledged: Option<LaneState>,
    /// The end of the cover was sent under an id that is no longer written to: it may have come to pass.
    may_have_ended: bool,
    sent_ms: i64,
    breaker: Breaker,
    limit: ConcurrencyLimit,
    bucket: Option<TokenBucket>,
    proven: bool,
    parked: bool,
    failing_since_ms: Option<i64>,
    active_ms: i64,
    /// It stands in the line of lanes that may start an attempt.
    pub(super) in_line: bool,
}

impl Lane {
    pub(super) fn new(endpoint: &EndpointId, limits: &LaneLimits, now: Now) -> Self {
        Self {
            tenant: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            in_flight: BTreeMap::new(),
            open: BTreeSet::new(),
            order: Order::default(),
            done: BTreeSet::new(),
            floor: 0,
            position: None,
            held: BTreeMap::new(),
            live_from: 0,
            wants_cover: false,
            presses: false,
            behind_since_ms: 0,
            durable: None,
            sent: None,
            unacknowledged: None,
            may_have_ended: false,
            sent_ms: now.mono_ms,
            breaker: Breaker::new(limits.breaker, seed(endpoint)),
            limit: ConcurrencyLimit::new(limits.concurrency),
            bucket: None,
            proven: false,
            parked: false,
            failing_since_ms: None,
            active_ms: now.mono_ms,
            in_line: false,
        }
    }

    /// A lane as its former owner left it; the live stream begins at `next`. It is the caller's part to make `state` durable under its own state id.
    pub(super) fn restored(state: LaneState, next: Offset, limits: &LaneLimits, now: Now) -> Self {
        let mut lane = Self::new(&state.endpoint, limits, now);
        let wait_ms = state.breaker_open_until_ms.saturating_sub(now.wall_ms);
        lane.breaker = Breaker::restored(
            limits.breaker,
            seed(&state.endpoint),
            state.breaker_openings,
            wait_ms,
            now.mono_ms,
        );
        lane.failing_since_ms = state.failing_since_ms;
        if let Some(cursor) = &state.cursor {
            lane.floor = cursor.lowest_unsettled;
            lane.order = Order::restored(state.blocked.clone(), cursor, now);
            let aside = lane.order.lowest().unwrap_or(cursor.lowest_unsettled);
            lane.position = Some(aside.min(cursor.lowest_unsettled));
            lane.done.clone_from(&cursor.settled);
            lane.wants_cover = true;
            lane.behind_since_ms = cursor.behind_since_ms;
            // The former owner may have resolved by cover whatever it had read.
            lane.live_from = next;
        }
        lane.durable = Some(state);
        lane
    }

    // ---- records come in ----

    /// Whether the record at this offset is settled or in memory already, so that it is not to be taken again.
    pub(super) fn knows(&self, offset: Offset) -> bool {
        (offset < self.floor && self.order.unread_below() == 0)
            || self.done.contains(&offset)
            || self.open.contains(&offset)
    }

    /// Whether this record was settled before the lane was taken over, which for an ordered endpoint its key decides.
    pub(super) fn has_passed(&self, offset: Offset, key: Option<&str>) -> bool {
        offset < self.order.unread_below() && self.order.has_passed(key, offset)
    }

    /// Whose it is.
    pub(super) fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// Whether records that come in live stay in the log.
    pub(super) fn is_behind(&self) -> bool {
        self.position.is_some()
    }

    /// Where it is read on.
    pub(super) fn position(&self) -> Option<Offset> {
        self.position
    }

    /// Whether a record that comes in live fits into memory.
    pub(super) fn has_room(&self, limits: &LaneLimits) -> bool {
        self.queue.len() + self.order.waiting() < limits.queue_max
            && self.queue_bytes < limits.queue_bytes_max
            && !self.order.is_full(&limits.order)
    }

    /// Takes a record into memory, in the order of the log.
    pub(super) fn take(&mut self, step: Step, now: Now) {
        self.see(&step, now);
        self.open.insert(step.offset);
        self.queue_bytes += step.bytes;
        self.enqueue(step);
    }

    /// Puts a record of an ordering key into its order, and counts its bytes if it stays in memory. A head that is answered
    /// is the caller's, who may [`Lane::enqueue`] it.
    pub(super) fn place(&mut self, key: &str, step: Step, now: Now) -> Placed {
        self.see(&step, now);
        let bytes = step.bytes;
        let placed = self.order.place(key, step, now);
        if !matches!(placed, Placed::Stays) {
            self.queue_bytes += bytes;
        }
        placed
    }

    fn see(&mut self, step: &Step, now: Now) {
        self.active_ms = now.mono_ms;
        if self.tenant.is_none() {
            self.tenant = Some(step.delivery.event.tenant.clone());
        }
    }

    /// A delivery that was taken under way, but could not begin.
    pub(super) fn put_back(&mut self, step: Step, now: Now) {
        self.active_ms = now.mono_ms;
        self.queue_bytes += step.bytes;
        self.enqueue(step);
    }

    /// Puts a delivery in its place in the queue.
    pub(super) fn enqueue(&mut self, step: Step) {
        let after = self
            .queue
            .partition_point(|queued| queued.offset < step.offset);
        self.queue.insert(after, step);
    }

    /// A record waits beside work that is under way: it is in memory, but not in the queue.
    pub(super) fn open_beside(&mut self, offset: Offset) {
        self.open.insert(offset);
    }

    /// A record that came in live holds the commit until it is settled or covered.
    pub(super) fn hold(&mut self, offset: Offset, now: Now) {
        self.held.insert(offset, now.mono_ms);
    }

    /// The lane's records from here on stay in the log for now.
    pub(super) fn leave_in_log(&mut self, offset: Offset, now: Now) {
        let position = self
            .position
            .map_or(offset, |position| position.min(offset));
        if self.position.is_none() && !self.wants_cover {
            self.behind_since_ms = now.wall_ms;
        }
        self.position = Some(position);
        self.wants_cover = true;
    }

    /// The lowest offset that a new owner would read for it, if it is behind as far as the log knows.
    pub(super) fn durably_behind_from(&self) -> Option<Offset> {
        self.durable.as_ref()?.lowest_unsettled()
    }

    /// Offsets that need not hold the commit, because the durable cursor covers them. `next` is where the live stream is.
    pub(super) fn release_covered(&mut self, next: Offset) -> Vec<Offset> {
        let needs_cover = self.position.is_some() || self.presses;
        if !needs_cover || !self.is_covered() || self.held.is_empty() {
            return Vec::new();
        }
        self.presses = false;
        self.live_from = next;
        std::mem::take(&mut self.held).into_keys().collect()
    }

    // ---- ordering keys ----

    /// How the head of a key goes on, if it failed.
    pub(super) fn again(&self, key: &str) -> Option<Again> {
        self.order.again(key)
    }

    /// The head of a key failed, and the key waits. Answers with the bytes that are no longer in memory.
    pub(super) fn block(&mut self, key: &str, again: Again, now: Now) -> usize {
        let freed = self.order.block(key, again, now);
        let bytes = freed.iter().map(|step| step.bytes).sum();
        self.queue_bytes -= bytes;
        bytes
    }

    /// A head that was to be enqueued is not.
    pub(super) fn leave(&mut self, head: &Step) {
        self.queue_bytes -= head.bytes;
    }

    /// Whether heads of keys that stand aside are to be read.
    pub(super) fn wants_heads(
        &self,
        limits: &LaneLimits,
        memory: Memory,
        next: Offset,
        now: Now,
    ) -> bool {
        self.order.wants(next, now) && self.heads_to_read(limits, memory, now) > 0
    }

    /// Where to read them.
    pub(super) fn want_heads(
        &mut self,
        limits: &LaneLimits,
        memory: Memory,
        next: Offset,
        now: Now,
    ) -> Option<Offset> {
        let heads = self.heads_to_read(limits, memory, now);
        self.order.want(heads, next, now)
    }

    /// Whether this record is one of them, or comes right after one.
    pub(super) fn is_wanted(&self, offset: Offset) -> bool {
        self.order.is_wanted(offset)
    }

    fn heads_to_read(&self, limits: &LaneLimits, memory: Memory, now: Now) -> usize {
        let reads = self.reads(limits, memory, now) && self.queue_bytes < limits.queue_bytes_max;
        let target = if reads { self.target(limits, now) } else { 0 };
        target.saturating_sub(self.queue.len())
    }

    // ---- catching up ----

    /// Whether records may be read for it.
    fn reads(&self, limits: &LaneLimits, memory: Memory, now: Now) -> bool {
        let has_memory = match memory {
            Memory::Free => true,
            Memory::Tight => !self.is_stuck(now),
            Memory::Full | Memory::Exceeded => false,
        };
        has_memory && (!self.parked || self.is_old(limits, now))
    }

    /// Of a lane that waits for long, the oldest records may have to be dead-lettered before the log loses them.
    fn is_old(&self, limits: &LaneLimits, now: Now) -> bool {
        now.ages_tell && now.wall_ms - self.behind_since_ms >= limits.expires_after_ms
    }

    /// How many records it is to have in its queue.
    fn target(&self, limits: &LaneLimits, now: Now) -> usize {
        if self.breaker.is_closed() || self.is_old(limits, now) {
            (self.limit.limit() * 4).max(16).min(limits.queue_max)
        } else {
            1
        }
    }

    /// How many records it would take from the log now.
    pub(super) fn appetite(&self, limits: &LaneLimits, memory: Memory, now: Now) -> usize {
        if self.position.is_none() || !self.reads(limits, memory, now) {
            return 0;
        }
        // What is settled beyond the lowest unsettled record is remembered one by one, so it must not become too much.
        let window_is_full = self.done.len() >= limits.window_max && self.lowest_open().is_some();
        let is_full = self.queue_bytes >= limits.queue_bytes_max
            || self.order.waiting() >= limits.queue_max
            || self.order.is_full(&limits.order);
        if is_full || window_is_full {
            return 0;
        }
        self.target(limits, now).saturating_sub(self.queue.len())
    }

    /// Whether it is hungry enough to be read for.
    pub(super) fn is_hungry(&self, limits: &LaneLimits, memory: Memory, now: Now) -> bool {
        let appetite = self.appetite(limits, memory, now);
        appetite > 0 && appetite >= self.queue.len()
    }

    /// Everything up to `to` was read; at `next`, where the live stream is, nothing is left in the log.
    pub(super) fn read_up_to(&mut self, to: Offset, next: Offset) {
        self.position = (to < next).then_some(to);
        self.came_up_to(next);
    }

    /// The live stream has come up to `next`.
    pub(super) fn came_up_to(&mut self, next: Offset) {
        // A former owner may have read it further than was committed: what comes live follows at once.
        if self.position == Some(next) {
            self.position = None;
        }
        let unread_below = self.order.unread_below();
        if unread_below > 0 && self.position.unwrap_or(next) >= unread_below {
            self.order.all_read();
        }
    }

    /// The log no longer has what is before `start`. Answers with where the lane was, if that is before.
    pub(super) fn truncated(&mut self, start: Offset, next: Offset, now: Now) -> Option<Offset> {
        let lost_from = [self.position, self.order.lowest()]
            .into_iter()
            .flatten()
            .min();
        let lost_from = lost_from.filter(|from| *from < start)?;
        self.order.truncated(start, now);
        if self.position.is_some_and(|position| position < start) {
            self.read_up_to(start, next);
        }
        Some(lost_from)
    }

    /// Gives the memory of what waits back to the log. Answers with what was taken out.
    pub(super) fn shed(&mut self, now: Now) -> Vec<Step> {
        let mut shed: Vec<_> = std::mem::take(&mut self.queue).into();
        let mut behind_heads = Vec::new();
        let mut lowest = None;
        for step in &shed {
            let is_read_again = match step.delivery.order_key() {
                Some(key) => {
                    let (freed, is_read_again) = self.order.shed(key, now);
                    behind_heads.extend(freed);
                    is_read_again
                }
                None => self.open.remove(&step.offset),
            };
            if is_read_again {
                lowest = Some(lowest.map_or(step.offset, |lowest: Offset| lowest.min(step.offset)));
            }
        }
        shed.extend(behind_heads);
        self.queue_bytes -= shed.iter().map(|step| step.bytes).sum::<usize>();
        if let Some(lowest) = lowest {
            self.leave_in_log(lowest, now);
        }
        shed
    }

    /// A record that waited beside work is given back to the log with it.
    pub(super) fn close_beside(&mut self, offset: Offset, now: Now) {
        self.open.remove(&offset);
        self.leave_in_log(offset, now);
    }

    // ---- attempts ----

    /// When the next attempt may start, as far as the queue, the limit and the breaker say.
    pub(super) fn turn(&self, limits: &LaneLimits, now: Now) -> Turn {
        let Some(head) = self.queue.front() else {
            return self.turn_to_read(now);
        };
        // The lowest unsettled record may always start: it is what a full window waits for.
        let window_is_full = self.done.len() >= limits.window_max
            && self
                .lowest_open()
                .is_some_and(|lowest| head.offset > lowest);
        if window_is_full || self.in_flight.len() >= self.limit.limit() {
            return Turn::Later;
        }
        if self.head_expires(limits, now) {
            return Turn::Now;
        }
        if self.parked {
            return Turn::Later;
        }
        match self.breaker.admission(now.mono_ms) {
            Admission::Open => Turn::Now,
            Admission::Probe if self.in_flight.is_empty() => Turn::Now,
            Admission::Probe | Admission::Probing => Turn::Later,
            Admission::Wait { until_ms } => Turn::At(until_ms),
        }
    }

    /// When there is something to be read for, with an empty queue.
    fn turn_to_read(&self, now: Now) -> Turn {
        let Some(due_ms) = self.order.next_due_ms().filter(|_| !self.parked) else {
            return Turn::Later;
        };
        let at_ms = match self.breaker.admission(now.mono_ms) {
            Admission::Wait { until_ms } => due_ms.max(until_ms),
            Admission::Open | Admission::Probe | Admission::Probing => due_ms,
        };
        if at_ms > now.mono_ms {
            Turn::At(at_ms)
        } else {
            Turn::Later
        }
    }

    /// Whether the next delivery is so old that retention comes near: it is dead-lettered without an attempt.
    pub(super) fn head_expires(&self, limits: &LaneLimits, now: Now) -> bool {
        let head = self.queue.front();
        head.is_some_and(|head| {
            now.ages_tell && now.wall_ms.saturating_sub(head.appended_ms) >= limits.expires_after_ms
        })
    }

    /// Takes a token for an attempt, or says when there will be one.
    pub(super) fn take_token(&mut self, now: Now) -> Result<(), i64> {
        self.bucket
            .as_mut()
            .map_or(Ok(()), |bucket| bucket.take(now.mono_ms))
    }

    /// Takes the next delivery under way, and whether it is a probe. One that expires asks nothing of the endpoint.
    pub(super) fn start(
        &mut self,
        attempts_from: Offset,
        expires: bool,
        now: Now,
    ) -> Option<(Step, bool)> {
        let step = self.queue.pop_front()?;
        let probe = !expires && self.breaker.admission(now.mono_ms) == Admission::Probe;
        if probe {
            self.breaker.probe_started();
        }
        self.active_ms = now.mono_ms;
        self.queue_bytes -= step.bytes;
        let flight = Flight {
            attempts_from,
            started_ms: now.mono_ms,
        };
        self.in_flight.insert(step.offset, flight);
        Some((step, probe))
    }

    /// An attempt is no longer under way; learns from how it went.
    pub(super) fn finish(&mut self, offset: Offset, probe: bool, seen: Seen, now: Now) {
        let in_flight = self.in_flight.len();
        self.in_flight.remove(&offset);
        self.active_ms = now.mono_ms;
        match seen {
            Seen::Succeeded { latency_ms } => {
                if !self.breaker.is_closed() {
                    self.limit.reset();
                }
                self.breaker.succeeded();
                self.limit.succeeded(latency_ms, in_flight);
                self.proven = true;
                self.failing_since_ms = None;
            }
            Seen::Failed { throttles, hold_ms } => {
                self.breaker.failed(probe, hold_ms, now.mono_ms);
                if throttles {
                    self.limit.throttled(now.mono_ms);
                }
                self.failing_since_ms.get_or_insert(now.wall_ms);
            }
            Seen::Nothing => self.breaker.abandoned(probe, now.mono_ms),
        }
    }

    /// A record is settled. Answers with whether it held the commit, and with the next head of its ordering key.
    pub(super) fn settle(&mut self, step: &Step, next: Offset, now: Now) -> (bool, Option<Step>) {
        let offset = step.offset;
        self.open.remove(&offset);
        let key = step.delivery.order_key();
        let next_head = key.and_then(|key| self.order.settle(key, offset, now));
        let held = self.held.remove(&offset).is_some();
        let lowest = self.lowest_unsettled(next);
        if offset > lowest {
            self.done.insert(offset);
        }
        if self.done.first().is_some_and(|first| *first < lowest) {
            self.done = self.done.split_off(&lowest);
        }
        (held, next_head)
    }

    /// The lowest offset that is not settled, but for keys that stand aside; where the live stream is, if all are. Once
    /// written down, it never moves back.
    fn lowest_unsettled(&self, next: Offset) -> Offset {
        let open = self.lowest_open().unwrap_or(next);
        let lowest = self.position.map_or(open, |position| position.min(open));
        lowest.max(self.order.unread_below())
    }

    /// The same, as far as it is in memory.
    fn lowest_open(&self) -> Option<Offset> {
        let open = [self.open.first().copied(), self.order.lowest_open()];
        open.into_iter().flatten().min()
    }

    // ---- what is written ----

    /// Whether the durable cursor stands for whatever is at or after it.
    fn is_covered(&self) -> bool {
        let ending = matches!(&self.sent, Some(sent) if !has_cursor(sent.as_ref()));
        has_cursor(self.durable.as_ref()) && !ending && !self.may_have_ended
    }

    /// Decides whether the lane must be covered: it is behind, or a record holds the commit too long.
    pub(super) fn judge_cover(&mut self, limits: &LaneLimits, pressed: bool, now: Now) {
        let hold_ms_max = if pressed {
            limits.hold_ms_max / 50
        } else {
            limits.hold_ms_max
        };
        let held_too_long = self
            .held
            .first_key_value()
            .is_some_and(|(_, since_ms)| now.mono_ms - since_ms >= hold_ms_max);
        let waits = self.parked || !self.breaker.is_closed() || self.order.aside() > 0;
        self.presses |= held_too_long || (waits && !self.held.is_empty());
        if self.position.is_some() || self.presses {
            if !self.wants_cover {
                self.behind_since_ms = now.wall_ms;
            }
            self.wants_cover = true;
        }
    }

    /// Ends the wish for cover when the lane is live: nothing below `live_from` is unsettled, and a commit has passed
    /// all that the durable cursor says is settled, so that nobody will read it again.
    fn judge_live(&mut self, committed: Offset, limits: &LaneLimits, now: Now) {
        let cursor = self
            .durable
            .as_ref()
            .and_then(|state| state.cursor.as_ref());
        let known_to = cursor.map_or(0, |cursor| {
            cursor
                .settled
                .last()
                .map_or(cursor.lowest_unsettled, |last| last + 1)
                .max(cursor.lowest_unsettled)
        });
        let is_live = self.is_settling_down() && committed >= self.live_from.max(known_to);
        if is_live {
            self.wants_cover = false;
            self.presses = false;
            self.judge_cover(limits, false, now);
        }
    }

    /// What `endpoint-state` should have.
    fn wanted(
        &self,
        endpoint: &EndpointId,
        state_id: i64,
        next: Offset,
        now: Now,
    ) -> Option<LaneState> {
        let cursor = self.wants_cover.then(|| {
            let lowest_unsettled = self.lowest_unsettled(next);
            match self.durable.as_ref().and_then(|state| state.cursor.clone()) {
                // Only the commit has to pass the cursor still: moving it on would put that off for ever.
                Some(durable) if self.is_settling_down() => durable,
                _ => Cursor {
                    lowest_unsettled,
                    settled: self.done.clone(),
                    behind_since_ms: self.behind_since_ms,
                },
            }
        });
        let open_until_ms = now
            .wall_ms
            .saturating_add(self.breaker.wait_ms(now.mono_ms));
        let was_ms = self
            .durable
            .as_ref()
            .map_or(0, |state| state.breaker_open_until_ms);
        let openings = self.breaker.openings();
        let same_opening = self
            .durable
            .as_ref()
            .is_some_and(|state| state.breaker_openings == openings);
        let failing_long = self.failing_since_ms.filter(|since_ms| {
            cursor.is_some()
                || openings > 0
                || now.wall_ms.saturating_sub(*since_ms) > FAILING_WRITTEN_AFTER_MS
        });
        let forgotten = now.mono_ms - self.active_ms > STATE_IDLE_MS;
        if cursor.is_none() && (forgotten || (openings == 0 && failing_long.is_none())) {
            return None;
        }
        Some(LaneState {
            endpoint: endpoint.clone(),
            state_id,
            blocked: cursor
                .as_ref()
                .map_or_else(Vec::new, |_| self.order.blocked()),
            cursor,
            failing_since_ms: failing_long,
            breaker_openings: openings,
            breaker_open_until_ms: match (openings, same_opening) {
                (0, _) => 0,
                (_, true) => was_ms,
                (_, false) => open_until_ms,
            },
        })
    }

    /// Everything below `live_from` is settled, so only the commit separates it from being live.
    fn is_settling_down(&self) -> bool {
        self.position.is_none()
            && self.order.aside() == 0
            && self.lowest_open().is_none_or(|open| open >= self.live_from)
    }

    /// What is to be written now, if anything: a first cursor at once, the rest no more often than `interval_ms`.
    pub(super) fn due_write(
        &mut self,
        endpoint: &EndpointId,
        write: &WriteContext<'_>,
    ) -> Option<Option<LaneState>> {
        if self.sent.is_some() {
            return None;
        }
        self.judge_live(write.committed, write.limits, write.now);
        let wanted = self.wanted(endpoint, write.state_id, write.next, write.now);
        if wanted == self.durable {
            self.order.nothing_new();
            return None;
        }
        let urgent = has_cursor(wanted.as_ref()) && !has_cursor(self.durable.as_ref());
        if !urgent && write.now.mono_ms - self.sent_ms < write.interval_ms {
            return None;
        }
        self.send(wanted.clone(), write);
        Some(wanted)
    }

    /// Everything the lane needs under another state id, whatever it had under the former one.
    pub(super) fn rewrite(
        &mut self,
        endpoint: &EndpointId,
        write: &WriteContext<'_>,
    ) -> Option<LaneState> {
        let wanted = self.wanted(endpoint, write.state_id, write.next, write.now);
        self.send(wanted.clone(), write);
        wanted
    }

    fn send(&mut self, state: Option<LaneState>, write: &WriteContext<'_>) {
        self.sent_ms = write.now.mono_ms;
        self.sent = Some(state);
        self.order.sent();
    }

    /// What was sent is durable, under this id.
    pub(super) fn written(&mut self, state_id: i64) {
        self.may_have_ended = false;
        self.unacknowledged = None;
        self.order.written();
        if let Some(sent) = self.sent.take() {
            self.durable = sent.map(|state| LaneState { state_id, ..state });
        }
    }

    /// The fate of what was sent is not known, and nothing more goes under its id.
    pub(super) fn not_written(&mut self) {
        self.order.not_written();
        if let Some(sent) = self.sent.take() {
            self.may_have_ended |= !has_cursor(sent.as_ref());
            if has_cursor(sent.as_ref()) && self.unacknowledged.is_none() {
                self.unacknowledged = sent;
            }
        }
    }

    /// Whether a restart from the durable cursor would know that this offset is settled.
    pub(super) fn has_durably_settled(&self, offset: Offset, committed: Offset) -> bool {
        let knows = |state: Option<&LaneState>| match state.and_then(|state| state.cursor.as_ref())
        {
            Some(cursor) => {
                cursor.has_settled(offset) && !self.order.has_news_of(offset, self.position)
            }
            None => offset < committed,
        };
        // What is on its way may be what the next owner finds, and so may what was never acknowledged.
        let on_its_way = self.sent.as_ref().is_none_or(|sent| knows(sent.as_ref()));
        let unacknowledged = self.unacknowledged.as_ref();
        knows(self.durable.as_ref())
            && on_its_way
            && unacknowledged.is_none_or(|state| knows(Some(state)))
    }

    // ---- what is asked ----

    /// Lowest offset that a record of the attempts under way can have in `attempts`.
    pub(super) fn attempts_from(&self) -> Option<Offset> {
        self.in_flight
            .values()
            .map(|flight| flight.attempts_from)
            .min()
    }

    /// Attempts under way.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether it counts among the slow: not known to answer, known to answer late, or late right now.
    pub(super) fn is_slow(&self, slow_from_ms: i64, now: Now) -> bool {
        let late = self
            .in_flight
            .values()
            .any(|flight| now.mono_ms - flight.started_ms >= slow_from_ms);
        !self.proven || !self.breaker.is_closed() || self.limit.is_slow() || late
    }

    /// Whether what waits may not start for a while, so that its memory is better used by others.
    pub(super) fn is_stuck(&self, now: Now) -> bool {
        self.parked
            || matches!(
                self.breaker.admission(now.mono_ms),
                Admission::Wait { .. } | Admission::Probing
            )
    }

    /// Parks it or lets it go on: paused and disabled endpoints are not called.
    pub(super) fn park(&mut self, parked: bool) {
        self.parked = parked;
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked
    }

    /// Calls no more often than this from now on; `None`: as often as it can take.
    pub(super) fn set_rate(&mut self, rate: Option<(f64, u32)>, now: Now) {
        match (rate, &mut self.bucket) {
            (None, bucket) => *bucket = None,
            (Some((per_second, burst)), Some(bucket)) => {
                bucket.change(per_second, burst, now.mono_ms);
            }
            (Some((per_second, burst)), bucket @ None) => {
                *bucket = Some(TokenBucket::new(per_second, burst, now.mono_ms));
            }
        }
    }

    /// What is known of it, for those who ask.
    pub(super) fn status(
        &self,
        partition: i32,
        limits: &LaneLimits,
        next: Offset,
        now: Now,
    ) -> LaneStatus {
        let aside = self.order.lowest().unwrap_or(next);
        let lowest_unsettled = self.lowest_unsettled(next).min(aside);
        let is_behind = self.wants_cover;
        LaneStatus {
            partition,
            queued: self.queue.len() + self.order.waiting(),
            blocked_keys: self.order.aside(),
            in_flight: self.in_flight.len(),
            concurrency_limit: self.limit.limit(),
            latency_ms: self.limit.latency_ms(),
            breaker: match self.breaker.admission(now.mono_ms) {
                Admission::Open => "closed",
                Admission::Wait { .. } => "open",
                Admission::Probe | Admission::Probing => "half_open",
            },
            next_probe_at_ms: match self.breaker.wait_ms(now.mono_ms) {
                0 => None,
                wait_ms => Some(now.wall_ms + wait_ms),
            },
            parked: self.parked,
            failing_since_ms: self.failing_since_ms,
            behind_since_ms: is_behind.then_some(self.behind_since_ms),
            behind_by_offsets: is_behind.then_some(next - lowest_unsettled),
            lowest_unsettled,
            next_attempt_at_ms: match self.turn(limits, now) {
                Turn::Now => Some(now.wall_ms),
                Turn::At(at_ms) => Some(now.wall_ms + at_ms - now.mono_ms),
                Turn::Later => None,
            },
            obstacles: Vec::new(),
        }
    }

    /// Since when nothing succeeded.
    pub(super) fn failing_since_ms(&self) -> Option<i64> {
        self.failing_since_ms
    }

    /// Whether it can be forgotten without losing anything but what was learned lately.
    pub(super) fn is_idle(&self, idle_ms: i64, now: Now) -> bool {
        self.open.is_empty()
            && self.order.is_empty()
            && self.held.is_empty()
            && self.position.is_none()
            && self.durable.is_none()
            && self.sent.is_none()
            && !self.in_line
            && now.mono_ms - self.active_ms >= idle_ms
    }

    /// Forgets what is not under way: the partition leaves.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.order.clear();
        self.queue_bytes = 0;
    }

    /// Whether nothing of it is in memory.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty()
    }

    /// Whether records hold the commit or are being covered, so that it is looked at often.
    pub(super) fn is_pressing(&self) -> bool {
        !self.held.is_empty() || self.sent.is_some()
    }
}

/// What a write depends on beside the lane.
#[derive(Debug)]
pub(super) struct WriteContext<'a> {
    pub(super) limits: &'a LaneLimits,
    pub(super) state_id: i64,
    /// Where the live stream is.
    pub(super) next: Offset,
    /// What the group has durably committed.
    pub(super) committed: Offset,
    pub(super) interval_ms: i64,
    pub(super) now: Now,
}

/// That an endpoint fails is worth a record only if it does not pass soon.
const FAILING_WRITTEN_AFTER_MS: i64 = 60_000;

/// What was learned of an endpoint that nobody asks for any more is forgotten after this time.
const STATE_IDLE_MS: i64 = 48 * 60 * 60 * 1000;

fn has_cursor(state: Option<&LaneState>) -> bool {
    state.is_some_and(|state| state.cursor.is_some())
}

/// Spreads the breakers' pauses; the same for an endpoint everywhere. FNV-1a, which is short and good enough for that.
fn seed(endpoint: &EndpointId) -> u64 {
    endpoint
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests;
