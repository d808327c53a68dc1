//! The lane of an endpoint: its deliveries in the order of the log, and how it is called.
//!
//! Three things make it up. Its [`backlog`] is what is unsettled: a part of it is in memory, the
//! rest stays in the log and is read again when there is room. Its [`cover`] is what holds the
//! partition's commit: each record, until a durable cursor says where the lane goes on. Its
//! [`pace`] is how fast the endpoint may be called.
//!
//! Nothing here knows a runtime, a log or a network.

mod backlog;
mod cover;
mod order;
mod pace;
mod recorded;

use postrider_log::Offset;
use postrider_model::delivery::LaneState;
use postrider_model::flow::breaker::Admission;
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::verdict::Seen;

use self::backlog::Backlog;
use self::cover::Cover;
pub(super) use self::order::{NextAttempt, Rank};
use self::pace::Pace;
pub(super) use self::pace::Turn;
use super::limits::LaneLimits;
use super::permits::SlowShare;
use super::step::{Memory, Now, Step};
use super::tally::Tally;
use crate::lane_status::LaneStatus;

/// That an endpoint fails is worth a record only if it does not pass soon.
const FAILING_WRITTEN_AFTER_MS: i64 = 60_000;
/// What was learned of an endpoint that nobody asks for any more is forgotten after this time.
const STATE_IDLE_MS: i64 = 48 * 60 * 60 * 1000;

/// A lane. See the module.
#[derive(Debug)]
pub(super) struct Lane {
    endpoint: EndpointId,
    /// Whose it is; known from the first record on.
    tenant: Option<TenantId>,
    backlog: Backlog,
    cover: Cover,
    pace: Pace,
    active_ms: i64,
    /// It stands in the line of lanes that may start an attempt.
    pub(super) in_line: bool,
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

impl Lane {
    pub(super) fn new(endpoint: EndpointId, limits: &LaneLimits, now: Now) -> Self {
        Self {
            tenant: None,
            backlog: Backlog::new(),
            cover: Cover::new(now),
            pace: Pace::new(&endpoint, limits),
            active_ms: now.mono_ms,
            in_line: false,
            endpoint,
        }
    }

    /// A lane as its former owner left it; the live stream begins at `next`. The caller makes
    /// `state` durable under its own state id.
    pub(super) fn restored(state: LaneState, next: Offset, limits: &LaneLimits, now: Now) -> Self {
        Self {
            tenant: None,
            backlog: Backlog::restored(&state, now),
            pace: Pace::restored(&state, limits, now),
            active_ms: now.mono_ms,
            in_line: false,
            endpoint: state.endpoint.clone(),
            cover: Cover::restored(state, next, now),
        }
    }

    pub(super) fn endpoint(&self) -> &EndpointId {
        &self.endpoint
    }

    /// Whose it is.
    pub(super) fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    // ---- records come in ----

    /// Whether the record at this offset is settled or in memory already, so that it is not to be
    /// taken again.
    pub(super) fn knows(&self, offset: Offset) -> bool {
        self.backlog.knows(offset)
    }

    /// Whether this record was settled before the lane was taken over, which for an ordered
    /// endpoint its key decides.
    pub(super) fn has_passed(&self, offset: Offset, key: Option<&str>) -> bool {
        self.backlog.has_passed(offset, key)
    }

    /// A record that came in live holds the commit until it is settled or covered.
    pub(super) fn hold(&mut self, offset: Offset, all_held: &Tally, now: Now) {
        self.cover.hold(offset, all_held, now);
    }

    /// Whether a record that comes in live is taken into memory.
    pub(super) fn takes_live(&self, limits: &LaneLimits, memory: Memory) -> bool {
        let has_memory = match memory {
            Memory::Free | Memory::Tight => true,
            Memory::Full => self.is_empty(),
            Memory::Exceeded => false,
        };
        has_memory && self.backlog.unread_from().is_none() && self.backlog.has_room(limits)
    }

