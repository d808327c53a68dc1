//! A token bucket: at most so many attempts a second, after a rest a few more at once.

/// Fewest tokens a second that are counted, about one in 17 minutes. What is less, negative or not
/// a number means this: a mistaken limit slows an endpoint down, it neither stops it for ever nor
/// frees it.
pub const PER_SECOND_MIN: f64 = 0.001;
/// Most tokens a second that are counted.
pub const PER_SECOND_MAX: f64 = 1_000_000.0;

/// Tokens are counted in billionths, so that a millisecond brings a whole number of them and
/// nothing is rounded.
const TOKEN: u64 = 1_000_000_000;

/// A bucket that fills at a constant rate up to its burst.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    /// Billionths of a token.
    held: u64,
    per_ms: u64,
    burst: u64,
    counted_to_ms: i64,
}

impl TokenBucket {
    /// A bucket with one token: were it full, each new owner of the endpoint would repeat the
    /// burst.
    ///
    /// The rate is clamped to [`PER_SECOND_MIN`]`..=`[`PER_SECOND_MAX`] and rounded to millionths a
    /// second, the burst is at least 1.
    pub fn new(per_second: f64, burst: u32, now_ms: i64) -> Self {
        Self {
            held: TOKEN,
            per_ms: per_ms(per_second),
            burst: capacity(burst),
            counted_to_ms: now_ms,
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// When there is none: the time when there will be, if nobody else takes it.
    pub fn take(&mut self, now_ms: i64) -> Result<(), i64> {
        self.fill(now_ms);
        if let Some(rest) = self.held.checked_sub(TOKEN) {
            self.held = rest;
            return Ok(());
        }
        let wait_ms = (TOKEN - self.held).div_ceil(self.per_ms);
        Err(self.counted_to_ms.saturating_add_unsigned(wait_ms))
    }

    /// From now on fills at another rate, up to another burst.
    pub fn change(&mut self, per_second: f64, burst: u32, now_ms: i64) {
        self.fill(now_ms);
        self.per_ms = per_ms(per_second);
        self.burst = capacity(burst);
        self.held = self.held.min(self.held_max());
    }

    /// The burst, and what the millisecond in which it was reached brought beyond it: without that,
    /// a burst of one would lose a part of a millisecond with each token.
    fn held_max(&self) -> u64 {
        self.burst + self.per_ms.min(TOKEN) - 1
    }

    fn fill(&mut self, now_ms: i64) {
        if now_ms > self.counted_to_ms {
            let passed_ms = now_ms.abs_diff(self.counted_to_ms);
            let brought = passed_ms.saturating_mul(self.per_ms);
            self.held = self.held.saturating_add(brought).min(self.held_max());
            self.counted_to_ms = now_ms;
        }
    }
}

fn per_ms(per_second: f64) -> u64 {
    let clamped = if per_second.is_nan() {
        PER_SECOND_MIN
    } else {
        per_second.clamp(PER_SECOND_MIN, PER_SECOND_MAX)
    };
    // Within 1,000 to 10^12: exact, and never 0.
    (clamped * 1e6).round() as u64
}

fn capacity(burst: u32) -> u64 {
    u64::from(burst.max(1)) * TOKEN
}

#[cfg(test)]
mod tests;
