//! What becomes of one event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use axum::http::Method;
use postrider_tests::{LogKind, Plan, Receiver, Reply, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

on_both_logs!(
    delivers_at_the_first_try,
    retries_then_delivers_and_never_early,
    exhausts_the_schedule_then_dead_letters,
    redriving_twice_delivers_once,
    status_410_disables_the_endpoint,
    delivers_an_event_published_right_after_its_endpoint_was_created,
    delivers_the_same_event_to_two_endpoints,
    an_event_without_a_match_has_a_route_that_says_so,
);

/// A receiver whose status can be changed.
async fn switchable(status: u16) -> (Receiver, Arc<AtomicU16>) {
    let switch = Arc::new(AtomicU16::new(status));
    let position = Arc::clone(&switch);
    let receiver = Receiver::start(move |_| Reply::status(position.load(Ordering::Relaxed))).await;
    (receiver, switch)
}

/// What became of the event at its only endpoint.
fn state(event: &Value) -> &str {
    event["deliveries"][0]["state"].as_str().unwrap_or_default()
}

async fn delivers_at_the_first_try(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    let endpoint = api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    let data = r#"{"amount": 4200,  "currency":"EUR", "ratio": 1.50}"#;
    let body = format!(r#"{{"type":"invoice.paid","data":{data}}}"#);
    let json = [("content-type", "application/json")];
    let answer = api
        .call(Method::POST, "/events", &json, body)
        .await
        .unwrap();
    assert_eq!(answer.status, 202);
    let id = answer.json()["id"].as_str().unwrap().to_owned();

    let received = receiver.wait_for("/hook", 1, SOON).await.remove(0);
    assert_eq!(received.id, id);
    assert_eq!(received.headers["content-type"], "application/json");
    assert!(
        received.headers["user-agent"]
            .to_str()
            .unwrap()
            .starts_with("Postrider/")
    );
    let text = String::from_utf8(received.body.to_vec()).unwrap();
    assert!(text.contains(data), "data is not as it came: {text}");
    let event = api
        .event_when(&id, "the attempt is recorded", |event| {
            state(event) == "delivered"
        })
        .await;
    assert_eq!(event["route"]["endpoints"], json!([endpoint]));
    assert_eq!(
        event["deliveries"][0]["attempts"][0]["outcome"],
        "succeeded"
    );
    let attempts = format!("/endpoints/{endpoint}/attempts");
    let attempts = api
        .list_when(&attempts, "it is listed", |list| list.len() == 1)
        .await;
    assert_eq!(attempts[0]["event_id"], json!(id));
}

async fn retries_then_delivers_and_never_early(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let receiver =
        Receiver::start(|received| Reply::status(if received.number < 3 { 500 } else { 200 }))
            .await;
    api.create_endpoint(&receiver.url("/hook"), json!({ "retry_schedule": [1, 2] }))
        .await;
    let id = api
        .publish(&json!({ "type": "invoice.paid", "data": {} }))
        .await;

    let received = receiver.wait_for("/hook", 3, SOON).await;
    let waits: Vec<_> = received
        .windows(2)
        .map(|pair| pair[1].at - pair[0].at)
        .collect();
    for (wait, least) in waits.iter().zip([1, 2]) {
        let least = Duration::from_secs(least);
        // At most 20 % jitter and, on an idle system, 1 s; the rest is for a machine that is busy
        // with other tests.
        assert!(
            *wait >= least && *wait < least * 6 / 5 + Duration::from_secs(4),
            "{waits:?}"
        );
    }
    assert!(
        received
            .iter()
            .all(|request| request.id == id && request.body == received[0].body)
    );
    let event = api
        .event_when(&id, "it is delivered", |event| state(event) == "delivered")
        .await;
    let outcomes: Vec<_> = event["deliveries"][0]["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    let outcomes: Vec<_> = outcomes
        .iter()
        .map(|attempt| &attempt["settlement"])
        .collect();
    assert_eq!(
        outcomes,
        ["retry_scheduled", "retry_scheduled", "delivered"]
    );
}

async fn exhausts_the_schedule_then_dead_letters(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let (api, (receiver, _)) = (cluster.api(), switchable(500).await);
    let endpoint = api
        .create_endpoint(&receiver.url("/hook"), json!({ "retry_schedule": [1, 1] }))
        .await;
    let id = api
        .publish(&json!({ "type": "invoice.paid", "data": {} }))
        .await;

    let event = api
        .event_when(&id, "it is given up", |event| {
            state(event) == "dead_lettered"
        })
        .await;
    assert_eq!(
        event["deliveries"][0]["attempts"].as_array().unwrap().len(),
        3
    );
    let letters = api
        .list_when("/dead-letters", "it is listed", |letters| {
            letters.len() == 1
        })
        .await;
    assert_eq!(letters[0]["reason"], "exhausted");
    assert_eq!(letters[0]["last_status"], 500);
    assert_eq!(
        (&letters[0]["endpoint_id"], &letters[0]["event_id"]),
        (&json!(endpoint), &json!(id))
    );
    assert_eq!(receiver.count(), 3);
}

async fn redriving_twice_delivers_once(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let (api, (receiver, switch)) = (cluster.api(), switchable(500).await);
    api.create_endpoint(&receiver.url("/hook"), json!({ "retry_schedule": [] }))
        .await;
    let id = api
        .publish(&json!({ "type": "invoice.paid", "data": {} }))
        .await;
    let letters = api
        .list_when("/dead-letters", "it is given up", |letters| {
            letters.len() == 1
        })
        .await;
    assert_eq!(receiver.count(), 1);

    switch.store(200, Ordering::Relaxed);
    let command = json!({ "ids": [letters[0]["id"]], "command_id": "cmd_again" });
    for _ in 0..2 {
        let redriven = api
            .must(Method::POST, "/dead-letters/redrive", &command)
            .await;
        assert_eq!(redriven["redriven"], 1);
    }
    receiver
        .wait_for_all("/hook", std::slice::from_ref(&id), SOON)
        .await;
    // One event more, behind both: when it has come, so has whatever they led to.
    let last = api
        .publish(&json!({ "type": "invoice.paid", "data": {} }))
        .await;
    receiver
        .wait_for_all("/hook", std::slice::from_ref(&last), SOON)
        .await;
    api.event_when(&last, "the last one is settled", |event| {
        state(event) == "delivered"
    })
    .await;
    assert_eq!(receiver.counts("/hook")[&id], 2);
    let event = api.event_when(&id, "both runs are shown", |event| {
        event["deliveries"]
            .as_array()
            .is_some_and(|deliveries| deliveries.len() == 2)
    });
    let event = event.await;
    let states: Vec<_> = event["deliveries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| &run["state"])
        .collect();
    assert_eq!(states, ["dead_lettered", "delivered"]);
}

async fn status_410_disables_the_endpoint(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let (api, (receiver, _)) = (cluster.api(), switchable(410).await);
    let endpoint = api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    let first = api
        .publish(&json!({ "type": "invoice.paid", "data": {} }))
        .await;
    api.event_when(&first, "it is given up", |event| {
        state(event) == "dead_lettered"
    })
    .await;

    let letters = api
        .list_when("/dead-letters", "it is listed", |letters| {
            letters.len() == 1
        })
        .await;
    assert_eq!(letters[0]["reason"], "endpoint_gone");
    // The API reads the dead letter and the endpoint from two topics, each as it comes.
    eventually("the endpoint is disabled", SOON, async || {
        let shown = api.get(&format!("/endpoints/{endpoint}")).await;
        let told = (&shown["state"], &shown["disabled_reason"]);
        let disabled = told == (&json!("disabled"), &json!("endpoint_gone"));
        disabled.then_some(()).ok_or(shown)
    })
    .await;
    let second = api
        .publish(&json!({ "type": "invoice.paid", "data": {} }))
        .await;
    let event = api
        .event_when(&second, "it is routed", |event| event["route"].is_object())
        .await;
    assert_eq!(event["route"]["endpoints"], json!([]));
    assert_eq!(receiver.count(), 1);
}

async fn delivers_an_event_published_right_after_its_endpoint_was_created(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    for number in 0..10 {
        let (path, event_type) = (format!("/hook/{number}"), format!("new.n{number}"));
        api.create_endpoint(&receiver.url(&path), json!({ "event_types": [event_type] }))
            .await;
        let id = api
            .publish(&json!({ "type": event_type, "data": {} }))
            .await;
        receiver.wait_for_all(&path, &[id], SOON).await;
    }
}

async fn delivers_the_same_event_to_two_endpoints(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    for path in ["/one", "/two"] {
        api.create_endpoint(&receiver.url(path), json!({ "event_types": ["invoice.*"] }))
            .await;
    }
    let id = api
        .publish(&json!({ "type": "invoice.paid", "data": { "amount": 1 } }))
        .await;
    for path in ["/one", "/two"] {
        let received = receiver.wait_for(path, 1, SOON).await;
        assert_eq!(received[0].id, id);
    }
    let (one, two) = (
        receiver.received("/one").remove(0),
        receiver.received("/two").remove(0),
    );
    assert_eq!(one.body, two.body);
    assert_ne!(
        one.headers["webhook-signature"],
        two.headers["webhook-signature"]
    );
}

async fn an_event_without_a_match_has_a_route_that_says_so(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    api.create_endpoint(
        &receiver.url("/hook"),
        json!({ "event_types": ["invoice.*"] }),
    )
    .await;
    let id = api.publish(&json!({ "type": "invoice", "data": {} })).await;
    let event = api
        .event_when(&id, "it is routed", |event| event["route"].is_object())
        .await;
    assert_eq!(event["route"]["endpoints"], json!([]));
    assert_eq!(event["deliveries"], json!([]));
    assert_eq!(receiver.count(), 0);
}
