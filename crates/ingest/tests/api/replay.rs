//! Replay: events of a time go to an endpoint again.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use bytes::Bytes;
use postrider_log::memory::AppendFate;
use postrider_model::delivery::Delivery;
use postrider_model::endpoint::Endpoint;
use postrider_model::event::Event;
use postrider_model::fixtures;
use postrider_model::payload::rfc3339;
use postrider_model::topics::{DELIVERIES, EVENTS, event_key};
use postrider_registry::Lookup;
use serde_json::{Value, json};

use crate::world::{START_MS, World};

const ONE: &str = "/v1/tenants/acme/endpoints/ep_a";
const REPLAY: &str = "/v1/tenants/acme/endpoints/ep_a/replay";

/// Two tenants, and an endpoint that wants invoices and the news of the operation.
async fn world() -> World {
    with_endpoint(World::new().await).await
}

async fn with_endpoint(world: World) -> World {
    for tenant in ["acme", "other"] {
        world
            .put(&format!("/v1/tenants/{tenant}"), "")
            .await
            .expect(StatusCode::CREATED);
    }
    let body = json!({
        "id": "ep_a", "url": "https://example.com", "event_types": ["invoice.*", "postrider.*"],
    });
    world
        .post("/v1/tenants/acme/endpoints", body.to_string())
        .await
        .expect(StatusCode::CREATED);
    world
}

fn event(id: &str, tenant: &str, event_type: &str) -> Event {
    Event {
        tenant: tenant.parse().unwrap(),
        event_type: event_type.parse().unwrap(),
        occurred_at_ms: START_MS,
        data: Bytes::from(format!("{{\"id\":  \"{id}\"}}")),
        accepted_at_ms: START_MS,
        ..fixtures::event(id)
    }
}

async fn append(world: &World, event: &Event) {
    let key = event_key(&event.tenant, &event.ordering_key, &event.id);
    let key = std::str::from_utf8(&key).unwrap().to_owned();
    world.append(EVENTS, &key, event.encode()).await;
}

/// Invoices 1 to `count`, a second apart, and beside each an event that the endpoint does not want.
async fn append_invoices(world: &World, count: i64) {
    for number in 1..=count {
        world.clock.advance(1000);
        append(
            world,
            &event(&format!("evt-{number}"), "acme", "invoice.paid"),
        )
        .await;
        append(
            world,
            &event(&format!("user-{number}"), "acme", "user.created"),
        )
        .await;
        append(
            world,
            &event(&format!("theirs-{number}"), "other", "invoice.paid"),
        )
        .await;
    }
    world.clock.advance(1000);
}

async fn replay(world: &World, body: Value) -> Value {
    world
        .post(REPLAY, body.to_string())
        .await
        .expect(StatusCode::OK)
        .json()
}

/// Replays to the end of what there is, going on where each answer was cut: how many requests that
/// took.
async fn replay_all(world: &World, mut body: Value) -> (u64, usize) {
    let (mut replayed, mut requests) = (0, 0);
    loop {
        let answer = replay(world, body.clone()).await;
        replayed += answer["replayed"].as_u64().unwrap();
        requests += 1;
        assert!(requests < 1_000, "the replay has no end");
        assert_eq!(answer["complete"], answer["next_cursor"].is_null());
        if answer["complete"] == true {
            return (replayed, requests);
        }
        body["command_id"] = answer["command_id"].clone();
        body["cursor"] = answer["next_cursor"].clone();
    }
}

fn deliveries(world: &World) -> Vec<Delivery> {
    let records = world.records(DELIVERIES);
    let decode = |record: &postrider_log::Record| {
        assert_eq!(record.key, "ep_a");
        Delivery::decode(record.value.as_ref().unwrap()).unwrap()
    };
    records.iter().map(decode).collect()
}

fn ids(deliveries: &[Delivery]) -> BTreeSet<String> {
    deliveries
        .iter()
        .map(|delivery| delivery.event.id.to_string())
        .collect()
}

fn invoices(numbers: impl IntoIterator<Item = i64>) -> BTreeSet<String> {
    numbers
        .into_iter()
        .map(|number| format!("evt-{number}"))
        .collect()
}

