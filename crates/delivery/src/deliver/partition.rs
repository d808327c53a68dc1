//! A partition of `deliveries` that this worker owns: its lanes, what holds its commit, and what is read again.
//!
//! Nothing here waits: records, answers and acknowledgements come in, offsets to resolve and things to do come out, so
//! that every rule of it can be tested without a runtime. [`super`] does what it asks for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use postrider_log::{Generation, Offset, Record};
use postrider_model::delivery::{Delivery, LaneState, WorkId};
use postrider_model::ids::EndpointId;
use tokio_util::sync::CancellationToken;

use super::lane::{Lane, LaneLimits, Memory, Now, Seen, Step, Turn, WriteContext};
use super::order::{Again, Placed};
use super::settled::SettledSet;
use super::state::{self, Written};
use super::status::LaneStatus;

/// Records to read again at once before another lane has its turn.
const SWEEP_RECORDS_MAX: usize = 20_000;
/// A lane in which nothing happens is forgotten after this time.
const LANE_IDLE_MS: i64 = 10 * 60 * 1000;

/// What the owner keeps of a partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) generation: Generation,
    pub(super) settled: SettledSet,
    pub(super) lanes: BTreeMap<EndpointId, Lane>,
    /// Work that is queued or under way, with the steps that wait for it.
    active: BTreeMap<WorkId, Vec<Step>>,
    /// Lanes to look at when time passes.
    watched: BTreeSet<EndpointId>,
    /// Where the live stream is: records below it came.
    next: Offset,
    /// What the group has durably committed.
    committed: Offset,
    /// The id under which the lanes' states count.
    state_id: i64,
    /// Offset of the last state that was acknowledged.
    state_written: Offset,
    /// States are on their way to the log.
    pub(super) writing: bool,
    /// The states must be written again under a new id.
    pub(super) needs_new_id: bool,
    /// Records are being read again.
    pub(super) reading: bool,
    sweep: Option<Sweep>,
    /// Nobody was hungry when last asked, and nothing has happened since.
    sated: bool,
    /// Up to here lanes that were taken over were read.
    ahead: Offset,
    fed: Option<EndpointId>,
    /// The last read was for heads of ordering keys.
    heads_first: bool,
    /// Records that hold the commit without a lane, while their dead letters are written.
    pub(super) burying: usize,
    /// Records of lanes that hold the commit.
    held: usize,
    /// What is in memory, in bytes.
    bytes: usize,
    pub(super) paused: bool,
    pub(super) draining: bool,
    pub(super) cut: CancellationToken,
    pub(super) gone: CancellationToken,
    resolved: Vec<Offset>,
}

/// Reading on for one lane, and for whoever else is hungry on the way.
#[derive(Debug)]
struct Sweep {
    lane: EndpointId,
    at: Offset,
    records_left: usize,
}

/// What became of a record that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in its lane's queue.
    Queued,
    /// It was settled before, is in memory already, or stays in the log.
    Passed,
    /// It is a copy of what was settled.
    Copy,
}

impl Partition {
    pub(super) fn new(
        generation: Generation,
        from: Offset,
        committed: Offset,
        settled: SettledSet,
    ) -> Self {
        Self {
            generation,
            settled,
            lanes: BTreeMap::new(),
            active: BTreeMap::new(),
            watched: BTreeSet::new(),
            next: from,
            committed,
            state_id: 0,
            state_written: 0,
            writing: false,
            needs_new_id: false,
            reading: false,
            sweep: None,
            sated: false,
            ahead: 0,
            fed: None,
            heads_first: false,
            burying: 0,
            held: 0,
            bytes: 0,
            paused: false,
            draining: false,
            cut: CancellationToken::new(),
            gone: CancellationToken::new(),
            resolved: Vec::new(),
        }
    }

    /// Takes over what the former owner wrote, durable under the new id already.
    pub(super) fn restore(
        &mut self,
        written: Written,
        states: Vec<LaneState>,
        limits: &LaneLimits,
        now: Now,
    ) {
        (self.state_id, self.state_written) = (written.id, written.last);
        for state in states {
            let endpoint = state.endpoint.clone();
            let lane = Lane::restored(state, self.next, limits, now);
            self.ahead = self.ahead.max(lane.position().unwrap_or_default());
            self.watched.insert(endpoint.clone());
            self.lanes.insert(endpoint, lane);
        }
    }

