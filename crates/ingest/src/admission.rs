//! How much may be under way at a time: refuse early instead of queueing without end.

mod later;
mod limit;

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::IngestConfig;
use crate::metrics::{IngestMetrics, Raised};
use crate::problem::Problem;
use later::Later;
use limit::{Limit, Taken};

/// How long room is kept for a body that was announced. One that takes longer has room for what has
/// come, so that those who announce much and send little keep nobody out; those who send get
/// through even where there is much to do.
const ANNOUNCED_FOR: Duration = Duration::from_millis(500);

/// Permits for events received and not yet acknowledged, by number and by bytes.
#[derive(Debug)]
pub(crate) struct Admission {
    room: Arc<Room>,
    _watching: JoinSet<()>,
    events_gauge: IntGauge,
    bytes_gauge: IntGauge,
}

#[derive(Debug)]
struct Room {
    events: Arc<Limit>,
    bytes: Arc<Semaphore>,
    later: Later,
}

/// An event that was admitted; travels with it until its fate is known.
#[derive(Debug)]
pub(crate) struct Admitted {
    _event: Taken,
    room: Arc<Room>,
    bytes: OwnedSemaphorePermit,
    arrived: usize,
    /// Until then there is room for all that was announced, and afterwards for what has come.
    announced_until: Instant,
    _event_raised: Raised,
    bytes_raised: Raised,
}

/// A place among the events that wait for the log, beside the request that brought it.
#[derive(Debug)]
pub(crate) struct Placed {
    _event: Taken,
    _raised: Raised,
}

impl Admitted {
    /// So many bytes more of its body have come.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        self.arrived += bytes;
        let more = self.arrived.saturating_sub(self.bytes.num_permits());
        if more > 0 {
            self.bytes.merge(self.room.take_bytes(more)?);
            self.bytes_raised.further(more);
        }
        Ok(())
    }

    /// How long it is waited for what was announced, if there is any more.
    pub(crate) fn waits_until(&self) -> Option<Instant> {
        (self.bytes.num_permits() > self.arrived).then_some(self.announced_until)
    }

    /// Leaves the room of what has not come to others.
    pub(crate) fn keep_arrived(&mut self) {
        let spare = self.bytes.num_permits().saturating_sub(self.arrived);
        drop(self.bytes.split(spare));
        self.bytes_raised.less(spare);
    }
}

impl Room {
    fn take_event(&self) -> Result<Taken, Problem> {
        self.events.take().ok_or_else(|| self.refuse())
    }

    fn take_bytes(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let permits = u32::try_from(bytes).map_err(|_| self.refuse())?;
        let taken = Arc::clone(&self.bytes).try_acquire_many_owned(permits);
        taken.map_err(|_| self.refuse())
    }

    fn refuse(&self) -> Problem {
        let again_after_s = self.later.refused();
        Problem::Busy { again_after_s }
    }
}

impl Admission {
    /// Within limits that were checked.
    pub(crate) fn new(config: &IngestConfig, metrics: &IngestMetrics) -> Self {
        let bytes_max = config.events_in_flight_bytes_max;
        let events = Limit::new(
            config.events_in_flight_max,
            config.events_wait_max(),
            metrics.events_in_flight_max.clone(),
        );
        let mut watching = JoinSet::new();
        watching.spawn(Limit::watch(Arc::clone(&events)));
        Self {
            _watching: watching,
            room: Arc::new(Room {
                events,
                bytes: Arc::new(Semaphore::new(bytes_max.min(Semaphore::MAX_PERMITS))),
                later: Later::new(config.again_after_max_s),
            }),
            events_gauge: metrics.events_in_flight.clone(),
            bytes_gauge: metrics.events_in_flight_bytes.clone(),
        }
    }

    /// The log took so long to acknowledge an event.
    pub(crate) fn waited(&self, time: Duration) {
        self.room.events.waited(time);
    }

    /// There is no room elsewhere for an event that was admitted.
    pub(crate) fn refuse(&self) -> Problem {
        self.room.refuse()
    }

    /// Admits one of many events whose bodies came together.
    pub(crate) fn place(&self) -> Result<Placed, Problem> {
        let event = self.room.take_event()?;
        self.room.later.admitted();
        Ok(Placed {
            _event: event,
            _raised: Raised::by(&self.events_gauge, 1),
        })
    }

    /// Admits an event whose body has at most so many bytes, before any of them is read.
    pub(crate) fn admit(&self, announced: usize) -> Result<Admitted, Problem> {
        let event = self.room.take_event()?;
        let bytes = self.room.take_bytes(announced)?;
        self.room.later.admitted();
        Ok(Admitted {
            _event: event,
            room: Arc::clone(&self.room),
            bytes,
            arrived: 0,
            announced_until: Instant::now() + ANNOUNCED_FOR,
            _event_raised: Raised::by(&self.events_gauge, 1),
            bytes_raised: Raised::by(&self.bytes_gauge, announced),
        })
    }
}
