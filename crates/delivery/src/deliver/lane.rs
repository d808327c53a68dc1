//! The lane of an endpoint: its deliveries in order, and how many of them are under way.
//!
//! A lane that is full holds its partition. This is where a lane will go behind instead: when [`Lane::push`] answers
//! that there is no room, a cursor in `endpoint-state` takes the delivery's place and the partition goes on.

use std::collections::VecDeque;

use postrider_log::Offset;
use postrider_model::delivery::Delivery;

/// A delivery that waits for its attempt.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Its record's offset in `deliveries`.
    pub(super) offset: Offset,
    /// The delivery.
    pub(super) delivery: Box<Delivery>,
}

/// A lane's queue and how much of it is under way.
#[derive(Debug, Default)]
pub(super) struct Lane {
    queue: VecDeque<Step>,
    in_flight: usize,
    /// It stands in the line of lanes that may start an attempt.
    in_line: bool,
}

impl Lane {
    /// Queues a delivery, or gives it back when there is no room.
    pub(super) fn push(&mut self, step: Step, queue_max: usize) -> Result<(), Step> {
        if self.queue.len() >= queue_max {
            return Err(step);
        }
        self.queue.push_back(step);
        Ok(())
    }

    /// Puts a delivery back that could not start.
    pub(super) fn push_front(&mut self, step: Step) {
        self.queue.push_front(step);
    }

    /// Whether it must be put in line now; it then stands there until [`Lane::start`].
    pub(super) fn lines_up(&mut self, in_flight_max: usize) -> bool {
        let lines_up = !self.in_line && !self.queue.is_empty() && self.in_flight < in_flight_max;
        self.in_line |= lines_up;
        lines_up
    }

    /// Takes the next delivery under way; the lane leaves the line.
    pub(super) fn start(&mut self) -> Option<Step> {
        self.in_line = false;
        let step = self.queue.pop_front()?;
        self.in_flight += 1;
        Some(step)
    }

    /// Notes that a delivery is no longer under way.
    pub(super) fn finish(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Whether it can be forgotten.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.in_flight == 0 && !self.in_line
    }

    /// Drops what is not under way.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}
