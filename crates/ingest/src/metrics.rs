//! The metrics of the API, declared in one place.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

const DURATION_BUCKETS_SECONDS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Counters, gauges and histograms of the API.
#[derive(Debug, Clone)]
pub(crate) struct IngestMetrics {
    pub(crate) events_accepted: IntCounter,
    events_refused: IntCounterVec,
    pub(crate) events_in_flight: IntGauge,
    pub(crate) events_in_flight_bytes: IntGauge,
    pub(crate) requests_in_flight: IntGauge,
    request_duration: HistogramVec,
    pub(crate) dead_letters_redriven: IntCounter,
    pub(crate) events_replayed: IntCounter,
}

impl IngestMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let refused = Opts::new("postrider_events_refused_total", "Events not accepted");
        let events_refused = IntCounterVec::new(refused, &["reason"])?;
        registry.register(Box::new(events_refused.clone()))?;
        let duration = HistogramOpts::new(
            "postrider_http_request_duration_seconds",
            "Time from the head of a request to the head of its answer",
        );
        let duration = duration.buckets(DURATION_BUCKETS_SECONDS.to_vec());
        let request_duration = HistogramVec::new(duration, &["method", "route", "status"])?;
        registry.register(Box::new(request_duration.clone()))?;
        Ok(Self {
            events_accepted: counter(
                registry,
                "postrider_events_accepted_total",
                "Events that are durably in the log",
            )?,
            events_refused,
            events_in_flight: gauge(
                registry,
                "postrider_events_in_flight",
                "Events received and not yet acknowledged by the log",
            )?,
            events_in_flight_bytes: gauge(
                registry,
                "postrider_events_in_flight_bytes",
                "Bytes reserved for events received and not yet acknowledged by the log",
            )?,
            requests_in_flight: gauge(
                registry,
                "postrider_http_requests_in_flight",
                "Requests under way",
            )?,
            request_duration,
            dead_letters_redriven: counter(
                registry,
                "postrider_dead_letters_redriven_total",
                "Dead letters returned to deliveries",
            )?,
            events_replayed: counter(
                registry,
                "postrider_events_replayed_total",
                "Deliveries appended by replays",
            )?,
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
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.gauge.sub(self.by);
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::with_opts(Opts::new(name, help))?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::with_opts(Opts::new(name, help))?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}
