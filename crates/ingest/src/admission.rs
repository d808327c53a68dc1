//! How much may be under way at a time: refuse early instead of queueing without end.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::ApiError;
use crate::config::IngestConfig;
use crate::metrics::{IngestMetrics, Raised};
use crate::problem::Problem;

/// Permits for events received and not yet acknowledged, by number and by bytes.
#[derive(Debug)]
pub(crate) struct Admission {
    events: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    events_gauge: IntGauge,
    bytes_gauge: IntGauge,
}

/// An event that was admitted; travels with it until its fate is known.
#[derive(Debug)]
pub(crate) struct Admitted {
    _event: OwnedSemaphorePermit,
    bytes: Option<OwnedSemaphorePermit>,
    room: Arc<Semaphore>,
    _event_raised: Raised,
    bytes_raised: Raised,
}

impl Admitted {
    /// So many bytes more of its body have come. What was announced and does not come takes no room from others.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let permits = u32::try_from(bytes).map_err(|_| Problem::Busy)?;
        let more = Arc::clone(&self.room)
            .try_acquire_many_owned(permits)
            .map_err(|_| Problem::Busy)?;
        self.bytes_raised.further(bytes);
        match &mut self.bytes {
            Some(bytes) => bytes.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

impl Admission {
    pub(crate) fn try_new(
        config: &IngestConfig,
        metrics: &IngestMetrics,
    ) -> Result<Self, ApiError> {
        if config.events_in_flight_max == 0 {
            return Err(ApiError::Limit("events_in_flight_max"));
        }
        // Otherwise the largest event allowed would never be admitted.
        if config.events_in_flight_bytes_max < config.event_bytes_max {
            return Err(ApiError::Limit("events_in_flight_bytes_max"));
        }
        let semaphore =
            |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Ok(Self {
            events: semaphore(config.events_in_flight_max),
            bytes: semaphore(config.events_in_flight_bytes_max),
            events_gauge: metrics.events_in_flight.clone(),
            bytes_gauge: metrics.events_in_flight_bytes.clone(),
        })
    }

    /// Admits an event before its body is read, unless there is no room for that as far as it is announced.
    pub(crate) fn admit(&self, announced: usize) -> Result<Admitted, Problem> {
        let event = Arc::clone(&self.events)
            .try_acquire_owned()
            .map_err(|_| Problem::Busy)?;
        if self.bytes.available_permits() < announced {
            return Err(Problem::Busy);
        }
        Ok(Admitted {
            _event: event,
            bytes: None,
            room: Arc::clone(&self.bytes),
            _event_raised: Raised::by(&self.events_gauge, 1),
            bytes_raised: Raised::by(&self.bytes_gauge, 0),
        })
    }
}
