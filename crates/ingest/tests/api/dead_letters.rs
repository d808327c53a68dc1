//! Dead letters and redrive.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use bytes::Bytes;
use postrider_log::memory::AppendFate;
use postrider_model::delivery::{DeadLetter, DeadLetterContent, Delivery, RawRecord};
use postrider_model::event::Event;
use postrider_model::fixtures;
use postrider_model::outcome::Reason;
use postrider_model::payload::rfc3339;
use postrider_model::topics::{DEAD_LETTERS, DELIVERIES};
use serde_json::{Value, json};

use crate::world::{START_MS, World};

const ALL: &str = "/v1/tenants/acme/dead-letters";
const REDRIVE: &str = "/v1/tenants/acme/dead-letters/redrive";

fn letter(number: i64, tenant: &str, endpoint: &str) -> DeadLetter {
    let event = Event {
        tenant: tenant.parse().unwrap(),
        event_type: "invoice.paid".parse().unwrap(),
        occurred_at_ms: START_MS,
        data: Bytes::from(format!("{{\"n\": {number}}}")),
        accepted_at_ms: START_MS,
        ..fixtures::event(&format!("evt-{number}"))
    };
    let delivery = Delivery {
        attempt: 10,
        due_at_ms: START_MS,
        ..fixtures::delivery(event, endpoint, number)
    };
    DeadLetter {
        id: format!("dl_{number}"),
        reason: Reason::Exhausted,
        detail: "no success".to_owned(),
        dead_lettered_at_ms: START_MS,
        last_status: Some(500),
        content: DeadLetterContent::Delivery(Box::new(delivery)),
    }
}

async fn put(world: &World, letter: &DeadLetter) {
    let key = match &letter.content {
        DeadLetterContent::Delivery(delivery) => delivery.endpoint.to_string(),
        DeadLetterContent::Raw(raw) => format!("{}/{}", raw.topic, raw.partition),
    };
    world.append(DEAD_LETTERS, &key, letter.encode()).await;
}

/// A tenant with two endpoints and ten dead letters, a second apart, of which the even ones are of
/// `ep_a`.
async fn world_with_letters(world: World) -> World {
    for tenant in ["acme", "other"] {
        world
            .put(&format!("/v1/tenants/{tenant}"), "")
            .await
            .expect(StatusCode::CREATED);
    }
    for id in ["ep_a", "ep_b", "ep_off", "ep_gone"] {
        let body = json!({"id": id, "url": "https://example.com"}).to_string();
        world
            .post("/v1/tenants/acme/endpoints", body)
            .await
            .expect(StatusCode::CREATED);
    }
    world
        .post("/v1/tenants/acme/endpoints/ep_off/disable", "")
        .await
        .expect(StatusCode::OK);
    let gone = "/v1/tenants/acme/endpoints/ep_gone";
    world
        .send("DELETE", gone, &[], "")
        .await
        .expect(StatusCode::NO_CONTENT);
    for number in 1..=10 {
        world.clock.advance(1000);
        put(
            &world,
            &letter(
                number,
                "acme",
                if number % 2 == 0 { "ep_a" } else { "ep_b" },
            ),
        )
        .await;
        put(&world, &letter(100 + number, "other", "ep_a")).await;
    }
    world.clock.advance(1000);
    put(&world, &raw()).await;
    world
}

fn raw() -> DeadLetter {
    DeadLetter {
        id: "dl_events_1_2".to_owned(),
        reason: Reason::Malformed,
        last_status: None,
        content: DeadLetterContent::Raw(RawRecord {
            topic: "events".to_owned(),
            partition: 1,
            offset: 2,
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"\xff\x00"),
            value_bytes: 2,
        }),
        ..letter(1, "acme", "ep_a")
    }
}

fn deliveries(world: &World) -> Vec<Delivery> {
    let records = world.records(DELIVERIES);
    records
        .iter()
        .map(|record| Delivery::decode(record.value.as_ref().unwrap()).unwrap())
        .collect()
}

fn offsets(deliveries: &[Delivery]) -> BTreeSet<i64> {
    deliveries
        .iter()
        .map(|delivery| delivery.position.offset)
        .collect()
}

async fn redrive(world: &World, body: Value) -> Value {
    world
        .post(REDRIVE, body.to_string())
        .await
        .expect(StatusCode::OK)
        .json()
}

fn all_time() -> Value {
    json!({"since": rfc3339(START_MS), "until": rfc3339(START_MS + 3_600_000)})
}

