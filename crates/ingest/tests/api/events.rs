//! Publishing.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_util::StreamExt;
use postrider_daemon::http::NotBefore;
use postrider_log::memory::{AppendFate, AppendPlan};
use postrider_model::event::{Event, EventPosition};
use postrider_model::topics::EVENTS;
use postrider_model::wire::{EventContext, proto};
use prost::Message;
use tokio::time::Instant;

use crate::world::{START_MS, World};

const PATH: &str = "/v1/tenants/acme/events";
const GOOD: &str = r#"{"type":"invoice.paid","data":{}}"#;

fn events(world: &World) -> Vec<Event> {
    let decode = |record: postrider_log::Record| {
        let context = EventContext {
            position: EventPosition {
                partition: record.partition,
                offset: record.offset,
                appended_at_ms: 0,
            },
            traceparent: None,
        };
        Event::decode(&record.value.unwrap(), context).unwrap()
    };
    world.records(EVENTS).into_iter().map(decode).collect()
}

#[tokio::test]
async fn data_is_in_the_log_byte_for_byte() {
    let world = World::with_tenant().await;
    let payloads = [
        r#"{"b":1,"a":2}"#,
        "{ \"spaced\" :\t[ 1 ,\r\n 2 ] }",
        r#"{"n":1.0,"e":1E+2,"big":123456789012345678901234567890,"z":-0.0}"#,
        r#"{"twice":1,"twice":2}"#,
        r#""\u00e9\/é😀""#,
        "null",
        "[]",
        "0.10",
    ];
    for payload in payloads {
        let body = format!("{{ \"data\" : {payload} , \"type\":\"a.b\" }}\n");
        let answer = world.post(PATH, body).await.expect(StatusCode::ACCEPTED);
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        let event = events(&world)
            .into_iter()
            .find(|event| event.id.as_str() == id)
            .unwrap();
        assert_eq!(event.data, Bytes::from(payload));
    }
}

#[tokio::test]
async fn an_accepted_event_is_stamped_and_keyed() {
    let world = World::with_tenant().await;
    world.clock.advance(5);
    let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("content-type", "application/json; charset=UTF-8"),
        ("traceparent", header),
        ("tracestate", "vendor=1"),
    ];
    let body = r#"{"type":"invoice.paid","data":1,"id":"inv-1","occurred_at":"2026-01-02T03:04:05.678Z",
        "ordering_key":"customer 9","channels":[],"source":null}"#;
    let answer = world
        .send("POST", PATH, &headers, body)
        .await
        .expect(StatusCode::ACCEPTED);
    assert_eq!(answer.json()["id"], "inv-1");
    let event = events(&world).remove(0);
    assert_eq!(event.id.as_str(), "inv-1");
    assert_eq!(event.tenant.as_str(), "acme");
    assert_eq!(event.event_type.as_str(), "invoice.paid");
    assert_eq!(event.occurred_at_ms, 1_767_323_045_678);
    assert_eq!(event.accepted_at_ms, START_MS + 5);
    assert_eq!(event.registry, world.registry.stamp());
    assert!(event.registry.position > 0);
    assert_eq!(event.trace.traceparent, header);
    assert_eq!(event.trace.tracestate, "vendor=1");
    assert_eq!(world.records(EVENTS)[0].key, Bytes::from("acme/customer 9"));

    world.post(PATH, GOOD).await.expect(StatusCode::ACCEPTED);
    let event = events(&world)
        .into_iter()
        .find(|event| event.id.as_str() != "inv-1")
        .unwrap();
    assert!(event.id.as_str().starts_with("evt_"));
    assert_eq!(
        (event.occurred_at_ms, event.accepted_at_ms),
        (START_MS + 5, START_MS + 5)
    );
    assert_eq!(event.trace.traceparent, "");
    let id = event.id;
    assert!(
        world
            .records(EVENTS)
            .iter()
            .any(|record| record.key == format!("acme/{id}").as_bytes())
    );
}

