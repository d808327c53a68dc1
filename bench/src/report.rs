//! What was measured, for people and for programs.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Value, json};

use crate::figures::Figures;
use crate::flow::Publisher;
use crate::receivers::Receivers;
use crate::say;

/// What the neighbours of an endpoint in trouble may lose: so much of their p99, and so much on
/// top.
const RATIO_MAX: f64 = 1.2;
const RATIO_SLACK_MS: f64 = 5.0;

/// How long webhooks took, from the moment their events were due to be published until they came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Latencies {
    sorted_us: Vec<u64>,
    missing: usize,
}

impl Latencies {
    /// Those of events of these flows that were due within this time. What has not come yet counts
    /// as having taken until now.
    pub(crate) fn of(
        publisher: &Publisher<'_>,
        receivers: &Receivers,
        flows: impl Fn(usize) -> bool,
        due_us: &Range<u64>,
    ) -> Self {
        let mut first = BTreeMap::new();
        for arrival in receivers.arrivals() {
            if flows(arrival.flow) && due_us.contains(&arrival.due_us) {
                let event = (arrival.flow, arrival.due_us, arrival.number);
                let at_us = first.entry(event).or_insert(arrival.at_us);
                *at_us = arrival.at_us.min(*at_us);
            }
        }
        let now_us = receivers.now_us();
        let mut missing = 0;
        let sent = publisher.accepted().into_iter();
        let sent = sent.filter(|sent| flows(sent.flow) && due_us.contains(&sent.due_us));
        let mut sorted_us: Vec<u64> = sent
            .map(|sent| {
                let came = first.get(&(sent.flow, sent.due_us, sent.number)).copied();
                missing += usize::from(came.is_none());
                came.unwrap_or(now_us).saturating_sub(sent.due_us)
            })
            .collect();
        sorted_us.sort_unstable();
        Self { sorted_us, missing }
    }

    fn at_per_mille(&self, part: usize) -> f64 {
        at_per_mille(&self.sorted_us, part)
    }

    fn p99_ms(&self) -> f64 {
        self.at_per_mille(990)
    }

    /// A line for people.
    pub(crate) fn say(&self, when: &str) {
        say(&format!(
            "  {when:<9} p50 {:>8.1} ms   p99 {:>8.1} ms   most {:>8.1} ms   of {} webhooks{}",
            self.at_per_mille(500),
            self.p99_ms(),
            self.at_per_mille(1000),
            self.sorted_us.len(),
            if self.missing > 0 {
                format!(", {} of which have not come", self.missing)
            } else {
                String::new()
            },
        ));
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "webhooks": self.sorted_us.len(),
            "missing": self.missing,
            "p50_ms": self.at_per_mille(500),
            "p99_ms": self.p99_ms(),
            "max_ms": self.at_per_mille(1000),
        })
    }
}

/// Compares the same endpoints with and without trouble beside them.
pub(crate) fn compare(before: &Latencies, during: &Latencies) -> Value {
    let ratio = during.p99_ms() / before.p99_ms();
    let most_ms = before.p99_ms() * RATIO_MAX + RATIO_SLACK_MS;
    let kept = during.p99_ms() <= most_ms && during.missing == 0;
    say(&format!(
        "  p99 {ratio:.2} times that before; at most {RATIO_MAX} times and {RATIO_SLACK_MS} ms, {most_ms:.1} ms: {}",
        if kept { "kept" } else { "NOT KEPT" },
    ));
    json!({ "p99_ratio": ratio, "p99_ms_max": most_ms, "kept": kept })
}

/// One line for programs.
pub(crate) fn record(scenario: &str, figures: &Value) {
    say(&json!({ "scenario": scenario, "figures": figures }).to_string());
}

/// The same, of figures by what they are of.
pub(crate) fn record_figures(scenario: &str, measured: &[(&str, Figures)]) {
    let json = measured.iter();
    let json: Value = json
        .map(|(name, figures)| ((*name).to_owned(), figures.json()))
        .collect();
    record(scenario, &json);
}

/// The milliseconds within which this part of a thousand lies, exact, by nearest rank; 0 of
/// nothing.
pub(crate) fn at_per_mille(sorted_us: &[u64], part: usize) -> f64 {
    let rank = (sorted_us.len() * part).div_ceil(1000);
    let sample = sorted_us.get(rank.saturating_sub(1));
    sample.map_or(0.0, |us| milliseconds(*us))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "times of a run are far below 2^53"
)]
fn milliseconds(us: u64) -> f64 {
    us as f64 / 1000.0
}
