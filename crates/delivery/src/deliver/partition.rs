//! A partition of `deliveries` that this process owns: its lanes, what holds its commit, and what
//! was settled.
//!
//! Nothing here waits: records, ends of attempts and acknowledgements come in, offsets to resolve
//! and things to do come out, so that every rule can be tested without a runtime. [`super`] does
//! what is asked for.

mod catch_up;

use std::collections::{BTreeMap, BTreeSet};

use postrider_log::{Generation, Offset};
use postrider_model::delivery::{Delivery, LaneState};
use postrider_model::ids::EndpointId;
use postrider_model::verdict::Seen;
use postrider_model::work::WorkId;

use self::catch_up::CatchUp;
pub(super) use self::catch_up::ReadAgain;
use super::lane::{Lane, NextAttempt, Rank, Turn, WriteContext};
use super::lanes::{LaneMut, Lanes};
use super::limits::LaneLimits;
use super::permits::SlowShare;
use super::settled::SettledSet;
use super::state::{self, Written};
use super::state_id::{MayWrite, StateId};
use super::step::{Answered, Memory, Now, Step};
use super::tally::Tally;
use crate::lane_status::LaneStatus;

/// A lane in which nothing happens is forgotten after this time.
const LANE_IDLE_MS: i64 = 10 * 60 * 1000;
/// Where much of what a partition may hold is unsettled, a lane holds the commit for a part of the
/// time only.
const HOLDS_PRESSED_DIVISOR: i64 = 50;

/// What the owner keeps of a partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) generation: Generation,
    pub(super) settled: SettledSet,
    lanes: Lanes,
    /// Work that is queued or under way, with the steps that wait for it.
    active: BTreeMap<WorkId, Vec<Step>>,
    /// Lanes to look at when time passes.
    watched: BTreeSet<EndpointId>,
    /// Where the live stream is: records below it came.
    next: Offset,
    /// What the group has durably committed.
    committed: Offset,
    /// Under which id the lanes' states count.
    pub(super) state_id: StateId,
    catch_up: CatchUp,
    /// Records that hold the commit without a lane, while their dead letters are written.
    dead_lettering: BTreeSet<Offset>,
    /// Records of lanes that hold the commit.
    held: Tally,
    /// The memory that unsettled deliveries take.
    memory: Tally,
    pub(super) paused: bool,
    pub(super) draining: bool,
    resolved: Vec<Offset>,
}

/// What became of a record that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in its lane's queue.
    Queued,
    /// It was settled before, is in memory already, or stays in the log.
    Passed,
    /// It is a duplicate of what was settled.
    Duplicate,
}

/// States that are to be written.
#[derive(Debug)]
pub(super) enum StatesToWrite {
    /// Those that have changed, under the present id; `None` is a tombstone.
    Changes(Vec<(EndpointId, Option<LaneState>)>),
    /// All, under a new id.
    AllAnew(Vec<LaneState>),
}

impl Partition {
    /// A partition that is read from `from` on; deliveries in its lanes take of `memory`.
    pub(super) fn new(
        generation: Generation,
        from: Offset,
        committed: Offset,
        settled: SettledSet,
        state_id: StateId,
        memory: Tally,
    ) -> Self {
        Self {
            generation,
            settled,
            lanes: Lanes::default(),
            active: BTreeMap::new(),
            watched: BTreeSet::new(),
            next: from,
            committed,
            state_id,
            catch_up: CatchUp::default(),
            dead_lettering: BTreeSet::new(),
            held: Tally::default(),
            memory,
            paused: false,
            draining: false,
            resolved: Vec::new(),
        }
    }

    /// Takes over the lanes that the former owner wrote, durable under the present id already.
    pub(super) fn restore(&mut self, states: Vec<LaneState>, limits: &LaneLimits, now: Now) {
        for state in states {
            let lane = Lane::restored(state, self.next, limits, now);
            self.catch_up.restored(lane.unread_from());
            self.watched.insert(lane.endpoint().clone());
            self.lanes.insert(lane);
        }
    }

