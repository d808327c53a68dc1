//! Promises about several members of a group.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_log::{CommitError, GroupEvent, Partition};

use crate::member::Member;
use crate::subject::{Kept, Subject, number, numbered};

/// Both go on until the condition holds; the first gives up what is asked of it at once.
async fn together(
    first: &mut Member,
    second: &mut Member,
    holds: impl Fn(&Member, &Member) -> bool,
) {
    let mut turns = 0;
    while !holds(first, second) {
        turns += 1;
        assert!(turns < 1_000, "stuck at {first:?} and {second:?}");
        tokio::select! {
            event = first.next() => if let GroupEvent::Revoke { partitions, .. } = event {
                first.release(&partitions);
            },
            event = second.next() => if let GroupEvent::Revoke { partitions, .. } = event {
                second.release(&partitions);
            },
        }
    }
}

/// The first gets a `Revoke` while the second joins.
async fn revoke_while_joining(first: &mut Member, second: &mut Member) -> Vec<Partition> {
    loop {
        tokio::select! {
            partitions = first.revoked() => return partitions,
            _ = second.next() => {}
        }
    }
}

pub(crate) async fn a_joining_member_gets_what_was_drained_and_released(subject: Subject) {
    let topic = subject.topic("topic", 4, Kept::ForDays).await;
    for partition in 0..4 {
        subject.fill(&topic, partition, numbered(5)).await;
    }
    let mut first = subject.join(&topic).await;
    first.until_assigned(4).await;
    first.start_all();
    first
        .until("all are read", |member| member.records.len() == 20)
        .await;

    let mut second = subject.join(&topic).await;
    let moving = revoke_while_joining(&mut first, &mut second).await;
    assert_eq!(
        moving.len(),
        2,
        "only what must move is revoked: {moving:?}"
    );
    assert!(
        second.assigned.is_empty(),
        "nothing is handed on before it is released"
    );
    let stale = first.commit_of(moving[0], 2, "too late");
    for partition in &moving {
        first
            .commit(*partition, 4, "drained")
            .await
            .expect("a commit during the revoke is accepted");
    }
    first.release(&moving);
    assert_eq!(
        first.commit_as(stale).await,
        Err(CommitError::Fenced),
        "after the release it is not"
    );

    together(&mut first, &mut second, |_, second| {
        second.assigned.len() == 2
    })
    .await;
    assert_eq!(
        second.assigned.keys().copied().collect::<Vec<_>>(),
        sorted(moving)
    );
    assert!(second.assigned.values().all(|assignment| {
        assignment
            .committed
            .as_ref()
            .is_some_and(|committed| committed.metadata == "drained")
    }));
    second.start_all();
    together(&mut first, &mut second, |_, second| {
        second.records.len() == 2
    })
    .await;
    assert!(second.records.iter().all(|record| number(record) == 4));
    assert_eq!(
        (first.assigned.len(), first.records.len()),
        (2, 20),
        "the others stay and go on"
    );
}

pub(crate) async fn without_room_for_records_a_member_hears_of_its_partitions(subject: Subject) {
    const RECORDS: usize = 500;
    let topic = subject.topic("topic", 4, Kept::ForDays).await;
    for partition in 0..4 {
        subject.fill(&topic, partition, numbered(RECORDS)).await;
    }
    let deadline = Duration::from_secs(20);
    let mut first = subject.join_with(&topic, deadline, 10_000).await;
    first.until_assigned(4).await;
    first.start_all();
    first
        .until("the first are read", |member| !member.records.is_empty())
        .await;
    let taken = first.records.len();

    let mut second = subject.join(&topic).await;
    let moving = loop {
        tokio::select! {
            event = subject.in_time(first.group.next_rebalance()) => match event.unwrap() {
                GroupEvent::Revoke { partitions, .. } => break partitions,
                event => panic!("{event:?} comes of nothing"),
            },
            _ = second.next() => {}
        }
    };
    assert!(taken < 4 * RECORDS, "records wait: {taken} were taken");
    first.release(&moving);
    first.records.retain(|one| !moving.contains(&one.partition));
    together(&mut first, &mut second, |first, second| {
        second.assigned.len() == 2 && first.records.len() == 2 * RECORDS
    })
    .await;
    for partition in first.assigned.keys() {
        let of_partition = first
            .records
            .iter()
            .filter(|one| one.partition == *partition);
        let numbers: Vec<usize> = of_partition.map(number).collect();
        assert_eq!(numbers, (0..RECORDS).collect::<Vec<_>>(), "none is lost");
    }
}

