//! The breaker of an endpoint: after failures in a row it is left alone, and then asked with one
//! attempt at a time.

/// When a breaker opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// Failures in a row that open it.
    pub failures_to_open: u32,
    /// The first pause.
    pub pause_ms_min: i64,
    /// The longest pause; each is twice the one before.
    pub pause_ms_max: i64,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self {
            failures_to_open: 5,
            pause_ms_min: 1_000,
            pause_ms_max: 300_000,
        }
    }
}

/// What may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Any number of attempts.
    Open,
    /// One attempt, as a probe.
    Probe,
    /// Nothing before this time.
    Wait {
        /// When the next probe may start.
        until_ms: i64,
    },
    /// Nothing until the probe that is under way has ended.
    Probing,
}

/// A breaker. Each pause is up to a fifth longer than its doubling says, by a seed of the
/// endpoint's, so that endpoints which failed together are not asked together.
#[derive(Debug, Clone)]
pub struct Breaker {
    limits: BreakerLimits,
    seed: u64,
    failures: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { openings: u32, until_ms: i64 },
    Probing { openings: u32 },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(limits: BreakerLimits, seed: u64) -> Self {
        Self {
            limits,
            seed,
            failures: 0,
            state: State::Closed,
        }
    }

    /// A breaker as a former owner left it. The wait is taken as no longer than a pause of that
    /// level may be.
    pub fn restored(
        limits: BreakerLimits,
        seed: u64,
        openings: u32,
        wait_ms: i64,
        now_ms: i64,
    ) -> Self {
        let mut breaker = Self::new(limits, seed);
        if openings > 0 {
            let wait_ms = wait_ms.clamp(0, breaker.pause_ms(openings));
            breaker.state = State::Open {
                openings,
                until_ms: now_ms.saturating_add(wait_ms),
            };
        }
        breaker
    }

    /// What may start now.
    pub fn admission(&self, now_ms: i64) -> Admission {
        match self.state {
            State::Closed => Admission::Open,
            State::Open { until_ms, .. } if now_ms >= until_ms => Admission::Probe,
            State::Open { until_ms, .. } => Admission::Wait { until_ms },
            State::Probing { .. } => Admission::Probing,
        }
    }

    /// The probe that [`Admission::Probe`] allowed has started.
    pub fn probe_started(&mut self) {
        if let State::Open { openings, .. } = self.state {
            self.state = State::Probing { openings };
        }
    }

