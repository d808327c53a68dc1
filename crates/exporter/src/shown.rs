//! From what was gathered to the values that are shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use postrider_daemon::metrics::catalogue::{
    ALL, COLLECTIONS_FAILED, EXPORTER_UNREADABLE, Part, RECORDED_ATTEMPTS, RECORDED_DEAD_LETTERS,
    RECORDED_DELIVERIES, RECORDED_DELIVERY_LATENCY, RECORDED_FIRST_ATTEMPT_DELAY,
};
use postrider_daemon::metrics::{Collected, Metric, Sample};
use postrider_model::outcome::Reason;
use postrider_model::topics::{ATTEMPTS, DEAD_LETTERS};
use prometheus::{Error, IntCounter, Registry};

use crate::counts::{Counts, Series};

/// Values of the exporter's metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values(BTreeMap<&'static str, (&'static Metric, Vec<Sample>)>);

impl Values {
    /// Adds a value.
    pub(crate) fn add(&mut self, metric: &'static Metric, sample: Sample) {
        let (_, samples) = self.0.entry(metric.name).or_insert((metric, Vec::new()));
        samples.push(sample);
    }

    /// Adds a value with labels.
    pub(crate) fn labelled<const N: usize>(
        &mut self,
        metric: &'static Metric,
        labels: [&str; N],
        value: f64,
    ) {
        self.add(metric, Sample::labelled(labels, value));
    }

    /// Adds what was counted. Every reason is there from the start, so that its first count is seen
    /// as an increase.
    pub(crate) fn counted(&mut self, counts: &Counts) {
        let of = [
            (&RECORDED_ATTEMPTS, Series::AttemptFailed, Some("failed")),
            (
                &RECORDED_DELIVERIES,
                Series::DeadLettered,
                Some("dead_lettered"),
            ),
            (&RECORDED_DELIVERIES, Series::Dropped, Some("dropped")),
            (&RECORDED_DEAD_LETTERS, Series::DeadLetter, None),
        ];
        for (metric, series, outcome) in of {
            for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::Ok) {
                self.reason(metric, counts, series, outcome, *reason);
            }
        }
        let others = [
            (
                &RECORDED_ATTEMPTS,
                Series::AttemptSucceeded,
                "succeeded",
                Reason::Ok,
            ),
            (
                &RECORDED_ATTEMPTS,
                Series::AttemptInterrupted,
                "interrupted",
                Reason::Interrupted,
            ),
            (
                &RECORDED_DELIVERIES,
                Series::Delivered,
                "delivered",
                Reason::Ok,
            ),
        ];
        for (metric, series, outcome, reason) in others {
            self.reason(metric, counts, series, Some(outcome), reason);
        }
        for (metric, observed) in [
            (&RECORDED_DELIVERY_LATENCY, &counts.latency),
            (&RECORDED_FIRST_ATTEMPT_DELAY, &counts.first_delay),
        ] {
            let value = observed.value(metric.buckets);
            self.add(
                metric,
                Sample {
                    labels: Vec::new(),
                    value,
                },
            );
        }
    }

    fn reason(
        &mut self,
        metric: &'static Metric,
        counts: &Counts,
        series: Series,
        outcome: Option<&str>,
        reason: Reason,
    ) {
        let labels = outcome.into_iter().chain([reason.as_str()]);
        let mut sample = Sample::count(counts.of(series, reason));
        sample.labels = labels.map(ToOwned::to_owned).collect();
        self.add(metric, sample);
    }

    /// Adds how many records of the counted topics were not understood.
    pub(crate) fn unreadable(&mut self, topic: &'static str, counts: &Counts) {
        let mut sample = Sample::count(counts.unreadable);
        sample.labels = vec![topic.to_owned()];
        self.add(&EXPORTER_UNREADABLE, sample);
    }
}

/// The topics whose records are counted.
pub(crate) const COUNTED: [&str; 2] = [ATTEMPTS, DEAD_LETTERS];

/// What Prometheus sees.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    values: Arc<Mutex<Values>>,
    pub(crate) failed: IntCounter,
}

impl Shown {
    /// Declares the exporter's metrics.
    pub(crate) fn declare(registry: &Registry) -> Result<Self, Error> {
        let failed = COLLECTIONS_FAILED.counter(registry)?;
        let values: Arc<Mutex<Values>> = Arc::default();
        let ours = ALL.iter().filter(|metric| metric.part == Part::Exporter);
        let ours = ours.filter(|metric| metric.name != COLLECTIONS_FAILED.name);
        let ours: Vec<&'static Metric> = ours.copied().collect();
        let read = values.clone();
        Collected::declare(registry, &ours, move || {
            let values = read.lock();
            values.0.values().cloned().collect()
        })?;
        Ok(Self { values, failed })
    }

    /// Shows these values and no others.
    pub(crate) fn show(&self, values: Values) {
        *self.values.lock() = values;
    }
}

#[cfg(test)]
mod tests {
    use postrider_daemon::metrics::catalogue::disagreements;

    use super::*;

    #[test]
    fn declares_what_the_catalogue_lists() {
        let registry = Registry::new();
        Shown::declare(&registry).unwrap();
        assert_eq!(
            disagreements(&registry, &[Part::Exporter]),
            Vec::<&str>::new()
        );
    }
}
