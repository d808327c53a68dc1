//! The metrics of the API.

use postrider_daemon::metrics::catalogue;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry};

/// Counters, gauges and histograms of the API.
#[derive(Debug, Clone)]
pub struct IngestMetrics {
    pub(crate) events_accepted: IntCounter,
    events_refused: IntCounterVec,
    pub(crate) events_in_flight: IntGauge,
    pub(crate) events_in_flight_bytes: IntGauge,
    pub(crate) events_in_flight_max: IntGauge,
    pub(crate) requests_in_flight: IntGauge,
    request_duration: HistogramVec,
    pub(crate) dead_letters_redriven: IntCounter,
    pub(crate) events_replayed: IntCounter,
}

/// Refusals that are nobody's mistake but ours. They are counted from 0, so that the first one is
/// seen to come.
const OUR_FAULTS: [&str; 6] = [
    "busy",
    "not-taken",
    "perhaps-taken",
    "log-unavailable",
    "registry-behind",
    "internal",
];

impl IngestMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let events_refused = catalogue::EVENTS_REFUSED.counters(registry)?;
        for reason in OUR_FAULTS {
            events_refused.with_label_values(&[reason]);
        }
        Ok(Self {
            events_accepted: catalogue::EVENTS_ACCEPTED.counter(registry)?,
            events_refused,
            events_in_flight: catalogue::EVENTS_IN_FLIGHT.gauge(registry)?,
            events_in_flight_bytes: catalogue::EVENTS_IN_FLIGHT_BYTES.gauge(registry)?,
            events_in_flight_max: catalogue::EVENTS_IN_FLIGHT_MAX.gauge(registry)?,
            requests_in_flight: catalogue::REQUESTS_IN_FLIGHT.gauge(registry)?,
            request_duration: catalogue::REQUEST_DURATION.histograms(registry)?,
            dead_letters_redriven: catalogue::DEAD_LETTERS_REDRIVEN.counter(registry)?,
            events_replayed: catalogue::EVENTS_REPLAYED.counter(registry)?,
        })
    }

    /// Counts an event that was not accepted, under the kind of its problem.
    pub(crate) fn event_refused(&self, reason: &'static str) {
        self.events_refused.with_label_values(&[reason]).inc();
    }

    /// Counts an answered request, under the route's pattern, never its path.
    pub(crate) fn request_ended(&self, method: &str, route: &str, status: u16, seconds: f64) {
        let class = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.request_duration
            .with_label_values(&[method, route, class])
            .observe(seconds);
    }
}

/// A gauge that is raised for as long as this lives.
#[derive(Debug)]
pub(crate) struct Raised {
    gauge: IntGauge,
    by: i64,
}

impl Raised {
    pub(crate) fn by(gauge: &IntGauge, by: usize) -> Self {
        let by = i64::try_from(by).unwrap_or(i64::MAX);
        gauge.add(by);
        Self {
            gauge: gauge.clone(),
            by,
        }
    }

    /// Raises it by more.
    pub(crate) fn further(&mut self, by: usize) {
        let by = i64::try_from(by).unwrap_or(i64::MAX);
        self.gauge.add(by);
        self.by += by;
    }

    /// Raises it by less.
    pub(crate) fn less(&mut self, by: usize) {
        let by = i64::try_from(by).unwrap_or(i64::MAX);
        self.gauge.sub(by);
        self.by -= by;
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.gauge.sub(self.by);
    }
}

#[cfg(test)]
mod tests {
    use postrider_daemon::metrics::catalogue::{Part, disagreements};

    use super::*;

    #[test]
    fn declares_what_the_catalogue_lists() {
        let registry = Registry::new();
        IngestMetrics::new(&registry).unwrap();
        assert_eq!(
            disagreements(&registry, &[Part::Ingest]),
            Vec::<&str>::new()
        );
    }
}
