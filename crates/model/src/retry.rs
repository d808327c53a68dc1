//! When to try again: the schedule of an endpoint, and the ladder of delays that the retry topic
//! can wait.
//!
//! A schedule says how long to wait before the next attempt. The retry topic has one partition per
//! delay of the [`DelayLadder`], in which all records wait the same time and so fall due in order;
//! a record waits in the longest partition that still fits, returns, and waits the rest in shorter
//! ones. So any wait can be had from few partitions.

use crate::hash::StableHash;
use crate::work::WorkId;

/// Shortest delay of a schedule.
pub const DELAY_MS_MIN: i64 = 1_000;
/// Longest delay of a schedule or ladder.
pub const DELAY_MS_MAX: i64 = 24 * HOUR_MS;
/// Most delays of one schedule.
pub const SCHEDULE_DELAYS_MAX: usize = 50;
/// Most delays of the ladder: each is a partition.
pub const LADDER_DELAYS_MAX: usize = 200;

const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;

/// Why a list of delays is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRetrySchedule {
    /// There are more than [`SCHEDULE_DELAYS_MAX`].
    #[error("may have at most {SCHEDULE_DELAYS_MAX} delays, not {0}")]
    TooMany(usize),
    /// One is too short or too long.
    #[error(
        "delays must be {} to {} seconds, not {}",
        seconds(DELAY_MS_MIN),
        seconds(DELAY_MS_MAX),
        seconds(*.0)
    )]
    OutOfRange(i64),
}

/// Callers of the API give delays in seconds.
fn seconds(delay_ms: i64) -> f64 {
    delay_ms as f64 / SECOND_MS as f64
}

/// The waits before the second, third, … attempt. Empty: one attempt only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule {
    delays_ms: Vec<i64>,
}

impl RetrySchedule {
    /// Checks the delays.
    ///
    /// # Errors
    /// When there are too many, or one is too short or too long.
    pub fn try_new(delays_ms: Vec<i64>) -> Result<Self, InvalidRetrySchedule> {
        if delays_ms.len() > SCHEDULE_DELAYS_MAX {
            return Err(InvalidRetrySchedule::TooMany(delays_ms.len()));
        }
        match delays_ms
            .iter()
            .find(|delay| !(DELAY_MS_MIN..=DELAY_MS_MAX).contains(*delay))
        {
            Some(other) => Err(InvalidRetrySchedule::OutOfRange(*other)),
            None => Ok(Self { delays_ms }),
        }
    }

    /// The example schedule of Standard Webhooks: ten attempts over a little more than three days.
    pub fn standard() -> Self {
        Self {
            delays_ms: vec![
                5 * SECOND_MS,
                5 * MINUTE_MS,
                30 * MINUTE_MS,
                2 * HOUR_MS,
                5 * HOUR_MS,
                10 * HOUR_MS,
                14 * HOUR_MS,
                20 * HOUR_MS,
                24 * HOUR_MS,
            ],
        }
    }

    /// The delays as given, without jitter.
    pub fn delays_ms(&self) -> &[i64] {
        &self.delays_ms
    }

    /// How long to wait after attempt number `attempt`, from 1; `None` when there is to be no
    /// further one.
    ///
    /// Up to 20 % is added, never taken away, so that what failed together does not return
    /// together. It is a hash of what is retried: deciding twice, by whomever, decides the same.
    pub fn delay_after(&self, work: &WorkId, attempt: u32) -> Option<i64> {
        let index = usize::try_from(attempt.checked_sub(1)?).ok()?;
        let delay_ms = *self.delays_ms.get(index)?;
        let jitter_ms_max = delay_ms.unsigned_abs() / 5;
        let jitter_ms = jitter_hash(work, attempt) % (jitter_ms_max + 1);
        Some(delay_ms.saturating_add_unsigned(jitter_ms))
    }
}

