//! What was counted from the records of a partition, and how it is written beside the offset up to
//! which it was.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::str::FromStr;

use postrider_daemon::metrics::catalogue::{
    RECORDED_DELIVERY_LATENCY, RECORDED_FIRST_ATTEMPT_DELAY,
};
use postrider_daemon::metrics::{Value, whole};
use postrider_model::delivery::{Attempt, AttemptOutcome, Settlement};
use postrider_model::outcome::Reason;

/// The version of the text that is written.
const VERSION: &str = "counts1";
const BASE: u64 = 36;

/// What is counted by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Series {
    AttemptSucceeded,
    AttemptFailed,
    AttemptInterrupted,
    Delivered,
    DeadLettered,
    Dropped,
    DeadLetter,
}

impl Series {
    const ALL: [(Self, &'static str); 7] = [
        (Self::AttemptSucceeded, "as"),
        (Self::AttemptFailed, "af"),
        (Self::AttemptInterrupted, "ai"),
        (Self::Delivered, "dd"),
        (Self::DeadLettered, "dl"),
        (Self::Dropped, "dx"),
        (Self::DeadLetter, "l"),
    ];
}

/// Counts of one partition, or the sum of several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    by_reason: BTreeMap<Series, BTreeMap<Reason, u64>>,
    pub(crate) latency: Observed,
    pub(crate) first_delay: Observed,
    pub(crate) unreadable: u64,
}

/// Observed durations: how many are in each bucket, the last included, and the sum of all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Observed {
    buckets: Vec<u64>,
    sum_ms: u64,
}

impl Counts {
    /// Counts a record of `attempts`.
    pub(crate) fn attempt(&mut self, attempt: &Attempt) {
        let outcome = match attempt.outcome {
            AttemptOutcome::Succeeded => Some(Series::AttemptSucceeded),
            AttemptOutcome::Failed => Some(Series::AttemptFailed),
            AttemptOutcome::Interrupted => Some(Series::AttemptInterrupted),
            AttemptOutcome::None => None,
        };
        let end = match attempt.settlement {
            Some(Settlement::Delivered) => Some(Series::Delivered),
            Some(Settlement::DeadLettered) => Some(Series::DeadLettered),
            Some(Settlement::Dropped) => Some(Series::Dropped),
            Some(Settlement::RetryScheduled { .. }) | None => None,
        };
        for series in outcome.into_iter().chain(end) {
            self.add(series, attempt.reason, 1);
        }
        // A redrive's event was accepted long ago, and nobody waited for it.
        if attempt.work.run != 0 {
            return;
        }
        let since_accepted = attempt.started_at_ms - attempt.accepted_at_ms;
        if attempt.settlement == Some(Settlement::Delivered) {
            let took = since_accepted + i64::from(attempt.duration_ms);
            self.latency
                .observe(took, RECORDED_DELIVERY_LATENCY.buckets);
        }
        if attempt.number == 1
            && outcome.is_some_and(|outcome| outcome != Series::AttemptInterrupted)
        {
            self.first_delay
                .observe(since_accepted, RECORDED_FIRST_ATTEMPT_DELAY.buckets);
        }
    }

    /// Counts a record of `dead-letters`.
    pub(crate) fn dead_letter(&mut self, reason: Reason) {
        self.add(Series::DeadLetter, reason, 1);
    }

    fn add(&mut self, series: Series, reason: Reason, count: u64) {
        *self
            .by_reason
            .entry(series)
            .or_default()
            .entry(reason)
            .or_default() += count;
    }

    /// Adds another partition's.
    pub(crate) fn add_all(&mut self, other: &Self) {
        for (series, reasons) in &other.by_reason {
            for (reason, count) in reasons {
                self.add(*series, *reason, *count);
            }
        }
        self.latency.add(&other.latency);
        self.first_delay.add(&other.first_delay);
        self.unreadable += other.unreadable;
    }

    /// How often a reason was counted.
    pub(crate) fn of(&self, series: Series, reason: Reason) -> u64 {
        let reasons = self.by_reason.get(&series);
        reasons
            .and_then(|reasons| reasons.get(&reason))
            .copied()
            .unwrap_or_default()
    }

    /// As metadata of a commit: at most 4 KiB, whatever was counted.
    pub(crate) fn encode(&self) -> String {
        let mut text = VERSION.to_owned();
        for (series, code) in Series::ALL {
            let Some(reasons) = self.by_reason.get(&series) else {
                continue;
            };
            let reasons = reasons
                .iter()
                .map(|(reason, count)| format!("{}={}", reason.as_str(), number(*count)));
            push(&mut text, code, &reasons.collect::<Vec<_>>().join(","));
        }
        push(&mut text, "t", &self.latency.encode());
        push(&mut text, "f", &self.first_delay.encode());
        push(&mut text, "u", &number(self.unreadable));
        text
    }