    /// The live stream has come up to `next`, and perhaps to where a lane that was taken over is read on.
    fn come_up_to(&mut self, next: Offset) {
        if self.next <= self.ahead {
            self.sated = false;
        }
        self.next = self.next.max(next);
    }

    /// Offsets that hold the commit no more.
    pub(super) fn resolved(&mut self) -> Vec<Offset> {
        std::mem::take(&mut self.resolved)
    }

    // ---- records come in ----

    /// A record that is no delivery came in live; its offset is the caller's to resolve.
    pub(super) fn pass(&mut self, offset: Offset) {
        self.come_up_to(offset + 1);
    }

    /// A record came in live.
    pub(super) fn admit(
        &mut self,
        step: Step,
        limits: &LaneLimits,
        memory: Memory,
        now: Now,
    ) -> Taken {
        let (offset, next) = (step.offset, step.offset + 1);
        self.come_up_to(next);
        let endpoint = step.delivery.endpoint.clone();
        let lane = self.lanes.entry(endpoint.clone());
        let lane = lane.or_insert_with(|| Lane::new(&endpoint, limits, now));
        lane.came_up_to(offset);
        if lane.knows(offset) || lane.has_passed(offset, step.delivery.order_key()) {
            self.resolved.push(offset);
            return Taken::Passed;
        }
        lane.hold(offset, now);
        self.held += 1;
        let has_memory = match memory {
            Memory::Free | Memory::Tight => true,
            Memory::Full => lane.is_empty(),
            Memory::Exceeded => false,
        };
        let fits = lane.has_room(limits) && has_memory;
        if !self.watched.contains(&endpoint) {
            self.watched.insert(endpoint);
        }
        if lane.is_behind() || !fits {
            lane.leave_in_log(offset, now);
            let released = lane.release_covered(self.next);
            self.release(released);
            self.sated = false;
            return Taken::Passed;
        }
        self.take(step, now)
    }

    fn release(&mut self, released: Vec<Offset>) {
        self.held -= released.len();
        self.resolved.extend(released);
    }

    /// Takes a record into memory: into its lane's queue, into the order of its key, or beside the work that it is another
    /// step of.
    fn take(&mut self, mut step: Step, now: Now) -> Taken {
        step.delivery.position = self.settled.work_of(&step.delivery).position;
        if let Some(key) = step.delivery.order_key() {
            let key = key.to_owned();
            return self.take_ordered(&key, step, now);
        }
        let work = step.delivery.work_id();
        let Some(lane) = self.lanes.get_mut(&work.endpoint) else {
            return Taken::Passed;
        };
        if self.settled.is_copy(&work, step.delivery.attempt) {
            let (held, _) = lane.settle(&step, self.next, now);
            self.held -= usize::from(held);
            self.resolved.push(step.offset);
            return Taken::Copy;
        }
        self.bytes += step.bytes;
        if let Some(waiting) = self.active.get_mut(&work) {
            lane.open_beside(step.offset);
            waiting.push(step);
            return Taken::Passed;
        }
        lane.take(step, now);
        self.active.insert(work, Vec::new());
        Taken::Queued
    }

    /// Takes a record into the order of its key.
    fn take_ordered(&mut self, key: &str, step: Step, now: Now) -> Taken {
        let bytes = step.bytes;
        let Some(lane) = self.lanes.get_mut(&step.delivery.endpoint) else {
            return Taken::Passed;
        };
        match lane.place(key, step, now) {
            Placed::Stays => Taken::Passed,
            Placed::Waits => {
                self.bytes += bytes;
                Taken::Passed
            }
            Placed::Head(head) => {
                self.bytes += bytes;
                let (queued, copies) = self.bring_up(key, head, now);
                match (queued, copies) {
                    (true, _) => Taken::Queued,
                    (false, 0) => Taken::Passed,
                    (false, _) => Taken::Copy,
                }
            }
        }
    }