fn endpoint(world: &World) -> std::sync::Arc<Endpoint> {
    match world.registry.endpoint(&"ep_a".parse().unwrap()) {
        Lookup::Found(found) => found.value,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_replay_delivers_what_the_endpoint_wants_of_a_time_as_a_run_of_its_own() {
    let world = world().await;
    append_invoices(&world, 10).await;
    let body = json!({
        "since": rfc3339(START_MS + 3_000), "until": rfc3339(START_MS + 7_000), "command_id": "again",
    });
    let answer = replay(&world, body.clone()).await;
    let expected = json!({
        "command_id": "again", "replayed": 4, "skipped": [], "complete": true, "next_cursor": null,
    });
    assert_eq!(answer, expected);
    let first = deliveries(&world);
    assert_eq!(ids(&first), invoices(3..7));
    let events = world.records(EVENTS);
    for delivery in &first {
        assert_eq!((delivery.attempt, delivery.due_at_ms), (1, 0));
        assert!(delivery.run != 0 && delivery.registry.position > 1);
        assert_eq!(
            delivery.event,
            event(delivery.event.id.as_str(), "acme", "invoice.paid")
        );
        let source = events.iter().find(|record| {
            let position = (delivery.position.partition, delivery.position.offset);
            (record.partition, record.offset) == position
        });
        assert_eq!(source.unwrap().value, Some(delivery.event.encode()));
    }
    // The same command again makes the same pieces of work; another makes others.
    replay(&world, body.clone()).await;
    assert_eq!(deliveries(&world)[4..], first);
    let mut other = body;
    other["command_id"] = json!("another");
    replay(&world, other).await;
    let run = |index: usize| deliveries(&world)[index].run;
    assert!(run(8) != run(0) && run(8) == run(11));
    assert!((world.metric("postrider_events_replayed_total") - 12.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_replay_without_an_end_goes_up_to_now() {
    let world = world().await;
    append_invoices(&world, 5).await;
    let answer = replay(&world, json!({"since": rfc3339(START_MS + 4_000)})).await;
    assert_eq!(ids(&deliveries(&world)), invoices(4..6));
    assert!(answer["command_id"].as_str().unwrap().starts_with("cmd_"));
}

#[tokio::test]
async fn a_replay_is_cut_by_number_and_by_bytes_and_goes_on_to_the_same_end() {
    for (deliveries_max, bytes_max) in [(3, 64 << 20), (10_000, 2_000), (1, 500)] {
        let world = World::with(|limits| {
            limits.replay_deliveries_max = deliveries_max;
            limits.read_bytes_max = bytes_max;
        });
        let world = with_endpoint(world.await).await;
        append_invoices(&world, 20).await;
        let body = json!({"since": rfc3339(START_MS)});
        let (replayed, requests) = replay_all(&world, body).await;
        assert!(
            requests > 1,
            "nothing was cut at {deliveries_max}, {bytes_max}"
        );
        assert_eq!(replayed, 20);
        let delivered = deliveries(&world);
        assert_eq!(delivered.len(), 20);
        assert_eq!(ids(&delivered), invoices(1..21));
        let runs: BTreeSet<_> = delivered.iter().map(|delivery| delivery.run).collect();
        assert_eq!(runs.len(), 1);
    }
}

/// What is published while a replay is under way is none of its business: it would never end.
#[tokio::test]
async fn a_replay_that_was_cut_ends_where_it_began_to_end() {
    let world = World::with(|limits| limits.replay_deliveries_max = 4);
    let world = with_endpoint(world.await).await;
    append_invoices(&world, 6).await;
    let mut body = json!({"since": rfc3339(START_MS)});
    let answer = replay(&world, body.clone()).await;
    assert_eq!(answer["complete"], false);
    append(&world, &event("later", "acme", "invoice.paid")).await;
    body["command_id"] = answer["command_id"].clone();
    body["cursor"] = answer["next_cursor"].clone();
    replay_all(&world, body).await;
    assert_eq!(ids(&deliveries(&world)), invoices(1..7));
}

#[tokio::test]
async fn an_event_published_twice_is_replayed_once_and_what_is_no_event_not_at_all() {
    let world = world().await;
    world
        .append(EVENTS, "acme/junk", Bytes::from_static(b"\xff\xff"))
        .await;
    for _ in 0..2 {
        append(&world, &event("evt-1", "acme", "invoice.paid")).await;
    }
    let answer = replay(&world, json!({"since": rfc3339(START_MS)})).await;
    assert_eq!(
        (&answer["replayed"], &answer["skipped"]),
        (&json!(1), &json!([]))
    );
}

#[tokio::test]
async fn the_news_of_an_endpoint_is_replayed_neither_to_itself_nor_without_proof() {
    let world = world().await;
    let news = |id: &str, about: &str| Event {
        ordering_key: about.to_owned(),
        ..event(id, "acme", "postrider.endpoint.disabled")
    };
    for about in ["ep_a", "ep_b"] {
        let news = news(&format!("news-of-{about}"), about);
        let key = event_key(&news.tenant, &news.ordering_key, &news.id);
        let key = std::str::from_utf8(&key).unwrap();
        world.append_proven(EVENTS, key, news.encode()).await;
    }
    append(&world, &news("forged", "ep_b")).await;
    replay(&world, json!({"since": rfc3339(START_MS)})).await;
    assert_eq!(ids(&deliveries(&world)), ["news-of-ep_b".to_owned()].into());
}

#[tokio::test]
async fn enabling_names_what_was_missed_and_replays_it_if_asked_to() {
    let world = world().await;
    append_invoices(&world, 3).await;
    world
        .post(&format!("{ONE}/disable"), "")
        .await
        .expect(StatusCode::OK);
    world
        .post(REPLAY, json!({"since": rfc3339(START_MS)}).to_string())
        .await
        .expect(StatusCode::CONFLICT)
        .problem("wrong-state");
    append_invoices(&world, 5).await;
    let since = world.get(ONE).await.json()["disabled_since"].clone();
    assert_eq!(since, rfc3339(START_MS + 4_000));

    let body = json!({"backlog": "discard", "replay_since": since, "command_id": "missed"});
    let enabled = world
        .post(&format!("{ONE}/enable"), body.to_string())
        .await
        .expect(StatusCode::OK)
        .json();
    assert_eq!(
        (&enabled["state"], &enabled["disabled_since"]),
        (&json!("enabled"), &since)
    );
    let replayed = &enabled["replay"];
    assert_eq!(
        (&replayed["replayed"], &replayed["complete"]),
        (&json!(5), &json!(true))
    );
    let delivered = deliveries(&world);
    assert_eq!(ids(&delivered), invoices(1..6));
    // What was discarded is the backlog, not what was asked for.
    let discarded = endpoint(&world).discard_matched_before;
    assert!(discarded > 0);
    assert!(
        delivered
            .iter()
            .all(|delivery| delivery.registry.position >= discarded)
    );
    // The replay by itself under the same name does the same.
    let again = replay(&world, json!({"since": since, "command_id": "missed"})).await;
    assert_eq!(again["replayed"], 5);
    assert_eq!(deliveries(&world)[5..], delivered);
}

#[tokio::test]
async fn an_endpoint_whose_replay_fails_is_enabled_nevertheless_and_says_how_to_go_on() {
    let world = world().await;
    append_invoices(&world, 2).await;
    world
        .post(&format!("{ONE}/disable"), "")
        .await
        .expect(StatusCode::OK);
    world.faults().next_append(DELIVERIES, AppendFate::Failed);
    let since = rfc3339(START_MS);
    let body = json!({"replay_since": since, "command_id": "missed"});
    let enabled = world
        .post(&format!("{ONE}/enable"), body.to_string())
        .await
        .expect(StatusCode::OK)
        .json();
    assert_eq!(enabled["state"], "enabled");
    let cut = &enabled["replay"];
    assert_eq!(
        (&cut["complete"], &cut["command_id"]),
        (&json!(false), &json!("missed"))
    );
    assert!(cut["detail"].as_str().unwrap().contains("missed"), "{cut}");
    let again = replay(&world, json!({"since": since, "command_id": "missed"})).await;
    assert_eq!(again["replayed"], 2);
    assert_eq!(ids(&deliveries(&world)), invoices(1..3));
}

#[tokio::test]
async fn a_replay_that_makes_no_sense_is_refused() {
    let world = world().await;
    for (body, field) in [
        (json!({}), "since"),
        (json!({"since": "yesterday"}), "since"),
        (json!({"since": rfc3339(START_MS), "until": 5}), "until"),
        (json!({"since": rfc3339(START_MS), "cursor": "x"}), "cursor"),
        (
            json!({"since": rfc3339(START_MS), "command_id": "a b"}),
            "command_id",
        ),
        (
            json!({"since": rfc3339(START_MS), "endpoint": "ep_b"}),
            "endpoint",
        ),
    ] {
        let answer = world
            .post(REPLAY, body.to_string())
            .await
            .expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.wrong_fields(), [field], "{body}");
    }
    let body = json!({"since": rfc3339(START_MS)}).to_string();
    world
        .post("/v1/tenants/acme/endpoints/ep_none/replay", body.clone())
        .await
        .expect(StatusCode::NOT_FOUND);
    world
        .post("/v1/tenants/other/endpoints/ep_a/replay", body)
        .await
        .expect(StatusCode::NOT_FOUND);
}
