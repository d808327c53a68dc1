//! The metrics of the delivery stages.

use std::collections::BTreeMap;

use postrider_daemon::metrics::catalogue;
use postrider_model::delivery::{AttemptOutcome, Settlement};
use postrider_model::outcome::Reason;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::lane_status::LaneStatus;

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
    /// Those of them that say something else than the first.
    pub events_repeated_changed: IntCounter,
    /// Events that no endpoint wanted.
    pub events_unmatched: IntCounter,
    /// Records dropped because their step was settled already.
    pub duplicates_dropped: IntCounter,
    /// Retries that returned to `deliveries`.
    pub retries_released: IntCounter,
    retry_lateness: Histogram,
    /// Retries that got a later time because too many were due.
    pub retries_postponed: IntCounter,
    dead_letters: IntCounterVec,
    /// Records that retention took before they were read.
    pub records_lost: IntCounterVec,
    /// Partitions that wait for an operator to decide where they go on.
    pub partitions_stopped: IntGaugeVec,
    /// Stages that failed and were started again.
    pub stage_restarts: IntCounterVec,
    /// Partitions that this process owns.
    pub partitions_owned: IntGaugeVec,
    attempt_permits: IntGaugeVec,
    lanes: IntGaugeVec,
    breakers: IntGaugeVec,
    queued_deliveries: IntGauge,
    queued_bytes: IntGauge,
    queued_bytes_max: IntGauge,
    retries_held: IntGauge,
    retries_held_bytes: IntGauge,
}

impl DeliveryMetrics {
    /// Declares the metrics in a registry.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            deliveries: catalogue::DELIVERIES.counters(registry)?,
            attempts: catalogue::ATTEMPTS.counters(registry)?,
            attempt_duration: catalogue::ATTEMPT_DURATION.histogram(registry)?,
            delivery_latency: catalogue::DELIVERY_LATENCY.histogram(registry)?,
            attempts_in_flight: catalogue::ATTEMPTS_IN_FLIGHT.gauge(registry)?,
            network_down: catalogue::NETWORK_DOWN.gauge(registry)?,
            events_routed: catalogue::EVENTS_ROUTED.counter(registry)?,
            events_repeated: catalogue::EVENTS_REPEATED.counter(registry)?,
            events_repeated_changed: catalogue::EVENTS_REPEATED_CHANGED.counter(registry)?,
            events_unmatched: catalogue::EVENTS_UNMATCHED.counter(registry)?,
            duplicates_dropped: catalogue::DUPLICATES_DROPPED.counter(registry)?,
            retries_released: catalogue::RETRIES_RELEASED.counter(registry)?,
            retry_lateness: catalogue::RETRY_LATENESS.histogram(registry)?,
            retries_postponed: catalogue::RETRIES_POSTPONED.counter(registry)?,
            dead_letters: catalogue::DEAD_LETTERS.counters(registry)?,
            records_lost: catalogue::RECORDS_LOST.counters(registry)?,
            partitions_stopped: catalogue::PARTITIONS_STOPPED.gauges(registry)?,
            stage_restarts: catalogue::STAGE_RESTARTS.counters(registry)?,
            partitions_owned: catalogue::PARTITIONS_OWNED.gauges(registry)?,
            attempt_permits: catalogue::ATTEMPT_PERMITS.gauges(registry)?,
            lanes: catalogue::LANES.gauges(registry)?,
            breakers: catalogue::BREAKERS.gauges(registry)?,
            queued_deliveries: catalogue::QUEUED_DELIVERIES.gauge(registry)?,
            queued_bytes: catalogue::QUEUED_BYTES.gauge(registry)?,
            queued_bytes_max: catalogue::QUEUED_BYTES_MAX.gauge(registry)?,
            retries_held: catalogue::RETRIES_HELD.gauge(registry)?,
            retries_held_bytes: catalogue::RETRIES_HELD_BYTES.gauge(registry)?,
        })
    }

    /// Shows the counters of a stage before there is anything to count: a rise from nothing to one
    /// is no rise to Prometheus.
    pub(crate) fn begin_at_zero(&self, stage: &str, topic: &str) {
        self.stage_restarts.with_label_values(&[stage]);
        self.records_lost.with_label_values(&[topic]);
        self.partitions_stopped.with_label_values(&[stage]);
    }

    /// Metrics that nobody scrapes.
    #[must_use]
    pub fn detached() -> Self {
        Self::new(&Registry::new()).expect("an empty registry takes every name")
    }

    /// A record that could not go on, and of which no dead letter could be written either.
    pub(crate) fn record_lost(&self, topic: &str) {
        self.records_lost.with_label_values(&[topic]).inc();
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

    /// Shows what deliver holds.
    pub fn held(&self, held: &Held) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let free = held.attempts_max.saturating_sub(held.in_flight);
        for (of, count) in [("held", held.in_flight), ("free", free)] {
            self.attempt_permits
                .with_label_values(&[of])
                .set(number(count));
        }
        for state in ["live", "behind", "paused"] {
            let count = held.lanes.get(state).copied().unwrap_or_default();
            self.lanes.with_label_values(&[state]).set(number(count));
        }
        for state in ["closed", "open", "half_open"] {
            let count = held.breakers.get(state).copied().unwrap_or_default();
            self.breakers.with_label_values(&[state]).set(number(count));
        }
        self.queued_deliveries.set(number(held.queued));
        self.queued_bytes.set(number(held.bytes));
        self.queued_bytes_max.set(number(held.bytes_max));
    }

    /// A retry returned to `deliveries`, so long after it was due.
    pub(crate) fn retry_released(&self, late_ms: i64) {
        self.retries_released.inc();
        let late_ms = u32::try_from(late_ms.max(0)).unwrap_or(u32::MAX);
        self.retry_lateness.observe(f64::from(late_ms) / 1000.0);
    }

    /// Shows what the scheduler holds.
    pub(crate) fn retries_held(&self, records: usize, bytes: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.retries_held.set(number(records));
        self.retries_held_bytes.set(number(bytes));
    }

    pub(crate) fn dead_lettered(&self, reason: Reason) {
        self.dead_letters
            .with_label_values(&[reason.as_str()])
            .inc();
    }
}

/// What deliver holds at a time, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Attempts under way.
    pub in_flight: usize,
    /// Attempts that may be under way.
    pub attempts_max: usize,
    /// Deliveries that wait in memory.
    pub queued: usize,
    /// Bytes of the deliveries in memory.
    pub bytes: usize,
    /// What they may take.
    pub bytes_max: usize,
    /// Lanes by state.
    pub lanes: BTreeMap<&'static str, usize>,
    /// Breakers by state.
    pub breakers: BTreeMap<&'static str, usize>,
}

impl Held {
    /// Adds a lane.
    pub fn add(&mut self, lane: &LaneStatus) {
        self.queued += lane.queued;
        let state = match lane.behind_since_ms {
            _ if lane.paused => "paused",
            Some(_) => "behind",
            None => "live",
        };
        *self.lanes.entry(state).or_default() += 1;
        *self.breakers.entry(lane.breaker).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use postrider_daemon::metrics::catalogue::{Part, disagreements};

    use super::*;

    #[test]
    fn declares_what_the_catalogue_lists() {
        let registry = Registry::new();
        DeliveryMetrics::new(&registry).unwrap();
        assert_eq!(
            disagreements(&registry, &[Part::Delivery]),
            Vec::<&str>::new()
        );
    }
}
