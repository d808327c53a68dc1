//! Whatever does not answer: a stage hears that it has to stop, or to give partitions up, and does
//! so in time.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_delivery::DeliveryMetrics;
use postrider_log::Position;
use postrider_model::topics::{
    ATTEMPTS, DELIVERIES, ENDPOINT_STATE, EVENTS, GROUP_DELIVER, REGISTRY,
};
use tokio::time::{Instant, sleep};

use super::held::{Held, Part};
use super::world::{PARTITIONS, Process, StageName, World, event};

/// What takes no time by itself.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Publishes events that only a view with the latest endpoint may judge.
async fn publish_stamped(world: &World, count: usize) -> Vec<Position> {
    let stamped = |number| {
        let mut event = event(&format!("evt_{number}"));
        event.registry = world.registry.stamp();
        event
    };
    let events: Vec<_> = (0..count).map(stamped).collect();
    world.append_events(&events).await
}

/// How many deliveries there are of events in each partition, each counted once; in order of their
/// first copies.
fn delivered(world: &World) -> BTreeMap<i32, Vec<i64>> {
    let mut offsets: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for delivery in world.deliveries() {
        let position = delivery.position;
        let known = offsets.entry(position.partition).or_default();
        if !known.contains(&position.offset) {
            known.push(position.offset);
        }
    }
    offsets
}

fn is_all_delivered(world: &World, positions: &[Position]) -> bool {
    delivered(world).values().map(Vec::len).sum::<usize>() == positions.len()
}

/// Whether half of the partitions' events are delivered, completely and in order.
fn is_half_delivered(world: &World, positions: &[Position]) -> bool {
    let of = |partition: &i32| -> Vec<i64> {
        let of_partition = positions.iter().filter(|one| one.partition == *partition);
        of_partition.map(|one| one.offset).collect()
    };
    let delivered = delivered(world);
    let complete = delivered
        .iter()
        .filter(|(one, offsets)| of(one) == **offsets);
    complete.count() == usize::try_from(PARTITIONS / 2).expect("few")
}

fn restarts(metrics: &DeliveryMetrics, group: &str) -> u64 {
    metrics.stage_restarts.with_label_values(&[group]).get()
}

fn owned(metrics: &DeliveryMetrics, group: &str) -> i64 {
    metrics.partitions_owned.with_label_values(&[group]).get()
}

