//! Publishing many events at once, compressed, and under a key of idempotency.

use std::io::Write;
use std::time::Duration;

use axum::http::StatusCode;
use flate2::Compression;
use flate2::write::GzEncoder;
use postrider_log::memory::{AppendFate, AppendPlan};
use postrider_model::topics::EVENTS;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::{Answer, World};

const ONE: &str = "/v1/tenants/acme/events";
const BATCH: &str = "/v1/tenants/acme/events/batch";
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
const JSON: (&str, &str) = ("content-type", "application/json");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

fn event(id: &str) -> Value {
    json!({"type": "invoice.paid", "data": {"n": 1}, "id": id})
}

fn results(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let results = body["results"].as_array().unwrap().iter();
    let shown = results.map(|result| match result["status"].as_str().unwrap() {
        "accepted" => result["id"].as_str().unwrap().to_owned(),
        _ => format!("refused: {}", result["problem"].as_str().unwrap()),
    });
    shown.collect()
}

fn compressed(body: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_batch_takes_what_is_good_and_says_what_is_not() {
    let world = World::with_tenant().await;
    let all = json!([event("a"), event("b")]).to_string();
    let answer = world.post(BATCH, all).await.expect(StatusCode::ACCEPTED);
    assert_eq!(results(&answer), ["a", "b"]);
    let mixed = json!([event("c"), {"type": "no data"}, 7, event("d"), event("no id!")]);
    let answer = world.post(BATCH, mixed.to_string()).await;
    let answer = answer.expect(StatusCode::MULTI_STATUS);
    let refused = "refused: invalid";
    assert_eq!(results(&answer), ["c", refused, refused, "d", refused]);
    let body = answer.json();
    assert_eq!(
        (&body["accepted"], &body["refused"]),
        (&json!(2), &json!(3))
    );
    let second = &body["results"][1];
    let fields: Vec<_> = second["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| &error["field"])
        .collect();
    assert_eq!(fields, ["type", "data"]);
    assert_eq!(second["retry_after"], Value::Null);
    assert_eq!(world.records(EVENTS).len(), 4);
}

#[tokio::test]
async fn a_batch_may_be_lines_of_which_a_bad_one_harms_no_other() {
    let world = World::with_tenant().await;
    let lines = format!("{}\n\n{{\"type\":\r\n{}", event("a"), event("b"));
    let answer = world.send("POST", BATCH, &[LINES], lines).await;
    let answer = answer.expect(StatusCode::MULTI_STATUS);
    assert_eq!(results(&answer), ["a", "refused: syntax", "b"]);
    let other = [("content-type", "text/plain")];
    let answer = world.send("POST", BATCH, &other, "").await;
    answer.expect(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let answer = world.post(BATCH, "{}").await;
    answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
    let answer = world.post(BATCH, "[{},").await;
    answer.expect(StatusCode::BAD_REQUEST);
    let answer = world.post(BATCH, "[]").await.expect(StatusCode::ACCEPTED);
    assert!(results(&answer).is_empty());
}

#[tokio::test]
async fn a_batch_is_bounded_in_events_and_bytes() {
    let world = World::with_tenant_and(|config| {
        config.batch_events_max = 2;
        config.batch_bytes_max = 1_000;
        config.event_bytes_max = 200;
    })
    .await;
    let three = json!([event("a"), event("b"), event("c")]).to_string();
    let answer = world.post(BATCH, three).await;
    answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
    let long = json!({"type": "a", "data": "x".repeat(200), "id": "long"});
    let answer = world
        .post(BATCH, json!([event("a"), long]).to_string())
        .await;
    let answer = answer.expect(StatusCode::MULTI_STATUS);
    assert_eq!(results(&answer), ["a", "refused: body-too-large"]);
    let large = format!("[{}]", " ".repeat(1_000));
    let answer = world.post(BATCH, large.clone()).await;
    answer.expect(StatusCode::PAYLOAD_TOO_LARGE);
    let small = compressed(&large);
    assert!(small.len() < 100);
    let answer = world.send("POST", BATCH, &[JSON, GZIP], small).await;
    answer.expect(StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn an_event_of_a_batch_of_unknown_fate_is_said_to_be_so() {
    let world = World::with_tenant().await;
    world.faults().on_append(|site, _| AppendPlan {
        fate: match site.topic {
            EVENTS if site.key == b"acme/b" => AppendFate::UnknownLanded,
            EVENTS if site.key == b"acme/c" => AppendFate::Failed,
            _ => AppendFate::Acked,
        },
        ..AppendPlan::default()
    });
    let body = json!([event("a"), event("b"), event("c"), event("d")]).to_string();
    let answer = world
        .post(BATCH, body)
        .await
        .expect(StatusCode::MULTI_STATUS);
    let expected = ["a", "refused: perhaps-taken", "refused: not-taken", "d"];
    assert_eq!(results(&answer), expected);
    let results = answer.json()["results"].clone();
    assert!(results[2]["retry_after"].is_number());
    assert_eq!(results[1]["id"], "b");
    world
        .faults()
        .on_append(|_, _| AppendFate::UnknownAbsent.into());
    let unnamed = json!([{"type": "a", "data": 1}]).to_string();
    let answer = world
        .post(BATCH, unnamed)
        .await
        .expect(StatusCode::MULTI_STATUS);
    let id = answer.json()["results"][0]["id"].clone();
    assert!(id.as_str().unwrap().starts_with("evt_"), "{id}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_takes_no_longer_than_one_event_may() {
    let world = World::with_tenant().await;
    world.faults().on_append(|site, _| AppendPlan {
        delay: match site.topic {
            EVENTS => Duration::from_secs(6),
            _ => Duration::ZERO,
        },
        ..AppendPlan::default()
    });
    let events: Vec<_> = (0..100)
        .map(|number| event(&format!("e{number}")))
        .collect();
    let began = Instant::now();
    let answer = world.post(BATCH, Value::from(events).to_string()).await;
    let answer = answer.expect(StatusCode::MULTI_STATUS);
    assert!(
        began.elapsed() < Duration::from_secs(13),
        "{:?}",
        began.elapsed()
    );
    let results = results(&answer);
    let accepted = results
        .iter()
        .filter(|result| result.starts_with('e'))
        .count();
    assert_eq!((accepted, results.len()), (64, 100));
    assert!(
        results[64..]
            .iter()
            .all(|result| result == "refused: not-taken")
    );
}

#[tokio::test(start_paused = true)]
async fn events_of_a_batch_take_places_like_others() {
    let world = World::with_tenant_and(|config| config.events_in_flight_max = 3).await;
    world.faults().on_append(|_, _| AppendPlan {
        delay: Duration::from_millis(50),
        ..AppendPlan::default()
    });
    let events: Vec<_> = (0..4).map(|number| event(&format!("e{number}"))).collect();
    let answer = world.post(BATCH, Value::from(events).to_string()).await;
    let results = results(&answer.expect(StatusCode::MULTI_STATUS));
    assert_eq!(results, ["e0", "e1", "refused: busy", "refused: busy"]);
    let answer = world.post(BATCH, json!([event("later")]).to_string()).await;
    answer.expect(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_is_counted() {
    let world = World::with_tenant().await;
    let answer = world.post(BATCH, "{}").await;
    answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
    let headers = [JSON, ("idempotency-key", "a")];
    let answer = world.send("POST", BATCH, &headers, "[]").await;
    let answer = answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer.wrong_fields(), ["Idempotency-Key"]);
    let refused = world.metric(r#"postrider_events_refused_total{reason="invalid"}"#);
    assert!((refused - 2.0).abs() < f64::EPSILON, "{refused}");
}

#[tokio::test]
async fn a_compressed_body_needs_room_for_the_larger_of_two_only() {
    let data = "x".repeat(500);
    let event = json!({"type": "a", "data": data}).to_string();
    let world = World::with_tenant_and(|config| {
        config.event_bytes_max = event.len();
        config.batch_bytes_max = event.len();
        config.events_in_flight_bytes_max = event.len();
    })
    .await;
    let body = compressed(&event);
    let answer = world.send("POST", ONE, &[JSON, GZIP], body).await;
    answer.expect(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn events_of_one_key_in_a_batch_keep_their_order() {
    let world = World::with_tenant().await;
    let events = (0..200).map(|number| {
        json!({"type": "a", "data": number, "id": format!("e{number:03}"), "ordering_key": "k"})
    });
    let body = Value::from(events.collect::<Vec<_>>()).to_string();
    world.post(BATCH, body).await.expect(StatusCode::ACCEPTED);
    let records = world.records(EVENTS);
    let data: Vec<_> = records
        .iter()
        .map(|record| record.value.clone().unwrap())
        .collect();
    assert_eq!(data.len(), 200);
    for (number, value) in data.iter().enumerate() {
        let id = format!("e{number:03}");
        assert!(value.windows(4).any(|bytes| bytes == id.as_bytes()), "{id}");
    }
}

#[tokio::test]
async fn small_imports_do_not_wait_for_each_other() {
    let world = World::with_tenant().await;
    let import = async |number: usize| {
        let body = format!(r#"[{{"id":"ep_{number}","url":"https://example.com/"}}]"#);
        let length = body.len().to_string();
        let headers = [JSON, ("content-length", &length)];
        let path = "/v1/tenants/acme/endpoints/import";
        world.send("POST", path, &headers, body).await.status
    };
    let all = futures_util::future::join_all((0..20).map(import)).await;
    assert!(
        all.iter().all(|status| *status == StatusCode::OK),
        "{all:?}"
    );
}

#[tokio::test]
async fn compressed_bodies_are_taken_everywhere() {
    let world = World::with_tenant().await;
    let one = compressed(&event("a").to_string());
    let answer = world.send("POST", ONE, &[JSON, GZIP], one.clone()).await;
    answer.expect(StatusCode::ACCEPTED);
    let batch = compressed(&json!([event("b")]).to_string());
    let answer = world.send("POST", BATCH, &[JSON, GZIP], batch).await;
    answer.expect(StatusCode::ACCEPTED);
    let endpoint = compressed(r#"{"url":"https://example.com/"}"#);
    let path = "/v1/tenants/acme/endpoints";
    let answer = world.send("POST", path, &[JSON, GZIP], endpoint).await;
    answer.expect(StatusCode::CREATED);
    let cut = one[..one.len() - 1].to_vec();
    let answer = world.send("POST", ONE, &[JSON, GZIP], cut).await;
    answer.expect(StatusCode::BAD_REQUEST).problem("syntax");
    let other = ("content-encoding", "br");
    let answer = world.send("POST", ONE, &[JSON, other], one).await;
    let answer = answer.expect(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(answer.header("accept-encoding"), "gzip, identity");
    assert_eq!(world.records(EVENTS).len(), 2);
}

#[tokio::test]
async fn an_idempotency_key_is_the_events_id() {
    let world = World::with_tenant().await;
    let bare = r#"{"type":"a","data":1}"#;
    let publish = async |key: &str, body: String| {
        let headers = [JSON, ("idempotency-key", key)];
        world.send("POST", ONE, &headers, body).await
    };
    for (key, id) in [("order-7", "order-7"), ("\"order-8\"", "order-8")] {
        let answer = publish(key, bare.to_owned()).await;
        let answer = answer.expect(StatusCode::ACCEPTED).json();
        assert_eq!(answer["id"], id);
    }
    let same = publish("a", event("a").to_string()).await;
    same.expect(StatusCode::ACCEPTED);
    for (key, body) in [("b", event("a").to_string()), ("no id!", bare.to_owned())] {
        let refused = publish(key, body).await;
        let refused = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused.wrong_fields(), ["Idempotency-Key"]);
    }
}