fn jitter_hash(work: &WorkId, attempt: u32) -> u64 {
    StableHash::new()
        .with(&work.position.partition.to_be_bytes())
        .with(&work.position.offset.to_be_bytes())
        .with(&work.run.to_be_bytes())
        .with(&attempt.to_be_bytes())
        .with(work.endpoint.as_str().as_bytes())
        .finish()
}

/// Why a list of delays is no ladder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDelayLadder {
    /// There is none, or more than [`LADDER_DELAYS_MAX`].
    #[error("must have 1 to {LADDER_DELAYS_MAX} delays, not {0}")]
    Count(usize),
    /// One is too short or too long.
    #[error("delays must be 1 to {DELAY_MS_MAX} ms, not {0}")]
    OutOfRange(i64),
    /// One is not longer than the one before.
    #[error("delays must ascend, but {0} ms does not exceed the one before")]
    NotAscending(i64),
}

/// The delays of the retry topic's partitions, in order of partition.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Vec<i64>", into = "Vec<i64>")]
pub struct DelayLadder {
    delays_ms: Vec<i64>,
}

impl DelayLadder {
    /// Checks the delays.
    ///
    /// # Errors
    /// When there are none or too many, one is out of range, or they do not ascend strictly.
    pub fn try_new(delays_ms: Vec<i64>) -> Result<Self, InvalidDelayLadder> {
        if delays_ms.is_empty() || delays_ms.len() > LADDER_DELAYS_MAX {
            return Err(InvalidDelayLadder::Count(delays_ms.len()));
        }
        if let Some(other) = delays_ms
            .iter()
            .find(|delay| !(1..=DELAY_MS_MAX).contains(*delay))
        {
            return Err(InvalidDelayLadder::OutOfRange(*other));
        }
        if let Some(pair) = delays_ms.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(InvalidDelayLadder::NotAscending(pair[1]));
        }
        Ok(Self { delays_ms })
    }

    /// 1 s to 24 h, each about 1.22 times the one before: a wait of any length takes few steps,
    /// since after the longest delay that fits less than a fifth of it remains.
    pub fn standard() -> Self {
        let mut delays_ms = Vec::new();
        let mut delay_ms = SECOND_MS;
        // The last step below a day is left out when it would be almost a day.
        while delay_ms < DELAY_MS_MAX / 10 * 9 {
            delays_ms.push(delay_ms);
            delay_ms = rounded(delay_ms * 49 / 40);
        }
        delays_ms.push(DELAY_MS_MAX);
        Self { delays_ms }
    }

    /// The delays, in order of partition.
    pub fn delays_ms(&self) -> &[i64] {
        &self.delays_ms
    }

    /// How many partitions the retry topic has.
    #[expect(clippy::len_without_is_empty, reason = "a ladder is never empty")]
    pub fn len(&self) -> usize {
        self.delays_ms.len()
    }

    /// The partition of the longest delay that is not longer than what remains to wait; `None` if
    /// all are longer.
    pub fn place(&self, remaining_ms: i64) -> Option<i32> {
        let fitting = self
            .delays_ms
            .partition_point(|delay| *delay <= remaining_ms);
        i32::try_from(fitting.checked_sub(1)?).ok()
    }
}

impl Default for DelayLadder {
    fn default() -> Self {
        Self::standard()
    }
}

impl TryFrom<Vec<i64>> for DelayLadder {
    type Error = InvalidDelayLadder;

    fn try_from(delays_ms: Vec<i64>) -> Result<Self, InvalidDelayLadder> {
        Self::try_new(delays_ms)
    }
}

impl From<DelayLadder> for Vec<i64> {
    fn from(ladder: DelayLadder) -> Self {
        ladder.delays_ms
    }
}

/// To tenths of a second below a minute, to seconds above: the list is read by people.
fn rounded(delay_ms: i64) -> i64 {
    let unit_ms = if delay_ms < MINUTE_MS { 100 } else { SECOND_MS };
    (delay_ms + unit_ms / 2) / unit_ms * unit_ms
}

#[cfg(test)]
mod tests;
