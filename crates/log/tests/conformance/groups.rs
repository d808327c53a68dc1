//! Promises about one member of a group.

use std::time::Duration;

use postrider_log::{CommitError, Committed, GroupEvent, LogError, OffsetTracker};

use crate::subject::{Kept, Subject, is_ours, number, numbered, record};

/// Long enough for a record to come if it were wrongly sent.
const A_WHILE: Duration = Duration::from_millis(500);

pub(crate) async fn goes_on_at_the_commit_with_its_metadata(subject: Subject) {
    let topic = subject.topic("topic", 2, Kept::ForDays).await;
    subject.fill(&topic, 1, numbered(10)).await;
    let mut member = subject.join(&topic).await;
    member.until_assigned(2).await;
    assert!(
        member
            .assigned
            .values()
            .all(|assignment| assignment.committed.is_none())
    );
    assert_eq!(
        member.assigned[&1].bounds,
        subject.log.bounds(&topic, 1).await.unwrap()
    );
    member.start_all();
    member
        .until("all are read", |member| member.records.len() == 10)
        .await;
    let seventh = member.records[7].offset;
    member
        .commit(1, seventh, "settled by state-1")
        .await
        .expect("the commit is acknowledged");
    member.group.close().await;

    let committed = subject
        .log
        .committed(&format!("{topic}-group"), &topic)
        .await
        .unwrap();
    assert_eq!(committed[0], None);
    assert_eq!(
        committed[1].as_ref().map(|committed| committed.offset),
        Some(seventh)
    );
    let mut again = subject.join(&topic).await;
    again.until_assigned(2).await;
    assert_eq!(again.assigned[&1].committed, committed[1]);
    assert_eq!(
        committed[1].as_ref().unwrap().metadata,
        "settled by state-1"
    );
    again.start_all();
    again
        .until("the rest is read", |member| member.records.len() == 3)
        .await;
    assert_eq!(
        again.records.iter().map(number).collect::<Vec<_>>(),
        [7, 8, 9]
    );
}

pub(crate) async fn a_paused_partition_gives_nothing_until_resumed(subject: Subject) {
    let topic = subject.topic("topic", 2, Kept::ForDays).await;
    let mut member = subject.join(&topic).await;
    member.until_assigned(2).await;
    member.group.pause(0);
    member.start_all();
    subject.fill(&topic, 0, numbered(3)).await;
    subject.fill(&topic, 1, numbered(3)).await;
    member
        .until("the other partition is read", |member| {
            member.records.len() == 3
        })
        .await;
    assert!(member.records.iter().all(|record| record.partition == 1));
    assert!(
        member.quiet(A_WHILE).await,
        "nothing comes of a paused partition"
    );
    member.group.resume(0);
    member
        .until("the resumed partition is read", |member| {
            member.records.len() == 6
        })
        .await;
}

pub(crate) async fn resuming_twice_and_pausing_twice_is_harmless(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    subject.fill(&topic, 0, numbered(5)).await;
    let mut member = subject.join(&topic).await;
    member.until_assigned(1).await;
    member.group.resume(0);
    member.start_all();
    member
        .until("the first are read", |member| member.records.len() == 5)
        .await;
    for _ in 0..2 {
        member.group.pause(0);
    }
    // What is read ahead until the pause has come through may come, so nothing is there to be read.
    assert!(member.quiet(A_WHILE).await, "there is nothing to read");
    subject.fill(&topic, 0, numbered(5)).await;
    assert!(
        member.quiet(A_WHILE).await,
        "nothing was read ahead when it was paused"
    );
    for _ in 0..2 {
        member.group.resume(0);
    }
    member
        .until("the rest is read", |member| member.records.len() == 10)
        .await;
    assert!(member.quiet(A_WHILE).await, "nothing comes twice");
    assert_eq!(
        member.records.iter().map(number).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    );
}

