//! How fast an endpoint is called: whether it is paused, its breaker, its limit of attempts at
//! once, the rate that it asked for, and whether it counts among the slow.

use std::collections::BTreeMap;

use postrider_log::Offset;
use postrider_model::delivery::LaneState;
use postrider_model::flow::breaker::{Admission, Breaker};
use postrider_model::flow::bucket::TokenBucket;
use postrider_model::flow::concurrency::ConcurrencyLimit;
use postrider_model::hash::StableHash;
use postrider_model::ids::EndpointId;
use postrider_model::verdict::Seen;

use crate::deliver::limits::LaneLimits;
use crate::deliver::permits::SlowShare;
use crate::deliver::step::Now;

#[derive(Debug)]
pub(super) struct Pace {
    breaker: Breaker,
    limit: ConcurrencyLimit,
    bucket: Option<TokenBucket>,
    /// It has answered since the lane began.
    proven: bool,
    paused: bool,
    failing_since_ms: Option<i64>,
    in_flight: BTreeMap<Offset, InFlight>,
}

/// An attempt under way.
#[derive(Debug)]
struct InFlight {
    /// Its record in `attempts` will not have a lower offset.
    attempts_from: Offset,
    started_ms: i64,
    slow: SlowShare,
}

/// When a lane may start its next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::deliver) enum Turn {
    /// Now.
    Now,
    /// Not before this time, on the clock that never goes back.
    At(i64),
    /// When something else happened to it.
    Later,
}

impl Pace {
    pub(super) fn new(endpoint: &EndpointId, limits: &LaneLimits) -> Self {
        Self {
            breaker: Breaker::new(limits.breaker, seed(endpoint)),
            limit: ConcurrencyLimit::new(limits.concurrency),
            bucket: None,
            proven: false,
            paused: false,
            failing_since_ms: None,
            in_flight: BTreeMap::new(),
        }
    }

    /// As a former owner of the lane left it.
    pub(super) fn restored(state: &LaneState, limits: &LaneLimits, now: Now) -> Self {
        let mut pace = Self::new(&state.endpoint, limits);
        pace.breaker = Breaker::restored(
            limits.breaker,
            seed(&state.endpoint),
            state.breaker_openings,
            state.breaker_open_until_ms.saturating_sub(now.wall_ms),
            now.mono_ms,
        );
        pace.failing_since_ms = state.failing_since_ms;
        pace
    }

    // ---- attempts ----

    /// Whether it has as many attempts at once as it is given.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight.len() >= self.limit.limit()
    }

    /// When the endpoint may be called next, as far as its state says.
    pub(super) fn turn(&self, now: Now) -> Turn {
        if self.paused {
            return Turn::Later;
        }
        match self.breaker.admission(now.mono_ms) {
            Admission::Open => Turn::Now,
            Admission::Probe if self.in_flight.is_empty() => Turn::Now,
            Admission::Probe | Admission::Probing => Turn::Later,
            Admission::Wait { until_ms } => Turn::At(until_ms),
        }
    }

    /// Takes a token for an attempt, or says when there will be one. Calls no more often than
    /// `rate` from now on: so many in a second, and so many at once.
    pub(super) fn take_token(&mut self, rate: Option<(f64, u32)>, now: Now) -> Result<(), i64> {
        let Some((per_second, burst)) = rate else {
            self.bucket = None;
            return Ok(());
        };
        let bucket = self
            .bucket
            .get_or_insert_with(|| TokenBucket::new(per_second, burst, now.mono_ms));
        bucket.change(per_second, burst, now.mono_ms);
        bucket.take(now.mono_ms)
    }

    /// An attempt begins. Answers with whether it probes an endpoint whose breaker is open, which
    /// it does if it `calls` it.
    pub(super) fn start(
        &mut self,
        offset: Offset,
        calls: bool,
        attempts_from: Offset,
        slow: SlowShare,
        now: Now,
    ) -> bool {
        let probes = calls && self.breaker.admission(now.mono_ms) == Admission::Probe;
        if probes {
            self.breaker.probe_started();
        }
        let attempt = InFlight {
            attempts_from,
            started_ms: now.mono_ms,
            slow,
        };
        self.in_flight.insert(offset, attempt);
        probes
    }

    /// An attempt is no longer under way; learns from what was seen.
    pub(super) fn finish(&mut self, offset: Offset, probes: bool, seen: Seen, now: Now) {
        let in_flight = self.in_flight.len();
        self.in_flight.remove(&offset);
        match seen {
            Seen::Succeeded { latency_ms } => {
                if !self.breaker.is_closed() {
                    self.limit.reset();
                }
                self.breaker.succeeded();
                self.limit.succeeded(latency_ms, in_flight);
                self.proven = true;
                self.failing_since_ms = None;
            }
            Seen::Failed { throttles, hold_ms } => {
                self.breaker.failed(probes, hold_ms, now.mono_ms);
                if throttles {
                    self.limit.throttled(now.mono_ms);
                }
                self.failing_since_ms.get_or_insert(now.wall_ms);
            }
            Seen::Nothing => self.breaker.abandoned(probes, now.mono_ms),
        }
    }

    /// Attempts under way.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Lowest offset that a record of the attempts under way can have in `attempts`.
    pub(super) fn attempts_from(&self) -> Option<Offset> {
        let attempts = self.in_flight.values();
        attempts.map(|attempt| attempt.attempts_from).min()
    }

    // ---- what is known of the endpoint ----

    /// Paused and disabled endpoints are not called.
    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether it counts among the slow: not known to answer, known to answer late, or late right
    /// now.
    pub(super) fn is_slow(&self, slow_from_ms: i64, now: Now) -> bool {
        let mut attempts = self.in_flight.values();
        let late = attempts.any(|attempt| now.mono_ms - attempt.started_ms >= slow_from_ms);
        !self.proven || !self.breaker.is_closed() || self.limit.is_slow() || late
    }

    /// Lets the attempts under way count among the slow, or no longer.
    pub(super) fn count_in_flight(&mut self, slow_from_ms: i64, now: Now) {
        if self.in_flight.is_empty() {
            return;
        }
        let slow = self.is_slow(slow_from_ms, now);
        for attempt in self.in_flight.values_mut() {
            attempt.slow.count_as(slow);
        }
    }

    /// Whether nothing may start for a while, so that the memory of what waits is better used by
    /// others.
    pub(super) fn is_stuck(&self, now: Now) -> bool {
        let admission = self.breaker.admission(now.mono_ms);
        self.paused || matches!(admission, Admission::Wait { .. } | Admission::Probing)
    }

    /// Whether it may be called at all times, as far as its rate and its limit allow.
    pub(super) fn is_open(&self) -> bool {
        !self.paused && self.breaker.is_closed()
    }

    /// How many deliveries are to wait in the queue: what will be called soon, a probe only while
    /// the breaker is not closed. `although_not_sent`: the breaker does not
    /// matter, since they are to be dead-lettered.
    pub(super) fn queue_target(&self, queue_max: usize, although_not_sent: bool) -> usize {
        if although_not_sent || self.breaker.is_closed() {
            (self.limit.limit() * 4).max(16).min(queue_max)
        } else {
            1
        }
    }

    pub(super) fn limit(&self) -> &ConcurrencyLimit {
        &self.limit
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Since when nothing succeeded.
    pub(super) fn failing_since_ms(&self) -> Option<i64> {
        self.failing_since_ms
    }
}

/// Spreads the breakers' pauses; the same for an endpoint everywhere.
fn seed(endpoint: &EndpointId) -> u64 {
    StableHash::new()
        .with(endpoint.as_str().as_bytes())
        .finish()
}
