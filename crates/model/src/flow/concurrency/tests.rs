use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An endpoint that answers after `latency_ms` and refuses what exceeds `capacity`.
#[derive(Debug, Clone, Copy)]
struct Endpoint {
    latency_ms: i64,
    capacity: usize,
}

/// A caller that always has more to send than the limit allows.
struct Caller {
    limit: ConcurrencyLimit,
    now_ms: i64,
    /// By the time they end: how many, and whether they succeed.
    ending: BTreeMap<(i64, bool), usize>,
    in_flight: usize,
    succeeded: usize,
    refused: usize,
}

impl Caller {
    fn new(limits: ConcurrencyLimits) -> Self {
        Self {
            limit: ConcurrencyLimit::new(limits),
            now_ms: 0,
            ending: BTreeMap::new(),
            in_flight: 0,
            succeeded: 0,
            refused: 0,
        }
    }

    fn run(&mut self, endpoint: Endpoint, for_ms: i64) {
        let until_ms = self.now_ms + for_ms;
        while self.now_ms < until_ms {
            while self.in_flight < self.limit.limit() {
                self.start(endpoint);
            }
            let ends_ms = self.ending.first_key_value().unwrap().0.0;
            self.now_ms = ends_ms.max(self.now_ms);
            while let Some(entry) = self.ending.first_entry() {
                if entry.key().0 > self.now_ms {
                    break;
                }
                let ((_, success), count) = entry.remove_entry();
                for _ in 0..count {
                    self.end(endpoint, success);
                }
            }
        }
    }

    fn start(&mut self, endpoint: Endpoint) {
        let served: usize = self
            .ending
            .iter()
            .filter(|((_, success), _)| *success)
            .map(|(_, count)| count)
            .sum();
        let success = served < endpoint.capacity;
        *self
            .ending
            .entry((self.now_ms + endpoint.latency_ms, success))
            .or_default() += 1;
        self.in_flight += 1;
    }

    fn end(&mut self, endpoint: Endpoint, success: bool) {
        if success {
            let latency_ms = u32::try_from(endpoint.latency_ms).unwrap();
            self.limit.succeeded(latency_ms, self.in_flight);
            self.succeeded += 1;
        } else {
            self.limit.throttled(self.now_ms);
            self.refused += 1;
        }
        self.in_flight -= 1;
    }
}

const FULL: usize = 1_000;

fn endpoint(latency_ms: i64, capacity: usize) -> Endpoint {
    Endpoint {
        latency_ms,
        capacity,
    }
}

#[test]
fn finds_the_maximum_of_a_healthy_endpoint_within_seconds() {
    for latency_ms in [1, 10, 100, 500] {
        let mut caller = Caller::new(ConcurrencyLimits::default());
        caller.run(endpoint(latency_ms, FULL), 3_000);
        assert_eq!(caller.limit.limit(), 64, "{latency_ms}");
    }
}

#[test]
fn a_ramp_begins_with_one_and_survives_what_is_refused_late() {
    let mut caller = Caller::new(ConcurrencyLimits::default());
    caller.run(endpoint(100, FULL), 3_000);
    caller.limit.reset();
    assert_eq!(caller.limit.limit(), 1);
    caller.limit.throttled(caller.now_ms);
    caller.in_flight = 0;
    caller.ending.clear();
    caller.run(endpoint(100, FULL), 2_500);
    assert_eq!(caller.limit.limit(), 64);
}

#[test]
fn does_not_grow_while_it_is_not_used() {
    let mut limit = ConcurrencyLimit::new(ConcurrencyLimits::default());
    for _ in 0..100_000 {
        limit.succeeded(10, 2);
    }
    assert_eq!(limit.limit(), 4);
    for _ in 0..100_000 {
        limit.succeeded(10, 10);
    }
    assert_eq!(limit.limit(), 20, "about twice what is used");
}

#[test]
fn a_burst_of_refusals_counts_once() {
    let mut limit = ConcurrencyLimit::new(ConcurrencyLimits {
        initial: 64,
        ..ConcurrencyLimits::default()
    });
    for now_ms in 0..1_000 {
        limit.throttled(now_ms);
    }
    assert_eq!(limit.limit(), 32);
    limit.throttled(1_000);
    assert_eq!(limit.limit(), 16);
    // Answers take four seconds: what was sent before the halving comes back for that long.
    limit.succeeded(4_000, 1);
    limit.throttled(4_999);
    assert_eq!(limit.limit(), 16);
    limit.throttled(5_000);
    assert_eq!(limit.limit(), 8);
}