    /// The live stream has come up to `next`, and perhaps to where a lane that was taken over is
    /// read on.
    fn come_up_to(&mut self, next: Offset) {
        self.catch_up.live_stream_comes(self.next);
        self.next = self.next.max(next);
    }

    /// Offsets that hold the commit no more.
    pub(super) fn resolved(&mut self) -> Vec<Offset> {
        std::mem::take(&mut self.resolved)
    }

    // ---- records come in ----

    /// A record came in live.
    pub(super) fn admit(
        &mut self,
        step: Step,
        limits: &LaneLimits,
        memory: Memory,
        now: Now,
    ) -> Taken {
        let offset = step.offset;
        self.come_up_to(offset + 1);
        let endpoint = &step.delivery.endpoint;
        let mut lane = self.lanes.of(endpoint, limits, now);
        lane.came_up_to(offset);
        if lane.knows(offset) || lane.has_passed(offset, step.delivery.order_key()) {
            self.resolved.push(offset);
            return Taken::Passed;
        }
        lane.hold(offset, &self.held, now);
        if !self.watched.contains(endpoint) {
            self.watched.insert(endpoint.clone());
        }
        if !lane.takes_live(limits, memory) {
            let released = lane.leave_in_log(offset, self.next, now);
            self.resolved.extend(released);
            return Taken::Passed;
        }
        drop(lane);
        self.take(step, now)
    }

    /// A record that is no delivery came in live. It holds the commit until its dead letter is
    /// durable.
    pub(super) fn dead_letter(&mut self, offset: Offset) {
        self.come_up_to(offset + 1);
        self.dead_lettering.insert(offset);
    }

    /// The dead letter of such a record is durable.
    pub(super) fn dead_lettered(&mut self, offset: Offset) {
        self.dead_lettering.remove(&offset);
        self.resolved.push(offset);
    }

    /// Takes a record into memory: into its lane's queue, into the order of its key, or beside the
    /// work that it is another step of.
    fn take(&mut self, mut step: Step, now: Now) -> Taken {
        step.delivery.position = self.settled.work_of(&step.delivery).position;
        if step.delivery.order_key().is_some() {
            return self.take_ordered(step, now);
        }
        let work = step.delivery.work_id();
        let Some(mut lane) = self.lanes.get_mut(&work.endpoint) else {
            return Taken::Passed;
        };
        if self.settled.is_duplicate(&work, step.delivery.attempt) {
            lane.settle(&step, self.next, now);
            self.resolved.push(step.offset);
            return Taken::Duplicate;
        }
        if let Some(beside) = self.active.get_mut(&work) {
            lane.take_beside(step.offset);
            beside.push(step);
            return Taken::Passed;
        }
        lane.take(step, now);
        self.active.insert(work, Vec::new());
        Taken::Queued
    }

    /// Takes a record into the order of its key.
    fn take_ordered(&mut self, step: Step, now: Now) -> Taken {
        let key = step.delivery.order_key().unwrap_or_default().to_owned();
        let Some(mut lane) = self.lanes.get_mut(&step.delivery.endpoint) else {
            return Taken::Passed;
        };
        let rank = lane.rank(&key, step, now);
        drop(lane);
        match rank {
            Rank::Stays | Rank::Waits => Taken::Passed,
            Rank::Head(head) => match self.bring_up(&key, head, now) {
                (true, _) => Taken::Queued,
                (false, 0) => Taken::Passed,
                (false, _) => Taken::Duplicate,
            },
        }
    }

