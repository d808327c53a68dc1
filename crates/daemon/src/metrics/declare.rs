//! From a line of the catalogue to a metric in a registry.

use std::fmt;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, MetricFamily, MetricType};
use prometheus::{
    CounterVec, Error, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, proto,
};

use super::catalogue::{Kind, Part};

/// A metric of the catalogue.
#[derive(Debug)]
pub struct Metric {
    /// Its name, with the unit at the end.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
    /// Who declares it.
    pub part: Part,
    /// Of a histogram, the upper bounds of its buckets but the last.
    pub buckets: &'static [f64],
}

/// A value of a metric with labels, for a [`Collected`].
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The values of the labels, in the catalogue's order.
    pub labels: Vec<String>,
    /// The value.
    pub value: Value,
}

/// What a sample says.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a counter or gauge.
    Number(f64),
    /// Of a histogram: how many observations are in each bucket, the last included, and the sum of
    /// all.
    Buckets(Vec<u64>, f64),
}

impl Sample {
    /// A number without labels.
    pub fn plain(value: f64) -> Self {
        Self::labelled([], value)
    }

    /// A whole number without labels.
    pub fn count(value: u64) -> Self {
        Self::plain(whole(value))
    }

    /// A number with labels.
    pub fn labelled<const N: usize>(labels: [&str; N], value: f64) -> Self {
        Self {
            labels: labels.map(ToOwned::to_owned).to_vec(),
            value: Value::Number(value),
        }
    }
}

/// A count as Prometheus keeps it; above 2^53 it is rounded.
#[expect(
    clippy::cast_precision_loss,
    reason = "there is no other conversion, and Prometheus has nothing else"
)]
pub fn whole(value: u64) -> f64 {
    value as f64
}

impl Metric {
    /// The unit that the name ends with, `count` if with none.
    pub fn unit(&self) -> &'static str {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        match name.rsplit('_').next() {
            Some("seconds") => "seconds",
            Some("bytes") => "bytes",
            Some(_) | None => "count",
        }
    }

    /// Declares a counter without labels.
    ///
    /// # Errors
    /// When it is declared already; so for the others.
    pub fn counter(&self, registry: &Registry) -> Result<IntCounter, Error> {
        declare(registry, IntCounter::with_opts(self.options())?)
    }

    /// Declares a counter with labels.
    ///
    /// # Errors
    /// When it is declared already.
    pub fn counters(&self, registry: &Registry) -> Result<IntCounterVec, Error> {
        declare(registry, IntCounterVec::new(self.options(), self.labels)?)
    }

    /// Declares a gauge without labels.
    ///
    /// # Errors
    /// When it is declared already.
    pub fn gauge(&self, registry: &Registry) -> Result<IntGauge, Error> {
        declare(registry, IntGauge::with_opts(self.options())?)
    }

    /// Declares a gauge with labels.
    ///
    /// # Errors
    /// When it is declared already.
    pub fn gauges(&self, registry: &Registry) -> Result<IntGaugeVec, Error> {
        declare(registry, IntGaugeVec::new(self.options(), self.labels)?)
    }

    /// Declares a histogram without labels.
    ///
    /// # Errors
    /// When it is declared already.
    pub fn histogram(&self, registry: &Registry) -> Result<prometheus::Histogram, Error> {
        let histogram = prometheus::Histogram::with_opts(self.histogram_options())?;
        declare(registry, histogram)
    }

    /// Declares a histogram with labels.
    ///
    /// # Errors
    /// When it is declared already.
    pub fn histograms(&self, registry: &Registry) -> Result<HistogramVec, Error> {
        let histograms = HistogramVec::new(self.histogram_options(), self.labels)?;
        declare(registry, histograms)
    }

    /// Whether it is declared in the registry: then its name is taken there.
    pub fn is_declared(&self, registry: &Registry) -> bool {
        let Ok(probe) = GaugeVec::new(self.options(), self.labels) else {
            return false;
        };
        if registry.register(Box::new(probe.clone())).is_err() {
            return true;
        }
        registry.unregister(Box::new(probe)).is_err()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the catalogue's metrics are made"
    )]
    fn options(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the catalogue's metrics are made"
    )]
    fn histogram_options(&self) -> HistogramOpts {
        HistogramOpts::new(self.name, self.help).buckets(self.buckets.to_vec())
    }

    fn desc(&self) -> Result<Desc, Error> {
        let described = CounterVec::new(self.options(), self.labels)?;
        let mut descs = described.desc().into_iter().cloned();
        descs
            .next()
            .ok_or_else(|| Error::Msg(format!("{} describes nothing", self.name)))
    }

    /// The metric with these values, as it is shown.
    fn family(&self, samples: Vec<Sample>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(match self.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(
            samples
                .into_iter()
                .map(|sample| self.shown(sample))
                .collect(),
        );
        family
    }

    fn shown(&self, sample: Sample) -> proto::Metric {
        let pairs = self.labels.iter().zip(sample.labels);
        let labels = pairs.map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        });
        // As the library sorts those of its own metrics.
        let mut labels: Vec<_> = labels.collect();
        labels.sort();
        let mut metric = proto::Metric::from_label(labels);
        match (self.kind, sample.value) {
            (Kind::Counter, Value::Number(value)) => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            (_, Value::Number(value)) => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            (_, Value::Buckets(counts, sum)) => {
                metric.set_histogram(histogram(self.buckets, &counts, sum));
            }
        }
        metric
    }
}

