//! When those who are refused are told to come again.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long events are counted until what they say is heeded.
const PERIOD: Duration = Duration::from_secs(1);
/// Seconds later for each event that is refused per one that is admitted: so many that a caller who
/// is admitted goes on for a while, and that refusals cost little beside it.
const SECONDS_PER_REFUSED: f64 = 200.0;

/// The more are refused for each that is admitted, the later they are told to come again, and not
/// all at once: so that those who heed it cost little beside those who are admitted.
#[derive(Debug)]
pub(super) struct Later {
    seconds_max: u32,
    counted: Mutex<Counted>,
}

#[derive(Debug)]
struct Counted {
    since: Instant,
    admitted: u32,
    refused: u32,
    /// Events refused for each that was admitted, of the periods before; the last one counts as
    /// much as all earlier ones.
    refused_per_admitted: f64,
    /// What the last one was told.
    told: u32,
}

impl Later {
    pub(super) fn new(seconds_max: u32) -> Self {
        Self {
            seconds_max,
            counted: Mutex::new(Counted {
                since: Instant::now(),
                admitted: 0,
                refused: 0,
                refused_per_admitted: 0.0,
                told: 0,
            }),
        }
    }

    pub(super) fn admitted(&self) {
        self.with(|counted| counted.admitted = counted.admitted.saturating_add(1));
    }

    /// How many seconds later one that is refused is told to come again.
    pub(super) fn refused(&self) -> u32 {
        self.with(|counted| {
            counted.refused = counted.refused.saturating_add(1);
            let most = 1.0 + SECONDS_PER_REFUSED * counted.refused_per_admitted;
            let told_max = whole(most.min(f64::from(self.seconds_max)));
            counted.told = counted.told % told_max + 1;
            counted.told
        })
    }

    fn with<T>(&self, what: impl FnOnce(&mut Counted) -> T) -> T {
        let mut counted = self.counted.lock();
        counted.roll();
        what(&mut counted)
    }
}

impl Counted {
    /// Closes the period if it is over.
    fn roll(&mut self) {
        let periods = self.since.elapsed().as_secs() / PERIOD.as_secs();
        if periods == 0 {
            return;
        }
        let now = f64::from(self.refused) / f64::from(self.admitted.max(1));
        let halvings = i32::try_from(periods).unwrap_or(i32::MAX) - 1;
        self.refused_per_admitted =
            f64::midpoint(self.refused_per_admitted, now) * 0.5_f64.powi(halvings);
        (self.admitted, self.refused) = (0, 0);
        self.since = Instant::now();
    }
}

/// Rounded, and at least 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is within 1 and a number of seconds"
)]
fn whole(seconds: f64) -> u32 {
    (seconds.round() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::time::advance;

    use super::*;

    /// What so many are told of whom so many are admitted, at last.
    async fn told(later: &Later, admitted: u32, refused: u32) -> BTreeSet<u32> {
        let mut told = BTreeSet::new();
        for _ in 0..20 {
            (0..admitted).for_each(|_| later.admitted());
            told = (0..refused).map(|_| later.refused()).collect();
            advance(PERIOD).await;
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn the_more_are_refused_the_later_they_come_again_and_not_at_once() {
        let later = Later::new(15);
        assert_eq!(told(&later, 1_000, 2).await, BTreeSet::from([1]));
        assert_eq!(told(&later, 1_000, 50).await, BTreeSet::from_iter(1..=11));
        assert_eq!(told(&later, 1_000, 300).await, BTreeSet::from_iter(1..=15));
        assert_eq!(told(&later, 0, 30).await, BTreeSet::from_iter(1..=15));
        advance(PERIOD * 20).await;
        assert_eq!(later.refused(), 1, "what was is forgotten");
        assert_eq!(told(&Later::new(1), 0, 30).await, BTreeSet::from([1]));
    }
}