pub(crate) async fn reads_ahead_no_more_than_allowed(subject: Subject) {
    const RECORD_BYTES: usize = 10_000;
    const PREFETCH_BYTES: usize = 200_000;
    const RECORDS: usize = 1_000;
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let big = "x".repeat(RECORD_BYTES);
    subject
        .fill(&topic, 0, (0..RECORDS).map(|_| record("key", &big)))
        .await;
    let mut member = subject
        .join_with(&topic, Duration::from_secs(20), PREFETCH_BYTES)
        .await;
    member.until_assigned(1).await;
    member.start_all();
    member
        .until("the first are read", |member| !member.records.is_empty())
        .await;
    let before = member.records.len();
    member.group.pause(0);
    while !member.quiet(A_WHILE).await {}
    let ahead = (member.records.len() - before) * RECORD_BYTES;
    let bound = PREFETCH_BYTES + subject.fetch_bytes_max;
    assert!(
        ahead <= bound,
        "{ahead} bytes came after the pause, where {bound} are allowed"
    );
    member.group.resume(0);
    member
        .until("the rest is read", |member| member.records.len() == RECORDS)
        .await;
}

pub(crate) async fn next_can_be_cancelled_at_any_time(subject: Subject) {
    const RECORDS: usize = 3_000;
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    subject.fill(&topic, 0, numbered(RECORDS)).await;
    let mut member = subject
        .join_with(&topic, Duration::from_secs(20), 10_000)
        .await;
    member.until_assigned(1).await;
    member.start_all();
    let reading = async {
        let mut turn: u64 = 0;
        while member.records.len() < RECORDS {
            turn += 1;
            member.quiet(Duration::from_micros(turn % 7 * 100)).await;
        }
    };
    subject.in_time(reading).await;
    let numbers: Vec<usize> = member.records.iter().map(number).collect();
    assert_eq!(numbers, (0..RECORDS).collect::<Vec<_>>());
}

pub(crate) async fn a_group_reads_over_gaps(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::Compacted).await;
    let mut member = subject.join(&topic).await;
    member.until_assigned(1).await;
    let mut tracker = OffsetTracker::new(member.assigned[&0].bounds.start);
    member.start_all();
    let before = subject
        .fill(&topic, 0, [record("a", "0"), record("b", "1")])
        .await;
    member
        .until("what is before the gap is read", |member| {
            member.records.len() == 2
        })
        .await;
    if !subject.control.gap(&topic, 0).await {
        return;
    }
    let after = subject
        .fill(&topic, 0, [record("c", "2"), record("d", "3")])
        .await;
    member
        .until("what is after the gap is read", |member| {
            ours(member).len() == 4
        })
        .await;
    let expected: Vec<_> = before
        .iter()
        .chain(&after)
        .map(|position| position.offset)
        .collect();
    assert_eq!(ours(&member), expected);
    for record in &member.records {
        assert!(tracker.begin(record.offset));
        tracker.resolve(record.offset);
    }
    let end = tracker.committable();
    assert_eq!(end, expected[3] + 1);
    member
        .commit(0, end, "")
        .await
        .expect("a commit past the gap is acknowledged");
}

fn ours(member: &crate::member::Member) -> Vec<i64> {
    member
        .records
        .iter()
        .filter(|record| is_ours(record))
        .map(|record| record.offset)
        .collect()
}

pub(crate) async fn a_group_hears_of_truncation(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let positions = subject.fill(&topic, 0, numbered(10)).await;
    let (first, kept) = (positions[0].offset, positions[6].offset);
    if !subject.control.truncate(&topic, 0, kept).await {
        return;
    }
    let mut member = subject.join(&topic).await;
    member.until_assigned(1).await;
    assert_eq!(member.assigned[&0].bounds.start, kept);
    member.group.start(0, first);
    let event = member.next().await;
    assert_eq!(
        event,
        GroupEvent::Truncated {
            partition: 0,
            from: first,
            to: kept
        }
    );
    member
        .until("the rest is read", |member| member.records.len() == 4)
        .await;
    assert_eq!(
        member.records.iter().map(number).collect::<Vec<_>>(),
        [6, 7, 8, 9]
    );
}