#[tokio::test]
async fn dead_letters_are_listed_newest_first_across_partitions() {
    let world = world_with_letters(World::new().await).await;
    let newest_first: Vec<_> = (1..=10)
        .rev()
        .map(|number| format!("dl_{number}"))
        .collect();
    for limit in [1, 3, 250] {
        let pages = world.all_pages(&format!("{ALL}?limit={limit}")).await;
        assert_eq!(pages.field("id"), newest_first, "{limit}");
    }
    let pages = world.all_pages(&format!("{ALL}?endpoint=ep_a")).await;
    assert_eq!(pages.field("id"), ["dl_10", "dl_8", "dl_6", "dl_4", "dl_2"]);
    let since = rfc3339(START_MS + 4_000);
    let until = rfc3339(START_MS + 6_000);
    let pages = world
        .all_pages(&format!("{ALL}?since={since}&until={until}"))
        .await;
    assert_eq!(pages.field("id"), ["dl_5", "dl_4"]);
    let pages = world
        .all_pages(&format!("{ALL}?reason=endpoint_gone"))
        .await;
    assert!(pages.data.is_empty());
    let answer = world.get(&format!("{ALL}?reason=bad_luck")).await;
    assert_eq!(
        answer
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .wrong_fields(),
        ["reason"]
    );
    let first = &world.get(ALL).await.json()["data"][0];
    assert_eq!(
        (&first["event_id"], &first["last_status"]),
        (&json!("evt-10"), &json!(500))
    );
}

