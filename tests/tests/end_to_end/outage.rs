//! The broker goes away and comes back.

use std::future::ready;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use postrider_tests::{Api, KafkaBroker, LogKind, Plan, Receiver, eventually};
use serde_json::json;
use tokio::net::TcpStream;

use crate::load::{ENDPOINTS, LOAD_WITHIN, create_endpoints};
use crate::topic_log::drained;

const PATH: &str = "/hook";
const PUBLISHERS: usize = 4;

/// What the chart gives a pod by default.
const ENDS_WITHIN: Duration = Duration::from_secs(50);

on_kafka!(
    every_accepted_event_survives_the_death_of_the_broker,
    every_process_ends_in_time_while_the_broker_is_frozen,
);

/// What the publishers were told.
#[derive(Debug, Default)]
struct Told {
    accepted: Vec<(String, Instant)>,
    refused: Vec<(u16, String, Instant)>,
}

/// Publishes until asked to stop, each event once.
async fn publish_on(api: &Api, publisher: usize, stop: &AtomicBool) -> Told {
    let mut told = Told::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("evt_{publisher}-{number}");
        let event_type = format!("load.n{}", number % ENDPOINTS);
        let event = json!({ "id": id, "type": event_type, "data": {} });
        let answer = api.json(Method::POST, "/events", &event).await.unwrap();
        if answer.status == 202 {
            told.accepted.push((id, Instant::now()));
        } else {
            let retry_after = answer.header("retry-after").to_owned();
            told.refused
                .push((answer.status, retry_after, Instant::now()));
            // As asked, but not as long.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    told
}

async fn every_accepted_event_survives_the_death_of_the_broker(log: LogKind) {
    let broker: &'static KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let plan = Plan::new(log)
        .broker(broker)
        .set("POSTRIDER_INGEST__APPEND_TIMEOUT_MS", "2000");
    let mut cluster = plan.start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    create_endpoints(&api, &receiver, PATH).await;
    let stop = AtomicBool::new(false);
    let publishers = join_all((0..PUBLISHERS).map(|publisher| publish_on(&api, publisher, &stop)));
    let (told, (killed, returned)) = tokio::join!(publishers, async {
        receiver.wait_for(PATH, 200, LOAD_WITHIN).await;
        tokio::task::block_in_place(|| broker.kill());
        let killed = Instant::now();
        // Long enough for requests to come into it, to fail and to be repeated.
        tokio::time::sleep(Duration::from_secs(8)).await;
        tokio::task::block_in_place(|| broker.restart());
        let returned = Instant::now();
        let before = receiver.count();
        receiver.wait_for(PATH, before + 500, LOAD_WITHIN).await;
        stop.store(true, Ordering::Relaxed);
        (killed, returned)
    });

    let accepted: Vec<_> = told.iter().flat_map(|told| told.accepted.clone()).collect();
    let refused: Vec<_> = told.iter().flat_map(|told| told.refused.clone()).collect();
    let (before, after): (Vec<_>, Vec<_>) = refused.iter().partition(|(_, _, at)| *at < returned);
    assert!(
        !before.is_empty(),
        "nothing was refused while the broker was away"
    );
    for (status, retry_after, _) in before.iter().chain(&after) {
        assert_eq!(*status, 503);
        assert!(
            retry_after.parse::<u32>().is_ok_and(|seconds| seconds > 0),
            "Retry-After: {retry_after:?}"
        );
    }
    let while_away = accepted
        .iter()
        .filter(|(_, at)| *at > killed + Duration::from_secs(1) && *at < returned);
    assert_eq!(
        while_away.count(),
        0,
        "an event was accepted while nothing could take it"
    );
    assert!(
        accepted.iter().any(|(_, at)| *at > returned),
        "ingest did not recover"
    );

    let ids: Vec<_> = accepted.into_iter().map(|(id, _)| id).collect();
    receiver.wait_for_all(PATH, &ids, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    for name in ["ingest-0", "deliver"] {
        assert!(cluster.process(name).is_running(), "{name} did not survive");
    }
}

async fn every_process_ends_in_time_while_the_broker_is_frozen(log: LogKind) {
    let broker: &'static KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let plan = Plan::new(log)
        .broker(broker)
        .stages_apart()
        .exports()
        .set("POSTRIDER_INGEST__APPEND_TIMEOUT_MS", "2000");
    let mut cluster = plan.start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    create_endpoints(&api, &receiver, PATH).await;
    let stop = AtomicBool::new(false);
    let (told, ()) = tokio::join!(publish_on(&api, 0, &stop), async {
        receiver.wait_for(PATH, 100, LOAD_WITHIN).await;
        // In the middle of the work of all.
        tokio::task::block_in_place(|| broker.freeze());
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!told.accepted.is_empty());
    // One that has not begun its work.
    cluster.kill("deliver");
    cluster.start_again("deliver");
    let health = cluster.health_address("deliver");
    eventually("it listens", LOAD_WITHIN, || TcpStream::connect(health)).await;

    let asked = Instant::now();
    for (_, process) in cluster.processes() {
        process.ask_to_end();
    }
    let names: Vec<String> = cluster
        .processes()
        .map(|(name, _)| name.to_owned())
        .collect();
    eventually("every process has ended", ENDS_WITHIN, || {
        let mut left = names.clone();
        left.retain(|name| cluster.process(name).is_running());
        let state = format!("{left:?} run after {:?}", asked.elapsed());
        ready(if left.is_empty() { Ok(()) } else { Err(state) })
    })
    .await;
    tokio::task::block_in_place(|| broker.thaw());
}
