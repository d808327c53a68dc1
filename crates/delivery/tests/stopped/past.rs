//! A log whose past is another than the one that was committed in.

use std::time::Duration;

use postrider_delivery::standing::{Standing, found};
use postrider_log::Log;
use postrider_log::memory::{AppendFate, AppendPlan};
use postrider_model::topics::{DEAD_LETTERS, DELIVERIES, GROUP_SCHEDULER, RETRY};
use tokio::time::sleep;

use crate::world::World;

/// What was read, as the commit names it, and what stands there now.
async fn diverged_at(world: &World) -> (i64, bool) {
    match world.standing(0).await.standing {
        Standing::Diverged(found) => (found.read.offset, found.present_appended_at_ms.is_some()),
        other => panic!("{other}"),
    }
}

/// Five records were read, and committed with what is to be known of them.
async fn five_read() -> World {
    let mut world = World::founded().await;
    world.start("one");
    world.append(0, 5).await;
    world.until("all are read", |world| world.read() == 5).await;
    world
}

/// Takes the records from `end` on away and appends others.
async fn cut(world: &World, end: i64, appended: usize) {
    world.log.faults().cut(RETRY, 0, end);
    world.append(0, appended).await;
}

async fn go_on_with_what_is_undone(world: &World) {
    let standing = world.standing(0).await;
    let from = standing.undone_from(&*world.log, RETRY).await;
    world
        .decide(0, from.expect("the log answers"))
        .await
        .expect("it is taken");
}

async fn stops(world: &World, read: usize) {
    let stopped = |world: &World| world.stopped() == 1 && world.read() == read;
    world.until("the partition is stopped", stopped).await;
}

