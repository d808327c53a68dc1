//! How fast an endpoint is called: whether it is paused, its breaker, its limit of attempts at
//! once, the rate that it asked for, and whether it counts among the slow.
//!
//! An endpoint that has answered may be called again. That the attempt is not recorded yet is the
//! log's time, not its own. How many such there are is bounded here, so that while the log does not
//! answer for a partition, its endpoints do not take the permits of all.

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
use crate::deliver::tally::{Share, Tally};

#[derive(Debug)]
pub(super) struct Pace {
    breaker: Breaker,
    limit: ConcurrencyLimit,
    bucket: Option<TokenBucket>,
    /// It has answered since the lane began.
    proven: bool,
    paused: bool,
    failing_since_ms: Option<i64>,
    /// By the offsets of their deliveries.
    attempts: BTreeMap<Offset, UnderWay>,
    attempts_max: usize,
    /// Those of them that are not answered.
    in_flight: Tally,
}

/// Attempts that are answered or not, but not recorded: so many times those that may be under way
/// at once.
const UNRECORDED_TIMES: usize = 8;

/// An attempt that is not recorded.
#[derive(Debug)]
struct UnderWay {
    /// Its record in `attempts` will not have a lower offset.
    attempts_from: Offset,
    /// Until the endpoint has answered, or will not any more.
    call: Option<Call>,
}

/// An attempt that the endpoint has not answered.
#[derive(Debug)]
struct Call {
    started_ms: i64,
    slow: SlowShare,
    _share: Share,
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
            attempts: BTreeMap::new(),
            attempts_max: limits.concurrency.max * UNRECORDED_TIMES,
            in_flight: Tally::default(),
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

    /// Whether it has as many attempts at once as it is given, or too many wait for the log.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight() >= self.limit.limit() || self.attempts.len() >= self.attempts_max
    }

    /// When the endpoint may be called next, as far as its state says.
    pub(super) fn turn(&self, now: Now) -> Turn {
        if self.paused {
            return Turn::Later;
        }
        match self.breaker.admission(now.mono_ms) {
            Admission::Open => Turn::Now,
            Admission::Probe if self.in_flight() == 0 => Turn::Now,
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
        let call = Call {
            started_ms: now.mono_ms,
            slow,
            _share: self.in_flight.share(1),
        };
        let attempt = UnderWay {
            attempts_from,
            call: Some(call),
        };
        self.attempts.insert(offset, attempt);
        probes
    }

    /// The endpoint has answered, or will not any more: learns from what was seen. Another attempt
    /// may begin, although this one is not recorded.
    pub(super) fn answered(&mut self, offset: Offset, probes: bool, seen: Seen, now: Now) {
        let attempt = self.attempts.get_mut(&offset);
        let Some(call) = attempt.and_then(|attempt| attempt.call.take()) else {
            return;
        };
        let in_flight = self.in_flight();
        drop(call);
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

    /// An attempt is recorded, or settles nothing.
    pub(super) fn finish(&mut self, offset: Offset, probes: bool, seen: Seen, now: Now) {
        self.answered(offset, probes, seen, now);
        self.attempts.remove(&offset);
    }

    /// Attempts that the endpoint has not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.amount()
    }

    /// Whether no attempt is left to be answered or recorded.
    pub(super) fn is_idle(&self) -> bool {
        self.attempts.is_empty()
    }

    /// Lowest offset that a record of the attempts under way can have in `attempts`.
    pub(super) fn attempts_from(&self) -> Option<Offset> {
        let attempts = self.attempts.values();
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
        let mut calls = self.attempts.values().filter_map(|one| one.call.as_ref());
        let late = calls.any(|call| now.mono_ms - call.started_ms >= slow_from_ms);
        !self.proven || !self.breaker.is_closed() || self.limit.is_slow() || late
    }

    /// Lets the attempts under way count among the slow, or no longer.
    pub(super) fn count_in_flight(&mut self, slow_from_ms: i64, now: Now) {
        if self.in_flight() == 0 {
            return;
        }
        let slow = self.is_slow(slow_from_ms, now);
        for call in self
            .attempts
            .values_mut()
            .filter_map(|one| one.call.as_mut())
        {
            call.slow.count_as(slow);
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
