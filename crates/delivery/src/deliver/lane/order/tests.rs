use super::*;
use crate::deliver::fixtures::{ordered, step_of};

const NOW: Now = Now {
    mono_ms: 1_000,
    wall_ms: 5_000,
    ages_tell: true,
};
const LIMITS: OrderLimits = OrderLimits {
    keys_max: 2,
    offsets_max: 20,
};

fn at(wall_ms: i64) -> Now {
    Now {
        mono_ms: wall_ms - 4_000,
        wall_ms,
        ages_tell: true,
    }
}

fn step(offset: Offset, key: &str) -> Step {
    step_of(offset, ordered(offset, key))
}

fn again(due_at_ms: i64) -> NextAttempt {
    NextAttempt {
        number: 2,
        due_at_ms,
        failed_at_ms: NOW.wall_ms,
    }
}

fn is_head(order: &mut Order, offset: Offset, key: &str) -> bool {
    matches!(order.rank(key, step(offset, key), NOW), Rank::Head(_))
}

#[test]
fn of_a_key_one_delivery_is_out_and_others_go_on() {
    let mut order = Order::default();
    assert!(is_head(&mut order, 1, "a"));
    assert!(is_head(&mut order, 2, "b"));
    assert!(!is_head(&mut order, 3, "a"));
    assert_eq!(order.lowest_open(), Some(1));
    let next = order.settle("a", 1, NOW);
    assert_eq!(next.map(|step| step.offset), Some(3));
    assert!(order.settle("a", 3, NOW).is_none());
    assert!(order.settle("b", 2, NOW).is_none());
    assert!(order.is_empty());
}

#[test]
fn a_failed_head_keeps_its_place_and_the_cursor_passes_it() {
    let mut order = Order::default();
    for (offset, key) in [(1, "a"), (2, "a"), (3, "b")] {
        is_head(&mut order, offset, key);
    }
    assert_eq!(
        order.block("a", again(9_000), NOW).len(),
        1,
        "what waited is freed"
    );
    assert_eq!(order.lowest_open(), Some(3));
    let blocked = order.blocked();
    assert_eq!(blocked.len(), 1);
    assert_eq!(
        (blocked[0].cursor, blocked[0].attempt, blocked[0].due_at_ms),
        (1, 2, 9_000)
    );
    assert!(!order.has_to_read(10, at(8_999)), "never early");
    assert!(order.has_to_read(10, at(9_000)));
    assert_eq!(order.plan_reads(4, 10, at(9_000)), Some(1));
    assert!(
        order.is_to_read(1) && order.is_to_read(2),
        "what comes next is read with it"
    );
    assert!(matches!(
        order.rank("a", step(1, "a"), at(9_000)),
        Rank::Head(_)
    ));
    assert!(matches!(
        order.rank("a", step(2, "a"), at(9_000)),
        Rank::Waits
    ));
    assert_eq!(
        order.settle("a", 1, at(9_000)).map(|step| step.offset),
        Some(2)
    );
}

#[test]
fn a_head_read_before_its_time_stays_in_the_log() {
    let mut order = Order::default();
    is_head(&mut order, 1, "a");
    order.block("a", again(9_000), NOW);
    assert!(matches!(
        order.rank("a", step(1, "a"), at(8_999)),
        Rank::Stays
    ));
    assert!(matches!(
        order.rank("a", step(1, "a"), at(9_000)),
        Rank::Head(_)
    ));
}

#[test]
fn a_clock_that_was_set_back_makes_no_head_early() {
    let mut order = Order::default();
    is_head(&mut order, 1, "a");
    order.block("a", again(9_000), NOW);
    let set_back = Now {
        mono_ms: 5_000,
        wall_ms: 6_000,
        ages_tell: true,
    };
    assert_eq!(order.plan_reads(4, 10, set_back), None);
    assert_eq!(order.next_due_ms(), Some(8_000));
}

