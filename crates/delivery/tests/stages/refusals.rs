//! What HTTP would refuse is refused from a producer that writes to the log itself, and everything
//! is told.

use bytes::Bytes;
use postrider_log::Log;
use postrider_log::{Append, NewRecord, ProducerOptions, Target};
use postrider_model::delivery::DeadLetterContent;
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::event::Event;
use postrider_model::ids::EndpointId;
use postrider_model::operational::{PROOF_HEADER, endpoint_disabled};
use postrider_model::outcome::Reason;
use postrider_model::topics::EVENTS;
use postrider_registry::Lookup;
use std::time::Duration;

use super::world::{StageName, World, event};

fn of(tenant: &str, id: &str) -> Event {
    Event {
        tenant: tenant.parse().expect("an id"),
        ..event(id)
    }
}

async fn append(world: &World, event: &Event, proof: Option<String>) {
    let options = ProducerOptions {
        name: "deliver",
        append_timeout: None,
        linger: Duration::ZERO,
        queue_bytes_max: 1 << 20,
    };
    let producer = world.log.producer(options).await.expect("a producer");
    let headers = proof.map(|proof| (PROOF_HEADER.to_owned(), Bytes::from(proof)));
    let record = NewRecord {
        key: Bytes::from_static(b"key"),
        value: Some(event.encode()),
        headers: headers.into_iter().collect(),
    };
    let append: Append = producer.append(EVENTS, Target::Key, record);
    append.await.expect("appended");
}

#[tokio::test(start_paused = true)]
async fn an_event_of_a_tenant_that_does_not_exist_is_a_dead_letter_and_may_come_again() {
    let world = World::with_tenant().await;
    world.create_endpoint("one").await;
    let process = world.start("one", StageName::FanOut).await;
    let unknown = of("nobody", "evt_1");
    world
        .append_events(&[unknown.clone(), event("evt_2")])
        .await;
    let both = |world: &World| world.routes().len() + world.dead_letters().len() == 2;
    world.until("both are judged", both).await;
    let letters = world.dead_letters();
    assert_eq!(letters[0].reason, Reason::UnknownTenant);
    assert!(
        letters[0].detail.contains("nobody"),
        "{}",
        letters[0].detail
    );
    let DeadLetterContent::Raw(raw) = &letters[0].content else {
        panic!("{letters:?}")
    };
    assert_eq!(raw.value, unknown.encode(), "with its bytes");
    assert_eq!(process.metrics.events_routed.get(), 1);
    assert_eq!(world.routes()[0].event_id.as_str(), "evt_2");

    world.create_tenant("nobody").await;
    world.append_events(&[unknown]).await;
    let again = |world: &World| world.routes().len() == 2;
    world.until("it is routed when it comes again", again).await;
    assert!(world.routes().iter().all(|route| !route.repeated_event));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn events_that_nobody_wants_are_counted() {
    let world = World::with_tenant().await;
    world.create_endpoint_for("one", "thing.happened").await;
    let process = world.start("one", StageName::FanOut).await;
    let other = Event {
        event_type: "other.happened".parse().expect("a type"),
        ..event("evt_1")
    };
    world.append_events(&[other, event("evt_2")]).await;
    let both = |world: &World| world.routes().len() == 2;
    world.until("both are routed", both).await;
    assert_eq!(process.metrics.events_unmatched.get(), 1);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn only_postrider_itself_tells_what_happened_to_an_endpoint() {
    let world = World::with_tenant().await;
    world.create_endpoint_for("about", "thing.happened").await;
    world.create_endpoint_for("told", "postrider.*").await;
    let id = EndpointId::try_new("ep_about").expect("an id");
    let disable = |reason: &str| {
        let state = EndpointState::Disabled {
            reason: reason.to_owned(),
            since_ms: 1,
        };
        let change = move |endpoint: &Endpoint| Endpoint {
            state: state.clone(),
            ..endpoint.clone()
        };
        world.registry.update_endpoint(&id, None, change)
    };
    let told = || match world.registry.endpoint(&id) {
        Lookup::Found(found) => endpoint_disabled(&found.value, found.version).expect("disabled"),
        other => panic!("{other:?}"),
    };
    disable("endpoint_gone").await.expect("written");
    let former = told();
    disable("manual").await.expect("written");
    let process = world.start("one", StageName::FanOut).await;

    // It tells what does not hold any more, and nobody vouches for it.
    append(&world, &former, None).await;
    let foreign = world.registry.vouch(b"something else");
    append(&world, &former, Some(foreign)).await;
    let forged = Event {
        data: Bytes::from_static(b"{}"),
        ..told()
    };
    append(&world, &forged, None).await;
    let refused = |world: &World| world.dead_letters().len() == 3;
    world.until("they are refused", refused).await;
    assert!(
        world
            .dead_letters()
            .iter()
            .all(|one| one.reason == Reason::ReservedType)
    );
    assert!(world.routes().is_empty() && world.deliveries().is_empty());

    // As deliver writes it, also when the endpoint was changed since; and as a former release wrote
    // it.
    append(
        &world,
        &former,
        Some(world.registry.vouch(&former.encode())),
    )
    .await;
    append(&world, &told(), None).await;
    let both = |world: &World| world.routes().len() == 2;
    world.until("its own are routed", both).await;
    assert_eq!(world.deliveries().len(), 2);
    assert_eq!(world.dead_letters().len(), 3);
    process.stop().await;
}
