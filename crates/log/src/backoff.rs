//! How long to wait after so many failures.

use std::time::Duration;

/// The pause after the first failure, doubled after each further one, up to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Backoff {
    /// The pause after so many failures in a row.
    pub fn pause(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1);
        let factor = 2_u32.saturating_pow(doublings);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_stay_there() {
        let backoff = Backoff {
            first: Duration::from_secs(5),
            longest: Duration::from_secs(20),
        };
        let pauses =
            [0, 1, 2, 3, 4, 1000, u32::MAX].map(|failures| backoff.pause(failures).as_secs());
        assert_eq!(pauses, [5, 5, 10, 20, 20, 20, 20]);
    }
}