fn histogram(bounds: &[f64], counts: &[u64], sum: f64) -> Histogram {
    let mut histogram = Histogram::default();
    let mut total = 0;
    let buckets = bounds.iter().zip(counts).map(|(bound, count)| {
        total += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(total);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(sum);
    histogram
}

fn declare<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

type Collect = Box<dyn Fn() -> Vec<(&'static Metric, Vec<Sample>)> + Send + Sync>;

/// Metrics whose values are asked for when somebody looks, so that a label whose subject is gone is
/// gone too.
pub struct Collected {
    descs: Vec<Desc>,
    collect: Collect,
}

impl Collected {
    /// Declares the metrics of a part, or these of them. `collect` gives values of no others, and
    /// must not wait.
    ///
    /// # Errors
    /// When one is declared already.
    pub fn declare(
        registry: &Registry,
        metrics: &[&'static Metric],
        collect: impl Fn() -> Vec<(&'static Metric, Vec<Sample>)> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let descs = metrics.iter().map(|metric| metric.desc());
        let collected = Self {
            descs: descs.collect::<Result<_, _>>()?,
            collect: Box::new(collect),
        };
        registry.register(Box::new(collected))
    }
}

impl fmt::Debug for Collected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Collected").finish_non_exhaustive()
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let samples = (self.collect)().into_iter();
        let shown = samples.filter(|(_, samples)| !samples.is_empty());
        shown
            .map(|(metric, samples)| metric.family(samples))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::super::catalogue::{LANES_BEHIND, RECORDED_DEAD_LETTERS, RECORDED_DELIVERY_LATENCY};
    use super::*;

    #[test]
    fn collected_values_are_shown_as_their_kind() {
        let registry = Registry::new();
        let metrics = [
            &LANES_BEHIND,
            &RECORDED_DEAD_LETTERS,
            &RECORDED_DELIVERY_LATENCY,
        ];
        Collected::declare(&registry, &metrics, || {
            let mut buckets = vec![0; LATENCY];
            (buckets[1], buckets[LATENCY - 1]) = (2, 3);
            let latency = Sample {
                labels: Vec::new(),
                value: Value::Buckets(buckets, 4.5),
            };
            vec![
                (&LANES_BEHIND, vec![Sample::labelled(["slow"], 7.0)]),
                (&RECORDED_DEAD_LETTERS, Vec::new()),
                (&RECORDED_DELIVERY_LATENCY, vec![latency]),
            ]
        })
        .unwrap();
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for line in [
            "# TYPE postrider_lanes_behind gauge",
            "postrider_lanes_behind{cause=\"slow\"} 7",
            "postrider_recorded_delivery_latency_seconds_bucket{le=\"0.005\"} 0",
            "postrider_recorded_delivery_latency_seconds_bucket{le=\"0.01\"} 2",
            "postrider_recorded_delivery_latency_seconds_bucket{le=\"86400\"} 2",
            "postrider_recorded_delivery_latency_seconds_bucket{le=\"+Inf\"} 5",
            "postrider_recorded_delivery_latency_seconds_sum 4.5",
            "postrider_recorded_delivery_latency_seconds_count 5",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}: {text}");
        }
        assert!(!text.contains("dead_letters"), "{text}");
        assert!(
            LANES_BEHIND.is_declared(&registry) && RECORDED_DEAD_LETTERS.is_declared(&registry)
        );
        assert!(RECORDED_DELIVERY_LATENCY.is_declared(&registry));
    }

    const LATENCY: usize = RECORDED_DELIVERY_LATENCY.buckets.len() + 1;
}
