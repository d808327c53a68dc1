//! Pausing and disabling, of an endpoint, a tenant and everything.

use axum::http::StatusCode;
use postrider_model::endpoint::Endpoint;
use postrider_model::ids::EndpointId;
use postrider_model::payload::rfc3339;
use postrider_registry::{Gate, Lookup};
use serde_json::{Value, json};

use crate::world::{START_MS, World};

const ONE: &str = "/v1/tenants/acme/endpoints/ep_a";

async fn with_endpoint() -> World {
    let world = World::with_tenant().await;
    let body = json!({"id": "ep_a", "url": "https://example.com/hooks"}).to_string();
    world
        .post("/v1/tenants/acme/endpoints", body)
        .await
        .expect(StatusCode::CREATED);
    world
}

fn endpoint(world: &World) -> std::sync::Arc<Endpoint> {
    match world
        .registry
        .endpoint(&EndpointId::try_new("ep_a").unwrap())
    {
        Lookup::Found(found) => found.value,
        other => panic!("{other:?}"),
    }
}

fn gate(world: &World) -> Gate {
    world.registry.gate(&endpoint(world))
}

fn matching(world: &World) -> usize {
    let (tenant, event_type) = ("acme".parse().unwrap(), "invoice.paid".parse().unwrap());
    world
        .registry
        .matching(&tenant, &event_type)
        .endpoints
        .len()
}

async fn act(world: &World, path: &str, body: Value) -> Value {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    world.post(path, body).await.expect(StatusCode::OK).json()
}

async fn verb(world: &World, verb: &str) -> Value {
    act(world, &format!("{ONE}/{verb}"), Value::Null).await
}

async fn refused(world: &World, verb: &str, body: &Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    world
        .post(&format!("{ONE}/{verb}"), body)
        .await
        .expect(StatusCode::CONFLICT)
        .problem("wrong-state");
}

#[tokio::test]
async fn a_paused_endpoint_goes_on_matching_and_is_sent_nothing() {
    let world = with_endpoint().await;
    assert_eq!((gate(&world), matching(&world)), (Gate::Open, 1));
    let paused = verb(&world, "pause").await;
    assert_eq!(
        (&paused["state"], &paused["version"]),
        (&json!("paused"), &json!(2))
    );
    assert_eq!((gate(&world), matching(&world)), (Gate::PausedEndpoint, 1));
    // The same again changes nothing.
    assert_eq!(verb(&world, "pause").await, paused);
    refused(&world, "enable", &Value::Null).await;
    let resumed = verb(&world, "resume").await;
    assert_eq!(
        (&resumed["state"], &resumed["version"]),
        (&json!("enabled"), &json!(3))
    );
    assert_eq!(verb(&world, "resume").await, resumed);
    assert_eq!((gate(&world), matching(&world)), (Gate::Open, 1));
}

#[tokio::test]
async fn a_disabled_endpoint_matches_nothing_and_says_why_and_since_when() {
    let world = with_endpoint().await;
    verb(&world, "pause").await;
    let disabled = verb(&world, "disable").await;
    assert_eq!(
        (
            &disabled["state"],
            &disabled["disabled_reason"],
            &disabled["disabled_since"]
        ),
        (
            &json!("disabled"),
            &json!("manual"),
            &json!(rfc3339(START_MS))
        )
    );
    assert_eq!((gate(&world), matching(&world)), (Gate::Disabled, 0));
    world.clock.advance(5_000);
    assert_eq!(verb(&world, "disable").await, disabled);
    assert_eq!(world.get(ONE).await.json(), disabled);
    for verb in ["pause", "resume"] {
        refused(&world, verb, &Value::Null).await;
    }
    let enabled = verb(&world, "enable").await;
    assert_eq!(
        (
            &enabled["state"],
            &enabled["disabled_reason"],
            &enabled["disabled_since"]
        ),
        (&json!("enabled"), &json!(null), &json!(rfc3339(START_MS)))
    );
    assert_eq!((gate(&world), matching(&world)), (Gate::Open, 1));
    // Only the answer to the call that enabled it has the time.
    assert_eq!(verb(&world, "enable").await["disabled_since"], json!(null));
    assert_eq!(world.get(ONE).await.json()["disabled_since"], json!(null));
}