    /// Takes a record into memory, in the order of the log.
    pub(super) fn take(&mut self, step: Step, now: Now) {
        self.touch(&step, now);
        self.backlog.take(step);
    }

    /// Puts a record of an ordering key into its order. A head is the caller's, who may
    /// [`Lane::enqueue`] it.
    pub(super) fn rank(&mut self, key: &str, step: Step, now: Now) -> Rank {
        self.touch(&step, now);
        self.backlog.rank(key, step, now)
    }

    fn touch(&mut self, step: &Step, now: Now) {
        self.active_ms = now.mono_ms;
        if self.tenant.is_none() {
            self.tenant = Some(step.delivery.event.tenant.clone());
        }
    }

    /// Puts a delivery in its place in the queue.
    pub(super) fn enqueue(&mut self, step: Step) {
        self.backlog.enqueue(step);
    }

    /// A record waits beside work that is under way: it is in memory, but not in the queue.
    pub(super) fn take_beside(&mut self, offset: Offset) {
        self.backlog.take_beside(offset);
    }

    /// The lane's records from here on stay in the log for now, so the lane must not hold the
    /// commit. Answers with the offsets that do no more.
    pub(super) fn leave_in_log(&mut self, offset: Offset, next: Offset, now: Now) -> Vec<Offset> {
        self.backlog.leave_in_log(offset);
        self.cover.release(next, now)
    }

    // ---- ordering keys ----

    /// The next attempt of a key's head, if that failed.
    pub(super) fn next_attempt(&self, key: &str) -> Option<NextAttempt> {
        self.backlog.order().next_attempt(key)
    }

    /// The head of a key failed, and the key is blocked.
    pub(super) fn block(&mut self, key: &str, next: NextAttempt, now: Now) {
        self.backlog.block(key, next, now);
    }

    // ---- reading again ----

    /// From where on its records stay in the log.
    pub(super) fn unread_from(&self) -> Option<Offset> {
        self.backlog.unread_from()
    }

    /// Whether it will want records from the log, now or later.
    pub(super) fn reads_again(&self) -> bool {
        self.backlog.unread_from().is_some() || self.backlog.order().blocked_keys() > 0
    }

    /// How many records are to be read for it now.
    pub(super) fn demand(&self, limits: &LaneLimits, memory: Memory, now: Now) -> usize {
        let is_unread = self.backlog.unread_from().is_some();
        if !is_unread || !self.may_read(limits, memory, now) || self.backlog.is_full(limits) {
            return 0;
        }
        self.queue_target(limits, now)
            .saturating_sub(self.backlog.queued())
    }

    /// Whether so many are to be read that it is worth a read.
    pub(super) fn demands_a_read(&self, limits: &LaneLimits, memory: Memory, now: Now) -> bool {
        let demand = self.demand(limits, memory, now);
        demand > 0 && demand >= self.backlog.queued()
    }

    fn may_read(&self, limits: &LaneLimits, memory: Memory, now: Now) -> bool {
        let has_memory = match memory {
            Memory::Free => true,
            Memory::Tight => !self.pace.is_stuck(now),
            Memory::Full | Memory::Exceeded => false,
        };
        has_memory && (!self.pace.is_paused() || self.is_old(limits, now))
    }

    /// Of a lane that waits for long, the oldest records may have to be dead-lettered before the
    /// log loses them.
    fn is_old(&self, limits: &LaneLimits, now: Now) -> bool {
        let since_ms = self.cover.wanted_since_ms();
        now.ages_tell
            && since_ms.is_some_and(|since_ms| now.wall_ms - since_ms >= limits.expires_after_ms)
    }

    /// How many records it is to have in its queue.
    fn queue_target(&self, limits: &LaneLimits, now: Now) -> usize {
        let expires = self.is_old(limits, now);
        self.pace.queue_target(limits.queue_max, expires)
    }