#[test]
fn settles_near_the_capacity_and_is_seldom_refused() {
    for (latency_ms, capacity) in [(10, 10), (100, 10), (100, 40), (1_000, 10), (1_000, 40)] {
        let mut caller = Caller::new(ConcurrencyLimits::default());
        caller.run(endpoint(latency_ms, capacity), 20_000);
        (caller.succeeded, caller.refused) = (0, 0);
        caller.run(endpoint(latency_ms, capacity), 300_000);
        let possible = capacity * 300_000 / usize::try_from(latency_ms).unwrap();
        assert!(
            caller.succeeded * 10 >= possible * 6,
            "{latency_ms} ms, {capacity}: {} of {possible}",
            caller.succeeded
        );
        assert!(
            caller.refused * 5 <= caller.succeeded,
            "{latency_ms} ms, {capacity}: {} refused, {} taken",
            caller.refused,
            caller.succeeded
        );
    }
}

#[test]
fn a_short_outage_costs_seconds() {
    for latency_ms in [10, 100, 500] {
        let mut caller = Caller::new(ConcurrencyLimits::default());
        caller.run(endpoint(latency_ms, FULL), 10_000);
        caller.run(endpoint(latency_ms, 0), 10_000);
        assert_eq!(caller.limit.limit(), 1);
        caller.run(endpoint(latency_ms, FULL), 4_000);
        assert!(caller.limit.limit() >= 32, "{latency_ms}");
    }
}

#[test]
fn follows_a_capacity_that_falls_and_rises_again() {
    for latency_ms in [10, 100, 1_000] {
        let mut caller = Caller::new(ConcurrencyLimits::default());
        caller.run(endpoint(latency_ms, FULL), 10_000);
        caller.run(endpoint(latency_ms, 4), 30_000);
        assert!(caller.limit.limit() <= 12, "{latency_ms}");
        // It was refused for half a minute, and still finds back without being told.
        caller.run(endpoint(latency_ms, FULL), 25_000);
        assert_eq!(caller.limit.limit(), 64, "{latency_ms}");
    }
}

#[test]
fn an_endpoint_that_refuses_half_of_everything_gets_little() {
    let mut limit = ConcurrencyLimit::new(ConcurrencyLimits::default());
    let mut highest = 0;
    for now_ms in 0..60_000 {
        limit.succeeded(5, limit.limit());
        limit.throttled(now_ms);
        if now_ms > 10_000 {
            highest = highest.max(limit.limit());
        }
    }
    assert!(highest <= 10, "{highest}");
}

#[test]
fn only_successes_make_an_endpoint_slow() {
    let mut limit = ConcurrencyLimit::new(ConcurrencyLimits::default());
    assert_eq!((limit.latency_ms(), limit.is_slow()), (None, false));
    limit.throttled(0);
    assert_eq!(limit.latency_ms(), None);
    limit.succeeded(3_000, 1);
    assert_eq!(limit.latency_ms(), Some(3_000));
    assert!(limit.is_slow());
    for _ in 0..40 {
        limit.succeeded(50, 1);
    }
    assert!(!limit.is_slow());
    assert!((50..=80).contains(&limit.latency_ms().unwrap()));
}

proptest! {
    #[test]
    fn whatever_happened_a_healthy_endpoint_is_found_again(
        history in prop::collection::vec((0..2_000_i64, 0..4_u8, any::<u32>(), 0..200_usize), 0..300),
        initial: usize,
        max in 0..200_usize,
        latency_ms in 1..500_i64,
    ) {
        let limits = ConcurrencyLimits { initial, max, slow_from_ms: 1_000 };
        let mut caller = Caller::new(limits);
        for (passed_ms, what, latency_ms, in_flight) in history {
            caller.now_ms += passed_ms;
            match what {
                0 => caller.limit.reset(),
                1 => caller.limit.succeeded(latency_ms % 60_000, in_flight),
                _ => caller.limit.throttled(caller.now_ms),
            }
            prop_assert!((1..=max.max(1)).contains(&caller.limit.limit()));
        }
        // The latency remembered fades first.
        for _ in 0..60 {
            caller.limit.succeeded(1, 0);
        }
        caller.run(endpoint(latency_ms, FULL), 25_000);
        prop_assert!(caller.limit.limit() >= max.clamp(1, 64), "{}", caller.limit.limit());
    }

    #[test]
    fn any_numbers_are_taken(
        steps in prop::collection::vec((any::<i64>(), any::<u32>(), any::<usize>(), any::<bool>()), 0..100),
        initial: usize,
        max: usize,
    ) {
        let limits = ConcurrencyLimits { initial, max, slow_from_ms: 0 };
        let mut limit = ConcurrencyLimit::new(limits);
        for (now_ms, latency_ms, in_flight, success) in steps {
            if success {
                limit.succeeded(latency_ms, in_flight);
            } else {
                limit.throttled(now_ms);
            }
            prop_assert!((1..=max.max(1)).contains(&limit.limit()));
        }
    }
}