#[tokio::test]
async fn a_discarded_backlog_is_what_was_matched_before_and_nothing_that_comes_after() {
    let world = with_endpoint().await;
    let position_of_a_match = || {
        let (tenant, event_type) = ("acme".parse().unwrap(), "invoice.paid".parse().unwrap());
        let matched = world.registry.matching(&tenant, &event_type);
        assert_eq!(matched.endpoints.len(), 1);
        matched.registry.position
    };
    let before = position_of_a_match();
    verb(&world, "disable").await;
    let discard = json!({"backlog": "discard"});
    act(&world, &format!("{ONE}/enable"), discard.clone()).await;
    let discarded = endpoint(&world).discard_matched_before;
    assert!(before < discarded && position_of_a_match() >= discarded);
    // Who asks to drop what is being delivered is not told that it was.
    refused(&world, "enable", &discard).await;

    verb(&world, "disable").await;
    act(
        &world,
        &format!("{ONE}/enable"),
        json!({"backlog": "resume"}),
    )
    .await;
    assert_eq!(
        endpoint(&world).discard_matched_before,
        discarded,
        "what was dropped stays so"
    );
    let unknown = world
        .post(&format!("{ONE}/enable"), r#"{"backlog": "burn"}"#)
        .await
        .expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(unknown.wrong_fields(), ["backlog"]);
}

#[tokio::test]
async fn if_match_guards_a_change_of_state() {
    let world = with_endpoint().await;
    let pause = format!("{ONE}/pause");
    world
        .send("POST", &pause, &[("if-match", "\"7\"")], "")
        .await
        .expect(StatusCode::PRECONDITION_FAILED);
    assert_eq!(gate(&world), Gate::Open);
    world
        .send("POST", &pause, &[("if-match", "\"1\"")], "")
        .await
        .expect(StatusCode::OK);
    assert_eq!(gate(&world), Gate::PausedEndpoint);
}

#[tokio::test]
async fn a_tenant_is_paused_and_resumed_as_a_whole() {
    let world = with_endpoint().await;
    let paused = act(&world, "/v1/tenants/acme/pause", Value::Null).await;
    assert_eq!(paused["paused"], true);
    assert_eq!(gate(&world), Gate::PausedTenant);
    assert_eq!(world.get("/v1/tenants/acme").await.json(), paused);
    // Changing the tenant is no way to resume it by mistake.
    let renamed = world.put("/v1/tenants/acme", r#"{"name": "Acme"}"#).await;
    assert_eq!(renamed.json()["paused"], true);
    let resumed = act(&world, "/v1/tenants/acme/resume", Value::Null).await;
    assert_eq!(resumed["paused"], false);
    assert_eq!(gate(&world), Gate::Open);
    world
        .post("/v1/tenants/nobody/pause", "")
        .await
        .expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_switch_for_the_worst_hour_stops_everything_and_shows_it() {
    let world = with_endpoint().await;
    let shown = async || {
        world
            .get("/v1/installation")
            .await
            .expect(StatusCode::OK)
            .json()
    };
    assert_eq!(
        shown().await,
        json!({"deliveries_paused": false, "version": 0})
    );
    let paused = act(&world, "/v1/pause", Value::Null).await;
    assert_eq!(paused, json!({"deliveries_paused": true, "version": 1}));
    assert_eq!(act(&world, "/v1/pause", Value::Null).await, paused);
    assert_eq!(shown().await, paused);
    assert_eq!(
        (gate(&world), matching(&world)),
        (Gate::PausedInstallation, 1)
    );
    let accepted = world
        .post("/v1/tenants/acme/events", r#"{"type": "a.b", "data": 1}"#)
        .await;
    accepted.expect(StatusCode::ACCEPTED);
    let resumed = act(&world, "/v1/resume", Value::Null).await;
    assert_eq!(resumed, json!({"deliveries_paused": false, "version": 2}));
    assert_eq!(gate(&world), Gate::Open);
}