    /// A delivery is its key's head. It goes to the queue with the attempt that is next, or waits until that is due; of
    /// what was settled before, this is a copy, and the next one is the head. Answers with whether one is in the queue now,
    /// and with how many were copies.
    fn bring_up(&mut self, key: &str, mut head: Step, now: Now) -> (bool, u64) {
        let mut copies = 0;
        loop {
            let work = head.delivery.work_id();
            let Some(lane) = self.lanes.get_mut(&work.endpoint) else {
                return (false, copies);
            };
            if self.settled.has_ended(&work) {
                let (held, next) = lane.settle(&head, self.next, now);
                self.held -= usize::from(held);
                self.resolved.push(head.offset);
                self.bytes -= head.bytes;
                lane.leave(&head);
                copies += 1;
                match next {
                    Some(next) => head = next,
                    None => return (false, copies),
                }
                continue;
            }
            let written = lane.again(key);
            let known = self.settled.again(&work);
            let again =
                known.filter(|known| written.is_none_or(|written| known.attempt > written.attempt));
            if let Some(again) = again.filter(|again| again.due_at_ms > now.wall_ms) {
                lane.leave(&head);
                self.bytes -= head.bytes + lane.block(key, again, now);
                return (false, copies);
            }
            let attempt = again.or(written).map_or(1, |again| again.attempt);
            head.delivery.attempt = head.delivery.attempt.max(attempt);
            lane.enqueue(head);
            return (true, copies);
        }
    }

    // ---- catching up ----

    /// Where to read on, if some lane is hungry, and whether only single records are to be read there.
    pub(super) fn next_read(
        &mut self,
        limits: &LaneLimits,
        memory: Memory,
        now: Now,
    ) -> Option<(Offset, bool)> {
        if self.reading || self.draining || self.sated {
            return None;
        }
        // A former owner may have served a lane further than it had committed: that far the live stream comes first.
        let is_behind = |lane: &Lane| lane.position().is_some_and(|at| at < self.next);
        let hungry = |lane: &Lane| is_behind(lane) && lane.is_hungry(limits, memory, now);
        if let Some(sweep) = &self.sweep
            && sweep.records_left > 0
            && self.lanes.get(&sweep.lane).is_some_and(|lane| {
                lane.appetite(limits, memory, now) > 0 && lane.position() == Some(sweep.at)
            })
        {
            return Some((sweep.at, false));
        }
        self.sweep = None;
        let after = self.fed.take();
        let later = self
            .watched
            .iter()
            .filter(|endpoint| after.as_ref().is_none_or(|fed| *endpoint > fed));
        let all = later.chain(&self.watched);
        let chosen = all
            .filter_map(|endpoint| self.lanes.get(endpoint).map(|lane| (endpoint, lane)))
            .find(|(_, lane)| hungry(lane) || lane.wants_heads(limits, memory, self.next, now))
            .map(|(endpoint, lane)| (endpoint.clone(), hungry(lane)));
        let Some((lane, is_hungry)) = chosen else {
            self.sated = true;
            return None;
        };
        self.fed = Some(lane.clone());
        let owned = self.lanes.get_mut(&lane)?;
        // Heads that are due, and what comes next, have every other turn.
        self.heads_first = !self.heads_first || !is_hungry;
        if self.heads_first
            && let Some(at) = owned.want_heads(limits, memory, self.next, now)
        {
            return Some((at, true));
        }
        let at = owned.position()?;
        self.sweep = Some(Sweep {
            lane,
            at,
            records_left: SWEEP_RECORDS_MAX,
        });
        Some((at, false))
    }