#[test]
fn a_clock_that_is_set_back_while_a_head_is_read_takes_no_head_away() {
    let mut order = Order::default();
    is_head(&mut order, 1, "a");
    order.block("a", again(6_000), NOW);
    assert_eq!(order.plan_reads(1, 9, at(6_000)), Some(1));
    let set_back = Now {
        mono_ms: 2_000,
        wall_ms: -100_000_000,
        ages_tell: true,
    };
    assert!(matches!(
        order.rank("a", step(1, "a"), set_back),
        Rank::Stays
    ));
    let later = at(6_000 + LOOK_AGAIN_MS);
    assert_eq!(
        order.plan_reads(1, 9, later),
        Some(1),
        "the clock is right again"
    );
}

#[test]
fn more_of_a_key_than_fits_stays_in_the_log_in_order() {
    let mut order = Order::default();
    for offset in 0..20 {
        is_head(&mut order, offset, "a");
    }
    assert_eq!((order.room.steps(), order.blocked_keys()), (WAITING_MAX, 1));
    assert!(order.is_full(&LIMITS), "20 offsets are blocked");
    let mut served = vec![0];
    while let Some(last) = served.last().copied()
        && served.len() < 20
    {
        let next = match order.settle("a", last, NOW) {
            Some(step) => step.offset,
            None => {
                let wanted = order.plan_reads(1, 20, NOW).unwrap();
                assert!(is_head(&mut order, wanted, "a"));
                wanted
            }
        };
        served.push(next);
    }
    assert_eq!(served, (0..20).collect::<Vec<_>>());
}

#[test]
fn a_lane_taken_over_knows_what_its_keys_have_before_the_cursor() {
    let mut order = Order::default();
    for (offset, key) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
        is_head(&mut order, offset, key);
    }
    order.block("a", again(9_000), NOW);
    let cursor = Cursor {
        lowest_unsettled: 5,
        settled: BTreeSet::new(),
        behind_since_ms: 0,
    };
    let mut taken = Order::restored(order.blocked(), &cursor, Room::default(), NOW);
    assert_eq!(taken.lowest(), Some(1));
    assert!(!taken.has_passed(Some("a"), 2));
    assert!(taken.has_passed(Some("b"), 3) && taken.has_passed(None, 4));
    assert!(
        taken.is_unreflected(2, Some(1)),
        "not read yet, so nobody knows"
    );
    assert!(!taken.is_unreflected(2, Some(3)));
    assert!(matches!(
        taken.rank("a", step(1, "a"), at(9_000)),
        Rank::Head(_)
    ));
    taken.settle("a", 1, at(9_000));
    assert!(
        !taken.has_passed(Some("a"), 2),
        "the key stays known until all is read"
    );
    taken.all_read();
    assert!(taken.is_empty());
}

#[test]
fn a_lane_taken_over_finds_what_is_blocked_after_its_cursor_by_reading() {
    let mut order = Order::default();
    is_head(&mut order, 1, "a");
    for (offset, key) in [(2, "b"), (3, "c")] {
        is_head(&mut order, offset, key);
        order.block(key, again(9_000), NOW);
    }
    let cursor = Cursor {
        lowest_unsettled: 1,
        settled: BTreeSet::new(),
        behind_since_ms: 0,
    };
    assert!(order.is_full(&LIMITS));
    let taken = Order::restored(order.blocked(), &cursor, Room::default(), NOW);
    assert!(taken.is_empty(), "they come after the lane's cursor");
    assert!(!taken.is_full(&LIMITS), "so the lane must be read");
}

#[test]
fn what_a_former_owner_settled_behind_a_head_is_not_known_to_a_state() {
    let mut order = Order::default();
    is_head(&mut order, 1, "a");
    is_head(&mut order, 2, "a");
    assert!(
        order.is_unreflected(2, None),
        "it is to be recognised after the head"
    );
    order.settle("a", 1, NOW);
    order.settle("a", 2, NOW);
    order.state_sent();
    order.state_acknowledged();
    assert!(!order.is_unreflected(2, None));
}

#[test]
fn what_is_not_written_is_unreflected() {
    let mut order = Order::default();
    is_head(&mut order, 1, "a");
    order.settle("a", 1, NOW);
    assert!(order.is_unreflected(1, None));
    order.state_sent();
    assert!(order.is_unreflected(1, None), "it is not durable yet");
    order.state_not_acknowledged();
    order.state_sent();
    order.state_acknowledged();
    assert!(!order.is_unreflected(1, None));
}
