//! By what a piece of work is named: one event for one endpoint.

use crate::event::EventPosition;
use crate::ids::EndpointId;

/// Names a piece of work; with an attempt number, one step of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId {
    /// Where the event is in `events`.
    pub position: EventPosition,
    /// Where it goes.
    pub endpoint: EndpointId,
    /// Which run.
    pub run: u64,
}