    /// An attempt succeeded. Whatever started it, the endpoint answers: the breaker closes.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.state = State::Closed;
    }

    /// An attempt failed. `hold_ms` is how long the endpoint asked to be left alone
    /// (`Retry-After`): the breaker opens at once, for at least so long, but never longer than the
    /// longest pause.
    pub fn failed(&mut self, probe: bool, hold_ms: Option<i64>, now_ms: i64) {
        self.failures = self.failures.saturating_add(1);
        let openings = match self.state {
            State::Closed if hold_ms.is_some() || self.failures >= self.limits.failures_to_open => {
                1
            }
            State::Probing { openings } if probe => openings.saturating_add(1),
            // It started before the breaker opened, so it says nothing new.
            State::Closed | State::Open { .. } | State::Probing { .. } => return,
        };
        let hold_ms = hold_ms.unwrap_or(0).min(self.limits.pause_ms_max);
        let pause_ms = self.pause_ms(openings).max(hold_ms);
        self.state = State::Open {
            openings,
            until_ms: now_ms.saturating_add(pause_ms),
        };
    }

    /// An attempt was given up by us: nothing is learned, and if it was the probe, another may
    /// start.
    pub fn abandoned(&mut self, probe: bool, now_ms: i64) {
        if let State::Probing { openings } = self.state
            && probe
        {
            self.state = State::Open {
                openings,
                until_ms: now_ms,
            };
        }
    }

    /// Whether attempts start freely.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// How often in a row it opened; 0 when closed.
    pub fn openings(&self) -> u32 {
        match self.state {
            State::Closed => 0,
            State::Open { openings, .. } | State::Probing { openings } => openings,
        }
    }

    /// How long until the next probe may start.
    pub fn wait_ms(&self, now_ms: i64) -> i64 {
        match self.state {
            State::Open { until_ms, .. } => until_ms.saturating_sub(now_ms).max(0),
            State::Closed | State::Probing { .. } => 0,
        }
    }

    fn pause_ms(&self, openings: u32) -> i64 {
        let doublings = openings.saturating_sub(1).min(40);
        let doubled = self
            .limits
            .pause_ms_min
            .max(1)
            .saturating_mul(1 << doublings);
        let pause_ms = doubled.min(self.limits.pause_ms_max);
        let fifth = i64::try_from(self.seed % 201).unwrap_or(0);
        pause_ms.saturating_add(pause_ms.saturating_mul(fifth) / 1000)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Admission, Breaker, BreakerLimits};

    const LIMITS: BreakerLimits = BreakerLimits {
        failures_to_open: 3,
        pause_ms_min: 1_000,
        pause_ms_max: 8_000,
    };

    fn opened() -> Breaker {
        let mut breaker = Breaker::new(LIMITS, 0);
        for _ in 0..3 {
            breaker.failed(false, None, 0);
        }
        breaker
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let mut breaker = Breaker::new(LIMITS, 0);
        for _ in 0..10 {
            breaker.failed(false, None, 0);
            breaker.failed(false, None, 0);
            breaker.succeeded();
        }
        assert_eq!(breaker.admission(0), Admission::Open);
        assert_eq!(opened().admission(0), Admission::Wait { until_ms: 1_000 });
    }

    #[test]
    fn lets_one_probe_through_and_doubles_the_pause_when_it_fails() {
        let mut breaker = opened();
        let mut now_ms = 0;
        for pause_ms in [1_000, 2_000, 4_000, 8_000, 8_000] {
            assert_eq!(breaker.wait_ms(now_ms), pause_ms);
            now_ms += pause_ms;
            assert_eq!(breaker.admission(now_ms), Admission::Probe);
            breaker.probe_started();
            assert_eq!(breaker.admission(now_ms), Admission::Probing);
            breaker.failed(true, None, now_ms);
        }
        breaker.succeeded();
        assert_eq!(
            (breaker.admission(now_ms), breaker.openings()),
            (Admission::Open, 0)
        );
    }

    #[test]
    fn attempts_from_before_the_opening_change_nothing() {
        let mut breaker = opened();
        breaker.failed(false, None, 900);
        assert_eq!(breaker.admission(900), Admission::Wait { until_ms: 1_000 });
        breaker.probe_started();
        breaker.failed(false, None, 1_000);
        assert_eq!(breaker.admission(1_000), Admission::Probing);
    }

    #[test]
    fn an_abandoned_probe_lets_another_start() {
        let mut breaker = opened();
        breaker.probe_started();
        breaker.abandoned(true, 1_500);
        assert_eq!(breaker.admission(1_500), Admission::Probe);
    }

    #[test]
    fn leaves_alone_who_asks_for_it_but_not_for_ever() {
        let mut breaker = Breaker::new(LIMITS, 0);
        breaker.failed(false, Some(5_000), 0);
        assert_eq!(breaker.admission(0), Admission::Wait { until_ms: 5_000 });
        let mut breaker = Breaker::new(LIMITS, 0);
        breaker.failed(false, Some(i64::MAX), 0);
        assert_eq!(breaker.admission(0), Admission::Wait { until_ms: 8_000 });
    }

    #[test]
    fn a_new_owner_goes_on_where_the_former_was() {
        let breaker = Breaker::restored(LIMITS, 0, 3, 2_500, 100);
        assert_eq!(breaker.admission(100), Admission::Wait { until_ms: 2_600 });
        let hostile = Breaker::restored(LIMITS, 0, 2, i64::MAX, 100);
        assert_eq!(
            hostile.wait_ms(100),
            2_000,
            "no longer than that level's pause"
        );
        assert!(Breaker::restored(LIMITS, 0, 0, 9_999, 100).is_closed());
    }

    proptest! {
        #[test]
        fn never_more_than_one_probe_and_no_endless_pause(
            steps in prop::collection::vec((0_u8..5, any::<i64>(), 0_i64..10_000), 0..100),
            seed: u64,
        ) {
            let mut breaker = Breaker::new(LIMITS, seed);
            let (mut now_ms, mut probing) = (0_i64, false);
            for (step, hold_ms, passed_ms) in steps {
                now_ms += passed_ms;
                match step {
                    0 => if breaker.admission(now_ms) == Admission::Probe {
                        prop_assert!(!probing);
                        breaker.probe_started();
                        probing = true;
                    },
                    1 => { breaker.failed(probing, None, now_ms); probing = false; }
                    2 => { breaker.failed(false, Some(hold_ms), now_ms); }
                    3 => { breaker.succeeded(); probing = false; }
                    _ => { breaker.abandoned(probing, now_ms); probing = false; }
                }
                prop_assert!(breaker.wait_ms(now_ms) <= LIMITS.pause_ms_max * 6 / 5 + 1);
                prop_assert!(!(probing && breaker.admission(now_ms) == Admission::Probe));
            }
        }
    }
}