    /// A delivery is its key's head. It goes to the queue with the attempt that is next, or waits
    /// until that is due; of what was settled before, this is a duplicate, and the next one is the
    /// head. Answers with whether one is in the queue now, and with how many were duplicates.
    fn bring_up(&mut self, key: &str, mut head: Step, now: Now) -> (bool, u64) {
        let mut duplicates = 0;
        loop {
            let work = head.delivery.work_id();
            let Some(mut lane) = self.lanes.get_mut(&work.endpoint) else {
                return (false, duplicates);
            };
            if self.settled.has_ended(&work) {
                let next = lane.settle(&head, self.next, now);
                self.resolved.push(head.offset);
                duplicates += 1;
                match next {
                    Some(next) => head = next,
                    None => return (false, duplicates),
                }
                continue;
            }
            let written = lane.next_attempt(key);
            let known = self.settled.next_attempt(&work);
            let known =
                known.filter(|known| written.is_none_or(|written| known.number > written.number));
            if let Some(next) = known.filter(|next| next.due_at_ms > now.wall_ms) {
                lane.block(key, next, now);
                return (false, duplicates);
            }
            let number = known.or(written).map_or(1, |next| next.number);
            head.delivery.attempt = head.delivery.attempt.max(number);
            lane.enqueue(head);
            return (true, duplicates);
        }
    }

    // ---- attempts ----