pub(crate) async fn a_group_hears_that_it_is_beyond_the_end(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    subject.fill(&topic, 0, numbered(3)).await;
    let mut member = subject.join(&topic).await;
    member.until_assigned(1).await;
    let end = member.assigned[&0].bounds.end;
    let position = end + 7;
    member.group.start(0, position);
    let event = member.next().await;
    assert_eq!(
        event,
        GroupEvent::BeyondEnd {
            partition: 0,
            position,
            end
        }
    );
}

pub(crate) async fn a_log_that_is_reopened_remembers_commits(mut subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    subject.fill(&topic, 0, numbered(4)).await;
    let mut member = subject.join(&topic).await;
    member.until_assigned(1).await;
    member
        .commit(0, 3, "beside it")
        .await
        .expect("the commit is acknowledged");
    member.group.close().await;
    drop(member);
    if !subject.reopen().await {
        return;
    }
    let mut member = subject.join(&topic).await;
    member.until_assigned(1).await;
    let committed = member.assigned[&0]
        .committed
        .clone()
        .expect("the commit is remembered");
    assert_eq!(
        (committed.offset, committed.metadata.as_str()),
        (3, "beside it")
    );
    member.start_all();
    member
        .until("the rest is read", |member| member.records.len() == 1)
        .await;
}

pub(crate) async fn metadata_that_are_too_long_are_refused_and_block_nothing(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    subject.fill(&topic, 0, numbered(3)).await;
    let mut member = subject.join(&topic).await;
    member.until_assigned(1).await;
    member.start_all();
    let longest = "x".repeat(4096);
    let taken = member.commit(0, 1, &longest).await;
    taken.expect("4 KiB are taken");
    let refused = member.commit(0, 2, &format!("{longest}x")).await;
    assert!(
        matches!(refused, Err(CommitError::Unknown(_))),
        "{refused:?}"
    );
    let group = format!("{topic}-group");
    let committed = subject.log.committed(&group, &topic).await.unwrap();
    let committed = committed[0].as_ref().expect("the first is there");
    assert_eq!((committed.offset, committed.metadata == longest), (1, true));
    let taken = member.commit(0, 3, "short").await;
    taken.expect("the next one is taken");
    member
        .until("all are read", |member| member.records.len() == 3)
        .await;
}

pub(crate) async fn somebody_outside_commits_for_a_group_without_members_only(
    mut subject: Subject,
) {
    let topic = subject.topic("topic", 3, Kept::ForDays).await;
    subject.fill(&topic, 1, numbered(10)).await;
    let group = format!("{topic}-group");
    let committed = |offset, metadata: &str| Committed {
        offset,
        metadata: metadata.to_owned(),
    };
    let founded = [(0, committed(0, "")), (1, committed(4, "founded"))];
    let log = &subject.log;
    log.set_committed(&group, &topic, &founded)
        .await
        .expect("a group that nobody ever joined takes a commit");
    let known = log.committed(&group, &topic).await.unwrap();
    let [(_, first), (_, second)] = founded;
    assert_eq!(known, [Some(first), Some(second.clone()), None]);

    let mut member = subject.join(&topic).await;
    member.until_assigned(3).await;
    assert_eq!(member.assigned[&1].committed, Some(second.clone()));
    assert_eq!(member.assigned[&2].committed, None);
    let changed = [(1, committed(9, "")), (2, committed(0, ""))];
    let refused = subject.log.set_committed(&group, &topic, &changed).await;
    assert_eq!(refused, Err(LogError::GroupHasMembers(group.clone())));
    let known = subject.log.committed(&group, &topic).await.unwrap();
    assert_eq!(known[1..], [Some(second), None], "it changed nothing");

    member.group.close().await;
    drop(member);
    let changed = [(1, committed(2, "back"))];
    let set = subject.log.set_committed(&group, &topic, &changed).await;
    set.expect("a group that everybody left takes a commit");
    if !subject.reopen().await {
        return;
    }
    let known = subject.log.committed(&group, &topic).await.unwrap();
    assert_eq!(known[1], Some(committed(2, "back")), "and keeps it");
}
