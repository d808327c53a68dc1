//! What a delivery costs in counts that no machine changes.

use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use postrider_model::fixtures;
use postrider_model::topics::{ATTEMPTS, DELIVERIES};
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use super::world::{StageName, World};

const EVENTS: usize = 1_000;
/// What a later change may add before somebody has to look.
const MARGIN_PERCENT: u64 = 15;
const ALLOCATIONS_EACH: u64 = 106;
const BYTES_EACH: u64 = 13_710;

fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().start_paused(true);
    builder.build().expect("a runtime")
}

/// Publishes events for one endpoint; returns when each is delivered and all is recorded.
async fn deliver(world: &World, ids: std::ops::Range<usize>) {
    let all = ids.end;
    world.produce(ids.map(|id| format!("evt_{id}"))).await;
    let delivered = |world: &World| world.requests() >= all;
    world.until("all are delivered", delivered).await;
    sleep(Duration::from_secs(5)).await;
}

/// The log in memory and the test take a part, which is the same each time.
#[test]
fn an_event_takes_few_allocations_from_its_topic_to_its_record() {
    let runtime = runtime();
    let (world, _processes) = runtime.block_on(async {
        let world = World::with_tenant().await;
        world.create_endpoint("one").await;
        let fan_out = world.start("fan-out", StageName::FanOut).await;
        let deliver = world.start("deliver", StageName::Deliver).await;
        (world, (fan_out, deliver))
    });
    runtime.block_on(deliver(&world, 0..EVENTS));
    let AllocationInfo {
        count_total,
        bytes_total,
        ..
    } = measure(|| runtime.block_on(deliver(&world, EVENTS..2 * EVENTS)));
    let each = |total: u64| total / u64::try_from(EVENTS).expect("few");
    let said = format!(
        "{} allocations of {} bytes an event",
        each(count_total),
        each(bytes_total)
    );
    let at_most = |each: u64| each + each * MARGIN_PERCENT / 100;
    assert!(each(count_total) <= at_most(ALLOCATIONS_EACH), "{said}");
    assert!(each(bytes_total) <= at_most(BYTES_EACH), "{said}");
}

/// Its lane has room for a part of what a read gives.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_behind_has_each_stretch_of_the_log_read_once() {
    let world = World::with_tenant().await;
    world.create_endpoint("one").await;
    let _fan_out = world.start("fan-out", StageName::FanOut).await;
    world
        .produce((0..2 * EVENTS).map(|id| format!("evt_{id}")))
        .await;
    let waits = |world: &World| world.deliveries().len() == 2 * EVENTS;
    world.until("all wait in the log", waits).await;
    let delivers = world.start("deliver", StageName::Deliver).await;
    let delivered = |world: &World| world.requests() == 2 * EVENTS;
    world.until("all are delivered", delivered).await;
    // All of it fits into two reads; one more may find that the endpoint is behind no longer.
    let reads = delivers.held.reads(DELIVERIES);
    assert!((1..=3).contains(&reads), "{reads} reads");
}

/// An attempt that was made gathers; the places of an endpoint wait for one that was not.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_record_that_gathers() {
    let world = World::with_tenant().await;
    world.create_endpoint("one").await;
    let _fan_out = world.start("fan-out", StageName::FanOut).await;
    let delivers = world.start("deliver", StageName::Deliver).await;
    deliver(&world, 0..10).await;
    assert_eq!(delivers.held.gathered(ATTEMPTS), 10);
    delivers.stop().await;
    world.produce((10..20).map(|id| format!("evt_{id}"))).await;
    let waits = |world: &World| world.deliveries().len() == 20;
    world.until("the others wait", waits).await;
    let deleted = fixtures::endpoint("ep_one").id;
    world
        .registry
        .delete_endpoint(&deleted, None)
        .await
        .unwrap();
    let delivers = world.start("deliver again", StageName::Deliver).await;
    let recorded = |world: &World| world.records(ATTEMPTS).len() == 20;
    world.until("the others are dropped", recorded).await;
    assert_eq!(delivers.held.gathered(ATTEMPTS), 0);
}
