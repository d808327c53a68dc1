//! How many attempts an endpoint is given at once.
//!
//! The limit doubles while it is used and answers come well (slow start), grows by one for each full round later on, and
//! is halved when the endpoint says or shows that it is overwhelmed. It is learned by the owner and by nobody else.

/// Where a limit begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyLimits {
    /// For an endpoint of which nothing is known.
    pub initial: usize,
    /// At most.
    pub max: usize,
    /// An endpoint whose answers take longer than this is slow.
    pub slow_from_ms: u32,
}

impl Default for ConcurrencyLimits {
    fn default() -> Self {
        Self {
            initial: 4,
            max: 64,
            slow_from_ms: 1_000,
        }
    }
}

/// At most one decrease in this time, or in the time an answer takes if that is longer: failures that come together
/// were caused together.
const DECREASE_INTERVAL_MS: i64 = 1_000;

/// The limit of one endpoint.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimit {
    limits: ConcurrencyLimits,
    limit: usize,
    /// Above it the limit grows slowly.
    slow_start_until: usize,
    /// Successes since the limit last grew.
    successes: usize,
    /// Smoothed, in sixteenths of a millisecond.
    latency: Option<u64>,
    decreased_at_ms: Option<i64>,
}

impl ConcurrencyLimit {
    /// The limit of an endpoint of which nothing is known.
    pub fn new(limits: ConcurrencyLimits) -> Self {
        Self {
            limits,
            limit: limits.initial.clamp(1, limits.max.max(1)),
            slow_start_until: usize::MAX,
            successes: 0,
            latency: None,
            decreased_at_ms: None,
        }
    }

    /// How many attempts may be under way.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// An attempt succeeded; `in_flight` were under way until then, itself included. A limit of which
    /// half is not used does not grow: it would say nothing about the endpoint.
    pub fn succeeded(&mut self, latency_ms: u32, in_flight: usize) {
        let sample = u64::from(latency_ms) * 16;
        self.latency = Some(
            self.latency
                .map_or(sample, |smoothed| (smoothed * 7 + sample) / 8),
        );
        if in_flight.saturating_mul(2) <= self.limit {
            return;
        }
        self.successes += 1;
        let needed = if self.limit < self.slow_start_until {
            1
        } else {
            self.limit
        };
        if self.successes >= needed {
            self.successes = 0;
            self.limit = (self.limit + 1).min(self.limits.max.max(1));
        }
    }

    /// The endpoint is overwhelmed: 429, 502, 503, 504 or no answer in time.
    pub fn throttled(&mut self, now_ms: i64) {
        let latency_ms = i64::from(self.latency_ms().unwrap_or(0));
        let interval_ms = DECREASE_INTERVAL_MS.max(latency_ms);
        if self
            .decreased_at_ms
            .is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < interval_ms)
        {
            return;
        }
        self.decreased_at_ms = Some(now_ms);
        self.limit = (self.limit / 2).max(1);
        self.slow_start_until = self.limit;
        self.successes = 0;
    }

    /// The endpoint is back after it was left alone: begin with one attempt, and grow fast.
    pub fn reset(&mut self) {
        self.limit = 1;
        self.slow_start_until = usize::MAX;
        self.successes = 0;
    }

    /// How long the endpoint takes to answer, smoothed; `None` before the first success.
    pub fn latency_ms(&self) -> Option<u32> {
        self.latency
            .map(|latency| u32::try_from(latency / 16).unwrap_or(u32::MAX))
    }

    /// Whether its answers take long.
    pub fn is_slow(&self) -> bool {
        self.latency_ms()
            .is_some_and(|latency_ms| latency_ms > self.limits.slow_from_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ConcurrencyLimit, ConcurrencyLimits};

    const LIMITS: ConcurrencyLimits = ConcurrencyLimits {
        initial: 4,
        max: 64,
        slow_from_ms: 1_000,
    };

    /// Rounds of as many attempts as the limit allows, each taking 100 ms, at an endpoint that takes `capacity` at once.
    fn rounds(limit: &mut ConcurrencyLimit, capacity: usize, rounds: i64, begin_ms: i64) {
        for round in 0..rounds {
            let now_ms = begin_ms + round * 100;
            let in_flight = limit.limit();
            for index in 0..in_flight {
                if index < capacity {
                    limit.succeeded(100, in_flight);
                } else {
                    limit.throttled(now_ms);
                }
            }
        }
    }

    #[test]
    fn finds_what_an_endpoint_takes_within_seconds() {
        let mut limit = ConcurrencyLimit::new(LIMITS);
        rounds(&mut limit, 1_000, 10, 0);
        assert_eq!(limit.limit(), 64);
        rounds(&mut limit, 10, 100, 10_000);
        assert!((4..=24).contains(&limit.limit()), "{}", limit.limit());
    }

    #[test]
    fn recovers_from_one() {
        let mut limit = ConcurrencyLimit::new(LIMITS);
        for second in 0..20 {
            limit.throttled(second * 2_000);
        }
        assert_eq!(limit.limit(), 1);
        rounds(&mut limit, 1_000, 50, 50_000);
        assert!(limit.limit() >= 20, "{} after 5 s", limit.limit());
        limit.reset();
        rounds(&mut limit, 1_000, 8, 60_000);
        assert_eq!(limit.limit(), 64);
    }

    #[test]
    fn does_not_grow_while_it_is_not_used() {
        let mut limit = ConcurrencyLimit::new(LIMITS);
        for _ in 0..1_000 {
            limit.succeeded(5, 2);
        }
        assert_eq!(limit.limit(), 4);
    }

    #[test]
    fn one_burst_of_failures_counts_once() {
        let mut limit = ConcurrencyLimit::new(LIMITS);
        rounds(&mut limit, 1_000, 10, 0);
        for _ in 0..64 {
            limit.throttled(5_000);
        }
        assert_eq!(limit.limit(), 32);
    }

    #[test]
    fn knows_the_slow_by_their_successes() {
        let mut limit = ConcurrencyLimit::new(LIMITS);
        assert!(!limit.is_slow());
        limit.succeeded(4_000, 1);
        assert!(limit.is_slow());
        for _ in 0..40 {
            limit.succeeded(10, 1);
        }
        assert!(!limit.is_slow());
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(steps in prop::collection::vec((0_u8..3, any::<u32>(), 0_usize..200), 0..300), max in 0_usize..100) {
            let mut limit = ConcurrencyLimit::new(ConcurrencyLimits { max, ..LIMITS });
            for (now_ms, (step, latency_ms, in_flight)) in (0..).step_by(700).zip(steps) {
                match step {
                    0 => limit.succeeded(latency_ms, in_flight),
                    1 => limit.throttled(now_ms),
                    _ => limit.reset(),
                }
                prop_assert!((1..=max.max(1)).contains(&limit.limit()));
            }
        }
    }
}
