//! What one machine carries end to end.
//!
//! Each event is 1 KiB and matches one of a few endpoints, on a receiver in a process of its own
//! that answers 200 at once. First as many events as fit through are published as fast as they are
//! accepted: events per second, and the CPU that each process took. Then events come at a fixed
//! rate that leaves the machine room: how long from the moment before an event is sent until its
//! webhook is at the receiver. Publisher, broker and receiver share the machine with what is
//! measured.

use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::{StreamExt, stream};
use postrider_tests::{Api, Cluster, KafkaBroker, LogKind, Plan};
use serde_json::json;

use crate::cpu;
use crate::receiver_process::{ReceiverProcess, now_us};
use crate::say;

const EVENTS: usize = 50_000;
const EVENT_BYTES: usize = 1_024;
const ENDPOINTS: usize = 16;
const WARM_UP_EVENTS: usize = 40_000;
const PUBLISHERS: usize = 64;
const PACED_EVENTS: usize = 5_000;
const PACED_PER_SECOND: u32 = 500;

pub(crate) async fn bench(log: LogKind) {
    say(&format!(
        "\n{log:?}: {EVENT_BYTES} byte events, fan-out 1, {ENDPOINTS} endpoints"
    ));
    let receiver = ReceiverProcess::start();
    let mut plan = Plan::new(log).set("POSTRIDER_TOPICS__PARTITIONS", "12");
    if log == LogKind::Kafka {
        plan = plan.broker(KafkaBroker::as_shipped());
    }
    let cluster = plan.start().await;
    let api = cluster.api();
    for number in 0..ENDPOINTS {
        let types = json!({ "event_types": [format!("bench.n{number}")] });
        api.create_endpoint(&receiver.url(), types).await;
    }
    // So that connections are open and code is warm.
    publish(&api, WARM_UP_EVENTS).await;
    receiver.finished(WARM_UP_EVENTS).await;

    let before = cpu_seconds(&cluster, &receiver);
    let started = Instant::now();
    publish(&api, EVENTS).await;
    let accepted = started.elapsed();
    receiver.finished(EVENTS).await;
    let delivered = started.elapsed();
    let used = cpu_seconds(&cluster, &receiver);
    say(&format!(
        "  accepted   {:>8.0} events/s",
        per_second(EVENTS, accepted)
    ));
    say(&format!(
        "  delivered  {:>8.0} events/s",
        per_second(EVENTS, delivered)
    ));
    for ((name, after), (_, before)) in used.iter().zip(&before) {
        let per_100_000 = (after - before) * 100_000.0 / per_second(EVENTS, Duration::from_secs(1));
        say(&format!(
            "  {name:<10} {per_100_000:>8.1} CPU-seconds per 100,000 events"
        ));
    }

    publish_paced(&api).await;
    let report = receiver.finished(PACED_EVENTS).await;
    let milliseconds = |name: &str| report[name].as_f64().unwrap_or_default() / 1000.0;
    say(&format!(
        "  at {PACED_PER_SECOND}/s, from sending to the receiver: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        milliseconds("p50_us"),
        milliseconds("p99_us"),
        milliseconds("max_us"),
    ));
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

async fn publish_one(api: &Api, number: usize) {
    let data = format!(r#"{{"sent_us":{},"padding":""#, now_us());
    let padding = "x".repeat(EVENT_BYTES.saturating_sub(data.len() + 2));
    let body = format!(
        r#"{{"type":"bench.n{}","data":{data}{padding}"}}}}"#,
        number % ENDPOINTS
    );
    let json = [("content-type", "application/json")];
    let answer = api
        .call(Method::POST, "/events", &json, body)
        .await
        .expect("ingest answers");
    assert_eq!(answer.status, 202, "{}", answer.json());
}

async fn publish(api: &Api, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(PUBLISHERS, |number| publish_one(api, number))
        .await;
}

/// Each event at its time, whether the earlier ones were answered or not.
async fn publish_paced(api: &Api) {
    let started = tokio::time::Instant::now();
    let events = stream::iter(0..PACED_EVENTS).then(async |number| {
        let after =
            f64::from(u32::try_from(number).unwrap_or(u32::MAX)) / f64::from(PACED_PER_SECOND);
        tokio::time::sleep_until(started + Duration::from_secs_f64(after)).await;
        number
    });
    events
        .for_each_concurrent(PUBLISHERS, |number| publish_one(api, number))
        .await;
}

/// CPU seconds that each process took so far.
fn cpu_seconds(cluster: &Cluster, receiver: &ReceiverProcess) -> Vec<(String, f64)> {
    let mut seconds = cpu::seconds(cluster, "publisher");
    seconds.push(("receiver".to_owned(), cpu::seconds_of(receiver.id())));
    seconds
}
