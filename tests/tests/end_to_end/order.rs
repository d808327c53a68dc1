//! Endpoints that ask for order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use postrider_tests::{LogKind, Plan, Received, Receiver, Reply};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

on_both_logs!(
    a_failed_delivery_holds_back_its_key_and_no_other,
    a_head_that_fails_too_long_is_dead_lettered
);

fn number(received: &Received) -> i64 {
    let body: Value = serde_json::from_slice(&received.body).unwrap();
    body["data"]["n"].as_i64().unwrap()
}

async fn a_failed_delivery_holds_back_its_key_and_no_other(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let api = cluster.api();
    // The first event of the key `a` is refused twice.
    let refused = AtomicUsize::new(0);
    let receiver = Receiver::start(move |received| {
        let refuses = number(received) == 0 && refused.fetch_add(1, Ordering::Relaxed) < 2;
        Reply::status(if refuses { 500 } else { 200 })
    })
    .await;
    let settings = json!({ "ordered": true, "retry_schedule": [1, 5] });
    api.create_endpoint(&receiver.url("/hook"), settings).await;
    for n in 0..24 {
        let key = if n % 2 == 0 { "a" } else { "b" };
        let event = json!({ "type": "step.done", "data": { "n": n }, "ordering_key": key });
        api.publish(&event).await;
    }
    let received = receiver.wait_for("/hook", 26, SOON).await;
    let numbers: Vec<_> = received.iter().map(number).collect();
    let of_b: Vec<_> = numbers.iter().filter(|n| **n % 2 == 1).copied().collect();
    assert_eq!(of_b, (0..12).map(|n| 2 * n + 1).collect::<Vec<_>>());
    let mut of_a: Vec<_> = numbers.iter().filter(|n| **n % 2 == 0).copied().collect();
    of_a.dedup();
    assert_eq!(
        of_a,
        (0..12).map(|n| 2 * n).collect::<Vec<_>>(),
        "{numbers:?}"
    );
    let first_again = numbers.iter().rposition(|n| *n == 0).unwrap();
    let last_of_b = numbers.iter().position(|n| *n == 23).unwrap();
    assert!(last_of_b < first_again, "the other key waited: {numbers:?}");
}

async fn a_head_that_fails_too_long_is_dead_lettered(log: LogKind) {
    let cluster = Plan::new(log)
        .set("POSTRIDER_DELIVERY__DELIVER__BLOCKED_MS_MAX", "3000")
        .start()
        .await;
    let api = cluster.api();
    let receiver =
        Receiver::start(|received| Reply::status(if number(received) == 0 { 500 } else { 200 }))
            .await;
    let settings = json!({ "ordered": true, "retry_schedule": [1, 60, 60] });
    api.create_endpoint(&receiver.url("/hook"), settings).await;
    let publish = async |n: i64| {
        let event = json!({ "type": "step.done", "data": { "n": n }, "ordering_key": "a" });
        api.publish(&event).await
    };
    let refused = publish(0).await;
    publish(1).await;
    let buried = api
        .event_when(&refused, "it is dead-lettered", |event| {
            event["deliveries"][0]["state"] == "dead_lettered"
        })
        .await;
    let attempts = buried["deliveries"][0]["attempts"].as_array().unwrap();
    assert_eq!(
        attempts.len(),
        3,
        "at once, after 1 s, and at the end of 3 s: {buried}"
    );
    let received = receiver.wait_for("/hook", 4, SOON).await;
    let numbers: Vec<_> = received.iter().map(number).collect();
    assert_eq!(numbers, [0, 0, 0, 1]);
}