    /// Whether heads of blocked keys are to be read now.
    pub(super) fn demands_heads(
        &self,
        limits: &LaneLimits,
        memory: Memory,
        next: Offset,
        now: Now,
    ) -> bool {
        self.backlog.order().has_to_read(next, now) && self.heads_max(limits, memory, now) > 0
    }

    /// Where to read them.
    pub(super) fn plan_head_reads(
        &mut self,
        limits: &LaneLimits,
        memory: Memory,
        next: Offset,
        now: Now,
    ) -> Option<Offset> {
        let heads_max = self.heads_max(limits, memory, now);
        self.backlog.plan_reads(heads_max, next, now)
    }

    fn heads_max(&self, limits: &LaneLimits, memory: Memory, now: Now) -> usize {
        if !self.may_read(limits, memory, now) || self.backlog.bytes() >= limits.queue_bytes_max {
            return 0;
        }
        self.queue_target(limits, now)
            .saturating_sub(self.backlog.queued())
    }

    /// Whether this record is one of them, or comes right after one.
    pub(super) fn is_head_to_read(&self, offset: Offset) -> bool {
        self.backlog.order().is_to_read(offset)
    }

    /// Everything up to `to` was read; at `next`, where the live stream is, nothing is left in the
    /// log.
    pub(super) fn read_up_to(&mut self, to: Offset, next: Offset) {
        self.backlog.read_up_to(to, next);
    }

    /// The live stream has come up to `next`.
    pub(super) fn came_up_to(&mut self, next: Offset) {
        self.backlog.came_up_to(next);
    }

    /// The log no longer has what is before `start`. Answers with where the lane was, if that is
    /// before.
    pub(super) fn truncated(&mut self, start: Offset, next: Offset, now: Now) -> Option<Offset> {
        self.backlog.truncated(start, next, now)
    }

    /// Gives the memory of what waits back to the log. Answers with what was taken out, and with
    /// the offsets that hold the commit no more.
    pub(super) fn evict(&mut self, next: Offset, now: Now) -> (Vec<Step>, Vec<Offset>) {
        let evicted = self.backlog.evict(now);
        let released = match self.backlog.unread_from() {
            Some(_) => self.cover.release(next, now),
            None => Vec::new(),
        };
        (evicted, released)
    }

    /// A record that waited beside work is given back to the log with it.
    pub(super) fn evict_beside(&mut self, offset: Offset) {
        self.backlog.evict_beside(offset);
    }

    // ---- attempts ----

    /// When the next attempt may start.
    pub(super) fn turn(&self, limits: &LaneLimits, now: Now) -> Turn {
        let Some(head) = self.backlog.head() else {
            return self.turn_to_read(now);
        };
        if self.pace.is_full() || self.backlog.window_holds_back(head, limits.window_max) {
            return Turn::Later;
        }
        if self.head_expires(limits, now) {
            return Turn::Now;
        }
        self.pace.turn(now)
    }

    /// When there is something to be read for, with an empty queue.
    fn turn_to_read(&self, now: Now) -> Turn {
        let due_ms = self.backlog.order().next_due_ms();
        let Some(due_ms) = due_ms.filter(|_| !self.pace.is_paused()) else {
            return Turn::Later;
        };
        let at_ms = match self.pace.breaker().admission(now.mono_ms) {
            Admission::Wait { until_ms } => due_ms.max(until_ms),
            Admission::Open | Admission::Probe | Admission::Probing => due_ms,
        };
        if at_ms > now.mono_ms {
            Turn::At(at_ms)
        } else {
            Turn::Later
        }
    }

    /// Whether the next delivery is so old that retention comes near: it is dead-lettered without
    /// an attempt.
    pub(super) fn head_expires(&self, limits: &LaneLimits, now: Now) -> bool {
        self.backlog.head().is_some_and(|head| {
            now.ages_tell && now.wall_ms.saturating_sub(head.appended_ms) >= limits.expires_after_ms
        })
    }

