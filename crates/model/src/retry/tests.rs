use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::event::EventPosition;
use crate::ids::EndpointId;

fn work(partition: i32, offset: i64, run: u64, endpoint: &str) -> WorkId {
    WorkId {
        position: EventPosition {
            partition,
            offset,
            appended_at_ms: 5,
        },
        endpoint: EndpointId::try_new(endpoint).unwrap(),
        run,
    }
}

#[test]
fn the_standard_schedule_makes_ten_attempts_over_three_days() {
    let schedule = RetrySchedule::standard();
    assert_eq!(
        RetrySchedule::try_new(schedule.delays_ms().to_vec()).unwrap(),
        schedule
    );
    let total_ms: i64 = schedule.delays_ms().iter().sum();
    assert_eq!(total_ms, 75 * HOUR_MS + 35 * MINUTE_MS + 5 * SECOND_MS);
    let work = work(0, 0, 0, "ep_a");
    assert!(schedule.delay_after(&work, 9).is_some());
    assert_eq!(schedule.delay_after(&work, 10), None);
    assert_eq!(schedule.delay_after(&work, 0), None);
    assert_eq!(schedule.delay_after(&work, u32::MAX), None);
}

#[test]
fn schedules_out_of_bounds_are_refused() {
    assert!(RetrySchedule::try_new(vec![]).is_ok());
    assert!(RetrySchedule::try_new(vec![DELAY_MS_MIN; SCHEDULE_DELAYS_MAX]).is_ok());
    assert!(RetrySchedule::try_new(vec![DELAY_MS_MIN; SCHEDULE_DELAYS_MAX + 1]).is_err());
    for delay_ms in [
        i64::MIN,
        -1,
        0,
        DELAY_MS_MIN - 1,
        DELAY_MS_MAX + 1,
        i64::MAX,
    ] {
        let refused = RetrySchedule::try_new(vec![5000, delay_ms]);
        assert_eq!(refused, Err(InvalidRetrySchedule::OutOfRange(delay_ms)));
    }
}

#[test]
fn delays_out_of_bounds_are_told_in_seconds() {
    for (delay_ms, told) in [(172_800_000, "172800"), (5, "0.005"), (-1_500, "-1.5")] {
        let refused = RetrySchedule::try_new(vec![delay_ms]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("delays must be 1 to 86400 seconds, not {told}")
        );
    }
}

#[test]
fn jitter_depends_on_every_part_of_the_work_and_is_the_same_every_time() {
    let schedule = RetrySchedule::try_new(vec![DELAY_MS_MAX; 3]).unwrap();
    let delays: BTreeSet<_> = [
        (work(1, 1, 1, "ep_a"), 1),
        (work(2, 1, 1, "ep_a"), 1),
        (work(1, 2, 1, "ep_a"), 1),
        (work(1, 1, 2, "ep_a"), 1),
        (work(1, 1, 1, "ep_b"), 1),
        (work(1, 1, 1, "ep_a"), 2),
    ]
    .into_iter()
    .map(|(work, attempt)| schedule.delay_after(&work, attempt))
    .collect();
    assert_eq!(delays.len(), 6);
    // Written down: a release that hashes otherwise would decide otherwise about what is already
    // decided.
    assert_eq!(
        schedule.delay_after(&work(1, 1, 1, "ep_a"), 1),
        Some(103_295_759)
    );
}

#[test]
fn the_standard_ladder_climbs_evenly_from_a_second_to_a_day() {
    let ladder = DelayLadder::standard();
    assert_eq!(ladder.len(), 57);
    assert_eq!(ladder.delays_ms().first(), Some(&SECOND_MS));
    assert_eq!(ladder.delays_ms().last(), Some(&(24 * HOUR_MS)));
    assert_eq!(
        DelayLadder::try_new(ladder.delays_ms().to_vec()).unwrap(),
        ladder
    );
    for pair in ladder.delays_ms().windows(2) {
        let percent = pair[1] * 100 / pair[0];
        assert!((118..=127).contains(&percent), "{pair:?}");
    }
}

#[test]
fn ladders_that_do_not_climb_are_refused() {
    assert_eq!(
        DelayLadder::try_new(vec![]),
        Err(InvalidDelayLadder::Count(0))
    );
    assert_eq!(
        DelayLadder::try_new((1..=201).collect()),
        Err(InvalidDelayLadder::Count(201))
    );
    assert_eq!(
        DelayLadder::try_new(vec![1, 1]),
        Err(InvalidDelayLadder::NotAscending(1))
    );
    assert_eq!(
        DelayLadder::try_new(vec![2, 1]),
        Err(InvalidDelayLadder::NotAscending(1))
    );
    assert_eq!(
        DelayLadder::try_new(vec![0, 1]),
        Err(InvalidDelayLadder::OutOfRange(0))
    );
    let too_long = DELAY_MS_MAX + 1;
    assert_eq!(
        DelayLadder::try_new(vec![too_long]),
        Err(InvalidDelayLadder::OutOfRange(too_long))
    );
}

#[test]
fn a_wait_shorter_than_every_delay_has_no_place() {
    let ladder = DelayLadder::standard();
    for (remaining_ms, place) in [
        (i64::MIN, None),
        (0, None),
        (999, None),
        (1000, Some(0)),
        (i64::MAX, Some(56)),
    ] {
        assert_eq!(ladder.place(remaining_ms), place, "{remaining_ms}");
    }
}

proptest! {
    #[test]
    fn jitter_adds_at_most_a_fifth_and_takes_nothing_away(
        delays_ms in prop::collection::vec(DELAY_MS_MIN..=DELAY_MS_MAX, 1..=SCHEDULE_DELAYS_MAX),
        partition: i32,
        offset: i64,
        run: u64,
        attempt in 1..=60_u32,
    ) {
        let schedule = RetrySchedule::try_new(delays_ms.clone()).unwrap();
        let delay = schedule.delay_after(&work(partition, offset, run, "ep_1"), attempt);
        match delays_ms.get(attempt as usize - 1) {
            Some(base_ms) => {
                let delay_ms = delay.unwrap();
                prop_assert!(delay_ms >= *base_ms && delay_ms * 5 <= base_ms * 6);
            }
            None => prop_assert_eq!(delay, None),
        }
    }

    #[test]
    fn a_place_never_waits_longer_than_what_remains(
        delays_ms in prop::collection::btree_set(1..=DELAY_MS_MAX, 1..=LADDER_DELAYS_MAX),
        remaining_ms in -10..=2 * DELAY_MS_MAX,
    ) {
        let ladder = DelayLadder::try_new(delays_ms.into_iter().collect()).unwrap();
        let longest_fitting = ladder.delays_ms().iter().filter(|d| **d <= remaining_ms).max();
        let placed = ladder.place(remaining_ms).map(|place| &ladder.delays_ms()[place as usize]);
        prop_assert_eq!(placed, longest_fitting);
    }

    #[test]
    fn a_day_is_waited_in_few_steps(remaining_ms in 0..=DELAY_MS_MAX * 6 / 5) {
        let ladder = DelayLadder::standard();
        let mut left_ms = remaining_ms;
        let mut steps = 0;
        while let Some(place) = ladder.place(left_ms) {
            left_ms -= ladder.delays_ms()[place as usize];
            steps += 1;
        }
        prop_assert!(left_ms < SECOND_MS && steps <= 8, "{} steps", steps);
    }
}