async fn stuck_fan_out(world: &World, part: Part) -> (Process, Vec<Position>) {
    let one = world.start("one", StageName::FanOut).await;
    sleep(AT_ONCE).await;
    one.held.hold(part);
    world.create_endpoint("new").await;
    let positions = publish_stamped(world, 100).await;
    sleep(AT_ONCE).await;
    assert!(world.records(DELIVERIES).is_empty(), "it is stuck");
    (one, positions)
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_begins_ends_when_told_to_whatever_does_not_answer() {
    let parts = [
        Part::Groups,
        Part::Producers,
        Part::Counts,
        Part::Reads(EVENTS),
        Part::Reads(ATTEMPTS),
        Part::Reads(ENDPOINT_STATE),
    ];
    for part in parts {
        for stage in StageName::ALL {
            let world = World::with_tenant().await;
            world.produce(["evt_1".to_owned()]).await;
            let held = Held::default();
            let starting = world.start_held("one", stage, held.clone());
            let process = match part {
                // The registry asks, too, and is not what this is about.
                Part::Counts => {
                    let process = starting.await;
                    held.hold(part);
                    process
                }
                _ => {
                    held.hold(part);
                    starting.await
                }
            };
            sleep(AT_ONCE).await;
            let took = process.stop().await;
            assert!(took <= AT_ONCE, "{stage:?} without {part:?}: {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fan_out_that_cannot_read_the_registry_gives_up_at_once_what_is_asked_of_it() {
    let world = World::with_tenant().await;
    let (one, positions) = stuck_fan_out(&world, Part::Reads(REGISTRY)).await;
    let asked = Instant::now();
    let two = world.start("two", StageName::FanOut).await;
    let half = |world: &World| is_half_delivered(world, &positions);
    world.until("the second has its half", half).await;
    assert!(asked.elapsed() <= AT_ONCE, "{:?}", asked.elapsed());
    assert_eq!(one.metrics.events_routed.get(), 0);

    let took = one.stop().await;
    assert!(took <= AT_ONCE, "{took:?}");
    let all = |world: &World| is_all_delivered(world, &positions);
    world.until("the second has all", all).await;
    assert_eq!(world.deliveries().len(), positions.len(), "each once");
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn fan_out_without_room_for_its_appends_gives_up_in_time_what_is_asked_of_it() {
    let world = World::with_tenant().await;
    let (one, positions) = stuck_fan_out(&world, Part::Room(DELIVERIES)).await;
    let asked = Instant::now();
    let two = world.start("two", StageName::FanOut).await;
    let half = |world: &World| is_half_delivered(world, &positions);
    world.until("the second has its half", half).await;
    let deadline = Duration::from_millis(world.config.stage.revoke_drain_ms);
    assert!(asked.elapsed() < deadline, "{:?}", asked.elapsed());

    let took = one.stop().await;
    let deadline = Duration::from_millis(world.config.stage.stop_drain_ms);
    assert!(took <= deadline, "{took:?}");
    let all = |world: &World| is_all_delivered(world, &positions);
    world.until("the second has all", all).await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn fan_out_goes_on_in_order_when_it_has_room_again() {
    for part in [Part::Room(DELIVERIES), Part::Reads(REGISTRY)] {
        let world = World::with_tenant().await;
        let (one, positions) = stuck_fan_out(&world, part).await;
        one.held.let_go(part);
        let all = |world: &World| is_all_delivered(world, &positions);
        world.until("all is delivered", all).await;
        for offsets in delivered(&world).values() {
            assert!(offsets.is_sorted(), "{offsets:?}");
        }
        assert_eq!(world.deliveries().len(), positions.len(), "each once");
        one.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_being_prepared_is_given_up_at_once() {
    let world = World::with_tenant().await;
    let held = Held::default();
    held.hold(Part::Reads(ATTEMPTS));
    let one = world.start_held("one", StageName::Deliver, held).await;
    sleep(AT_ONCE).await;
    let asked = Instant::now();
    let two = world.start("two", StageName::Deliver).await;
    let half = i64::from(PARTITIONS / 2);
    let has_half = |_: &World| owned(&two.metrics, GROUP_DELIVER) == half;
    world.until("the second has its half", has_half).await;
    let deadline = Duration::from_millis(world.config.stage.revoke_drain_ms);
    assert!(asked.elapsed() < deadline, "{:?}", asked.elapsed());
    assert_eq!(owned(&one.metrics, GROUP_DELIVER), 0);

    one.held.let_go(Part::Reads(ATTEMPTS));
    let has_half = |_: &World| owned(&one.metrics, GROUP_DELIVER) == half;
    world.until("the first has what is left", has_half).await;
    assert!(one.stop().await <= AT_ONCE);
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_cannot_be_prepared_yet_holds_no_other_up() {
    let world = World::with_tenant().await;
    let held = Held::default();
    let away = Part::Partition(ATTEMPTS, 0);
    held.hold(away);
    let one = world.start_held("one", StageName::Deliver, held).await;
    let others = |_: &World| owned(&one.metrics, GROUP_DELIVER) == i64::from(PARTITIONS) - 1;
    world.until("it has the others", others).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(restarts(&one.metrics, GROUP_DELIVER), 0);
    one.held.let_go(away);
    let all = |_: &World| owned(&one.metrics, GROUP_DELIVER) == i64::from(PARTITIONS);
    world.until("it has all", all).await;
    one.stop().await;
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_called_on_while_attempts_wait_for_the_log_as_far_as_permits_reach() {
    const EVENTS_COUNT: usize = 400;
    const ATTEMPTS_MAX: usize = 300;
    let mut world = World::with_tenant().await;
    world.config.deliver.attempts_in_flight_max = ATTEMPTS_MAX;
    world.create_endpoint("one").await;
    let fan_out = world.start("fan-out", StageName::FanOut).await;
    world
        .produce((0..EVENTS_COUNT).map(|number| format!("evt_{number}")))
        .await;
    let routed = |world: &World| world.deliveries().len() == EVENTS_COUNT;
    world.until("all is routed", routed).await;

    let held = Held::default();
    held.hold(Part::Room(ATTEMPTS));
    let deliver = world
        .start_held("deliver", StageName::Deliver, held.clone())
        .await;
    let called = |world: &World| world.requests() == ATTEMPTS_MAX;
    world.until("every permit is taken", called).await;
    sleep(AT_ONCE).await;
    assert_eq!(world.requests(), ATTEMPTS_MAX);
    assert_eq!(world.records(ATTEMPTS).len(), 0);
    held.let_go(Part::Room(ATTEMPTS));
    let recorded = |world: &World| world.records(ATTEMPTS).len() == EVENTS_COUNT;
    world.until("all is recorded", recorded).await;
    assert_eq!(world.requests(), EVENTS_COUNT, "each once");
    deliver.stop().await;
    fan_out.stop().await;
}
