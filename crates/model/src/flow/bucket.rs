//! The rate an endpoint asked for, kept exactly.

/// Lowest rate: one in about three hours. Lower ones, and what is no number, are taken as this.
const PER_SECOND_MIN: f64 = 0.0001;
/// Highest rate; higher ones are taken as this.
const PER_SECOND_MAX: f64 = 1_000_000.0;
/// What a token is made of; in whole numbers, nothing is lost by adding up.
const PARTS: i128 = 1_000_000_000;

/// A token bucket. In any time of `t` seconds it gives at most `burst + t * per_second` tokens.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    parts_per_ms: i128,
    parts_max: i128,
    parts: i128,
    filled_at_ms: i64,
}

impl TokenBucket {
    /// A bucket with one token: a new owner must not repeat the burst that the former one may just have spent.
    pub fn new(per_second: f64, burst: u32, now_ms: i64) -> Self {
        let mut bucket = Self {
            parts_per_ms: 0,
            parts_max: 0,
            parts: 0,
            filled_at_ms: now_ms,
        };
        bucket.change(per_second, burst, now_ms);
        bucket.parts = PARTS;
        bucket
    }

    /// Another rate from now on.
    pub fn change(&mut self, per_second: f64, burst: u32, now_ms: i64) {
        self.fill(now_ms);
        self.parts_per_ms = parts_per_ms(per_second);
        self.parts_max = i128::from(burst.max(1)) * PARTS;
        self.parts = self.parts.min(self.parts_max);
    }

    /// Takes a token, or says when to come again.
    ///
    /// # Errors
    /// With the time when there will be a token, if nobody else takes it.
    pub fn take(&mut self, now_ms: i64) -> Result<(), i64> {
        self.fill(now_ms);
        if self.parts >= PARTS {
            self.parts -= PARTS;
            return Ok(());
        }
        let missing = PARTS - self.parts;
        let wait_ms = (missing + self.parts_per_ms - 1) / self.parts_per_ms;
        Err(now_ms.saturating_add(i64::try_from(wait_ms).unwrap_or(i64::MAX)))
    }

    fn fill(&mut self, now_ms: i64) {
        let passed_ms = now_ms.saturating_sub(self.filled_at_ms).max(0);
        self.filled_at_ms = self.filled_at_ms.max(now_ms);
        let filled = self.parts + i128::from(passed_ms) * self.parts_per_ms;
        self.parts = filled.min(self.parts_max);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "clamped to a range that is far inside that of i128"
)]
fn parts_per_ms(per_second: f64) -> i128 {
    let per_second = if per_second.is_nan() {
        PER_SECOND_MIN
    } else {
        per_second
    };
    (per_second.clamp(PER_SECOND_MIN, PER_SECOND_MAX) * 1_000_000.0) as i128
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::TokenBucket;

    #[test]
    fn begins_with_one_token_and_then_keeps_the_rate() {
        let mut bucket = TokenBucket::new(10.0, 5, 0);
        assert_eq!(bucket.take(0), Ok(()));
        assert_eq!(bucket.take(0), Err(100));
        assert_eq!(bucket.take(99), Err(100));
        assert_eq!(bucket.take(100), Ok(()));
    }

    #[test]
    fn saves_up_to_a_burst() {
        let mut bucket = TokenBucket::new(10.0, 5, 0);
        let taken = (0..100).filter(|_| bucket.take(60_000).is_ok()).count();
        assert_eq!(taken, 5);
    }

    #[test]
    fn does_not_drift() {
        let mut bucket = TokenBucket::new(3.0, 1, 0);
        let taken = (0..=1_000_000)
            .filter(|now_ms| bucket.take(*now_ms).is_ok())
            .count();
        // Milliseconds are whole, so a token waits for the next one: 334 ms each.
        assert!((2_990..=3_001).contains(&taken), "{taken}");
    }

    #[test]
    fn hostile_rates_stop_nothing_for_ever_and_overflow_nothing() {
        for per_second in [
            0.0,
            -1.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e-9,
            1e300,
        ] {
            let mut bucket = TokenBucket::new(per_second, 0, i64::MAX - 10);
            assert_eq!(bucket.take(i64::MAX - 10), Ok(()));
            if let Err(at_ms) = bucket.take(i64::MAX - 10) {
                assert!(at_ms >= i64::MAX - 10, "{per_second}");
            }
        }
    }

    proptest! {
        #[test]
        fn gives_no_more_than_its_rate_in_any_window(
            per_second in 0.5_f64..500.0, burst in 1_u32..50,
            waits in prop::collection::vec(0_i64..2_000, 1..300),
        ) {
            let mut bucket = TokenBucket::new(per_second, burst, 0);
            let (mut now_ms, mut taken) = (0, Vec::new());
            for wait_ms in waits {
                now_ms += wait_ms;
                while bucket.take(now_ms).is_ok() {
                    taken.push(now_ms);
                }
            }
            for (index, begin_ms) in taken.iter().enumerate() {
                for (count, end_ms) in taken[index..].iter().enumerate() {
                    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                    let allowed = f64::from(burst) + (end_ms - begin_ms) as f64 / 1000.0 * per_second;
                    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                    let given = (count + 1) as f64;
                    prop_assert!(given <= allowed + 1e-6, "{given} > {allowed}");
                }
            }
        }
    }
}
