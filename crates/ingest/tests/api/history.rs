//! What became of events, read back.

use axum::http::StatusCode;
use bytes::Bytes;
use postrider_log::Position;
use postrider_model::delivery::{Attempt, AttemptOutcome, Route, Settlement};
use postrider_model::event::EventPosition;
use postrider_model::ids::EndpointId;
use postrider_model::outcome::Reason;
use postrider_model::topics::{ATTEMPTS, EVENTS, ROUTES};
use postrider_model::work::WorkId;
use serde_json::{Value, json};

use crate::world::{START_MS, World};

const EVENTS_PATH: &str = "/v1/tenants/acme/events";

/// Publishes an event and says where it is.
async fn publish(world: &World, body: &str) -> (String, EventPosition) {
    let before = world.records(EVENTS);
    let answer = world
        .post(EVENTS_PATH, body.to_owned())
        .await
        .expect(StatusCode::ACCEPTED);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let mut records = world.records(EVENTS);
    records.retain(|record| !before.contains(record));
    let record = records.remove(0);
    (
        id,
        EventPosition {
            partition: record.partition,
            offset: record.offset,
            appended_at_ms: record.timestamp_ms,
        },
    )
}

async fn route(world: &World, event: &(String, EventPosition), endpoints: &[&str]) -> Position {
    let endpoints = endpoints
        .iter()
        .map(|id| EndpointId::try_new(id).unwrap())
        .collect();
    let now_ms = postrider_log::Clock::now_ms(&*world.clock);
    let route = Route {
        event_id: event.0.parse().unwrap(),
        tenant: "acme".parse().unwrap(),
        event_type: "invoice.paid".parse().unwrap(),
        position: event.1,
        registry_position: 1,
        endpoints,
        accepted_at_ms: now_ms,
        routed_at_ms: now_ms,
        repeated_event: false,
        traceparent: String::new(),
    };
    world.append(ROUTES, &event.0, route.encode()).await
}

fn attempt(
    event: &(String, EventPosition),
    endpoint: &str,
    number: u32,
    settlement: Settlement,
) -> Attempt {
    let delivered = settlement == Settlement::Delivered;
    Attempt {
        event_id: event.0.parse().unwrap(),
        tenant: "acme".parse().unwrap(),
        event_type: "invoice.paid".parse().unwrap(),
        work: WorkId {
            position: event.1,
            endpoint: endpoint.parse().unwrap(),
            run: 0,
        },
        number,
        started_at_ms: START_MS,
        duration_ms: 12,
        outcome: if delivered {
            AttemptOutcome::Succeeded
        } else {
            AttemptOutcome::Failed
        },
        reason: if delivered {
            Reason::Ok
        } else {
            Reason::ServerError
        },
        status: Some(if delivered { 200 } else { 500 }),
        detail: String::new(),
        response_excerpt: Bytes::from_static(b"fine"),
        settlement: Some(settlement),
        accepted_at_ms: START_MS,
        traceparent: String::new(),
        delivery_offset: None,
    }
}

async fn record(world: &World, attempt: &Attempt) {
    world
        .append(ATTEMPTS, attempt.work.endpoint.as_str(), attempt.encode())
        .await;
}

fn states(history: &Value) -> Vec<(&str, &str, usize)> {
    let deliveries = history["deliveries"].as_array().unwrap();
    deliveries
        .iter()
        .map(|delivery| {
            (
                delivery["endpoint_id"].as_str().unwrap(),
                delivery["state"].as_str().unwrap(),
                delivery["attempts"].as_array().unwrap().len(),
            )
        })
        .collect()
}

