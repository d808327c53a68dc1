//! The last part of a wait, in memory.

use std::collections::BTreeMap;

use postrider_log::{Generation, Offset, Partition, Record};
use postrider_model::retry::DelayLadder;

/// A retry that was read.
#[derive(Debug)]
pub(super) struct Waiting {
    /// When its wait in its partition is over.
    pub(super) ready_at_ms: i64,
    /// Not before this time does it leave.
    pub(super) due_at_ms: i64,
    /// It is due later than it says, because too many were due when it was.
    pub(super) postponed: bool,
    pub(super) generation: Generation,
    pub(super) record: Record,
}

/// Where a retry waits next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it is due.
    Out,
    /// In memory.
    Timer,
    /// In this partition of `retry`.
    Delay(Partition),
}

/// Where a retry waits that is due in `remaining_ms`: in memory if that is soon, else in the
/// longest delay that fits. The shortest fits always, since a record is ready when it is due,
/// whatever its delay.
pub(super) fn place(remaining_ms: i64, timer_ms_max: i64, ladder: &DelayLadder) -> Place {
    if remaining_ms <= 0 {
        return Place::Out;
    }
    if remaining_ms <= timer_ms_max {
        return Place::Timer;
    }
    Place::Delay(ladder.place(remaining_ms).unwrap_or(0))
}

/// Retries that are due soon, in order of their due time.
#[derive(Debug, Default)]
pub(super) struct Timer {
    held: BTreeMap<(i64, Partition, Offset), Waiting>,
}

impl Timer {
    pub(super) fn hold(&mut self, waiting: Waiting) {
        let place = (
            waiting.due_at_ms,
            waiting.record.partition,
            waiting.record.offset,
        );
        self.held.insert(place, waiting);
    }

    /// When the next one is due.
    pub(super) fn next_due_ms(&self) -> Option<i64> {
        self.held
            .first_key_value()
            .map(|((due_at_ms, ..), _)| *due_at_ms)
    }

    pub(super) fn take_due(&mut self, now_ms: i64) -> Option<Waiting> {
        let due_at_ms = self.next_due_ms()?;
        (due_at_ms <= now_ms)
            .then(|| self.held.pop_first())
            .flatten()
            .map(|(_, waiting)| waiting)
    }

    /// Takes out those of which this is true.
    pub(super) fn take_out(&mut self, chosen: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let taken = self.held.extract_if(.., |_, waiting| chosen(waiting));
        taken.map(|(_, waiting)| waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use postrider_model::retry::{DelayLadder, RetrySchedule};

    use super::{Place, place};
    use crate::config::SchedulerConfig;

    /// How often a retry is written to `retry` when each stay there takes `late_ms` longer than its
    /// delay.
    fn writes(delay_ms: i64, late_ms: i64, ladder: &DelayLadder) -> u32 {
        let timer_ms_max = i64::try_from(SchedulerConfig::default().timer_ms_max).unwrap();
        // Deliver does not ask whether the wait is short: only the scheduler has a timer.
        let mut partition = ladder.place(delay_ms).unwrap();
        let mut remaining_ms = delay_ms;
        for count in 1.. {
            remaining_ms -= ladder.delays_ms()[partition as usize] + late_ms;
            match place(remaining_ms, timer_ms_max, ladder) {
                Place::Delay(next) => partition = next,
                Place::Timer | Place::Out => return count,
            }
        }
        unreachable!("each write shortens the wait")
    }

    #[test]
    fn a_retry_is_written_twice_at_most_on_the_default_schedule() {
        let ladder = DelayLadder::standard();
        for late_ms in [0, 5, 1_000] {
            let (mut mean, mut worst, mut weights) = (0.0, 0.0, 0.0);
            for (attempt, delay_ms) in (1..).zip(RetrySchedule::standard().delays_ms()) {
                // Jitter adds up to a fifth, each part of it as likely as any other.
                let jitters =
                    (0..=delay_ms / 5).step_by(usize::try_from(delay_ms / 5_000).unwrap());
                let counts: Vec<u32> = jitters
                    .map(|jitter_ms| writes(delay_ms + jitter_ms, late_ms, &ladder))
                    .collect();
                let weight = 0.6_f64.powi(attempt);
                weights += weight;
                mean += weight * f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
                worst += weight * f64::from(*counts.iter().max().unwrap());
            }
            assert!(mean <= 1.5 * weights, "{} on average", mean / weights);
            assert!(worst <= 2.0 * weights, "{} at worst", worst / weights);
        }
    }

    #[test]
    fn a_wait_goes_to_the_log_only_when_it_is_long() {
        let ladder = DelayLadder::try_new(vec![1_000, 2_000, 30_000]).unwrap();
        for (remaining_ms, expected) in [
            (i64::MIN, Place::Out),
            (0, Place::Out),
            (1, Place::Timer),
            (10_000, Place::Timer),
            (10_001, Place::Delay(1)),
            (i64::MAX, Place::Delay(2)),
        ] {
            assert_eq!(place(remaining_ms, 10_000, &ladder), expected);
        }
        assert_eq!(place(999, 0, &ladder), Place::Delay(0), "memory is full");
    }
}