    /// Takes a token for an attempt, or says when there will be one; see [`Pace::take_token`].
    pub(super) fn take_token(&mut self, rate: Option<(f64, u32)>, now: Now) -> Result<(), i64> {
        self.pace.take_token(rate, now)
    }

    /// Takes the next delivery under way, and whether it is a probe. One that expires asks nothing
    /// of the endpoint.
    pub(super) fn start(
        &mut self,
        attempts_from: Offset,
        expires: bool,
        slow: SlowShare,
        now: Now,
    ) -> Option<(Step, bool)> {
        let step = self.backlog.pop()?;
        self.active_ms = now.mono_ms;
        let calls = !expires;
        let probes = self
            .pace
            .start(step.offset, calls, attempts_from, slow, now);
        Some((step, probes))
    }

    /// The endpoint has answered, or will not any more; learns from what was seen.
    pub(super) fn answered(&mut self, offset: Offset, probes: bool, seen: Seen, now: Now) {
        self.pace.answered(offset, probes, seen, now);
    }

    /// An attempt is recorded, or settles nothing.
    pub(super) fn finish(&mut self, offset: Offset, probes: bool, seen: Seen, now: Now) {
        self.active_ms = now.mono_ms;
        self.pace.finish(offset, probes, seen, now);
    }

    /// A record is settled, and holds the commit no more; the live stream is at `next`. Answers
    /// with the next head of its ordering key, if that is in memory.
    pub(super) fn settle(&mut self, step: &Step, next: Offset, now: Now) -> Option<Step> {
        self.cover.settled(step.offset);
        self.backlog.settle(step, next, now)
    }

    // ---- what holds the commit ----

    /// Sees to it that the lane does not hold the commit for long. Answers with the offsets that do
    /// no more.
    pub(super) fn release(&mut self, hold_ms_max: i64, next: Offset, now: Now) -> Vec<Offset> {
        if self.must_release(hold_ms_max, now) {
            self.cover.release(next, now)
        } else {
            Vec::new()
        }
    }

    fn must_release(&self, hold_ms_max: i64, now: Now) -> bool {
        let waits = !self.pace.is_open() || self.backlog.order().blocked_keys() > 0;
        let is_unread = self.backlog.unread_from().is_some();
        is_unread || self.cover.holds_too_long(waits, hold_ms_max, now)
    }

    /// Whether it comes back: everything that the cursor covered is settled, and the commit has
    /// passed it.
    fn comes_back(&self, write: &WriteContext<'_>) -> bool {
        self.is_settling_down()
            && self.cover.is_passed_by(write.committed)
            && !self.must_release(write.limits.hold_ms_max, write.now)
    }

    /// Everything that the cursor covered is settled, so only the commit separates it from being
    /// live.
    fn is_settling_down(&self) -> bool {
        let live_from = self.cover.live_from();
        live_from.is_some_and(|live_from| self.backlog.is_settled_below(live_from))
    }

    // ---- what is written ----

    /// What is to be written now, if anything: a first cursor at once, the rest no more often than
    /// `interval_ms`.
    pub(super) fn due_write(&mut self, write: &WriteContext<'_>) -> Option<Option<LaneState>> {
        if self.cover.recorded().is_on_its_way() {
            return None;
        }
        if !self.must_release(write.limits.hold_ms_max, write.now) {
            self.cover.want_no_more();
        }
        let state = self.state(write, !self.comes_back(write));
        if state.as_ref() == self.cover.recorded().durable() {
            self.backlog.state_is_current();
            return None;
        }
        let is_due = self
            .cover
            .is_due(state.as_ref(), write.interval_ms, write.now);
        is_due.then(|| self.send(state, write.now))
    }

    /// Everything the lane needs under another state id, whatever it had under the former one.
    pub(super) fn rewrite(&mut self, write: &WriteContext<'_>) -> Option<LaneState> {
        let state = self.state(write, true);
        self.send(state, write.now)
    }