#[tokio::test]
async fn an_event_is_shown_with_its_route_and_what_became_of_each_delivery() {
    let world = World::with_tenant().await;
    let event = publish(
        &world,
        r#"{"type":"invoice.paid","data":{"n": 1.0, "a":[ ]}}"#,
    )
    .await;
    let other = publish(&world, r#"{"type":"invoice.paid","data":0}"#).await;
    let endpoints = ["ep_a", "ep_b", "ep_c", "ep_d", "ep_e"];
    route(&world, &event, &endpoints).await;
    let due_at_ms = START_MS + 5_000;
    let retry = Settlement::RetryScheduled { due_at_ms };
    record(&world, &attempt(&event, "ep_a", 1, Settlement::Delivered)).await;
    record(&world, &attempt(&event, "ep_b", 1, retry)).await;
    record(&world, &attempt(&event, "ep_c", 1, retry)).await;
    record(&world, &attempt(&other, "ep_c", 1, Settlement::Delivered)).await;
    record(
        &world,
        &attempt(&event, "ep_c", 2, Settlement::DeadLettered),
    )
    .await;
    let interrupted = Attempt {
        settlement: None,
        outcome: AttemptOutcome::Interrupted,
        ..attempt(&event, "ep_d", 1, retry)
    };
    record(&world, &interrupted).await;
    let redriven = attempt(&event, "ep_c", 1, Settlement::Delivered);
    let redriven = Attempt {
        work: WorkId {
            run: u64::MAX,
            ..redriven.work.clone()
        },
        ..redriven
    };
    record(&world, &redriven).await;

    let answer = world
        .get(&format!("{EVENTS_PATH}/{}", event.0))
        .await
        .expect(StatusCode::OK);
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(
        text.contains(r#""data":{"n": 1.0, "a":[ ]}"#),
        "data is shown as it came: {text}"
    );
    let history = answer.json();
    assert_eq!(history["event"]["id"], event.0.as_str());
    assert_eq!(history["route"]["endpoints"], json!(endpoints));
    assert_eq!(
        (&history["complete"], &history["next_cursor"]),
        (&json!(true), &json!(null))
    );
    let expected = [
        ("ep_a", "delivered", 1),
        ("ep_b", "retrying", 1),
        ("ep_c", "dead_lettered", 2),
        ("ep_c", "delivered", 1),
        ("ep_d", "pending", 1),
        ("ep_e", "pending", 0),
    ];
    assert_eq!(states(&history), expected);
    assert_eq!(
        history["deliveries"][1]["next_attempt_at"],
        postrider_model::payload::rfc3339(due_at_ms)
    );
    assert_eq!(history["deliveries"][3]["run"], "ffffffffffffffff");
}

#[tokio::test]
async fn an_event_that_nobody_routed_yet_is_found_with_and_without_ordering_key() {
    let world = World::with_tenant().await;
    for key in ["", "k1", "k2", "k3", "k4"] {
        let body = json!({"type": "a", "data": 1, "ordering_key": key}).to_string();
        let (id, _) = publish(&world, &body).await;
        let history = world
            .get(&format!("{EVENTS_PATH}/{id}"))
            .await
            .expect(StatusCode::OK)
            .json();
        assert_eq!(history["event"]["id"], id);
        assert_eq!(
            (&history["route"], &history["deliveries"]),
            (&json!(null), &json!([]))
        );
    }
}

#[tokio::test]
async fn an_event_is_shown_to_its_tenant_only() {
    let world = World::with_tenant().await;
    world
        .put("/v1/tenants/other", "")
        .await
        .expect(StatusCode::CREATED);
    let event = publish(&world, r#"{"type":"a","data":1}"#).await;
    let path = format!("/v1/tenants/other/events/{}", event.0);
    world
        .get(&path)
        .await
        .expect(StatusCode::NOT_FOUND)
        .problem("not-found");
    route(&world, &event, &["ep_a"]).await;
    world
        .get(&path)
        .await
        .expect(StatusCode::NOT_FOUND)
        .problem("not-found");
    world
        .get(&format!("{EVENTS_PATH}/evt_unknown"))
        .await
        .expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn ids_of_ours_are_found_at_any_age_and_others_by_since() {
    let world = World::with_tenant().await;
    let ours = publish(&world, r#"{"type":"a","data":1}"#).await;
    let theirs = publish(&world, r#"{"type":"a","data":1,"id":"order-1"}"#).await;
    world.clock.advance(25 * 3600 * 1000);
    world
        .get(&format!("{EVENTS_PATH}/{}", ours.0))
        .await
        .expect(StatusCode::OK);
    let path = format!("{EVENTS_PATH}/{}", theirs.0);
    world.get(&path).await.expect(StatusCode::NOT_FOUND);
    let since = postrider_model::payload::rfc3339(START_MS);
    world
        .get(&format!("{path}?since={since}"))
        .await
        .expect(StatusCode::OK);
    let answer = world.get(&format!("{path}?since=monday")).await;
    assert_eq!(
        answer
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .wrong_fields(),
        ["since"]
    );
}

#[tokio::test]
async fn a_history_that_is_cut_says_so_and_goes_on() {
    let world = World::with_tenant_and(|config| config.read_bytes_max = 1).await;
    let noise = publish(&world, r#"{"type":"a","data":1}"#).await;
    let event = publish(&world, r#"{"type":"a","data":2,"ordering_key":"k"}"#).await;
    // One batch holds a MiB, so that each request reads one of these.
    for _ in 0..40 {
        let big = Attempt {
            detail: "x".repeat(200_000),
            ..attempt(&noise, "ep_a", 1, Settlement::Delivered)
        };
        record(&world, &big).await;
    }
    record(&world, &attempt(&event, "ep_a", 1, Settlement::Delivered)).await;
    route(&world, &event, &["ep_a"]).await;
    let path = format!("{EVENTS_PATH}/{}", event.0);
    let mut next = path.clone();
    let mut requests = 0;
    let mut attempts = 0;
    loop {
        let history = world.get(&next).await.expect(StatusCode::OK).json();
        requests += 1;
        attempts += states(&history)
            .iter()
            .map(|(_, _, attempts)| attempts)
            .sum::<usize>();
        assert_eq!(history["complete"], history["next_cursor"].is_null());
        let Some(cursor) = history["next_cursor"].as_str() else {
            break;
        };
        next = format!("{path}?cursor={cursor}");
        assert!(requests < 100, "the reading has no end");
    }
    assert!(requests > 3, "{requests}");
    assert_eq!(attempts, 1);
}

async fn create_endpoint(world: &World, id: &str) {
    let body = json!({"id": id, "url": "https://example.com"}).to_string();
    world
        .post("/v1/tenants/acme/endpoints", body)
        .await
        .expect(StatusCode::CREATED);
}

#[tokio::test]
async fn attempts_of_an_endpoint_are_listed_newest_first() {
    let world = World::with_tenant().await;
    create_endpoint(&world, "ep_a").await;
    let event = publish(&world, r#"{"type":"a","data":1}"#).await;
    for number in 1..=300 {
        world.clock.advance(1000);
        record(
            &world,
            &attempt(&event, "ep_a", number, Settlement::Delivered),
        )
        .await;
        record(
            &world,
            &attempt(&event, "ep_b", number, Settlement::Delivered),
        )
        .await;
    }
    let path = "/v1/tenants/acme/endpoints/ep_a/attempts";
    let numbers = |data: &[Value]| {
        data.iter()
            .map(|item| item["attempt"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let first = world
        .get(&format!("{path}?limit=3"))
        .await
        .expect(StatusCode::OK)
        .json();
    assert_eq!(numbers(first["data"].as_array().unwrap()), [300, 299, 298]);
    assert_eq!(first["complete"], true);
    assert_eq!(first["data"][0]["response_excerpt"], "fine");

    let all: Vec<_> = (1..=300).rev().collect();
    let pages = world.all_pages(&format!("{path}?limit=7")).await;
    assert_eq!((numbers(&pages.data), pages.cut), (all.clone(), 0));

    let time = |number: i64| postrider_model::payload::rfc3339(START_MS + number * 1000);
    let pages = world
        .all_pages(&format!("{path}?since={}&until={}", time(10), time(13)))
        .await;
    assert_eq!(numbers(&pages.data), [12, 11, 10]);

    // What is written after the first page does not move the later ones.
    let cursor = first["next_cursor"].as_str().unwrap();
    record(&world, &attempt(&event, "ep_a", 301, Settlement::Delivered)).await;
    let rest = world.all_pages(&format!("{path}?cursor={cursor}")).await;
    assert_eq!(numbers(&rest.data), all[3..]);

    world
        .get("/v1/tenants/acme/endpoints/ep_b/attempts")
        .await
        .expect(StatusCode::NOT_FOUND);
    world
        .send("DELETE", "/v1/tenants/acme/endpoints/ep_a", &[], "")
        .await
        .expect(StatusCode::NO_CONTENT);
    let pages = world.all_pages(&format!("{path}?limit=250")).await;
    assert_eq!(
        pages.data.len(),
        301,
        "what a deleted endpoint was sent can still be read"
    );
}

#[tokio::test]
async fn a_list_that_is_cut_goes_on_until_everything_was_shown() {
    let world = World::with_tenant_and(|config| config.read_bytes_max = 1).await;
    create_endpoint(&world, "ep_a").await;
    let event = publish(&world, r#"{"type":"a","data":1}"#).await;
    for number in 1..=500 {
        record(
            &world,
            &attempt(&event, "ep_x", number, Settlement::Delivered),
        )
        .await;
        if number % 100 == 0 {
            record(
                &world,
                &attempt(&event, "ep_a", number, Settlement::Delivered),
            )
            .await;
        }
    }
    world.faults().gap(ATTEMPTS, 0, 7);
    world.faults().gap(ATTEMPTS, 1, 7);
    world.faults().gap(ATTEMPTS, 2, 7);
    record(&world, &attempt(&event, "ep_a", 501, Settlement::Delivered)).await;
    let pages = world
        .all_pages("/v1/tenants/acme/endpoints/ep_a/attempts")
        .await;
    let numbers: Vec<_> = pages
        .data
        .iter()
        .map(|item| item["attempt"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [501, 500, 400, 300, 200, 100]);
}

#[tokio::test]
async fn refuses_a_cursor_of_another_list() {
    let world = World::with_tenant().await;
    create_endpoint(&world, "ep_a").await;
    world
        .put("/v1/tenants/other", "")
        .await
        .expect(StatusCode::CREATED);
    let cursor = world.get("/v1/tenants?limit=1").await.json()["next_cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    for path in [
        format!("/v1/tenants/acme/endpoints/ep_a/attempts?cursor={cursor}"),
        format!("/v1/tenants/acme/dead-letters?cursor={cursor}"),
        format!("{EVENTS_PATH}/evt_1?cursor={cursor}"),
        // {"rest":[[99,0,5]]}: a partition that does not exist
        "/v1/tenants/acme/endpoints/ep_a/attempts?cursor=eyJyZXN0IjpbWzk5LDAsNV1dfQ".to_owned(),
    ] {
        let answer = world
            .get(&path)
            .await
            .expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.wrong_fields(), ["cursor"], "{path}");
    }
}
