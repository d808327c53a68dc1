//! A partition of `retry` that goes to another worker and comes back while its deliveries wait.

use std::time::{Duration, Instant};

use axum::http::Method;
use postrider_tests::{Cluster, LogKind, Plan, Received, Receiver, Reply, eventually};
use serde_json::json;

use crate::figures::Figures;
use crate::form::Form;
use crate::load::event_type;
use crate::topics::{drained, log_of};
use crate::world::{RECOVERS_WITHIN, path};

const ENDPOINTS: usize = 4;
const EVENTS: usize = 400;
/// One of so many events of an endpoint fails once, so that no breaker opens.
const ONE_OF: usize = 4;
const FAILING: usize = EVENTS / ONE_OF;
const COMES_AND_GOES: &str = "other-scheduler";
/// How late a retry may be on a busy machine.
const LATE_MAX: Duration = Duration::from_secs(15);

on_kafka!(retries_of_a_partition_that_went_and_came_back_are_neither_early_nor_doubled);

/// The delays in milliseconds that deliveries wait, one for each endpoint, each in a partition of
/// its own.
fn delays(form: Form) -> [u64; ENDPOINTS] {
    let shortest = form.pick(20_000, 90_000);
    std::array::from_fn(|endpoint| shortest + 2_000 * u64::try_from(endpoint).unwrap())
}

async fn retries_of_a_partition_that_went_and_came_back_are_neither_early_nor_doubled(form: Form) {
    let mut figures = Figures::new("moved-retries", form);
    let delays = delays(form);
    let mut cluster = Plan::new(LogKind::Kafka)
        .set(
            "POSTRIDER_TOPICS__RETRY_DELAYS_MS",
            &json!(delays).to_string(),
        )
        .stages_apart()
        .also_delivers(COMES_AND_GOES, &["scheduler"])
        .start()
        .await;
    let (api, receiver) = (cluster.api(), fails_once().await);
    for (endpoint, delay) in delays.iter().enumerate() {
        let settings = json!({
            "event_types": [event_type(endpoint)],
            "retry_schedule": [delay / 1_000],
        });
        api.create_endpoint(&receiver.url(&path(endpoint)), settings)
            .await;
    }
    tokio::task::block_in_place(|| cluster.terminate(COMES_AND_GOES));
    let began = Instant::now();
    for number in 0..EVENTS {
        let id = format!("evt_{number}");
        let event = json!({ "id": id, "type": event_type(number % ENDPOINTS), "data": {} });
        api.must(Method::POST, "/events", &event).await;
    }
    came(&receiver, EVENTS).await;
    let moves = form.pick(1, 3);
    for _ in 0..moves {
        cluster.start_again(COMES_AND_GOES);
        takes_partitions(&mut cluster).await;
        tokio::task::block_in_place(|| cluster.terminate(COMES_AND_GOES));
    }
    let (moved_within, first_due) = (began.elapsed(), Duration::from_millis(delays[0]));
    let early = receiver.count() - EVENTS;

    came(&receiver, EVENTS + FAILING).await;
    drained(&*log_of(&cluster)).await;
    let latest = check_times(&receiver, &delays);
    figures.set("moves", moves);
    figures.set_time("moved_within_s", moved_within);
    figures.set("requests_before_the_last_move", early);
    figures.set_time("latest_retry_s", latest);
    figures.save();
    assert!(
        moved_within < first_due,
        "moving took {moved_within:?}, longer than the first delay: this test shows nothing"
    );
    assert_eq!(receiver.count(), EVENTS + FAILING, "retries were doubled");
    assert!(latest <= LATE_MAX, "{latest:?} late");
}

async fn fails_once() -> Receiver {
    Receiver::start(|received: &Received| {
        let number: usize = received.id.trim_start_matches("evt_").parse().unwrap();
        let fails = (number / ENDPOINTS).is_multiple_of(ONE_OF) && received.number == 1;
        Reply::status(if fails { 500 } else { 200 })
    })
    .await
}

/// Waits until so many requests came.
async fn came(receiver: &Receiver, requests: usize) {
    eventually("all came", RECOVERS_WITHIN, async || {
        let count = receiver.count();
        if count >= requests {
            Ok(())
        } else {
            Err(count)
        }
    })
    .await;
}

/// Waits until the other scheduler has partitions, once more than before.
async fn takes_partitions(cluster: &mut Cluster) {
    let process = cluster.process(COMES_AND_GOES);
    let before = assignments(&process.output());
    eventually(
        "the other one has partitions",
        RECOVERS_WITHIN,
        async || {
            let now = assignments(&process.output());
            if now > before { Ok(()) } else { Err(now) }
        },
    )
    .await;
}

/// How often a process said that it was given partitions, at least one.
fn assignments(output: &str) -> usize {
    let said = output
        .lines()
        .filter(|line| line.contains("partitions assigned"));
    said.filter(|line| !line.contains("partitions=[]")).count()
}

/// Checks that no second attempt came before its time, and tells how late the latest was, the
/// jitter of a fifth aside.
fn check_times(receiver: &Receiver, delays: &[u64]) -> Duration {
    let mut latest = Duration::ZERO;
    for (endpoint, delay) in delays.iter().enumerate() {
        let delay = Duration::from_millis(*delay);
        let received = receiver.received(&path(endpoint));
        for second in received.iter().filter(|one| one.number == 2) {
            let first = received
                .iter()
                .find(|one| one.id == second.id && one.number == 1)
                .unwrap();
            let waited = second.at.duration_since(first.at);
            assert!(waited >= delay, "{} came after {waited:?}", second.id);
            latest = latest.max(waited.saturating_sub(delay * 6 / 5));
        }
    }
    latest
}
