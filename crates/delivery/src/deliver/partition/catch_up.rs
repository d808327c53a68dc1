//! What stayed in the log is read again: who is read for next, and whose a record is.

use std::collections::BTreeSet;

use postrider_log::{Offset, Record};
use postrider_model::delivery::Delivery;
use postrider_model::ids::EndpointId;

use super::{Partition, Taken};
use crate::deliver::limits::LaneLimits;
use crate::deliver::step::{Memory, Now, Step};

/// Records to read again at once before another lane has its turn.
const SWEEP_RECORDS_MAX: usize = 20_000;

#[derive(Debug, Default)]
pub(super) struct CatchUp {
    is_reading: bool,
    sweep: Option<Sweep>,
    /// Lanes that were taken over were read up to here, at most.
    restored_up_to: Offset,
    /// The live stream has come nearer to that since lanes were looked at.
    comes_to_restored: bool,
    /// The lane that was read for last.
    last: Option<EndpointId>,
    /// The last read was for heads of ordering keys.
    heads_first: bool,
}

/// Reading on for one lane, and for whoever else wants records on the way.
#[derive(Debug)]
struct Sweep {
    lane: EndpointId,
    at: Offset,
    records_left: usize,
}

/// A read that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::deliver) struct ReadAgain {
    pub(in crate::deliver) from: Offset,
    /// Only a record or a few are wanted from there.
    pub(in crate::deliver) few: bool,
}

impl CatchUp {
    pub(super) fn restored(&mut self, unread_from: Option<Offset>) {
        self.restored_up_to = self.restored_up_to.max(unread_from.unwrap_or_default());
    }

    /// The live stream goes on from here, where a former owner may have read a lane further.
    pub(super) fn live_stream_comes(&mut self, from: Offset) {
        self.comes_to_restored |= from <= self.restored_up_to;
    }
}

impl Partition {
    pub(in crate::deliver) fn is_reading(&self) -> bool {
        self.catch_up.is_reading
    }

    /// The read that was asked for has ended.
    pub(in crate::deliver) fn read_ended(&mut self) {
        self.catch_up.is_reading = false;
    }

    /// The read that is to be made now, if some lane wants records.
    pub(in crate::deliver) fn next_read(
        &mut self,
        limits: &LaneLimits,
        memory: Memory,
        now: Now,
    ) -> Option<ReadAgain> {
        if self.catch_up.is_reading || self.draining {
            return None;
        }
        let read = self
            .sweep_on(limits, memory, now)
            .or_else(|| self.read_for_next_lane(limits, memory, now));
        self.catch_up.is_reading = read.is_some();
        read
    }

    fn sweep_on(&mut self, limits: &LaneLimits, memory: Memory, now: Now) -> Option<ReadAgain> {
        let sweep = self
            .catch_up
            .sweep
            .take()
            .filter(|sweep| sweep.records_left > 0)?;
        let lane = self.lanes.get(&sweep.lane)?;
        if lane.unread_from() != Some(sweep.at) || lane.demand(limits, memory, now) == 0 {
            return None;
        }
        let from = sweep.at;
        self.catch_up.sweep = Some(sweep);
        Some(ReadAgain { from, few: false })
    }

    fn read_for_next_lane(
        &mut self,
        limits: &LaneLimits,
        memory: Memory,
        now: Now,
    ) -> Option<ReadAgain> {
        if std::mem::take(&mut self.catch_up.comes_to_restored) {
            self.lanes.mark_all();
        }
        let next = self.next;
        let after = self.catch_up.last.take();
        while let Some(endpoint) = self.lanes.next_marked(after.as_ref()).cloned() {
            let wants = self.lanes.get(&endpoint).map(|lane| {
                // A former owner may have served a lane further than it had committed: that far the
                // live stream comes first.
                let is_below = lane.unread_from().is_some_and(|from| from < next);
                let wants_records = is_below && lane.demands_a_read(limits, memory, now);
                (wants_records, lane.demands_heads(limits, memory, next, now))
            });
            match wants {
                Some((wants_records, wants_heads)) if wants_records || wants_heads => {
                    let read = self.read_for(&endpoint, wants_records, limits, memory, now);
                    if read.is_some() {
                        return read;
                    }
                    self.lanes.unmark(&endpoint);
                }
                _ => self.lanes.unmark(&endpoint),
            }
        }
        None
    }

