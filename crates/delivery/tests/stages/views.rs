//! An event that a producer wrote itself is judged in a view that knows what was there when it
//! came.

use std::time::Duration;

use postrider_model::event::Event;
use postrider_model::topics::REGISTRY;
use tokio::time::sleep;

use super::held::Part;
use super::world::{StageName, World, event};

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_was_created_before_the_event_gets_it_without_exception() {
    const ENDPOINTS: usize = 1_000;
    let mut world = World::with_tenant().await;
    world.registry_late = Duration::from_millis(37);
    let process = world.start("one", StageName::FanOut).await;
    for number in 0..ENDPOINTS {
        let event_type = format!("thing.n{number}");
        world
            .create_endpoint_for(&number.to_string(), &event_type)
            .await;
        let event = Event {
            event_type: event_type.parse().expect("a type"),
            ..event(&format!("evt_{number}"))
        };
        world.append_events(&[event]).await;
        // The moment differs at which the stage receives it.
        sleep(Duration::from_millis(number as u64 % 11)).await;
    }
    let all = |world: &World| world.routes().len() == ENDPOINTS;
    world.until("all are routed", all).await;
    assert_eq!(world.deliveries().len(), ENDPOINTS);
    assert_eq!(process.metrics.events_unmatched.get(), 0);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_concluded_while_the_registry_cannot_be_read() {
    let world = World::with_tenant().await;
    let process = world.start("one", StageName::FanOut).await;
    process.held.hold(Part::Reads(REGISTRY));
    world.create_tenant("new").await;
    world.create_endpoint("new").await;
    let of_new_tenant = Event {
        tenant: "new".parse().expect("an id"),
        ..event("evt_2")
    };
    world.append_events(&[event("evt_1"), of_new_tenant]).await;
    sleep(Duration::from_secs(30)).await;
    assert!(world.routes().is_empty() && world.dead_letters().is_empty());
    process.held.let_go(Part::Reads(REGISTRY));
    let both = |world: &World| world.routes().len() == 2;
    world.until("both are routed", both).await;
    assert_eq!(world.deliveries().len(), 1);
    assert_eq!(process.metrics.events_unmatched.get(), 1);
    assert!(world.dead_letters().is_empty());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_with_a_position_that_is_known_waits_for_nothing() {
    let world = World::with_tenant().await;
    world.create_endpoint("one").await;
    let process = world.start("one", StageName::FanOut).await;
    sleep(Duration::from_secs(1)).await;
    process.held.hold(Part::Reads(REGISTRY));
    let stamped = Event {
        registry: world.registry.stamp(),
        ..event("evt_1")
    };
    world.append_events(&[stamped]).await;
    let one = |world: &World| world.deliveries().len() == 1;
    world.until("it is delivered", one).await;
    process.stop().await;
}