    pub(super) fn lane_mut(&mut self, endpoint: &EndpointId) -> Option<LaneMut<'_>> {
        self.lanes.get_mut(endpoint)
    }

    /// When the lane's next attempt may start.
    pub(super) fn turn(&self, endpoint: &EndpointId, limits: &LaneLimits, now: Now) -> Turn {
        let lane = self.lanes.get(endpoint);
        lane.map_or(Turn::Later, |lane| lane.turn(limits, now))
    }

    /// Takes the lane's next delivery under way, and whether it is a probe.
    pub(super) fn start(
        &mut self,
        endpoint: &EndpointId,
        expires: bool,
        slow: SlowShare,
        now: Now,
    ) -> Option<(Step, bool)> {
        let attempts_from = self.settled.next();
        let mut lane = self.lanes.get_mut(endpoint)?;
        lane.start(attempts_from, expires, slow, now)
    }

    /// The endpoint has answered an attempt, or will not any more. What follows is not written yet.
    pub(super) fn answered(&mut self, answered: &Answered, now: Now) {
        if let Some(mut lane) = self.lanes.get_mut(&answered.endpoint) {
            let Answered {
                offset,
                probes,
                seen,
                ..
            } = *answered;
            lane.answered(offset, probes, seen, now);
        }
    }

    /// An attempt ended without a settlement: it was cut, or nothing was sent, in which case the
    /// delivery goes back.
    pub(super) fn unsettled(&mut self, step: Step, probes: bool, goes_back: bool, now: Now) {
        if let Some(mut lane) = self.lanes.get_mut(&step.delivery.endpoint) {
            lane.finish(step.offset, probes, Seen::Nothing, now);
            if goes_back && !self.draining {
                lane.enqueue(step);
            }
        }
    }

    /// A delivery is settled, durably. What waited for its work goes on; answers with how many
    /// duplicates that dropped.
    pub(super) fn settle(&mut self, step: &Step, probes: bool, seen: Seen, now: Now) -> u64 {
        let work = step.delivery.work_id();
        let Some(mut lane) = self.lanes.get_mut(&work.endpoint) else {
            return 0;
        };
        lane.finish(step.offset, probes, seen, now);
        let next = lane.settle(step, self.next, now);
        drop(lane);
        self.resolved.push(step.offset);
        if !self.watched.contains(&work.endpoint) {
            self.watched.insert(work.endpoint.clone());
        }
        let beside = self.active.remove(&work).unwrap_or_default();
        if self.draining {
            return 0;
        }
        if let (Some(key), Some(next)) = (step.delivery.order_key(), next) {
            return self.bring_up(key, next, now).1;
        }
        let taken = beside.into_iter().map(|step| self.take(step, now));
        let duplicates = taken.filter(|taken| *taken == Taken::Duplicate).count();
        duplicates as u64
    }

    /// The head of an ordering key failed, and is tried again later, in its place.
    pub(super) fn block(
        &mut self,
        step: &Step,
        probes: bool,
        seen: Seen,
        next: NextAttempt,
        now: Now,
    ) {
        let endpoint = &step.delivery.endpoint;
        if let Some(mut lane) = self.lanes.get_mut(endpoint)
            && let Some(key) = step.delivery.order_key()
        {
            lane.finish(step.offset, probes, seen, now);
            lane.block(key, next, now);
        }
        self.watched.insert(endpoint.clone());
    }

    /// When the head of an ordering key failed first, if it did.
    pub(super) fn failed_at_ms(&self, delivery: &Delivery) -> Option<i64> {
        let lane = self.lanes.get(&delivery.endpoint)?;
        let next = lane.next_attempt(delivery.order_key()?)?;
        Some(next.failed_at_ms)
    }

    // ---- time passes ----

    /// Looks at the lanes in which something happens: who must not hold the commit, who is paused,
    /// who can be forgotten. Answers with those that may start again.
    pub(super) fn tick(
        &mut self,
        limits: &LaneLimits,
        pressed: bool,
        paused: impl Fn(&EndpointId) -> bool,
        now: Now,
    ) -> Vec<EndpointId> {
        let hold_ms_max = if pressed {
            limits.hold_ms_max / HOLDS_PRESSED_DIVISOR
        } else {
            limits.hold_ms_max
        };
        // Each lane is marked, if it reads again, since it is taken for a change: what it waits for
        // may have come with time, such as the end of a pause, its age, or memory of another
        // partition.
        let (mut ready, mut idle) = (Vec::new(), Vec::new());
        for endpoint in &self.watched {
            let Some(mut lane) = self.lanes.get_mut(endpoint) else {
                idle.push(endpoint.clone());
                continue;
            };
            let was_paused = lane.is_paused();
            lane.pause(paused(endpoint));
            if lane.head_expires(limits, now) || (was_paused && !lane.is_paused()) {
                ready.push(endpoint.clone());
            }
            lane.count_in_flight(limits.slow_from_ms, now);
            lane.came_up_to(self.next);
            self.resolved
                .extend(lane.release(hold_ms_max, self.next, now));
            if lane.is_idle(LANE_IDLE_MS, now) {
                idle.push(endpoint.clone());
            }
        }
        for endpoint in idle {
            self.watched.remove(&endpoint);
            self.lanes.remove(&endpoint);
        }
        ready
    }

    /// Gives memory back to the log: of lanes that may not start anything for now.
    pub(super) fn evict(&mut self, now: Now) {
        let stuck = self.lanes.iter().filter(|lane| lane.is_stuck(now));
        let stuck: Vec<_> = stuck.map(|lane| lane.endpoint().clone()).collect();
        for endpoint in stuck {
            let Some(mut lane) = self.lanes.get_mut(&endpoint) else {
                continue;
            };
            let (evicted, released) = lane.evict(self.next, now);
            self.resolved.extend(released);
            for step in evicted {
                let beside = self.active.remove(&step.delivery.work_id());
                for beside in beside.unwrap_or_default() {
                    lane.evict_beside(beside.offset);
                }
            }
            drop(lane);
            self.watched.insert(endpoint);
        }
    }

    /// How soon to look again: `None` when nothing is going on.
    pub(super) fn tick_after_ms(&self) -> Option<i64> {
        let mut lanes = self.watched.iter().filter_map(|id| self.lanes.get(id));
        let pressing = self.state_id.is_in_doubt() || lanes.any(Lane::is_pressing);
        (!self.watched.is_empty()).then_some(if pressing { 100 } else { 1_000 })
    }

    // ---- what is written ----

    /// The states to write now, if any.
    pub(super) fn states_to_write(
        &mut self,
        limits: &LaneLimits,
        interval_ms: i64,
        now: Now,
    ) -> Option<StatesToWrite> {
        let write = WriteContext {
            limits,
            state_id: self.state_id.id(),
            next: self.next,
            committed: self.committed,
            interval_ms,
            now,
        };
        match self.state_id.may_write() {
            MayWrite::Nothing => None,
            MayWrite::Changes => {
                let lanes = &mut self.lanes;
                let due = self.watched.iter().filter_map(|endpoint| {
                    let state = lanes.get_mut(endpoint)?.due_write(&write)?;
                    Some((endpoint.clone(), state))
                });
                let due: Vec<_> = due.collect();
                if due.is_empty() {
                    return None;
                }
                self.state_id.writing();
                Some(StatesToWrite::Changes(due))
            }
            MayWrite::AllAnew => {
                let id = write.state_id;
                let keys = self
                    .lanes
                    .iter()
                    .map(|lane| state::key(lane.endpoint(), id));
                self.state_id.writing_anew(keys);
                let states = self.lanes.iter_mut();
                let states = states.filter_map(|lane| lane.rewrite(&write));
                Some(StatesToWrite::AllAnew(states.collect()))
            }
        }
    }

    /// What was sent is in the log.
    pub(super) fn written(&mut self, written: Written) {
        if !self.state_id.acknowledged(written) {
            self.lanes.iter_mut().for_each(Lane::not_written);
            return;
        }
        for lane in self.lanes.iter_mut() {
            self.resolved.extend(lane.written(written.id, self.next));
        }
    }

    /// The fate of what was sent is not known.
    pub(super) fn not_written(&mut self) {
        self.state_id.not_acknowledged();
        self.lanes.iter_mut().for_each(Lane::not_written);
    }

    /// Where the settled set must be rebuilt from when the group has committed `committed`: before
    /// the oldest settlement that neither the commit nor a durable cursor reflects, and before
    /// whatever the attempts under way may yet write.
    pub(super) fn rebuild_from(&mut self, committed: Offset, wall_ms: i64) -> Offset {
        let lanes = &self.lanes;
        let reflected = |endpoint: &EndpointId, settles: Offset| {
            lanes.get(endpoint).map_or(settles < committed, |lane| {
                lane.has_durably_settled(settles, committed)
            })
        };
        let oldest = self.settled.expire(wall_ms, reflected);
        let under_way = lanes.iter().filter_map(Lane::attempts_from);
        under_way.fold(oldest, Offset::min)
    }

    /// The lowest unsettled offset of a lane that is behind.
    pub(super) fn behind_from(&self) -> Option<Offset> {
        self.lanes.iter().filter_map(Lane::behind_from).min()
    }

    /// A commit is durable.
    pub(super) fn committed(&mut self, offset: Offset) {
        self.committed = self.committed.max(offset);
    }

    // ---- what is asked ----

    /// Records that hold the commit.
    pub(super) fn held(&self) -> usize {
        self.dead_lettering.len() + self.held.amount()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.dead_lettering.is_empty() && !self.lanes.iter().any(Lane::is_at_work)
    }

    /// What is known of a lane.
    pub(super) fn status(
        &self,
        number: i32,
        endpoint: &EndpointId,
        limits: &LaneLimits,
        now: Now,
    ) -> Option<LaneStatus> {
        let lane = self.lanes.get(endpoint)?;
        Some(lane.status(number, limits, self.next, now))
    }

    /// What is known of every lane.
    pub(super) fn statuses<'a>(
        &'a self,
        number: i32,
        limits: &'a LaneLimits,
        now: Now,
    ) -> impl Iterator<Item = LaneStatus> + 'a {
        let lanes = self.lanes.iter();
        lanes.map(move |lane| lane.status(number, limits, self.next, now))
    }

    /// Starts nothing more.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.lanes.iter_mut().for_each(Lane::clear);
    }
}

#[cfg(test)]
mod tests;