    fn send(&mut self, state: Option<LaneState>, now: Now) -> Option<LaneState> {
        self.cover.send(state.clone(), now);
        self.backlog.state_sent();
        state
    }

    /// What `endpoint-state` should have.
    fn state(&self, write: &WriteContext<'_>, keeps_cursor: bool) -> Option<LaneState> {
        let durable = self.cover.recorded().durable();
        let since_ms = self.cover.wanted_since_ms().filter(|_| keeps_cursor);
        let cursor = since_ms.map(|since_ms| match durable {
            // Only the commit has to pass the cursor still: moving it on would put that off for
            // ever.
            Some(LaneState {
                cursor: Some(cursor),
                ..
            }) if self.is_settling_down() => cursor.clone(),
            _ => self.backlog.cursor(since_ms, write.next),
        });
        let now = write.now;
        let openings = self.pace.breaker().openings();
        let failing_since_ms = self.pace.failing_since_ms().filter(|since_ms| {
            cursor.is_some()
                || openings > 0
                || now.wall_ms.saturating_sub(*since_ms) > FAILING_WRITTEN_AFTER_MS
        });
        let is_forgotten = now.mono_ms - self.active_ms > STATE_IDLE_MS;
        if cursor.is_none() && (is_forgotten || (openings == 0 && failing_since_ms.is_none())) {
            return None;
        }
        let same_opening = durable.filter(|state| state.breaker_openings == openings);
        Some(LaneState {
            endpoint: self.endpoint.clone(),
            state_id: write.state_id,
            blocked: match cursor {
                Some(_) => self.backlog.blocked(),
                None => Vec::new(),
            },
            cursor,
            failing_since_ms,
            breaker_openings: openings,
            breaker_open_until_ms: match (openings, same_opening) {
                (0, _) => 0,
                (_, Some(state)) => state.breaker_open_until_ms,
                (_, None) => {
                    let wait_ms = self.pace.breaker().wait_ms(now.mono_ms);
                    now.wall_ms.saturating_add(wait_ms)
                }
            },
        })
    }

    /// What was sent is durable, under this id. Answers with the offsets that hold the commit no
    /// more.
    pub(super) fn written(&mut self, state_id: i64, next: Offset) -> Vec<Offset> {
        self.backlog.state_acknowledged();
        self.cover.acknowledged(state_id, next)
    }

    /// The fate of what was sent is not known, and nothing more goes under its id.
    pub(super) fn not_written(&mut self) {
        self.backlog.state_not_acknowledged();
        self.cover.not_acknowledged();
    }

    /// Whether a new owner would know that this offset is settled, whatever state it finds.
    pub(super) fn has_durably_settled(&self, offset: Offset, committed: Offset) -> bool {
        let knows = |state: Option<&LaneState>| {
            let cursor = state.and_then(|state| state.cursor.as_ref());
            cursor.map_or(offset < committed, |cursor| {
                self.backlog.is_reflected_by(cursor, offset)
            })
        };
        self.cover.recorded().holds_for_all_candidates(knows)
    }

    /// The lowest offset that a new owner would read for it, if it is behind.
    pub(super) fn behind_from(&self) -> Option<Offset> {
        self.cover.recorded().durable()?.lowest_unsettled()
    }

    // ---- what is asked ----

    /// Lowest offset that a record of the attempts under way can have in `attempts`.
    pub(super) fn attempts_from(&self) -> Option<Offset> {
        self.pace.attempts_from()
    }

    /// Whether an attempt is to be answered or recorded.
    pub(super) fn is_at_work(&self) -> bool {
        !self.pace.is_idle()
    }

    /// Whether it counts among the slow: not known to answer, known to answer late, or late right
    /// now.
    pub(super) fn is_slow(&self, slow_from_ms: i64, now: Now) -> bool {
        self.pace.is_slow(slow_from_ms, now)
    }