    /// Reads it back; `None` if it is not ours.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(VERSION) {
            return None;
        }
        let mut counts = Self::default();
        for word in words {
            let (code, rest) = word.split_once(':')?;
            match (code, Series::ALL.iter().find(|(_, known)| *known == code)) {
                (_, Some((series, _))) => {
                    for (reason, count) in rest.split(',').filter_map(|entry| entry.split_once('='))
                    {
                        // A reason of a later release is forgotten.
                        if let Ok(reason) = Reason::from_str(reason) {
                            counts.add(*series, reason, parsed(count)?);
                        }
                    }
                }
                ("t", None) => counts.latency = Observed::decode(rest)?,
                ("f", None) => counts.first_delay = Observed::decode(rest)?,
                ("u", None) => counts.unreadable = parsed(rest)?,
                _ => {}
            }
        }
        Some(counts)
    }
}

fn push(text: &mut String, code: &str, value: &str) {
    let written = write!(text, " {code}:{value}");
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
}

impl Observed {
    fn observe(&mut self, took_ms: i64, bounds: &[f64]) {
        let took_ms = u64::try_from(took_ms).unwrap_or(0);
        let seconds = whole(took_ms) / 1000.0;
        let bucket = bounds.partition_point(|bound| *bound < seconds);
        self.buckets.resize(bounds.len() + 1, 0);
        self.buckets[bucket] += 1;
        self.sum_ms += took_ms;
    }

    fn add(&mut self, other: &Self) {
        let length = self.buckets.len().max(other.buckets.len());
        self.buckets.resize(length, 0);
        for (bucket, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += count;
        }
        self.sum_ms += other.sum_ms;
    }

    /// As a metric shows it, with these many buckets.
    pub(crate) fn value(&self, bounds: &[f64]) -> Value {
        let mut buckets = self.buckets.clone();
        buckets.resize(bounds.len() + 1, 0);
        Value::Buckets(buckets, whole(self.sum_ms) / 1000.0)
    }

    fn encode(&self) -> String {
        let numbers = std::iter::once(&self.sum_ms).chain(&self.buckets);
        numbers
            .map(|count| number(*count))
            .collect::<Vec<_>>()
            .join(",")
    }

    fn decode(text: &str) -> Option<Self> {
        let mut numbers = text.split(',').map(parsed);
        let sum_ms = numbers.next()??;
        let buckets = numbers.collect::<Option<Vec<_>>>()?;
        Some(Self { buckets, sum_ms })
    }
}

fn number(mut count: u64) -> String {
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(count % BASE).unwrap_or_default();
        digits.extend(char::from_digit(digit, 36));
        count /= BASE;
        if count == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

fn parsed(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 36).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(count: u64) -> Counts {
        let mut counts = Counts::default();
        for (series, _) in Series::ALL {
            // Dead letters are in another topic than the rest.
            for reason in Reason::ALL.iter().filter(|_| series != Series::DeadLetter) {
                counts.add(series, *reason, count);
            }
        }
        for observed in [&mut counts.latency, &mut counts.first_delay] {
            observed.buckets = vec![count; RECORDED_DELIVERY_LATENCY.buckets.len() + 1];
            observed.sum_ms = count;
        }
        counts.unreadable = count;
        counts
    }

    #[test]
    fn counts_survive_the_metadata_and_fit_into_it() {
        for count in [0, 1, 35, 36, 1_000_000_000_000] {
            let text = full(count).encode();
            assert!(text.len() <= 4096, "{}", text.len());
            assert_eq!(Counts::decode(&text), Some(full(count)));
        }
        assert_eq!(
            Counts::decode(&Counts::default().encode()),
            Some(Counts::default())
        );
    }

    #[test]
    fn metadata_of_others_says_nothing() {
        for text in [
            "",
            "2 attempts=5 state=1",
            "counts1 as:ok=!",
            "counts1 as",
            "counts1 t:1,?",
        ] {
            assert_eq!(Counts::decode(text), None, "{text}");
        }
        let later = "counts1 as:ok=a,new_reason=b zz:1 u:0";
        assert_eq!(
            Counts::decode(later)
                .unwrap()
                .of(Series::AttemptSucceeded, Reason::Ok),
            10
        );
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut observed = Observed::default();
        for took_ms in [-5, 0, 1000, 1001, 10_000] {
            observed.observe(took_ms, &[1.0, 2.0]);
        }
        assert_eq!(observed.buckets, [3, 1, 1]);
        assert_eq!(observed.sum_ms, 12_001);
    }
}