/// Bodies, and the fields that are wrong with them. `LONG` stands for 257 bytes.
const WRONG: [(&str, &[&str]); 20] = [
    (r#"{"data":1}"#, &["type"]),
    (r#"{"type":"a"}"#, &["data"]),
    (r#"{"type":null,"data":1}"#, &["type"]),
    (r#"{"type":"a b","data":1}"#, &["type"]),
    (r#"{"type":"a..b","data":1}"#, &["type"]),
    (r#"{"type":7,"data":1}"#, &["type"]),
    (r#"{"type":"postrider.test","data":1}"#, &["type"]),
    (r#"{"type":"LONG","data":1}"#, &["type"]),
    (r#"{"type":"a","data":1,"id":"a.b"}"#, &["id"]),
    (r#"{"type":"a","data":1,"id":""}"#, &["id"]),
    (r#"{"type":"a","data":1,"id":"LONG"}"#, &["id"]),
    (
        r#"{"type":"a","data":1,"occurred_at":"yesterday"}"#,
        &["occurred_at"],
    ),
    (
        r#"{"type":"a","data":1,"occurred_at":1700000000}"#,
        &["occurred_at"],
    ),
    (
        r#"{"type":"a","data":1,"ordering_key":"LONG"}"#,
        &["ordering_key"],
    ),
    (r#"{"type":"a","data":1,"channels":["x"]}"#, &["channels"]),
    (r#"{"type":"a","data":1,"source":"/x"}"#, &["source"]),
    (r#"{"type":"a","data":1,"colour":"red"}"#, &["colour"]),
    (r#"{"type":"a","type":"b","data":1}"#, &[""]),
    (r#"[{"type":"a","data":1}]"#, &[""]),
    (
        r#"{"id":"a.b","occurred_at":"x","more":1}"#,
        &["data", "id", "more", "occurred_at", "type"],
    ),
];

#[tokio::test]
async fn what_is_wrong_is_named() {
    let world = World::with_tenant().await;
    let long = "x".repeat(257);
    for (body, fields) in WRONG {
        let answer = world.post(PATH, body.replace("LONG", &long)).await;
        let mut wrong = answer
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .wrong_fields();
        wrong.sort();
        assert_eq!(wrong, fields, "{body}");
    }
    assert!(world.records(EVENTS).is_empty());
    let refused = world.metric(r#"postrider_events_refused_total{reason="invalid"}"#);
    assert!((refused - 20.0).abs() < f64::EPSILON, "{refused}");
    assert!(world.metric("postrider_events_accepted_total").abs() < f64::EPSILON);
}

#[tokio::test]
async fn malformed_bodies_are_refused_with_the_position() {
    let world = World::with_tenant().await;
    for body in ["", "{", "{\"type\":\"a\",\n\"data\":}", "{} {}"] {
        let answer = world.post(PATH, body).await.expect(StatusCode::BAD_REQUEST);
        let detail = answer.problem("syntax")["detail"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            detail.contains("line") && detail.contains("column"),
            "{detail}"
        );
    }
    let not_utf8 = Bytes::from_static(b"{\"type\":\"a\",\"data\":\"\xff\"}");
    world
        .post(PATH, not_utf8)
        .await
        .expect(StatusCode::BAD_REQUEST)
        .problem("syntax");
    for media_type in ["text/plain", "application/x-www-form-urlencoded"] {
        let answer = world
            .send("POST", PATH, &[("content-type", media_type)], GOOD)
            .await;
        answer
            .expect(StatusCode::UNSUPPORTED_MEDIA_TYPE)
            .problem("media-type");
    }
    let answer = world.send("POST", PATH, &[], GOOD).await;
    answer
        .expect(StatusCode::UNSUPPORTED_MEDIA_TYPE)
        .problem("media-type");
    assert!(world.records(EVENTS).is_empty());
}

#[tokio::test]
async fn json_is_taken_however_its_encoding_is_named_and_with_a_mark_before_it() {
    let world = World::with_tenant().await;
    for media_type in [
        "application/json;charset=utf8",
        "application/json; charset=\"UTF-8\"",
        "application/json; charset=us-ascii",
        "APPLICATION/JSON; profile=x",
    ] {
        let headers = [
            ("content-type", media_type),
            ("content-encoding", "identity"),
        ];
        let body = format!("\u{feff}{GOOD}");
        let answer = world.send("POST", PATH, &headers, body).await;
        answer.expect(StatusCode::ACCEPTED);
    }
    assert_eq!(events(&world).len(), 4);
}

#[tokio::test]
async fn a_tenant_must_exist() {
    let world = World::new().await;
    world
        .post(PATH, GOOD)
        .await
        .expect(StatusCode::NOT_FOUND)
        .problem("not-found");
    world
        .put("/v1/tenants/acme", "")
        .await
        .expect(StatusCode::CREATED);
    world.post(PATH, GOOD).await.expect(StatusCode::ACCEPTED);
}

type Change = fn(&mut proto::Event);

/// Changes that make a good event unfit, and the field that is wrong then.
const UNFIT: [(Change, &str); 9] = [
    (|event| event.tenant = "other".to_owned(), "tenant"),
    (|event| event.id = "a.b".to_owned(), "id"),
    (|event| event.r#type = String::new(), "type"),
    (|event| event.r#type = "postrider.x".to_owned(), "type"),
    (|event| event.ordering_key = "x".repeat(129), "ordering_key"),
    (|event| event.channels = vec!["x".to_owned()], "channels"),
    (|event| event.source = "x".to_owned(), "source"),
    (
        |event| event.data_content_type = "text/xml".to_owned(),
        "data_content_type",
    ),
    (|event| event.occurred_at_ms = i64::MAX, "occurred_at_ms"),
];

#[tokio::test]
async fn takes_protobuf_and_refuses_what_is_not_honoured_yet() {
    let world = World::with_tenant().await;
    let good = proto::Event {
        r#type: "invoice.paid".to_owned(),
        data: Bytes::from_static(b"{\"a\": 1 }"),
        registry_position: 99,
        registry_id: Some(99),
        accepted_at_ms: 99,
        ..proto::Event::default()
    };
    let send = async |event: &proto::Event| {
        let headers = [("content-type", "application/x-protobuf")];
        world
            .send("POST", PATH, &headers, event.encode_to_vec())
            .await
    };
    let answer = send(&good).await.expect(StatusCode::ACCEPTED);
    let event = events(&world).remove(0);
    assert_eq!(answer.json()["id"], event.id.as_str());
    assert_eq!(event.data, good.data);
    assert_eq!(event.accepted_at_ms, START_MS);
    assert_eq!(event.registry, world.registry.stamp());

    for (change, field) in UNFIT {
        let mut event = good.clone();
        change(&mut event);
        let answer = send(&event).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.wrong_fields(), [field]);
    }
    let headers = [("content-type", "application/x-protobuf")];
    let answer = world.send("POST", PATH, &headers, "\u{1}nonsense").await;
    answer.expect(StatusCode::BAD_REQUEST).problem("syntax");
    assert_eq!(world.records(EVENTS).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_only_after_the_log_has_the_event() {
    let world = World::with_tenant().await;
    let delay = Duration::from_secs(3);
    world.faults().next_append(
        EVENTS,
        AppendPlan {
            delay,
            fate: AppendFate::Acked,
        },
    );
    let started = Instant::now();
    world.post(PATH, GOOD).await.expect(StatusCode::ACCEPTED);
    assert!(started.elapsed() >= delay);
    assert_eq!(world.records(EVENTS).len(), 1);
}

#[tokio::test]
async fn an_append_that_failed_is_not_accepted() {
    let world = World::with_tenant().await;
    world.faults().next_append(EVENTS, AppendFate::Failed);
    let answer = world
        .post(PATH, GOOD)
        .await
        .expect(StatusCode::SERVICE_UNAVAILABLE);
    answer.problem("not-taken");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
    assert!(world.records(EVENTS).is_empty());
    world.post(PATH, GOOD).await.expect(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn an_append_of_unknown_fate_says_how_to_repeat_it() {
    let world = World::with_tenant().await;
    for fate in [AppendFate::UnknownLanded, AppendFate::UnknownAbsent] {
        world.faults().next_append(EVENTS, fate);
        let answer = world
            .post(PATH, GOOD)
            .await
            .expect(StatusCode::SERVICE_UNAVAILABLE);
        let problem = answer.problem("perhaps-taken");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
        let id = problem["id"].as_str().unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(id));
        let body = format!(r#"{{"type":"invoice.paid","data":{{}},"id":"{id}"}}"#);
        let again = world.post(PATH, body).await.expect(StatusCode::ACCEPTED);
        assert_eq!(again.json()["id"], id);
    }
    // The one that landed is there twice under one id: a repeat, which fan-out drops.
    assert_eq!(events(&world).len(), 3);
    assert!((world.metric("postrider_events_accepted_total") - 2.0).abs() < f64::EPSILON);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_never_answers_ends_in_503() {
    let world = World::with_tenant().await;
    let delay = Duration::from_secs(3600);
    world.faults().next_append(
        EVENTS,
        AppendPlan {
            delay,
            fate: AppendFate::Acked,
        },
    );
    let started = Instant::now();
    let answer = world
        .post(PATH, GOOD)
        .await
        .expect(StatusCode::SERVICE_UNAVAILABLE);
    answer.problem("perhaps-taken");
    assert!(started.elapsed() < Duration::from_secs(15));
    assert!(world.metric("postrider_events_in_flight").abs() < f64::EPSILON);
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused_announced_or_not() {
    let world = World::with_tenant().await;
    let body_of = |bytes: usize| {
        let head = r#"{"type":"a","data":""#;
        format!("{head}{}\"}}", "x".repeat(bytes - head.len() - 2))
    };
    let limit = 256 * 1024;
    world
        .post(PATH, body_of(limit))
        .await
        .expect(StatusCode::ACCEPTED);
    let too_long = body_of(limit + 1);
    let length = too_long.len().to_string();
    let headers = [
        ("content-type", "application/json"),
        ("content-length", length.as_str()),
    ];
    let answer = world.send("POST", PATH, &headers, Body::empty()).await;
    answer
        .expect(StatusCode::PAYLOAD_TOO_LARGE)
        .problem("body-too-large");
    let chunks: Vec<_> = too_long
        .as_bytes()
        .chunks(10_000)
        .map(Bytes::copy_from_slice)
        .collect();
    let chunks = futures_util::stream::iter(chunks).map(Ok::<_, std::io::Error>);
    let answer = world.post(PATH, Body::from_stream(chunks)).await;
    answer
        .expect(StatusCode::PAYLOAD_TOO_LARGE)
        .problem("body-too-large");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::with_tenant().await;
    let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let answer = world.post(PATH, Body::from_stream(never)).await;
    answer
        .expect(StatusCode::REQUEST_TIMEOUT)
        .problem("body-timeout");
    let broken = futures_util::stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
    let answer = world.post(PATH, Body::from_stream(broken)).await;
    answer
        .expect(StatusCode::BAD_REQUEST)
        .problem("body-broken");
}

/// Whoever announces bodies and sends none keeps nobody else from publishing.
#[tokio::test(start_paused = true)]
async fn what_was_announced_and_does_not_come_takes_no_room() {
    let world = World::with_tenant_and(|config| {
        config.event_bytes_max = 100;
        config.batch_bytes_max = 100;
        config.events_in_flight_bytes_max = 150;
    })
    .await;
    let begun = || {
        let begin = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]);
        let never = futures_util::stream::pending();
        world.post(PATH, Body::from_stream(begin.chain(never)))
    };
    let others = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let early = world.post(PATH, GOOD).await;
        early.expect(StatusCode::SERVICE_UNAVAILABLE);
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.post(PATH, GOOD).await.expect(StatusCode::ACCEPTED);
    };
    let (begun, ()) = tokio::join!(begun(), others);
    begun
        .expect(StatusCode::REQUEST_TIMEOUT)
        .problem("body-timeout");
    assert!(world.metric("postrider_events_in_flight_bytes").abs() < f64::EPSILON);
}

#[tokio::test(start_paused = true)]
async fn the_more_are_refused_the_later_they_are_asked_to_come_again() {
    let world = World::with_tenant_and(|config| config.events_in_flight_max = 1).await;
    let delay = Duration::from_secs(30);
    let fate = AppendFate::Acked;
    world
        .faults()
        .next_append(EVENTS, AppendPlan { delay, fate });
    let others = async {
        let mut latest = 0;
        // For as long as the first one waits.
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let answer = world.post(PATH, GOOD).await;
            latest = latest.max(answer.header("retry-after").parse().unwrap());
        }
        latest
    };
    let (_, latest) = tokio::join!(world.post(PATH, GOOD), others);
    assert_eq!(latest, 15, "with hardly one admitted");
}

#[tokio::test(start_paused = true)]
async fn fewer_are_let_in_while_the_log_takes_its_time() {
    let world = World::with_tenant_and(|config| config.events_in_flight_max = 300).await;
    let (delay, fate) = (Duration::from_secs(2), AppendFate::Acked);
    for _ in 0..250 {
        world
            .faults()
            .next_append(EVENTS, AppendPlan { delay, fate });
    }
    let events = (0..250).map(|_| world.post(PATH, GOOD));
    for answer in futures_util::future::join_all(events).await {
        answer.expect(StatusCode::ACCEPTED);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let at_most = world.metric("postrider_events_in_flight_max");
    assert!((at_most - 270.0).abs() < f64::EPSILON, "{at_most}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let at_most = world.metric("postrider_events_in_flight_max");
    assert!((at_most - 300.0).abs() < f64::EPSILON, "{at_most}");
}

#[tokio::test(start_paused = true)]
async fn refuses_early_when_too_much_is_under_way() {
    for by_bytes in [false, true] {
        let world = World::with_tenant_and(|config| {
            if by_bytes {
                config.event_bytes_max = GOOD.len();
                config.batch_bytes_max = GOOD.len();
                config.events_in_flight_bytes_max = GOOD.len();
            } else {
                config.events_in_flight_max = 1;
            }
        })
        .await;
        let delay = Duration::from_secs(3);
        world.faults().next_append(
            EVENTS,
            AppendPlan {
                delay,
                fate: AppendFate::Acked,
            },
        );
        let second = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!((world.metric("postrider_events_in_flight") - 1.0).abs() < f64::EPSILON);
            let bytes = f64::from(u32::try_from(GOOD.len()).unwrap());
            let shown = world.metric("postrider_events_in_flight_bytes");
            assert!((shown - bytes).abs() < f64::EPSILON, "{shown}");
            let started = Instant::now();
            let answer = world
                .post(PATH, GOOD)
                .await
                .expect(StatusCode::SERVICE_UNAVAILABLE);
            answer.problem("busy");
            assert_eq!(answer.header("retry-after"), "1");
            assert_eq!(answer.not_before, Some(NotBefore(Duration::from_secs(1))));
            assert!(
                started.elapsed() < Duration::from_millis(10),
                "it was not queued"
            );
        };
        let (first, ()) = tokio::join!(world.post(PATH, GOOD), second);
        first.expect(StatusCode::ACCEPTED);
        world.post(PATH, GOOD).await.expect(StatusCode::ACCEPTED);
        assert!(world.metric("postrider_events_in_flight").abs() < f64::EPSILON);
        assert!(world.metric("postrider_events_in_flight_bytes").abs() < f64::EPSILON);
        assert_eq!(
            world
                .metric(r#"postrider_events_refused_total{reason="busy"}"#)
                .round(),
            1.0
        );
    }
}
