//! A lane by itself: its queue, its limit and its breaker together.

use super::*;
use crate::config::DeliverConfig;
use crate::deliver::fixtures::{APPENDED_MS, delivery, step_of};
use crate::deliver::permits::Permits;
use crate::deliver::step::Step;

fn endpoint() -> EndpointId {
    EndpointId::try_new("ep_a").unwrap()
}

fn at(ms: i64) -> Now {
    Now {
        mono_ms: ms,
        wall_ms: APPENDED_MS + ms,
        ages_tell: true,
    }
}

fn step(offset: Offset) -> Step {
    step_of(offset, delivery(offset))
}

/// Starts whatever may start now; the offsets, and whether each is a probe.
fn start_all(lane: &mut Lane, limits: &LaneLimits, now: Now) -> Vec<(Offset, bool)> {
    let mut started = Vec::new();
    while lane.turn(limits, now) == Turn::Now {
        let slow = Permits::default().count(false);
        let (step, probe) = lane.start(0, false, slow, now).unwrap();
        started.push((step.offset, probe));
    }
    started
}

/// Ends each of them alike.
fn finish_all(lane: &mut Lane, started: &[(Offset, bool)], seen: Seen, now: Now) {
    for &(offset, probe) in started {
        lane.finish(offset, probe, seen, now);
    }
}

#[test]
fn who_comes_back_is_met_by_a_ramp_and_not_by_a_wall() {
    let limits = LaneLimits::from(&DeliverConfig::default());
    let mut lane = Lane::new(endpoint(), &limits, at(0));
    for offset in 0..900 {
        lane.take(step(offset), at(0));
    }
    let (mut now_ms, answered) = (0, Seen::Succeeded { latency_ms: 50 });
    // It answers until it is given all there is, and then no more.
    while lane.pace.limit().limit() < limits.concurrency.max {
        let started = start_all(&mut lane, &limits, at(now_ms));
        now_ms += 50;
        finish_all(&mut lane, &started, answered, at(now_ms));
    }
    let refused = Seen::Failed {
        throttles: false,
        hold_ms: None,
    };
    let started = start_all(&mut lane, &limits, at(now_ms));
    assert_eq!(started.len(), limits.concurrency.max);
    finish_all(&mut lane, &started, refused, at(now_ms));
    // While it is gone there is one probe, and the pause between two of them grows.
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let Turn::At(probe_ms) = lane.turn(&limits, at(now_ms)) else {
            panic!("the breaker is not open");
        };
        pauses.push(probe_ms - now_ms);
        now_ms = probe_ms;
        let probe = start_all(&mut lane, &limits, at(now_ms));
        assert!(matches!(probe[..], [(_, true)]), "{probe:?}");
        finish_all(&mut lane, &probe, refused, at(now_ms));
    }
    assert!(
        pauses.is_sorted_by(|one, next| next * 10 >= one * 19),
        "{pauses:?}"
    );
    // It is back: what waits comes in rounds, each at most twice the one before.
    now_ms += lane.pace.breaker().wait_ms(now_ms);
    let mut rounds = Vec::new();
    while rounds.last() != Some(&limits.concurrency.max) {
        let started = start_all(&mut lane, &limits, at(now_ms));
        rounds.push(started.len());
        now_ms += 50;
        finish_all(&mut lane, &started, answered, at(now_ms));
        assert!(rounds.len() < 20, "it grows: {rounds:?}");
    }
    assert_eq!(rounds[0], 1, "{rounds:?}");
    assert!(
        rounds.windows(2).all(|pair| pair[1] <= 2 * pair[0]),
        "{rounds:?}"
    );
}

#[test]
fn nothing_expires_while_ages_tell_nothing() {
    let limits = LaneLimits {
        expires_after_ms: 1_000,
        ..LaneLimits::from(&DeliverConfig::default())
    };
    let mut lane = Lane::new(endpoint(), &limits, at(0));
    lane.pause(true);
    lane.take(step(0), at(0));
    lane.leave_in_log(1, 2, at(0));
    let late = at(7 * 86_400_000);
    assert!(lane.head_expires(&limits, late) && lane.is_old(&limits, late));
    assert_eq!(lane.turn(&limits, late), Turn::Now);
    let doubtful = Now {
        ages_tell: false,
        ..late
    };
    assert!(!lane.head_expires(&limits, doubtful) && !lane.is_old(&limits, doubtful));
    assert_eq!(lane.turn(&limits, doubtful), Turn::Later);
}

#[test]
fn an_endpoint_that_has_answered_is_called_again_before_the_log_has_the_attempt() {
    let limits = LaneLimits::from(&DeliverConfig::default());
    let mut lane = Lane::new(endpoint(), &limits, at(0));
    for offset in 0..900 {
        lane.take(step(offset), at(0));
    }
    let started = start_all(&mut lane, &limits, at(0));
    let answered = Seen::Succeeded { latency_ms: 5 };
    for &(offset, probe) in &started {
        lane.answered(offset, probe, answered, at(5));
    }
    assert_eq!(lane.status(0, &limits, 900, at(5)).in_flight, 0);
    let further = start_all(&mut lane, &limits, at(5));
    assert!(further.len() >= started.len());
    // What is not recorded may yet be written, and is not settled.
    assert_eq!(lane.attempts_from(), Some(0));
    finish_all(&mut lane, &started, answered, at(30));
    let limit = lane.pace.limit().limit();
    finish_all(&mut lane, &started, answered, at(30));
    assert_eq!(lane.pace.limit().limit(), limit, "it is learned once");
    assert!(lane.is_at_work());
    finish_all(&mut lane, &further, answered, at(40));
    assert!(!lane.is_at_work());
}

#[test]
fn a_lane_whose_attempts_the_log_does_not_take_ends_calling() {
    let limits = LaneLimits::from(&DeliverConfig::default());
    let mut lane = Lane::new(endpoint(), &limits, at(0));
    for offset in 0..2_000 {
        lane.take(step(offset), at(0));
    }
    let (mut unrecorded, answered) = (Vec::new(), Seen::Succeeded { latency_ms: 5 });
    loop {
        let started = start_all(&mut lane, &limits, at(0));
        for &(offset, probe) in &started {
            lane.answered(offset, probe, answered, at(5));
        }
        if started.is_empty() {
            break;
        }
        unrecorded.extend(started);
    }
    assert_eq!(unrecorded.len(), limits.concurrency.max * 8);
    finish_all(&mut lane, &unrecorded[..10], answered, at(60));
    assert_eq!(start_all(&mut lane, &limits, at(60)).len(), 10);
}
