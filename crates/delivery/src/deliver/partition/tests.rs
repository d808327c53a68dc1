//! The rules of a partition that need a rare order of things, one at a time; the simulation breaks
//! them together.

use bytes::Bytes;
use postrider_log::{Offset, Record};
use postrider_model::delivery::{
    Attempt, AttemptOutcome, BlockedKey, Cursor, LaneState, Settlement,
};
use postrider_model::ids::EndpointId;
use postrider_model::outcome::Reason;
use postrider_model::verdict::Seen;
use postrider_model::work::WorkId;

use super::{Partition, StatesToWrite, Taken};
use crate::config::DeliverConfig;
use crate::deliver::fixtures::{delivery, ordered, record_of, step_of};
use crate::deliver::limits::LaneLimits;
use crate::deliver::permits::Permits;
use crate::deliver::settled::SettledSet;
use crate::deliver::state::Written;
use crate::deliver::state_id::StateId;
use crate::deliver::step::{Memory, Now, Step};
use crate::deliver::tally::Tally;

/// Where the next record of `attempts` is expected when a test begins.
const ATTEMPTS_END: Offset = 5;
const DELIVERED: Seen = Seen::Succeeded { latency_ms: 1 };

fn endpoint() -> EndpointId {
    EndpointId::try_new("ep_a").unwrap()
}

fn limits(queue_max: usize) -> LaneLimits {
    let config = DeliverConfig {
        lane_queue_max: queue_max,
        ..DeliverConfig::default()
    };
    LaneLimits::from(&config)
}

fn at(mono_ms: i64) -> Now {
    let wall_ms = 1_000_000 + mono_ms;
    Now {
        mono_ms,
        wall_ms,
        ages_tell: true,
    }
}

fn record(offset: Offset) -> Record {
    record_of(offset, &delivery(offset))
}

fn step(offset: Offset) -> Step {
    step_of(offset, delivery(offset))
}

/// A partition of which everything below an offset was read and committed, with its states under
/// id 0.
fn partition(from: Offset) -> Partition {
    partition_under(
        from,
        StateId::new(
            Written {
                id: 0,
                first: 0,
                last: 0,
            },
            Vec::new(),
        ),
    )
}

fn partition_under(from: Offset, state_id: StateId) -> Partition {
    let settled = SettledSet::new(ATTEMPTS_END, at(0).wall_ms, 1_000, 1_000);
    Partition::new(1, from, from, settled, state_id, Tally::default())
}

/// The states that are to be written now because they have changed.
fn due_writes(
    partition: &mut Partition,
    limits: &LaneLimits,
    now: Now,
) -> Vec<(EndpointId, Option<LaneState>)> {
    match partition.states_to_write(limits, 1_000, now) {
        None => Vec::new(),
        Some(StatesToWrite::Changes(changes)) => changes,
        Some(StatesToWrite::AllAnew(states)) => panic!("{states:?}"),
    }
}

/// The same, with a lane that a former owner left behind.
fn behind(from: Offset, lowest_unsettled: Offset, settled: &[Offset]) -> Partition {
    behind_with(from, lowest_unsettled, settled, Vec::new())
}

fn behind_with(
    from: Offset,
    lowest_unsettled: Offset,
    settled: &[Offset],
    blocked: Vec<BlockedKey>,
) -> Partition {
    let mut partition = partition_under(from, StateId::new(written(0, 1), Vec::new()));
    let cursor = Cursor {
        lowest_unsettled,
        settled: settled.iter().copied().collect(),
        behind_since_ms: 1,
    };
    let state = LaneState {
        blocked,
        endpoint: endpoint(),
        state_id: 1,
        cursor: Some(cursor),
        failing_since_ms: None,
        breaker_openings: 0,
        breaker_open_until_ms: 0,
    };
    partition.restore(vec![state], &limits(8), at(0));
    partition
}

fn admit(partition: &mut Partition, offset: Offset, limits: &LaneLimits) -> Taken {
    partition.admit(step(offset), limits, Memory::Free, at(0))
}

/// Reads what the log has from an offset up to another.
fn feed(partition: &mut Partition, from: Offset, to: Offset, limits: &LaneLimits) {
    let records: Vec<_> = (from..to).map(record).collect();
    partition.feed(from, &records, to, limits, Memory::Free, at(0));
}

