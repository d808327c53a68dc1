//! An id that was accepted before is dropped, whoever owns the partition by then.

use std::time::Duration;

use bytes::Bytes;
use postrider_model::event::Event;
use postrider_model::topics::{EVENTS, GROUP_FAN_OUT};
use tokio::time::sleep;

use super::world::{PARTITIONS, StageName, World, event};

const EVENTS_EACH: usize = 40;

fn ids() -> impl Iterator<Item = String> {
    (0..EVENTS_EACH).map(|number| format!("evt_{number}"))
}

fn repeats(world: &World) -> usize {
    let routes = world.routes();
    routes.iter().filter(|route| route.repeated_event).count()
}

async fn until_routed(world: &World, count: usize) {
    let all = |world: &World| world.routes().len() >= count;
    world.until("all are routed", all).await;
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_dropped_after_a_restart() {
    let world = World::with_tenant().await;
    world.create_endpoint("one").await;
    let one = world.start("one", StageName::FanOut).await;
    world.produce(ids()).await;
    until_routed(&world, EVENTS_EACH).await;
    one.stop().await;
    // Transactions leave markers behind, which are no records.
    for partition in 0..PARTITIONS {
        world.log.faults().gap(EVENTS, partition, 3);
    }
    let two = world.start("two", StageName::FanOut).await;
    world.produce(ids()).await;
    until_routed(&world, 2 * EVENTS_EACH).await;
    assert_eq!(world.deliveries().len(), EVENTS_EACH);
    assert_eq!(repeats(&world), EVENTS_EACH);
    assert_eq!(two.metrics.events_repeated_changed.get(), 0);
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_dropped_by_whoever_gets_the_partition() {
    let world = World::with_tenant().await;
    world.create_endpoint("one").await;
    let one = world.start("one", StageName::FanOut).await;
    let two = world.start("two", StageName::FanOut).await;
    world.produce(ids()).await;
    until_routed(&world, EVENTS_EACH).await;
    for turn in 2..=4 {
        world.log.faults().rebalance(GROUP_FAN_OUT);
        world.produce(ids()).await;
        until_routed(&world, turn * EVENTS_EACH).await;
    }
    assert_eq!(world.deliveries().len(), EVENTS_EACH);
    assert_eq!(repeats(&world), 3 * EVENTS_EACH);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_window_is_as_long_and_as_large_as_configured_after_a_restart_too() {
    let mut world = World::with_tenant().await;
    world.config.fan_out.repeat_window_ms = 60_000;
    world.config.fan_out.repeat_window_ids_max = 2;
    world.create_endpoint("one").await;
    // All in one partition.
    let append = async |world: &World, id: &str| {
        let of_key = (Bytes::from_static(b"key"), event(id).encode());
        let target = postrider_log::Target::Key;
        world.append(EVENTS, target, vec![of_key]).await;
    };
    let one = world.start("one", StageName::FanOut).await;
    append(&world, "evt_old").await;
    sleep(Duration::from_secs(50)).await;
    append(&world, "evt_1").await;
    append(&world, "evt_2").await;
    until_routed(&world, 3).await;
    one.stop().await;

    let two = world.start("two", StageName::FanOut).await;
    append(&world, "evt_old").await;
    until_routed(&world, 4).await;
    assert_eq!(repeats(&world), 0, "two ids are remembered");
    append(&world, "evt_2").await;
    until_routed(&world, 5).await;
    assert_eq!(repeats(&world), 1);
    two.stop().await;
    sleep(Duration::from_secs(61)).await;
    let three = world.start("three", StageName::FanOut).await;
    append(&world, "evt_2").await;
    until_routed(&world, 6).await;
    assert_eq!(repeats(&world), 1, "it is too long ago");
    three.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_repeat_that_says_something_else_is_dropped_and_counted() {
    let world = World::with_tenant().await;
    world.create_endpoint("one").await;
    let one = world.start("one", StageName::FanOut).await;
    world.produce(["evt_1".to_owned()]).await;
    until_routed(&world, 1).await;
    let changed = Event {
        data: Bytes::from_static(b"[]"),
        ..event("evt_1")
    };
    for again in [event("evt_1"), changed] {
        world.append_events(&[again]).await;
    }
    until_routed(&world, 3).await;
    assert_eq!((world.deliveries().len(), repeats(&world)), (1, 2));
    assert_eq!(one.metrics.events_repeated.get(), 2);
    assert_eq!(one.metrics.events_repeated_changed.get(), 1);
    one.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_no_repeat_after_a_restart() {
    let world = World::with_tenant().await;
    let one = world.start("one", StageName::FanOut).await;
    let of_new = Event {
        tenant: "new".parse().expect("an id"),
        ..event("evt_1")
    };
    world.append_events(std::slice::from_ref(&of_new)).await;
    let refused = |world: &World| world.dead_letters().len() == 1;
    world.until("it is refused", refused).await;
    one.stop().await;
    world.create_tenant("new").await;
    let two = world.start("two", StageName::FanOut).await;
    world.append_events(&[of_new]).await;
    until_routed(&world, 1).await;
    assert_eq!(repeats(&world), 0);
    two.stop().await;
}
