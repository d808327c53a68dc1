//! Partitions whose commits were lost: they are stopped, others go on, and an operator decides.
//!
//! The stage is the scheduler, as it needs the least; records that it cannot understand become dead
//! letters, each once for each time it is read.

#[path = "stopped/past.rs"]
mod past;
#[path = "stopped/world.rs"]
mod world;

use std::time::Duration;

use postrider_delivery::standing::{DecideError, Standing, found};
use postrider_log::{Committed, Log};
use postrider_model::commit_note::CommitNote;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER, GROUP_SCHEDULER, RETRY};
use tokio::time::sleep;

use world::World;

#[tokio::test(start_paused = true)]
async fn a_partition_whose_commit_was_lost_waits_for_a_decision_while_others_go_on() {
    let mut world = World::founded().await;
    world.start("one");
    world.append_each(3).await;
    world.until("all are read", |world| world.read() == 9).await;
    world.end_all().await;

    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 1);
    world.append_each(2).await;
    world.start("two");
    let others = |world: &World| world.read() == 13 && world.stopped() == 1;
    world.until("the others are read", others).await;
    assert_eq!(world.committed().await, [Some(5), None, Some(5)]);

    world.decide(1, 3).await.expect("the owner takes it");
    let all = |world: &World| world.read() == 15 && world.stopped() == 0;
    world.until("the rest is read", all).await;
    assert_eq!(world.committed().await, [Some(5); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_decision_reaches_a_partition_that_moves() {
    let mut world = World::founded().await;
    world.append_each(2).await;
    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 2);
    world.start("one");
    world.start("two");
    let others = |world: &World| world.read() == 4 && world.stopped() == 1;
    world.until("the others are read", others).await;
    let moving = async {
        for _ in 0..5 {
            world.log.faults().rebalance(GROUP_SCHEDULER);
            sleep(Duration::from_secs(4)).await;
        }
    };
    let (decided, ()) = futures_util::join!(world.decide(2, 0), moving);
    decided.expect("an owner takes it");
    let all = |world: &World| world.read() == 6 && world.stopped() == 0;
    world.until("the rest is read", all).await;
}

#[tokio::test(start_paused = true)]
async fn a_decision_of_an_earlier_time_is_not_followed() {
    let mut world = World::founded().await;
    world.append(0, 3).await;
    let faults = world.log.faults();
    for decided in 1..=2 {
        faults.forget_commit(GROUP_SCHEDULER, RETRY, 0);
        world.start("a life");
        let stopped = |world: &World| world.stopped() == 1 && world.read() == 3 * (decided - 1);
        world.until("it is stopped", stopped).await;
        world.decide(0, 0).await.expect("the owner takes it");
        let all = |world: &World| world.read() == 3 * decided;
        world.until("all is read", all).await;
        world.end_all().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_beyond_the_end_stops_the_partition() {
    let mut world = World::founded().await;
    world.append_each(2).await;
    let beyond = Committed {
        offset: 3,
        metadata: String::new(),
    };
    let commits = [(0, beyond)];
    let set = world.log.set_committed(GROUP_SCHEDULER, RETRY, &commits);
    set.await.expect("nobody is in the group");
    world.start("one");
    let others = |world: &World| world.read() == 4 && world.stopped() == 1;
    world.until("the others are read", others).await;
    assert_eq!(world.standing(0).await.standing, Standing::BeyondEnd(3));
    world.decide(0, 1).await.expect("the owner takes it");
    let all = |world: &World| world.read() == 5 && world.stopped() == 0;
    world.until("the rest is read", all).await;
}

#[tokio::test(start_paused = true)]
async fn without_processes_a_decision_is_the_commit() {
    let mut world = World::founded().await;
    world.append(1, 5).await;
    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 1);
    world.decide(1, 4).await.expect("nobody is in the group");
    assert_eq!(world.committed().await, [Some(0), Some(4), Some(0)]);
    world.start("one");
    world.until("one is read", |world| world.read() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_nobody_can_take_is_reported() {
    let mut world = World::founded().await;
    world.append(1, 1).await;
    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 1);
    world.start("one");
    world
        .until("it is stopped", |world| world.stopped() == 1)
        .await;
    let beyond = world.decide(1, 7).await;
    assert!(matches!(beyond, Err(DecideError::NotTaken(partitions)) if partitions == [1]));
    assert_eq!(world.stopped(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_never_held_a_record_needs_no_founding() {
    let mut world = World::new().await;
    world.start("one");
    let own = |world: &World| world.stopped() == 0;
    world.until("nothing is stopped", own).await;
    assert_eq!(world.committed().await, [Some(0); 3]);
    world.append_each(2).await;
    world.until("all are read", |world| world.read() == 6).await;
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_made_again_beside_others_with_a_past_waits_for_a_decision() {
    let mut world = World::new().await;
    // At first nothing has a past.
    assert!(found(&*world.log, &world.created).await.unwrap().is_empty());
    world.append_to(DELIVERIES, 0, 1).await;
    let again = found(&*world.log, &[RETRY.to_owned()]).await.unwrap();
    assert_eq!(again, [RETRY]);
    // Repeating it changes nothing.
    assert!(found(&*world.log, &[]).await.unwrap().is_empty());
    world.append_each(1).await;
    world.start("one");
    world
        .until("all are stopped", |world| world.stopped() == 3)
        .await;
    assert_eq!(world.standing(1).await.standing, Standing::MadeAgain);
    assert_eq!(world.read(), 0);
    for partition in 0..3 {
        world
            .decide(partition, 0)
            .await
            .expect("the owner takes it");
    }
    world
        .until("what is new is read", |world| world.read() == 3)
        .await;
    assert_eq!(world.stopped(), 0);
}

/// However much is settled before the first commit, whoever comes next must find all of it in
/// `attempts`.
#[tokio::test(start_paused = true)]
async fn a_founding_says_from_where_on_attempts_tell_what_is_settled() {
    let world = World::new().await;
    found(&*world.log, &[]).await.expect("founded");
    let committed = world.log.committed(GROUP_DELIVER, DELIVERIES).await;
    let notes: Vec<_> = committed
        .expect("commits")
        .into_iter()
        .map(|one| CommitNote::decode(&one.expect("founded").metadata))
        .collect();
    let rebuild_from: Vec<_> = notes.iter().map(|note| note.rebuild_from).collect();
    assert_eq!(rebuild_from, [Some(0); 3]);
    assert!(notes.iter().all(|note| note.past_is_void));
}

#[tokio::test(start_paused = true)]
async fn founding_reaches_a_group_at_work() {
    let mut world = World::new().await;
    world.append(1, 2).await;
    world.start("one");
    world
        .until("it is stopped", |world| world.stopped() == 1)
        .await;
    found(&*world.log, &[]).await.expect("founded");
    assert_eq!(
        world.stopped(),
        1,
        "records are there, and the topic is not new"
    );
    found(&*world.log, &world.created).await.expect("founded");
    world.until("all are read", |world| world.read() == 2).await;
    found(&*world.log, &world.created).await.expect("founded");
    assert_eq!(world.committed().await, [Some(0), Some(2), Some(0)]);
}