#[tokio::test(start_paused = true)]
async fn a_topic_made_again_while_nothing_runs_is_noticed_though_it_grew_past_the_commit() {
    for appended in [2, 5, 8] {
        let mut world = five_read().await;
        world.end_all().await;
        cut(&world, 0, appended).await;
        world.start("two");
        stops(&world, 5).await;
        if appended >= 5 {
            assert_eq!(diverged_at(&world).await, (4, true));
        } else {
            assert_eq!(world.standing(0).await.standing, Standing::BeyondEnd(5));
        }
        go_on_with_what_is_undone(&world).await;
        let all = |world: &World| world.read() == 5 + appended && world.stopped() == 0;
        world.until("all of the new log is read", all).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_tail_is_noticed_though_the_log_grew_past_the_commit() {
    let mut world = five_read().await;
    world.end_all().await;
    cut(&world, 3, 6).await;
    world.start("two");
    stops(&world, 5).await;
    assert_eq!(diverged_at(&world).await, (4, true));
    go_on_with_what_is_undone(&world).await;
    let all = |world: &World| world.read() >= 11 && world.stopped() == 0;
    world.until("what is new is read", all).await;
}

#[tokio::test(start_paused = true)]
async fn a_topic_made_again_under_a_running_stage_stops_its_partition() {
    for appended in [0, 3] {
        let mut world = five_read().await;
        cut(&world, 0, appended).await;
        stops(&world, 5).await;
        assert_eq!(world.standing(0).await.standing, Standing::BeyondEnd(5));
        go_on_with_what_is_undone(&world).await;
        world.append(0, 1).await;
        let all = |world: &World| world.read() == 6 + appended && world.stopped() == 0;
        world.until("all of the new log is read", all).await;
        world.end_all().await;
        assert_eq!(world.committed().await[0], Some(appended as i64 + 1));
    }
}

/// What Kafka does with the commits of a topic that it deletes.
fn forget_commits(world: &World) {
    for partition in 0..3 {
        let faults = world.log.faults();
        faults.forget_commit(GROUP_SCHEDULER, RETRY, partition);
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_made_again_under_a_running_stage_is_noticed_though_its_commits_are_gone() {
    let mut world = five_read().await;
    world.log.faults().cut(RETRY, 0, 0);
    forget_commits(&world);
    stops(&world, 5).await;
    assert_eq!(world.standing(0).await.standing, Standing::BeyondEnd(5));
    assert_eq!(world.standing(1).await.standing, Standing::At(0));
    world.end_all().await;
}

/// Nothing that was read is settled yet, so that no commit can name it.
#[tokio::test(start_paused = true)]
async fn a_topic_made_again_is_noticed_though_nothing_that_was_read_is_settled() {
    let mut world = World::founded().await;
    let late = AppendPlan {
        delay: Duration::from_secs(3_600),
        fate: AppendFate::Acked,
    };
    world.log.faults().next_append(DEAD_LETTERS, late);
    world.start("one");
    world.append(0, 3).await;
    sleep(Duration::from_secs(5)).await;
    world.log.faults().cut(RETRY, 0, 0);
    forget_commits(&world);
    let stopped = |world: &World| world.stopped() == 1;
    world.until("the partition is stopped", stopped).await;
    assert_eq!(world.standing(0).await.standing, Standing::MadeAgain);
    world.end_all().await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_topic_without_commits_beside_others_with_a_past_was_made_again() {
    let mut world = five_read().await;
    world.end_all().await;
    world.log.faults().cut(RETRY, 0, 0);
    forget_commits(&world);
    world.append_to(DELIVERIES, 0, 1).await;
    world.start("two");
    let stopped = |world: &World| world.stopped() == 3;
    world.until("every partition is stopped", stopped).await;
    for partition in 0..3 {
        let standing = world.standing(partition).await.standing;
        assert_eq!(standing, Standing::MadeAgain);
        let decided = world.decide(partition, 0).await;
        decided.expect("the owner takes it");
    }
    // What is added to it later is new.
    world.end_all().await;
    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 2);
    world.start("three");
    let own = |world: &World| world.stopped() == 0;
    world.until("nothing is stopped", own).await;
    world.append_each(1).await;
    let all = |world: &World| world.read() == 5 + 3 && world.stopped() == 0;
    world.until("what is new is read", all).await;
}

/// The member reads on where it was: nothing tells it but the records that are there no more.
#[tokio::test(start_paused = true)]
async fn a_topic_made_again_that_grew_at_once_is_noticed_by_what_was_read() {
    let mut world = five_read().await;
    cut(&world, 0, 9).await;
    let stopped = |world: &World| world.stopped() == 1 && world.read() == 5 + 4;
    world.until("the partition is stopped", stopped).await;
    assert_eq!(diverged_at(&world).await, (4, true));
    // More grows, and another process comes: it says the same.
    world.append(0, 20).await;
    world.end_all().await;
    world.start("two");
    stops(&world, 9).await;
    assert_eq!(diverged_at(&world).await, (4, true));
    go_on_with_what_is_undone(&world).await;
    let all = |world: &World| world.read() == 9 + 29 && world.stopped() == 0;
    world.until("all of the new log is read", all).await;
}

#[tokio::test(start_paused = true)]
async fn retention_and_idleness_are_no_loss_of_the_past() {
    let mut world = five_read().await;
    world.log.faults().truncate(RETRY, 0, 5);
    sleep(Duration::from_secs(3600)).await;
    world.end_all().await;
    world.start("two");
    world.append(0, 2).await;
    world.log.faults().gap(RETRY, 0, 3);
    world.append(0, 2).await;
    let all = |world: &World| world.read() == 9 && world.stopped() == 0;
    world.until("all are read", all).await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_an_older_release_is_gone_on_from_and_named_records_since() {
    let mut world = five_read().await;
    world.end_all().await;
    let mut committed = world.standing(0).await.committed.expect("a commit");
    committed.metadata.clear();
    let commits = [(0, committed)];
    let set = world.log.set_committed(GROUP_SCHEDULER, RETRY, &commits);
    set.await.expect("nobody is in the group");
    world.start("two");
    sleep(Duration::from_secs(60)).await;
    world.end_all().await;
    cut(&world, 0, 9).await;
    world.start("three");
    stops(&world, 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_was_just_created_begins_anew_whatever_was_committed_before() {
    let mut world = five_read().await;
    world.end_all().await;
    cut(&world, 0, 7).await;
    found(&*world.log, &[]).await.expect("founded");
    assert_eq!(diverged_at(&world).await, (4, true));
    found(&*world.log, &world.created).await.expect("founded");
    world.start("two");
    let all = |world: &World| world.read() == 12 && world.stopped() == 0;
    world.until("all of the new topic is read", all).await;
}