fn start(partition: &mut Partition) -> Step {
    let slow = Permits::default().count(false);
    partition.start(&endpoint(), false, slow, at(0)).unwrap().0
}

/// The attempt succeeded, and its record is at this place in `attempts`.
fn settle(partition: &mut Partition, step: &Step, place: Offset) {
    let work = WorkId {
        position: step.delivery.position,
        endpoint: endpoint(),
        run: 0,
    };
    let attempt = Attempt {
        event_id: step.delivery.event.id.clone(),
        tenant: step.delivery.event.tenant.clone(),
        event_type: step.delivery.event.event_type.clone(),
        work,
        number: 1,
        started_at_ms: 0,
        duration_ms: 0,
        outcome: AttemptOutcome::Succeeded,
        reason: Reason::Ok,
        status: None,
        detail: String::new(),
        response_excerpt: Bytes::new(),
        settlement: Some(Settlement::Delivered),
        accepted_at_ms: step.delivery.event.accepted_at_ms,
        traceparent: String::new(),
        delivery_offset: Some(step.offset),
    };
    let at_ms = at(0).wall_ms;
    partition.settled.note(&attempt, place, at_ms, step.offset);
    partition.settle(step, false, DELIVERED, at(0));
}

/// States that are durable under id 1.
fn written(first: Offset, last: Offset) -> Written {
    Written { id: 1, first, last }
}

/// Long after everything that a test does.
const LATE: i64 = 1_000_000;

#[test]
fn a_cursor_releases_the_commit_when_it_is_durable_and_not_before() {
    let limits = limits(1);
    let mut partition = partition(0);
    assert_eq!(admit(&mut partition, 0, &limits), Taken::Queued);
    admit(&mut partition, 1, &limits);
    let due = due_writes(&mut partition, &limits, at(LATE));
    assert!(matches!(&due[..], [(_, Some(state))] if state.cursor.is_some()));
    admit(&mut partition, 2, &limits);
    partition.tick(&limits, false, |_| false, at(LATE));
    assert_eq!(
        partition.resolved(),
        [] as [Offset; 0],
        "nothing says where to go on"
    );
    partition.written(written(2, 3));
    assert_eq!(partition.resolved(), [0, 1, 2]);
}

#[test]
fn a_cursor_written_below_what_was_written_before_releases_nothing_until_all_are_written_again() {
    let limits = limits(1);
    let mut partition = partition_under(0, StateId::new(written(7, 8), Vec::new()));
    admit(&mut partition, 0, &limits);
    admit(&mut partition, 1, &limits);
    assert_eq!(due_writes(&mut partition, &limits, at(LATE)).len(), 1);
    // Of the states that this one was written after, none is in the topic any more.
    partition.written(written(8, 8));
    assert_eq!(partition.resolved(), [] as [Offset; 0]);
    let anew = partition.states_to_write(&limits, 1_000, at(LATE));
    assert!(matches!(anew, Some(StatesToWrite::AllAnew(states)) if states.len() == 1));
    let anew = Written {
        id: 2,
        first: 2,
        last: 4,
    };
    partition.written(anew);
    assert_eq!(partition.resolved(), [0, 1]);
    assert_eq!(partition.state_id.last(), 4);
}

#[test]
fn a_step_that_an_older_release_settled_is_a_copy_though_its_record_has_the_time_by_now() {
    let limits = limits(8);
    let mut partition = partition(0);
    let mut former = step(0);
    former.delivery.position = former.delivery.position.without_time();
    partition.admit(former, &limits, Memory::Free, at(0));
    let former = start(&mut partition);
    settle(&mut partition, &former, ATTEMPTS_END);
    let again = |offset, accepted_at_ms| {
        let mut again = step_of(offset, delivery(0));
        again.delivery.event.accepted_at_ms = accepted_at_ms;
        again
    };
    let accepted_at_ms = former.delivery.event.accepted_at_ms;
    let mut admit = |step| partition.admit(step, &limits, Memory::Free, at(0));
    assert_eq!(admit(again(1, accepted_at_ms)), Taken::Duplicate);
    let other = again(2, accepted_at_ms + 1);
    assert_eq!(
        admit(other),
        Taken::Queued,
        "another event at the same place"
    );
}