    fn read_for(
        &mut self,
        endpoint: &EndpointId,
        wants_records: bool,
        limits: &LaneLimits,
        memory: Memory,
        now: Now,
    ) -> Option<ReadAgain> {
        let next = self.next;
        self.catch_up.last = Some(endpoint.clone());
        let mut lane = self.lanes.get_mut(endpoint)?;
        // Heads that are due, and what comes next, have every other turn.
        self.catch_up.heads_first = !self.catch_up.heads_first || !wants_records;
        if self.catch_up.heads_first
            && let Some(from) = lane.plan_head_reads(limits, memory, next, now)
        {
            return Some(ReadAgain { from, few: true });
        }
        let from = lane.unread_from()?;
        drop(lane);
        self.catch_up.sweep = Some(Sweep {
            lane: endpoint.clone(),
            at: from,
            records_left: SWEEP_RECORDS_MAX,
        });
        Some(ReadAgain { from, few: false })
    }

    /// Records that were read again, from `from` up to `to`. Every lane takes those that it wants,
    /// and none is waited for. Answers with the endpoints whose queues grew, and with how many
    /// duplicates were dropped.
    pub(in crate::deliver) fn feed(
        &mut self,
        from: Offset,
        records: &[Record],
        to: Offset,
        limits: &LaneLimits,
        memory: Memory,
        now: Now,
    ) -> (Vec<EndpointId>, u64) {
        let to = to.min(self.next);
        let (mut grown, mut duplicates, mut full) = (BTreeSet::new(), 0, BTreeSet::new());
        for record in records.iter().take_while(|record| record.offset < to) {
            let name = std::str::from_utf8(&record.key).ok();
            let Some(lane) = name.and_then(|name| self.lanes.get_by_name(name)) else {
                continue;
            };
            let endpoint = lane.endpoint();
            let is_head = lane.is_head_to_read(record.offset);
            let is_next = lane.unread_from().is_some_and(|unread_from| {
                from <= unread_from
                    && unread_from <= record.offset
                    && !full.contains(endpoint)
                    && !lane.knows(record.offset)
            });
            if !is_next && !is_head {
                continue;
            }
            let endpoint = endpoint.clone();
            if !is_head && lane.demand(limits, memory, now) == 0 {
                self.read_up_to(&endpoint, record.offset);
                full.insert(endpoint);
                continue;
            }
            let Ok(delivery) = Delivery::decode(record.value.as_deref().unwrap_or_default()) else {
                continue;
            };
            if !is_head && lane.has_passed(record.offset, delivery.order_key()) {
                continue;
            }
            let step = Step::new(record, delivery, &self.memory);
            match self.take(step, now) {
                Taken::Queued => {
                    grown.insert(endpoint);
                }
                Taken::Duplicate => duplicates += 1,
                Taken::Passed => {}
            }
        }
        self.pass(from, to, &full);
        if let Some(sweep) = &mut self.catch_up.sweep
            && sweep.at == from
        {
            sweep.at = to;
            sweep.records_left = sweep.records_left.saturating_sub(records.len().max(1));
        }
        (grown.into_iter().collect(), duplicates)
    }

    /// Everything in this range was read, for all lanes that took what they want.
    fn pass(&mut self, from: Offset, to: Offset, full: &BTreeSet<EndpointId>) {
        let watched = self.watched.iter().filter(|lane| !full.contains(*lane));
        let passed = watched.filter(|endpoint| {
            let lane = self.lanes.get(endpoint);
            let unread_from = lane.and_then(|lane| lane.unread_from());
            unread_from.is_some_and(|unread_from| from <= unread_from && unread_from < to)
        });
        let passed: Vec<_> = passed.cloned().collect();
        for endpoint in passed {
            self.read_up_to(&endpoint, to);
        }
    }

    fn read_up_to(&mut self, endpoint: &EndpointId, to: Offset) {
        if let Some(mut lane) = self.lanes.get_mut(endpoint) {
            lane.read_up_to(to, self.next);
        }
    }

    /// The log no longer has anything before `start`: lanes go on there. Answers with where the
    /// first of them was.
    pub(in crate::deliver) fn truncated(&mut self, start: Offset, now: Now) -> Option<Offset> {
        let next = self.next;
        let lanes = self.lanes.iter_mut();
        let lost_from = lanes
            .filter_map(|lane| lane.truncated(start, next, now))
            .min();
        self.lanes.mark_all();
        lost_from
    }

    /// Memory that lanes wait for may have come.
    pub(in crate::deliver) fn read_for_all(&mut self) {
        self.lanes.mark_all();
    }

    /// The time that a lane waits for may have come.
    pub(in crate::deliver) fn read_for_lane(&mut self, endpoint: &EndpointId) {
        self.lanes.mark(endpoint);
    }
}
