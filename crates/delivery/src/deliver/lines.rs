//! Lanes in line for an attempt, and those that wait for the time when they may stand in line.

use std::collections::BTreeSet;

use postrider_log::Partition;
use postrider_model::flow::line::FairLine;
use postrider_model::ids::{EndpointId, TenantId};

/// A lane of this process.
pub(super) type LaneKey = (Partition, EndpointId);

/// Lanes that may start an attempt, and when others may. The lines are fair over tenants, then
/// lanes.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Those that answer quickly, each once.
    quick: FairLine<TenantId, LaneKey>,
    /// The others, each once.
    slow: FairLine<TenantId, LaneKey>,
    slow_is_next: bool,
    times: BTreeSet<(i64, LaneKey)>,
}

impl Lines {
    /// Puts a lane in line. It must not be in line already.
    pub(super) fn line_up(&mut self, tenant: TenantId, key: LaneKey, slow: bool) {
        let line = if slow {
            &mut self.slow
        } else {
            &mut self.quick
        };
        line.push(tenant, key);
    }

    /// The lane whose turn it is. Both lines take turns, but nobody leaves that of the slow while
    /// these have no room.
    pub(super) fn next(&mut self, slow_has_room: bool) -> Option<LaneKey> {
        let slow_first = slow_has_room && self.slow_is_next;
        self.slow_is_next = !self.slow_is_next;
        let first = if slow_first {
            self.slow.pop()
        } else {
            self.quick.pop()
        };
        let popped = match first {
            None if slow_first => self.quick.pop(),
            None if slow_has_room => self.slow.pop(),
            popped => popped,
        };
        popped.map(|(_, key)| key)
    }

    /// Whether anybody is in line.
    pub(super) fn is_anybody_in_line(&self) -> bool {
        !self.quick.is_empty() || !self.slow.is_empty()
    }

    /// Remembers when a lane may stand in line.
    pub(super) fn until(&mut self, at_ms: i64, key: LaneKey) {
        self.times.insert((at_ms, key));
    }

    /// When the first of those that wait for time may.
    pub(super) fn first_at_ms(&self) -> Option<i64> {
        self.times.first().map(|(at_ms, _)| *at_ms)
    }

    /// The next lane that has waited for its time.
    pub(super) fn due(&mut self, now_ms: i64) -> Option<LaneKey> {
        if self.first_at_ms()? > now_ms {
            return None;
        }
        self.times.pop_first().map(|(_, key)| key)
    }

    /// Takes the lanes of these partitions out.
    pub(super) fn remove(&mut self, partitions: &[Partition]) {
        let stays = |(partition, _): &LaneKey| !partitions.contains(partition);
        self.quick.retain(stays);
        self.slow.retain(stays);
        self.times.retain(|(_, key)| stays(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(partition: Partition, name: &str) -> LaneKey {
        (partition, name.parse().unwrap())
    }

    fn tenant() -> TenantId {
        "acme".parse().unwrap()
    }

    fn of_three_quick_and_three_slow() -> Lines {
        let mut lines = Lines::default();
        for number in 0..3 {
            lines.line_up(tenant(), lane(number, "ep_quick"), false);
            lines.line_up(tenant(), lane(number, "ep_slow"), true);
        }
        lines
    }

    fn names(lines: &mut Lines, slow_has_room: bool) -> Vec<String> {
        let next = std::iter::from_fn(|| lines.next(slow_has_room));
        next.map(|(_, endpoint)| endpoint.to_string()).collect()
    }

    #[test]
    fn quick_and_slow_take_turns() {
        let mut lines = of_three_quick_and_three_slow();
        let (quick, slow) = ("ep_quick", "ep_slow");
        assert_eq!(
            names(&mut lines, true),
            [quick, slow, quick, slow, quick, slow]
        );
        assert!(!lines.is_anybody_in_line());
    }

    #[test]
    fn the_slow_stay_in_line_while_they_have_no_room() {
        let mut lines = of_three_quick_and_three_slow();
        assert_eq!(names(&mut lines, false), ["ep_quick"; 3]);
        assert!(lines.is_anybody_in_line());
        assert_eq!(names(&mut lines, true), ["ep_slow"; 3]);
    }

    #[test]
    fn who_waits_for_time_is_due_then_and_not_before() {
        let mut lines = Lines::default();
        lines.until(20, lane(0, "ep_later"));
        lines.until(10, lane(0, "ep_sooner"));
        assert_eq!((lines.first_at_ms(), lines.due(9)), (Some(10), None));
        assert_eq!(lines.due(10), Some(lane(0, "ep_sooner")));
        assert_eq!(lines.due(10), None);
    }

    #[test]
    fn lanes_of_a_partition_that_goes_leave_both_lines_and_wait_for_nothing() {
        let mut lines = of_three_quick_and_three_slow();
        lines.until(10, lane(0, "ep_quick"));
        lines.until(10, lane(1, "ep_quick"));
        lines.remove(&[0, 2]);
        let left: Vec<_> = std::iter::from_fn(|| lines.next(true)).collect();
        assert_eq!(left, [lane(1, "ep_quick"), lane(1, "ep_slow")]);
        assert_eq!(lines.due(10), Some(lane(1, "ep_quick")));
        assert_eq!(lines.due(10), None);
    }
}