#[test]
fn a_commit_remembers_from_where_attempts_under_way_may_be_written() {
    let limits = limits(8);
    let mut partition = partition(0);
    admit(&mut partition, 0, &limits);
    admit(&mut partition, 1, &limits);
    let (first, _under_way) = (start(&mut partition), start(&mut partition));
    settle(&mut partition, &first, ATTEMPTS_END + 4);
    // The record of the other one may be before that of the first, and nobody has noted it yet.
    assert_eq!(
        partition.rebuild_from(1, at(LATE).wall_ms),
        ATTEMPTS_END,
        "what is committed and old is forgotten, what is under way is not"
    );
}

#[test]
fn a_commit_remembers_what_it_has_passed_and_no_cursor_says_is_settled() {
    let limits = limits(8);
    let mut partition = behind(3, 0, &[]);
    feed(&mut partition, 0, 3, &limits);
    let (first, second) = (start(&mut partition), start(&mut partition));
    settle(&mut partition, &second, ATTEMPTS_END + 2);
    partition.unsettled(first, false, true, at(0));
    assert_eq!(
        partition.rebuild_from(3, at(LATE).wall_ms),
        ATTEMPTS_END + 2,
        "whoever goes on from the durable cursor would deliver it again"
    );
}

#[test]
fn a_lane_goes_live_when_the_commit_has_passed_what_its_cursor_says_is_settled() {
    let limits = limits(8);
    // Of the two above the commit the cursor knows that one is settled.
    let mut partition = behind(3, 2, &[4]);
    feed(&mut partition, 2, 3, &limits);
    let last = start(&mut partition);
    settle(&mut partition, &last, ATTEMPTS_END);
    for write in 1..4 {
        let due = due_writes(&mut partition, &limits, at(LATE * write));
        assert!(
            due.iter().all(|(_, state)| state.is_some()),
            "the cursor is taken back, but offset 4 will be read again: {due:?}"
        );
        partition.written(written(2 * write, 2 * write + 1));
    }
    partition.committed(5);
    let due = due_writes(&mut partition, &limits, at(LATE * 4));
    assert_eq!(due, [(endpoint(), None)]);
}

#[test]
fn what_is_read_again_ends_where_the_live_stream_is() {
    let limits = limits(2);
    let mut partition = partition(0);
    for offset in 0..3 {
        admit(&mut partition, offset, &limits);
    }
    for place in [ATTEMPTS_END, ATTEMPTS_END + 1] {
        let step = start(&mut partition);
        settle(&mut partition, &step, place);
    }
    assert_eq!(partition.resolved(), [0, 1]);
    // The log has one more, which has not come live yet.
    feed(&mut partition, 2, 4, &limits);
    admit(&mut partition, 3, &limits);
    assert_eq!(
        partition.resolved(),
        [] as [Offset; 0],
        "offset 3 is not settled and must hold the commit"
    );
}

#[test]
fn a_lane_that_was_read_further_than_was_committed_goes_live_when_the_live_stream_comes_there() {
    let limits = limits(8);
    let mut partition = behind(3, 5, &[]);
    let next_read = |partition: &mut Partition| partition.next_read(&limits, Memory::Free, at(0));
    for offset in 3..5 {
        assert_eq!(
            next_read(&mut partition),
            None,
            "nothing is behind offset {offset}"
        );
        assert_eq!(admit(&mut partition, offset, &limits), Taken::Passed);
    }
    assert_eq!(next_read(&mut partition), None);
    assert_eq!(admit(&mut partition, 5, &limits), Taken::Queued);
}

#[test]
fn a_head_aside_right_before_the_cursor_is_found_when_the_live_stream_comes_there() {
    let limits = limits(8);
    let aside = |key: &str, cursor| BlockedKey {
        ordering_key: key.to_owned(),
        cursor,
        attempt: 1,
        due_at_ms: 0,
        failed_at_ms: None,
    };
    let mut partition = behind_with(4, 5, &[], vec![aside("a", 4), aside("b", 2)]);
    // What is behind was read up to the live stream.
    feed(&mut partition, 2, 4, &limits);
    let mut head = step(4);
    *head.delivery = ordered(4, "a");
    let taken = partition.admit(head, &limits, Memory::Free, at(0));
    assert_eq!(taken, Taken::Queued);
}