#[tokio::test]
async fn a_dead_letter_is_shown_with_what_it_holds() {
    let world = world_with_letters(World::new().await).await;
    let answer = world
        .get(&format!("{ALL}/dl_3"))
        .await
        .expect(StatusCode::OK);
    let shown = answer.json();
    assert_eq!(
        (&shown["id"], &shown["event"]["id"]),
        (&json!("dl_3"), &json!("evt-3"))
    );
    assert!(String::from_utf8_lossy(&answer.body).contains(r#""data":{"n": 3}"#));
    world
        .get(&format!("{ALL}/dl_103"))
        .await
        .expect(StatusCode::NOT_FOUND);
    world
        .get(&format!("{ALL}/dl_events_1_2"))
        .await
        .expect(StatusCode::NOT_FOUND);

    let raw = world.all_pages("/v1/dead-letters").await;
    assert_eq!(raw.field("id"), ["dl_events_1_2"]);
    let shown = world
        .get("/v1/dead-letters/dl_events_1_2")
        .await
        .expect(StatusCode::OK)
        .json();
    assert_eq!(
        (&shown["topic"], &shown["value_base64"]),
        (&json!("events"), &json!("/wA="))
    );
    world
        .get("/v1/dead-letters/dl_3")
        .await
        .expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn redriving_by_id_appends_a_run_of_its_own() {
    let world = world_with_letters(World::new().await).await;
    put(&world, &letter(20, "acme", "ep_off")).await;
    put(&world, &letter(21, "acme", "ep_gone")).await;
    let ids = [
        "dl_3",
        "dl_4",
        "dl_103",
        "dl_events_1_2",
        "dl_99",
        "dl_20",
        "dl_21",
    ];
    let answer = redrive(&world, json!({"ids": ids})).await;
    assert_eq!(
        (&answer["redriven"], &answer["complete"]),
        (&json!(2), &json!(true))
    );
    assert!(answer["command_id"].as_str().unwrap().starts_with("cmd_"));
    let mut skipped: Vec<_> = answer["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    skipped.sort();
    let expected = [
        r#"{"id":"dl_103","reason":"not_found"}"#,
        r#"{"id":"dl_20","reason":"endpoint_disabled"}"#,
        r#"{"id":"dl_21","reason":"endpoint_deleted"}"#,
        r#"{"id":"dl_99","reason":"not_found"}"#,
        r#"{"id":"dl_events_1_2","reason":"not_found"}"#,
    ];
    assert_eq!(skipped, expected);
    let redriven = deliveries(&world);
    assert_eq!(offsets(&redriven), [3, 4].into());
    for delivery in &redriven {
        assert_ne!(delivery.run, 0);
        assert_eq!((delivery.attempt, delivery.due_at_ms), (1, 0));
        assert_eq!(delivery.registry, world.registry.stamp());
        let number = delivery.position.offset;
        assert_eq!(
            delivery.event.data,
            format!("{{\"n\": {number}}}").as_bytes()
        );
    }
    for record in world.records(DELIVERIES) {
        let endpoint = Delivery::decode(record.value.as_ref().unwrap())
            .unwrap()
            .endpoint;
        assert_eq!(record.key, endpoint.as_str().as_bytes());
    }
}

#[tokio::test]
async fn repeating_a_redrive_names_the_same_work() {
    let world = world_with_letters(World::new().await).await;
    let body = json!({"ids": ["dl_3", "dl_4"], "command_id": "fix-42"});
    let first = redrive(&world, body.clone()).await;
    let work = || {
        deliveries(&world)
            .iter()
            .map(Delivery::work_id)
            .collect::<BTreeSet<_>>()
    };
    let once = work();
    assert_eq!(redrive(&world, body).await, first);
    assert_eq!(work(), once, "a repeated command adds no work");
    let other = redrive(
        &world,
        json!({"ids": ["dl_3", "dl_4"], "command_id": "fix-43"}),
    )
    .await;
    assert_eq!(other["redriven"], 2);
    assert_eq!(work().len(), 2 * once.len());
}

#[tokio::test]
async fn redriving_by_time_takes_what_fits_the_filter() {
    let world = world_with_letters(World::new().await).await;
    // The same letter written twice is redriven once.
    put(&world, &letter(6, "acme", "ep_a")).await;
    let mut body = all_time();
    body["endpoint"] = json!("ep_a");
    let answer = redrive(&world, body).await;
    assert_eq!(
        (&answer["redriven"], &answer["skipped"]),
        (&json!(5), &json!([]))
    );
    assert_eq!(offsets(&deliveries(&world)), [2, 4, 6, 8, 10].into());
    let body = json!({"since": rfc3339(START_MS + 3_000), "until": rfc3339(START_MS + 4_000)});
    assert_eq!(redrive(&world, body).await["redriven"], 1);
    let mut body = all_time();
    body["reason"] = json!("endpoint_gone");
    assert_eq!(redrive(&world, body).await["redriven"], 0);
}

#[tokio::test]
async fn a_redrive_that_is_cut_goes_on_with_its_cursor() {
    for ids in [false, true] {
        let world = World::with(|config| {
            config.redrive_dead_letters_max = if ids { 10 } else { 3 };
            config.read_bytes_max = 1;
        });
        let world = world_with_letters(world.await).await;
        let mut body = all_time();
        if ids {
            body =
                json!({"ids": (1..=10).map(|number| format!("dl_{number}")).collect::<Vec<_>>()});
        }
        let mut redriven = 0;
        let mut requests = 0;
        loop {
            let answer = redrive(&world, body.clone()).await;
            redriven += answer["redriven"].as_u64().unwrap();
            requests += 1;
            assert_eq!(answer["complete"], answer["next_cursor"].is_null());
            if answer["next_cursor"].is_null() {
                break;
            }
            assert!(requests < 100, "the command has no end");
            body["cursor"] = answer["next_cursor"].clone();
            body["command_id"] = answer["command_id"].clone();
        }
        assert!(requests > 1, "{requests}");
        assert_eq!(redriven, 10);
        assert_eq!(offsets(&deliveries(&world)), (1..=10).collect());
        assert_eq!(
            deliveries(&world)
                .iter()
                .map(|delivery| delivery.run)
                .collect::<BTreeSet<_>>()
                .len(),
            1
        );
    }
}

#[tokio::test]
async fn a_redrive_that_the_log_did_not_take_says_how_to_repeat_it() {
    let world = world_with_letters(World::new().await).await;
    world
        .faults()
        .next_append(DELIVERIES, AppendFate::UnknownLanded);
    let mut body = all_time();
    let answer = world
        .post(REDRIVE, body.to_string())
        .await
        .expect(StatusCode::SERVICE_UNAVAILABLE);
    assert!(!answer.header("retry-after").is_empty());
    body["command_id"] = answer.problem("run-cut")["command_id"].clone();
    assert_eq!(redrive(&world, body).await["redriven"], 10);
    let work: BTreeSet<_> = deliveries(&world).iter().map(Delivery::work_id).collect();
    assert_eq!(work.len(), 10);
}

#[tokio::test]
async fn refuses_redrives_that_do_not_say_what() {
    let world = world_with_letters(World::new().await).await;
    let time = rfc3339(START_MS);
    let cases = [
        (json!({}), vec!["since", "until"]),
        (json!({"ids": []}), vec!["ids"]),
        (json!({"ids": "dl_1"}), vec!["ids"]),
        (json!({"ids": ["dl_1"], "since": time}), vec!["since"]),
        (json!({"since": time}), vec!["until"]),
        (json!({"since": "x", "until": time}), vec!["since"]),
        (
            json!({"ids": ["dl_1"], "command_id": "a b"}),
            vec!["command_id"],
        ),
        (json!({"ids": ["dl_1"], "all": true}), vec!["all"]),
    ];
    for (body, fields) in cases {
        let answer = world.post(REDRIVE, body.to_string()).await;
        assert_eq!(
            answer
                .expect(StatusCode::UNPROCESSABLE_ENTITY)
                .wrong_fields(),
            fields,
            "{body}"
        );
    }
    assert!(deliveries(&world).is_empty());
}
