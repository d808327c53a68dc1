//! Endpoints: the URLs customers registered, and how they want to be called.

use std::collections::BTreeMap;

use url::Url;

use crate::filter::EventTypeFilter;
use crate::ids::{EndpointId, TenantId};
use crate::retry::RetrySchedule;

/// An endpoint, with its secrets still sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// The tenant it belongs to.
    pub tenant: TenantId,
    /// Where to POST.
    pub url: Url,
    /// For people.
    pub description: String,
    /// Free pairs.
    pub metadata: BTreeMap<String, String>,
    /// Which events it wants.
    pub event_types: EventTypeFilter,
    /// What the body looks like.
    pub format: PayloadFormat,
    /// Waits between attempts; `None`: the installation's default.
    pub retry_schedule: Option<RetrySchedule>,
    /// How long one attempt may take; `None`: the installation's default.
    pub attempt_timeout_ms: Option<u32>,
    /// How fast it wants to be called at most; `None`: no limit of its own.
    pub rate_limit: Option<RateLimit>,
    /// Events of one ordering key are delivered one at a time, in order. Chosen when the endpoint
    /// is created; what happens when one of them fails for too long may change.
    pub ordered: Option<WhenBlocked>,
    /// Signing secrets, newest first.
    pub secrets: Vec<SealedSecret>,
    /// Whether it is delivered to.
    pub state: EndpointState,
    /// Deliveries matched at a registry position before this one are dropped: a backlog that was
    /// discarded when the endpoint was enabled. 0: none are. A position and no time, since the
    /// clocks of two processes differ and an event accepted after the endpoint was enabled must not
    /// be dropped.
    pub discard_matched_before: u64,
    /// When it was created.
    pub created_at_ms: i64,
}

/// What becomes of a delivery to an ordered endpoint that fails for so long that it holds back its
/// ordering key too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenBlocked {
    /// It is dead-lettered, and the key goes on without it.
    #[default]
    DeadLetter,
    /// It is tried on, and the key waits, until it succeeds or somebody decides.
    Wait,
}

/// Whether an endpoint is delivered to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointState {
    /// Events are matched and delivered.
    Enabled,
    /// Events are matched and wait.
    Paused,
    /// Events are not matched, and what was matched waits.
    Disabled {
        /// Why, for people and programs: `manual`, `endpoint_gone`, ….
        reason: String,
        /// Since when.
        since_ms: i64,
    },
}

/// A token bucket. Rates are kept to a thousandth of a request per second, so that equal ones are
/// equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    per_1000_s: u32,
    burst: u32,
}

/// Why numbers are no rate limit.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum InvalidRateLimit {
    /// The rate is no number, or out of bounds.
    #[error("`per_second` must be {PER_SECOND_MIN} to {PER_SECOND_MAX}, not {0}")]
    PerSecond(f64),
    /// The bucket is out of bounds.
    #[error("`burst` must be 1 to {BURST_MAX}, not {0}")]
    Burst(u32),
}

/// Slowest rate: one request in a thousand seconds.
pub const PER_SECOND_MIN: f64 = 0.001;
/// Fastest rate.
pub const PER_SECOND_MAX: f64 = 100_000.0;
/// Largest bucket.
pub const BURST_MAX: u32 = 100_000;

impl RateLimit {
    /// Checks the numbers; the rate is rounded to a thousandth.
    ///
    /// # Errors
    /// When one is out of bounds, or the rate is no number.
    pub fn try_new(per_second: f64, burst: u32) -> Result<Self, InvalidRateLimit> {
        if !(PER_SECOND_MIN..=PER_SECOND_MAX).contains(&per_second) {
            return Err(InvalidRateLimit::PerSecond(per_second));
        }
        if !(1..=BURST_MAX).contains(&burst) {
            return Err(InvalidRateLimit::Burst(burst));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and 100,000,000 by the check above"
        )]
        let per_1000_s = (per_second * 1000.0).round() as u32;
        Ok(Self { per_1000_s, burst })
    }

    /// Requests per second.
    pub fn per_second(&self) -> f64 {
        f64::from(self.per_1000_s) / 1000.0
    }

    /// Requests per thousand seconds, for exact arithmetic.
    pub fn per_1000_s(&self) -> u32 {
        self.per_1000_s
    }

    /// Requests at once after a rest.
    pub fn burst(&self) -> u32 {
        self.burst
    }
}

/// What the body of a webhook looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadFormat {
    /// `{"type","timestamp","data"}`, as Standard Webhooks recommends.
    #[default]
    Standard,
    /// The event's data alone.
    Raw,
}

/// A signing secret, encrypted under the installation's key with the endpoint's id as associated
/// data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// Which key encrypted it.
    pub key_id: String,
    /// Nonce and ciphertext.
    pub sealed: Vec<u8>,
    /// Until when it signs; `None`: without end.
    pub expires_at_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_is_a_finite_positive_number_within_bounds() {
        for (per_second, burst) in [(0.001, 1), (1.0, 1), (2.5, 10), (100_000.0, 100_000)] {
            let limit = RateLimit::try_new(per_second, burst).unwrap();
            assert!((limit.per_second() - per_second).abs() < f64::EPSILON);
            assert_eq!(limit.burst(), burst);
        }
        for hostile in [
            0.0,
            -1.0,
            0.000_9,
            100_000.1,
            1e300,
            f64::INFINITY,
            f64::NAN,
        ] {
            let refused = RateLimit::try_new(hostile, 1);
            assert!(
                matches!(refused, Err(InvalidRateLimit::PerSecond(_))),
                "{hostile}"
            );
        }
        for burst in [0, 100_001, u32::MAX] {
            assert_eq!(
                RateLimit::try_new(1.0, burst),
                Err(InvalidRateLimit::Burst(burst))
            );
        }
    }

    #[test]
    fn a_rate_limit_taken_apart_and_made_again_is_the_same() {
        for per_1000_s in 1..=100_000_u32 {
            let limit = RateLimit {
                per_1000_s,
                burst: 1,
            };
            assert_eq!(RateLimit::try_new(limit.per_second(), 1), Ok(limit));
        }
    }
}
