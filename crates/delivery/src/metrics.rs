//! The metrics of the delivery stages, declared in one place.

use postrider_model::delivery::{AttemptOutcome, Settlement};
use postrider_model::outcome::Reason;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

const LATENCY_BUCKETS_SECONDS: [f64; 15] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0, 3_600.0, 86_400.0,
];

/// Counters, gauges and histograms of the delivery stages.
#[derive(Debug, Clone)]
pub struct DeliveryMetrics {
    deliveries: IntCounterVec,
    attempts: IntCounterVec,
    attempt_duration: Histogram,
    delivery_latency: Histogram,
    /// Attempts under way.
    pub attempts_in_flight: IntGauge,
    /// 1 while no endpoint can be reached, so that our own network seems down.
    pub network_down: IntGauge,
    /// Events that fan-out has routed.
    pub events_routed: IntCounter,
    /// Events dropped as repeats of an id.
    pub events_repeated: IntCounter,
    /// Records dropped because their step was settled already.
    pub copies_dropped: IntCounter,
    /// Retries that returned to `deliveries`.
    pub retries_released: IntCounter,
    dead_letters: IntCounterVec,
    /// Records that retention took before they were read.
    pub records_lost: IntCounterVec,
    /// Partitions that wait for an operator to decide where they go on.
    pub partitions_stopped: IntGaugeVec,
    /// Stages that failed and were started again.
    pub stage_restarts: IntCounterVec,
}

impl DeliveryMetrics {
    /// Declares the metrics in a registry.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let catalogue = Catalogue(registry);
        Ok(Self {
            deliveries: catalogue.counters(
                "postrider_deliveries_total",
                "Deliveries that ended",
                &["outcome"],
            )?,
            attempts: catalogue.counters(
                "postrider_attempts_total",
                "Attempts that ended",
                &["outcome", "reason"],
            )?,
            attempt_duration: catalogue.histogram(
                "postrider_attempt_duration_seconds",
                "Duration of an attempt",
            )?,
            delivery_latency: catalogue.histogram(
                "postrider_delivery_latency_seconds",
                "Time from acceptance to delivery",
            )?,
            attempts_in_flight: catalogue
                .gauge("postrider_attempts_in_flight", "Attempts under way")?,
            network_down: catalogue.gauge(
                "postrider_network_down",
                "1 while no endpoint can be reached, so that our own network seems down",
            )?,
            events_routed: catalogue.counter(
                "postrider_events_routed_total",
                "Events that fan-out routed",
            )?,
            events_repeated: catalogue.counter(
                "postrider_events_repeated_total",
                "Events dropped because their id came before",
            )?,
            copies_dropped: catalogue.counter(
                "postrider_delivery_copies_dropped_total",
                "Records dropped because their step was settled already",
            )?,
            retries_released: catalogue.counter(
                "postrider_retries_released_total",
                "Retries that fell due and returned to deliveries",
            )?,
            dead_letters: catalogue.counters(
                "postrider_dead_letters_total",
                "Dead letters written",
                &["reason"],
            )?,
            records_lost: catalogue.counters(
                "postrider_records_lost_total",
                "Records that retention took before they were read",
                &["topic"],
            )?,
            partitions_stopped: catalogue.gauges(
                "postrider_partitions_stopped",
                "Partitions that wait for an operator to decide where they go on",
                &["stage"],
            )?,
            stage_restarts: catalogue.counters(
                "postrider_stage_restarts_total",
                "Stages that failed and were started again",
                &["stage"],
            )?,
        })
    }

    /// Metrics that nobody scrapes.
    #[must_use]
    pub fn detached() -> Self {
        Self::new(&Registry::new()).expect("an empty registry takes every name")
    }

    pub(crate) fn attempt_ended(&self, outcome: AttemptOutcome, reason: Reason, duration_ms: u32) {
        let outcome = match outcome {
            AttemptOutcome::Succeeded => "succeeded",
            AttemptOutcome::Failed => "failed",
            AttemptOutcome::Interrupted => "interrupted",
            AttemptOutcome::None => return,
        };
        self.attempts
            .with_label_values(&[outcome, reason.as_str()])
            .inc();
        self.attempt_duration
            .observe(f64::from(duration_ms) / 1000.0);
    }

    pub(crate) fn settled(&self, settlement: Settlement, accepted_at_ms: i64, now_ms: i64) {
        let outcome = match settlement {
            Settlement::Delivered => "delivered",
            Settlement::RetryScheduled { .. } => return,
            Settlement::DeadLettered => "dead_lettered",
            Settlement::Dropped => "dropped",
        };
        self.deliveries.with_label_values(&[outcome]).inc();
        if settlement == Settlement::Delivered {
            let latency =
                u32::try_from(now_ms.saturating_sub(accepted_at_ms).max(0)).unwrap_or(u32::MAX);
            self.delivery_latency.observe(f64::from(latency) / 1000.0);
        }
    }

    pub(crate) fn dead_lettered(&self, reason: Reason) {
        self.dead_letters
            .with_label_values(&[reason.as_str()])
            .inc();
    }
}

/// Declares each metric in the registry.
struct Catalogue<'a>(&'a Registry);

impl Catalogue<'_> {
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.declare(IntCounter::with_opts(Opts::new(name, help))?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.declare(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.declare(IntGauge::with_opts(Opts::new(name, help))?)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.declare(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS_SECONDS.to_vec());
        self.declare(Histogram::with_opts(options)?)
    }

    fn declare<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M, prometheus::Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}