    /// Lets the attempts under way count among the slow, or no longer.
    pub(super) fn count_in_flight(&mut self, slow_from_ms: i64, now: Now) {
        self.pace.count_in_flight(slow_from_ms, now);
    }

    /// Whether what waits may not start for a while, so that its memory is better used by others.
    pub(super) fn is_stuck(&self, now: Now) -> bool {
        self.pace.is_stuck(now)
    }

    /// Paused and disabled endpoints are not called.
    pub(super) fn pause(&mut self, paused: bool) {
        self.pace.pause(paused);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.pace.is_paused()
    }

    /// Since when nothing succeeded.
    pub(super) fn failing_since_ms(&self) -> Option<i64> {
        self.pace.failing_since_ms()
    }

    /// What is known of it, for those who ask.
    pub(super) fn status(
        &self,
        partition: i32,
        limits: &LaneLimits,
        next: Offset,
        now: Now,
    ) -> LaneStatus {
        let lowest_unsettled = self.backlog.lowest_of_all(next);
        let behind_since_ms = self.cover.behind_since_ms();
        let breaker = self.pace.breaker();
        LaneStatus {
            partition,
            queued: self.backlog.waiting(),
            blocked_keys: self.backlog.order().blocked_keys(),
            in_flight: self.pace.in_flight(),
            concurrency_limit: self.pace.limit().limit(),
            latency_ms: self.pace.limit().latency_ms(),
            breaker: match breaker.admission(now.mono_ms) {
                Admission::Open => "closed",
                Admission::Wait { .. } => "open",
                Admission::Probe | Admission::Probing => "half_open",
            },
            next_probe_at_ms: match breaker.wait_ms(now.mono_ms) {
                0 => None,
                wait_ms => Some(now.wall_ms + wait_ms),
            },
            paused: self.pace.is_paused(),
            failing_since_ms: self.pace.failing_since_ms(),
            behind_since_ms,
            behind_by_offsets: behind_since_ms.map(|_| next - lowest_unsettled),
            lowest_unsettled,
            next_attempt_at_ms: self.next_attempt_at_ms(limits, now),
            obstacles: Vec::new(),
        }
    }

    /// When it may start its next attempt, where that is a matter of time, on the wall.
    fn next_attempt_at_ms(&self, limits: &LaneLimits, now: Now) -> Option<i64> {
        if self.backlog.head().is_none() {
            let due_at_ms = self.backlog.order().next_due_at_ms(now);
            let probe_at_ms = now.wall_ms + self.pace.breaker().wait_ms(now.mono_ms);
            let due_at_ms = due_at_ms.filter(|_| !self.pace.is_paused());
            return due_at_ms.map(|due_at_ms| due_at_ms.max(probe_at_ms));
        }
        match self.turn(limits, now) {
            Turn::Now => Some(now.wall_ms),
            Turn::At(at_ms) => Some(now.wall_ms + at_ms - now.mono_ms),
            Turn::Later => None,
        }
    }

    /// Whether it can be forgotten without losing anything but what was learned lately.
    pub(super) fn is_idle(&self, idle_ms: i64, now: Now) -> bool {
        self.backlog.is_empty()
            && !self.cover.holds()
            && self.cover.recorded().is_empty()
            && !self.in_line
            && now.mono_ms - self.active_ms >= idle_ms
    }

    /// Forgets what is not under way: the partition leaves.
    pub(super) fn clear(&mut self) {
        self.backlog.clear();
    }

    /// Whether nothing of it is in memory.
    fn is_empty(&self) -> bool {
        self.backlog.queued() == 0 && self.pace.is_idle()
    }

    /// Whether records hold the commit or are being covered, so that it is looked at often.
    pub(super) fn is_pressing(&self) -> bool {
        self.cover.holds() || self.cover.recorded().is_on_its_way()
    }
}

#[cfg(test)]
mod tests;