    /// Records that were read again, from `from` on. Every hungry lane takes its own, and none is waited for. Answers
    /// with the endpoints whose queues grew, and with how many copies were dropped.
    pub(super) fn feed(
        &mut self,
        from: Offset,
        records: &[Record],
        to: Offset,
        limits: &LaneLimits,
        memory: Memory,
        now: Now,
    ) -> (Vec<EndpointId>, u64) {
        let to = to.min(self.next);
        let (mut grown, mut copies, mut full) = (BTreeSet::new(), 0, BTreeSet::new());
        for record in records.iter().take_while(|record| record.offset < to) {
            let Some((endpoint, lane)) = std::str::from_utf8(&record.key)
                .ok()
                .and_then(|key| self.lanes.get_key_value(key))
            else {
                continue;
            };
            let is_next = lane.position().is_some_and(|position| {
                from <= position
                    && position <= record.offset
                    && !full.contains(endpoint)
                    && !lane.knows(record.offset)
            });
            let is_wanted = lane.is_wanted(record.offset);
            if !is_next && !is_wanted {
                continue;
            }
            let endpoint = endpoint.clone();
            if !is_wanted && lane.appetite(limits, memory, now) == 0 {
                self.read_up_to(&endpoint, record.offset);
                full.insert(endpoint);
                continue;
            }
            let Ok(delivery) = Delivery::decode(record.value.as_deref().unwrap_or_default()) else {
                continue;
            };
            if !is_wanted && self.has_passed(&endpoint, record.offset, &delivery) {
                continue;
            }
            let step = Step {
                offset: record.offset,
                bytes: record.size_bytes(),
                appended_ms: record.timestamp_ms,
                delivery: Box::new(delivery),
            };
            match self.take(step, now) {
                Taken::Queued => {
                    grown.insert(endpoint);
                }
                Taken::Copy => copies += 1,
                Taken::Passed => {}
            }
        }
        let passed: Vec<_> = self
            .watched
            .iter()
            .filter(|endpoint| !full.contains(*endpoint))
            .filter(|endpoint| {
                let position = self.lanes.get(*endpoint).and_then(Lane::position);
                position.is_some_and(|position| from <= position && position < to)
            })
            .cloned()
            .collect();
        for endpoint in passed {
            self.read_up_to(&endpoint, to);
        }
        if let Some(sweep) = self.sweep.as_mut().filter(|sweep| sweep.at == from) {
            sweep.at = to;
            sweep.records_left = sweep.records_left.saturating_sub(records.len().max(1));
        }
        (grown.into_iter().collect(), copies)
    }

    fn has_passed(&self, endpoint: &EndpointId, offset: Offset, delivery: &Delivery) -> bool {
        let lane = self.lanes.get(endpoint);
        lane.is_some_and(|lane| lane.has_passed(offset, delivery.order_key()))
    }

    fn read_up_to(&mut self, endpoint: &EndpointId, to: Offset) {
        if let Some(lane) = self.lanes.get_mut(endpoint) {
            lane.read_up_to(to, self.next);
        }
    }

    /// The log no longer has anything before `start`: lanes go on there. Answers with where the first of them was.
    pub(super) fn truncated(&mut self, start: Offset, now: Now) -> Option<Offset> {
        let next = self.next;
        let lanes = self.lanes.values_mut();
        lanes
            .filter_map(|lane| lane.truncated(start, next, now))
            .min()
    }

