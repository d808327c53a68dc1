//! Plain data of the rules: a delivery in memory, a moment, how much memory is left.

use postrider_log::{Generation, Offset, Partition, Record};
use postrider_model::delivery::Delivery;
use postrider_model::ids::EndpointId;
use postrider_model::verdict::Seen;

use super::tally::{Share, Tally};

/// A delivery in memory: one step of its work, to be settled by one attempt.
#[derive(Debug)]
pub(super) struct Step {
    /// Its record's offset in `deliveries`.
    pub(super) offset: Offset,
    /// When its record was appended.
    pub(super) appended_ms: i64,
    pub(super) delivery: Box<Delivery>,
    /// What it takes of the memory for unsettled deliveries.
    memory: Share,
}

impl Step {
    pub(super) fn new(record: &Record, delivery: Delivery, memory: &Tally) -> Self {
        Self {
            offset: record.offset,
            appended_ms: record.timestamp_ms,
            delivery: Box::new(delivery),
            memory: memory.share(record.size_bytes()),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.amount()
    }
}

/// What was seen of an attempt that ended and is not recorded yet.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    pub(super) partition: Partition,
    /// In which assignment of the partition it was begun.
    pub(super) generation: Generation,
    pub(super) endpoint: EndpointId,
    /// Of its delivery.
    pub(super) offset: Offset,
    /// It probed an endpoint whose breaker was open.
    pub(super) probes: bool,
    pub(super) seen: Seen,
}

/// Where a lane keeps the deliveries that wait. Clones are the same room.
#[derive(Debug, Clone, Default)]
pub(super) struct Room {
    steps: Tally,
    bytes: Tally,
}

impl Room {
    pub(super) fn keep(&self, step: Step) -> Waiting {
        Waiting {
            _count: self.steps.share(1),
            _bytes: self.bytes.share(step.bytes()),
            step,
        }
    }

    /// Deliveries that wait.
    pub(super) fn steps(&self) -> usize {
        self.steps.amount()
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.amount()
    }
}

/// A delivery that waits in its lane.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) step: Step,
    _count: Share,
    _bytes: Share,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

impl Memory {
    pub(super) fn of(bytes: usize, bytes_max: usize) -> Self {
        match bytes {
            _ if bytes >= bytes_max / 4 * 5 => Self::Exceeded,
            _ if bytes >= bytes_max => Self::Full,
            _ if bytes >= bytes_max / 2 => Self::Tight,
            _ => Self::Free,
        }
    }
}
