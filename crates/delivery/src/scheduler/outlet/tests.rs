use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;

use super::{LINE_MIN, Outlet, Postponed};

const PER_SECOND: u32 = 100;

fn endpoint(number: usize) -> Bytes {
    Bytes::from(number.to_string())
}

/// Offers what is due in each millisecond and lets out what may leave, until nobody waits. Answers
/// with when each left, and how often any was postponed.
fn run(
    due: &mut BTreeMap<i64, VecDeque<(usize, i64)>>,
    per_second: u32,
) -> (Vec<(usize, i64, i64)>, usize) {
    let mut outlet = Outlet::new(per_second, 0);
    let (mut left, mut postponed) = (Vec::new(), 0);
    let mut now_ms = 0;
    loop {
        while let Some(entry) = due.first_entry()
            && *entry.key() <= now_ms
        {
            for item in entry.remove() {
                let offered = outlet.offer(&endpoint(item.0), item, false, now_ms);
                if let Err(Postponed { item, wait_ms }) = offered {
                    assert!(wait_ms > 0);
                    due.entry(now_ms + wait_ms).or_default().push_back(item);
                    postponed += 1;
                }
            }
        }
        while let Some((number, due_ms)) = outlet.next(now_ms) {
            left.push((number, due_ms, now_ms));
        }
        let next_due_ms = due.first_key_value().map(|(at_ms, _)| *at_ms);
        let Some(next_ms) = outlet
            .next_at_ms(now_ms)
            .into_iter()
            .chain(next_due_ms)
            .min()
        else {
            return (left, postponed);
        };
        assert!(next_ms > now_ms, "nothing is left undone");
        now_ms = next_ms;
    }
}

/// So many of one endpoint, due at a time.
fn flood(number: usize, count: usize, at_ms: i64) -> BTreeMap<i64, VecDeque<(usize, i64)>> {
    BTreeMap::from([(at_ms, VecDeque::from(vec![(number, at_ms); count]))])
}

#[test]
fn who_comes_alone_leaves_at_once() {
    let mut outlet = Outlet::new(PER_SECOND, 0);
    for now_ms in (0..10_000).step_by(10) {
        outlet.offer(&endpoint(1), now_ms, false, now_ms).unwrap();
        assert_eq!(outlet.next_at_ms(now_ms), Some(now_ms));
        assert_eq!(outlet.next(now_ms), Some(now_ms));
        assert_eq!(
            (outlet.next(now_ms), outlet.next_at_ms(now_ms)),
            (None, None)
        );
    }
}

#[test]
fn a_flood_is_spread_evenly_and_nothing_of_it_is_postponed_often() {
    let (left, postponed) = run(&mut flood(1, 10_000, 0), PER_SECOND);
    assert_eq!(left.len(), 10_000);
    let mut seconds: BTreeMap<i64, usize> = BTreeMap::new();
    for (_, _, left_ms) in &left {
        *seconds.entry(left_ms / 1_000).or_default() += 1;
    }
    let busiest = *seconds.values().max().unwrap();
    assert!(busiest <= 106, "{busiest} in a second");
    // At four fifths of the pace it takes 125 s.
    assert!((100..=130).contains(&seconds.len()), "{} s", seconds.len());
    assert!(postponed <= 10_000, "{postponed} times");
}

#[test]
fn a_flood_does_not_hold_up_its_neighbours() {
    let mut due = flood(1, 10_000, 0);
    for at_ms in (0..60_000).step_by(500) {
        due.entry(at_ms).or_default().push_back((2, at_ms));
    }
    let (left, _) = run(&mut due, PER_SECOND);
    let late_ms = left
        .iter()
        .filter(|(number, ..)| *number == 2)
        .map(|(_, due_ms, left_ms)| left_ms - due_ms)
        .max();
    assert!(late_ms.unwrap() <= 50, "{late_ms:?}");
}

#[test]
fn what_is_taken_out_leaves_its_place_to_others() {
    let mut outlet = Outlet::new(1, 0);
    let half = LINE_MIN / 2;
    for number in 0..half {
        assert!(outlet.offer(&endpoint(1), number, false, 0).is_ok());
    }
    assert!(outlet.offer(&endpoint(1), half, false, 0).is_err());
    let odd = outlet.take_out(|number| number % 2 == 1);
    assert_eq!(
        odd,
        (0..half)
            .filter(|number| number % 2 == 1)
            .collect::<Vec<_>>()
    );
    assert!(outlet.offer(&endpoint(1), half, false, 0).is_ok());
    let mut order = Vec::new();
    for now_ms in (0..).step_by(1_000).take(half + 1) {
        order.extend(outlet.next(now_ms));
    }
    let mut expected: Vec<usize> = (0..half).step_by(2).collect();
    expected.push(half);
    assert_eq!(order, expected);
}

#[test]
fn a_line_is_short_while_memory_is_full() {
    let mut outlet = Outlet::new(1_000, 0);
    let mut in_line = 0;
    for number in 0..100 {
        in_line += usize::from(outlet.offer(&endpoint(number), number, true, 0).is_ok());
    }
    assert_eq!(in_line, LINE_MIN);
    assert!(outlet.offer(&endpoint(100), 100, false, 0).is_ok());
}

proptest! {
    #[test]
    fn everybody_leaves_once_not_early_and_at_the_pace(
        wishes in prop::collection::vec((0..6_usize, 0..5_000_i64, 1..60_usize), 1..40),
        per_second in 1..200_u32,
    ) {
        let mut due: BTreeMap<i64, VecDeque<(usize, i64)>> = BTreeMap::new();
        let mut expected = Vec::new();
        for (number, at_ms, count) in wishes {
            due.entry(at_ms).or_default().extend(vec![(number, at_ms); count]);
            expected.extend(vec![(number, at_ms); count]);
        }
        let (mut left, _) = run(&mut due, per_second);
        let times: Vec<i64> = left.iter().map(|(.., left_ms)| *left_ms).collect();
        prop_assert!(left.iter().all(|(_, due_ms, left_ms)| left_ms >= due_ms));
        // Of a window of a second: the pace, and a twentieth of it at once.
        let most = per_second as usize + (per_second as usize / 20).max(1) + 1;
        for window in times.windows(most + 1) {
            prop_assert!(window[most] - window[0] >= 1_000, "{most} in {window:?}");
        }
        left.sort_unstable();
        expected.sort_unstable();
        let left: Vec<_> = left.into_iter().map(|(number, due_ms, _)| (number, due_ms)).collect();
        prop_assert_eq!(left, expected);
    }
}