    /// Gives memory back to the log: of lanes that may not start anything for now.
    pub(super) fn shed(&mut self, now: Now) {
        let stuck: Vec<_> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.is_stuck(now))
            .map(|(id, _)| id.clone())
            .collect();
        for endpoint in stuck {
            self.shed_lane(&endpoint, now);
        }
    }

    fn shed_lane(&mut self, endpoint: &EndpointId, now: Now) {
        let Some(lane) = self.lanes.get_mut(endpoint) else {
            return;
        };
        for step in lane.shed(now) {
            self.bytes -= step.bytes;
            for waiting in self
                .active
                .remove(&step.delivery.work_id())
                .unwrap_or_default()
            {
                self.bytes -= waiting.bytes;
                lane.close_beside(waiting.offset, now);
            }
        }
        self.sated = false;
        self.watched.insert(endpoint.clone());
    }

    // ---- attempts ----

    /// When the lane's next attempt may start.
    pub(super) fn turn(&self, endpoint: &EndpointId, limits: &LaneLimits, now: Now) -> Turn {
        self.lanes
            .get(endpoint)
            .map_or(Turn::Later, |lane| lane.turn(limits, now))
    }

    /// Takes the lane's next delivery under way, and whether it is a probe.
    pub(super) fn start(
        &mut self,
        endpoint: &EndpointId,
        expires: bool,
        now: Now,
    ) -> Option<(Step, bool)> {
        let attempts_from = self.settled.next();
        self.sated = false;
        self.lanes
            .get_mut(endpoint)?
            .start(attempts_from, expires, now)
    }

    /// An attempt ended without a settlement: it was cut, or could not begin, in which case the delivery goes back.
    pub(super) fn unsettled(&mut self, step: Step, probe: bool, goes_back: bool, now: Now) {
        let endpoint = step.delivery.endpoint.clone();
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.finish(step.offset, probe, Seen::Nothing, now);
            if goes_back && !self.draining {
                lane.put_back(step, now);
            } else {
                self.bytes -= step.bytes;
            }
        }
    }

    /// A delivery is settled, durably. What waited for its work goes on; answers with how many copies that dropped.
    pub(super) fn settle(&mut self, step: &Step, probe: bool, seen: Seen, now: Now) -> u64 {
        let work = step.delivery.work_id();
        self.sated = false;
        self.watched.insert(work.endpoint.clone());
        if let Some(lane) = self.lanes.get_mut(&work.endpoint) {
            lane.finish(step.offset, probe, seen, now);
            let (held, next) = lane.settle(step, self.next, now);
            self.held -= usize::from(held);
            self.bytes -= step.bytes;
            self.resolved.push(step.offset);
            if let (Some(key), Some(next), false) = (step.delivery.order_key(), next, self.draining)
            {
                return self.bring_up(key, next, now).1;
            }
        }
        let waiting = self.active.remove(&work).unwrap_or_default();
        if self.draining {
            return 0;
        }
        let mut copies = 0;
        for step in waiting {
            self.bytes -= step.bytes;
            copies += u64::from(self.take(step, now) == Taken::Copy);
        }
        copies
    }

    /// The head of an ordering key failed, and is tried again later, in its place.
    pub(super) fn block(&mut self, step: &Step, probe: bool, seen: Seen, again: Again, now: Now) {
        self.sated = false;
        let endpoint = step.delivery.endpoint.clone();
        if let Some(lane) = self.lanes.get_mut(&endpoint)
            && let Some(key) = step.delivery.order_key()
        {
            lane.finish(step.offset, probe, seen, now);
            self.bytes -= step.bytes + lane.block(key, again, now);
        }
        self.watched.insert(endpoint);
    }

    /// When the head of an ordering key failed first, if it did.
    pub(super) fn failed_at_ms(&self, delivery: &Delivery) -> Option<i64> {
        let again = self
            .lanes
            .get(&delivery.endpoint)?
            .again(delivery.order_key()?)?;
        Some(again.failed_at_ms)
    }

    // ---- time passes ----

    /// Looks at the lanes in which something happens: who must be covered, who is parked, who can be forgotten.
    /// Answers with those that may start again.
    pub(super) fn tick(
        &mut self,
        limits: &LaneLimits,
        pressed: bool,
        parked: impl Fn(&EndpointId) -> bool,
        now: Now,
    ) -> Vec<EndpointId> {
        let (mut unparked, mut calm, mut released) = (Vec::new(), Vec::new(), Vec::new());
        for endpoint in &self.watched {
            let Some(lane) = self.lanes.get_mut(endpoint) else {
                calm.push(endpoint.clone());
                continue;
            };
            let was_parked = lane.is_parked();
            lane.park(parked(endpoint));
            if lane.head_expires(limits, now) || (was_parked && !lane.is_parked()) {
                unparked.push(endpoint.clone());
                self.sated = false;
            }
            lane.came_up_to(self.next);
            lane.judge_cover(limits, pressed, now);
            released.extend(lane.release_covered(self.next));
            if lane.is_idle(LANE_IDLE_MS, now) {
                calm.push(endpoint.clone());
            }
        }
        self.release(released);
        for endpoint in calm {
            self.watched.remove(&endpoint);
            self.lanes.remove(&endpoint);
        }
        unparked
    }

    /// Records that hold the commit.
    pub(super) fn held(&self) -> usize {
        self.burying + self.held
    }

    /// What the lanes take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How soon to look again: `None` when nothing is going on.
    pub(super) fn tick_after_ms(&self) -> Option<i64> {
        let mut lanes = self.watched.iter().filter_map(|id| self.lanes.get(id));
        let pressing = self.needs_new_id || lanes.any(Lane::is_pressing);
        (!self.watched.is_empty()).then_some(if pressing { 100 } else { 1_000 })
    }

    // ---- what is written ----

    /// The states to write now, by endpoint; `None` is a tombstone.
    pub(super) fn due_writes(
        &mut self,
        limits: &LaneLimits,
        interval_ms: i64,
        now: Now,
    ) -> Vec<(EndpointId, Option<LaneState>)> {
        let write = WriteContext {
            limits,
            state_id: self.state_id,
            next: self.next,
            committed: self.committed,
            interval_ms,
            now,
        };
        let mut due = Vec::new();
        for endpoint in &self.watched {
            if let Some(lane) = self.lanes.get_mut(endpoint)
                && let Some(state) = lane.due_write(endpoint, &write)
            {
                due.push((endpoint.clone(), state));
            }
        }
        self.writing = !due.is_empty();
        due
    }

    /// All states, to be written under a new id.
    pub(super) fn rewrite(&mut self, limits: &LaneLimits, now: Now) -> Vec<LaneState> {
        let write = WriteContext {
            limits,
            state_id: self.state_id,
            next: self.next,
            committed: self.committed,
            interval_ms: 0,
            now,
        };
        self.writing = true;
        self.lanes
            .iter_mut()
            .filter_map(|(endpoint, lane)| lane.rewrite(endpoint, &write))
            .collect()
    }

    /// What was sent is durable. If it is below what was written before, the topic was made again or lost its end, and
    /// what it lost is written again: under a new id, with everything else.
    pub(super) fn written(&mut self, written: Written) {
        if written.id == self.state_id && written.first <= self.state_written {
            tracing::error!(
                offset = written.first,
                known = self.state_written,
                "endpoint-state was made again or lost records, writing all states of the partition again"
            );
            return self.not_written();
        }
        self.writing = false;
        self.needs_new_id = false;
        (self.state_id, self.state_written) = (written.id, written.last);
        let state_id = written.id;
        let mut released = Vec::new();
        for lane in self.lanes.values_mut() {
            lane.written(state_id);
            released.extend(lane.release_covered(self.next));
        }
        self.release(released);
        self.sated = false;
    }

    /// The fate of what was sent is not known. Nothing more may be written under the id: an old state could land after
    /// a new one.
    pub(super) fn not_written(&mut self) {
        self.writing = false;
        self.needs_new_id = true;
        self.lanes.values_mut().for_each(Lane::not_written);
    }

    /// Where the settled set must be rebuilt from when the group has committed `committed`: before the oldest settlement
    /// that neither the commit nor a durable cursor reflects, and before whatever the attempts under way may yet write.
    pub(super) fn rebuild_from(&mut self, committed: Offset, wall_ms: i64) -> Offset {
        let lanes = &self.lanes;
        let reflected = |endpoint: &EndpointId, settles: Offset| {
            lanes.get(endpoint).map_or(settles < committed, |lane| {
                lane.has_durably_settled(settles, committed)
            })
        };
        let oldest = self.settled.expire(wall_ms, reflected);
        lanes
            .values()
            .filter_map(Lane::attempts_from)
            .fold(oldest, Offset::min)
    }

    /// The id that a commit names.
    pub(super) fn state_id(&self) -> i64 {
        self.state_id
    }

    /// The lowest unsettled offset of a lane that is behind.
    pub(super) fn behind_from(&self) -> Option<Offset> {
        self.lanes
            .values()
            .filter_map(Lane::durably_behind_from)
            .min()
    }

    /// Offset of the last state that was acknowledged.
    pub(super) fn state_written(&self) -> Offset {
        self.state_written
    }

    /// A commit is durable.
    pub(super) fn committed(&mut self, offset: Offset) {
        self.committed = self.committed.max(offset);
    }

    /// The keys of the states under the present id, whether or not they were acknowledged.
    pub(super) fn state_keys(&self) -> Vec<Bytes> {
        self.lanes
            .keys()
            .map(|endpoint| state::key(endpoint, self.state_id))
            .collect()
    }

    /// Attempts under way of lanes that are slow.
    pub(super) fn slow_in_flight(&self, slow_from_ms: i64, now: Now) -> usize {
        let lanes = self.lanes.values().filter(|lane| lane.in_flight() > 0);
        lanes
            .filter(|lane| lane.is_slow(slow_from_ms, now))
            .map(Lane::in_flight)
            .sum()
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
        let lanes = self.lanes.values();
        lanes.map(move |lane| lane.status(number, limits, self.next, now))
    }

    /// A dead letter is durable.
    pub(super) fn buried(&mut self, offset: Offset) {
        self.burying -= 1;
        self.resolved.push(offset);
    }

    /// Some lane may be hungry again.
    pub(super) fn hunger(&mut self) {
        self.sated = false;
    }

    /// Starts nothing more.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.lanes.values_mut().for_each(Lane::clear);
    }

    /// Attempts under way.
    pub(super) fn in_flight(&self) -> usize {
        self.lanes.values().map(Lane::in_flight).sum()
    }
}

#[cfg(test)]
mod tests;