pub(crate) async fn a_member_that_does_not_release_loses_after_the_deadline(subject: Subject) {
    let topic = subject.topic("topic", 2, Kept::ForDays).await;
    let deadline = Duration::from_secs(2);
    let mut first = subject.join_with(&topic, deadline, 1 << 20).await;
    first.until_assigned(2).await;
    let mut second = subject.join_with(&topic, deadline, 1 << 20).await;
    let moving = revoke_while_joining(&mut first, &mut second).await;
    let stale = first.commit_of(moving[0], 0, "");
    let lost = loop {
        tokio::select! {
            event = first.next() => if let GroupEvent::Lost(partitions) = event { break partitions },
            _ = second.next() => {}
        }
    };
    assert!(
        moving.iter().all(|partition| lost.contains(partition)),
        "{moving:?} of {lost:?}"
    );
    assert_eq!(first.commit_as(stale).await, Err(CommitError::Fenced));
    let holds = |first: &Member, second: &Member| first.assigned.len() + second.assigned.len() == 2;
    together(&mut first, &mut second, |first, second| {
        holds(first, second) && !second.assigned.is_empty()
    })
    .await;
}

pub(crate) async fn a_commit_of_an_earlier_generation_is_refused(subject: Subject) {
    let topic = subject.topic("topic", 2, Kept::ForDays).await;
    let mut first = subject.join(&topic).await;
    first.until_assigned(2).await;
    let mut second = subject.join(&topic).await;
    let moving = revoke_while_joining(&mut first, &mut second).await;
    let stale = first.commit_of(moving[0], 1, "from before");
    first.release(&moving);
    together(&mut first, &mut second, |_, second| {
        second.assigned.len() == 1
    })
    .await;
    second.group.close().await;
    first.until_assigned(2).await;
    assert!(first.assigned[&moving[0]].generation > stale.generation);
    assert_eq!(first.commit_as(stale).await, Err(CommitError::Fenced));
    first
        .commit(moving[0], 1, "")
        .await
        .expect("a commit of the present generation is accepted");
}

pub(crate) async fn a_member_that_leaves_hands_over(subject: Subject) {
    let topic = subject.topic("topic", 3, Kept::ForDays).await;
    let mut first = subject.join(&topic).await;
    first.until_assigned(3).await;
    first
        .commit(2, 0, "of the first")
        .await
        .expect("the commit is acknowledged");
    first.group.close().await;
    assert!(
        first.group.next().await.is_err(),
        "it hears of nothing any more"
    );
    let mut second = subject.join(&topic).await;
    second.until_assigned(3).await;
    let committed = second.assigned[&2]
        .committed
        .as_ref()
        .expect("the commit is there");
    assert_eq!(committed.metadata, "of the first");
}

pub(crate) async fn partitions_are_shared_evenly(subject: Subject) {
    let topic = subject.topic("topic", 5, Kept::ForDays).await;
    let mut first = subject.join(&topic).await;
    let mut second = subject.join(&topic).await;
    let even = |first: &Member, second: &Member| {
        let both: BTreeSet<_> = first
            .assigned
            .keys()
            .chain(second.assigned.keys())
            .collect();
        let (first, second) = (first.assigned.len(), second.assigned.len());
        both.len() == 5 && first + second == 5 && first.abs_diff(second) == 1
    };
    together(&mut first, &mut second, even).await;
}

pub(crate) async fn a_partition_that_left_while_paused_comes_back_unpaused(subject: Subject) {
    let topic = subject.topic("topic", 2, Kept::ForDays).await;
    let mut first = subject.join(&topic).await;
    first.until_assigned(2).await;
    first.start_all();
    for partition in 0..2 {
        first.group.pause(partition);
    }
    let mut second = subject.join(&topic).await;
    let moving = revoke_while_joining(&mut first, &mut second).await;
    first.release(&moving);
    together(&mut first, &mut second, |_, second| {
        second.assigned.len() == 1
    })
    .await;
    second.group.close().await;
    first.until_assigned(2).await;
    first.group.start(moving[0], 0);
    for partition in 0..2 {
        subject.fill(&topic, partition, numbered(3)).await;
    }
    first
        .until("it is read", |member| member.records.len() == 3)
        .await;
    assert!(
        first.records.iter().all(|one| one.partition == moving[0]),
        "the one that stayed is paused"
    );
}

fn sorted(mut partitions: Vec<Partition>) -> Vec<Partition> {
    partitions.sort_unstable();
    partitions
}
