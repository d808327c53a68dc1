//! How many attempts an endpoint is given at once.
//!
//! The limit doubles while it is used and answers come well (slow start), grows round by round
//! later on, in larger steps the longer nothing is refused, and is halved when the endpoint says or
//! shows that it is overwhelmed. After several halvings in a row it doubles again up to half of
//! where they began, so that a short outage costs seconds; an endpoint that has become weaker shows
//! itself on the way there, and the next run of halvings begins lower. It is learned by the owner
//! and by nobody else.

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

/// At most one decrease in this time, or in the time an answer takes if that is longer: failures
/// that come together were caused together.
const DECREASE_INTERVAL_MS: i64 = 1_000;

/// After so many steps of steady growth without a refusal, the steps come twice as fast.
const STEPS_TO_DOUBLING: usize = 8;

/// The limit of one endpoint.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimit {
    limits: ConcurrencyLimits,
    limit: usize,
    /// Above it the limit grows slowly.
    slow_start_until: usize,
    /// Successes since the limit last grew.
    successes: usize,
    /// How often it grew since anything was refused.
    steps: usize,
    round: Round,
    /// The limit grew since it was last halved, so the next halving begins a new run.
    has_grown: bool,
    /// Smoothed, in sixteenths of a millisecond.
    latency: Option<u64>,
    decreased_at_ms: Option<i64>,
}

/// About the time in which everything that is under way ends once.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// Successes until it is over.
    left: usize,
    /// The most that was seen under way: attempts that end together see each other gone.
    in_flight: usize,
}

impl ConcurrencyLimit {
    /// The limit of an endpoint of which nothing is known.
    pub fn new(limits: ConcurrencyLimits) -> Self {
        Self {
            limits,
            limit: limits.initial.clamp(1, limits.max.max(1)),
            slow_start_until: usize::MAX,
            successes: 0,
            steps: 0,
            round: Round::default(),
            has_grown: true,
            latency: None,
            decreased_at_ms: None,
        }
    }

    /// How many attempts may be under way.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// An attempt succeeded; `in_flight` were under way until then, itself included. A limit of
    /// which half is not used does not grow: it would say nothing about the endpoint.
    pub fn succeeded(&mut self, latency_ms: u32, in_flight: usize) {
        let sample = u64::from(latency_ms) * 16;
        self.latency = Some(
            self.latency
                .map_or(sample, |smoothed| (smoothed * 7 + sample) / 8),
        );
        if !self.is_used(in_flight) {
            return;
        }
        self.successes += 1;
        let needed = if self.limit < self.slow_start_until {
            1
        } else {
            (self.limit >> (self.steps / STEPS_TO_DOUBLING).min(16)).max(1)
        };
        if self.successes >= needed && self.limit < self.limits.max {
            self.successes = 0;
            self.steps = self.steps.saturating_add(1);
            self.limit += 1;
            self.has_grown = true;
        }
    }

    fn is_used(&mut self, in_flight: usize) -> bool {
        if self.round.left == 0 {
            self.round = Round {
                left: self.limit,
                in_flight: 0,
            };
        }
        self.round.left -= 1;
        self.round.in_flight = self.round.in_flight.max(in_flight);
        self.round.in_flight.saturating_mul(2) > self.limit
    }

    /// The endpoint is overwhelmed: 429, 502, 503, 504 or no answer in time.
    pub fn throttled(&mut self, now_ms: i64) {
        let latency_ms = i64::from(self.latency_ms().unwrap_or(0));
        let interval_ms = DECREASE_INTERVAL_MS.max(latency_ms);
        let is_same_burst = self
            .decreased_at_ms
            .is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < interval_ms);
        // Even where it is not halved, a limit that meets refusals does not grow: only successes in
        // a row let it.
        (self.successes, self.steps) = (0, 0);
        if !is_same_burst {
            self.decreased_at_ms = Some(now_ms);
            self.limit = (self.limit / 2).max(1);
        }
        if self.has_grown {
            self.slow_start_until = self.limit;
        }
        if !is_same_burst {
            self.has_grown = false;
        }
    }

    /// The endpoint is back after it was left alone: begin with one attempt, and grow fast.
    pub fn reset(&mut self) {
        self.limit = 1;
        self.slow_start_until = usize::MAX;
        (self.successes, self.steps) = (0, 0);
        self.round = Round::default();
        // What is refused late was sent before.
        self.has_grown = false;
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
mod tests;
