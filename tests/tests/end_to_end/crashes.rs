//! Processes that die or are asked to end in the middle of the work.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postrider_tests::{LogKind, Plan, Received, Receiver, Reply, eventually};
use serde_json::json;

use crate::load::{LOAD_WITHIN, assert_each_once, assert_each_times, create_endpoints, publish};
use crate::topic_log::drained;

const PATH: &str = "/hook";
/// An attempt that was answered so long before is recorded, also on a busy machine.
const RECORDED_WITHIN: Duration = Duration::from_secs(2);

mod both {
    use super::*;
    on_both_logs!(
        kill_9_of_deliver_loses_nothing_and_repeats_only_what_was_in_flight,
        sigterm_loses_and_doubles_nothing
    );
}

mod stages {
    use super::*;
    on_kafka!(
        kill_9_of_fan_out_loses_and_doubles_nothing,
        kill_9_of_the_scheduler_loses_and_doubles_nothing
    );
}

/// Waits until the work is well under way and checks that it is not done.
async fn in_the_middle(receiver: &Receiver, from: usize, total: usize) {
    eventually("the work is under way", LOAD_WITHIN, async || {
        let count = receiver.count();
        if count >= from { Ok(()) } else { Err(count) }
    })
    .await;
    assert!(
        receiver.count() < total,
        "everything was done already: this test would show nothing"
    );
}

async fn kill_9_of_deliver_loses_nothing_and_repeats_only_what_was_in_flight(log: LogKind) {
    const EVENTS: usize = 5_000;
    const ANSWERED_AFTER: Duration = Duration::from_millis(250);
    let mut cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let receiver = Receiver::start(|_| Reply::status(200).after(ANSWERED_AFTER)).await;
    create_endpoints(&api, &receiver, PATH).await;
    let ids = publish(&api, EVENTS).await;
    in_the_middle(&receiver, 500, EVENTS).await;
    let killed = Instant::now();
    cluster.kill("deliver");
    cluster.restart("deliver").await;

    receiver.wait_for_all(PATH, &ids, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    let mut first = BTreeMap::new();
    let unrecorded_from = killed - ANSWERED_AFTER - RECORDED_WITHIN;
    for received in receiver.everything() {
        let came = *first.entry(received.id.clone()).or_insert(received.at);
        assert!(
            came == received.at || came >= unrecorded_from,
            "{} was repeated, which came {:?} before the kill",
            received.id,
            killed - came
        );
    }
    assert_eq!(first.len(), EVENTS);
}

async fn sigterm_loses_and_doubles_nothing(log: LogKind) {
    const EVENTS: usize = 2_000;
    let mut cluster = Plan::new(log).start().await;
    let api = cluster.api();
    // Up to a second, another time for each event.
    let within_a_second = |received: &Received| {
        let number = received.id.bytes().map(u64::from).sum::<u64>();
        Reply::status(200).after(Duration::from_millis(200 + 23 * number % 700))
    };
    let receiver = Receiver::start(within_a_second).await;
    create_endpoints(&api, &receiver, PATH).await;
    let ids = publish(&api, EVENTS).await;
    in_the_middle(&receiver, 300, EVENTS).await;
    cluster.terminate("deliver");
    let said = cluster.process("deliver").output();
    assert!(!said.contains("ERROR"), "nobody has to act: {said}");
    cluster.restart("deliver").await;

    receiver.wait_for_all(PATH, &ids, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    assert_each_once(&receiver, PATH, &ids);
}

async fn kill_9_of_fan_out_loses_and_doubles_nothing(log: LogKind) {
    const EVENTS: usize = 3_000;
    let mut cluster = Plan::new(log).stages_apart().start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    create_endpoints(&api, &receiver, PATH).await;
    let (ids, ()) = tokio::join!(publish(&api, EVENTS), async {
        in_the_middle(&receiver, 300, EVENTS).await;
        cluster.kill("fan-out");
    });
    cluster.restart("fan-out").await;

    receiver.wait_for_all(PATH, &ids, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    assert_each_once(&receiver, PATH, &ids);
}

async fn kill_9_of_the_scheduler_loses_and_doubles_nothing(log: LogKind) {
    const EVENTS: usize = 500;
    let mut cluster = Plan::new(log)
        .stages_apart()
        .set("POSTRIDER_RETRY__DEFAULT_SCHEDULE_MS", "[3000, 3000]")
        // Every first and second attempt fails here, which would open every breaker.
        .set("POSTRIDER_DELIVERY__DELIVER__BREAKER_FAILURES", "1000000")
        .start()
        .await;
    let api = cluster.api();
    let receiver =
        Receiver::start(|received| Reply::status(if received.number < 3 { 503 } else { 200 }))
            .await;
    create_endpoints(&api, &receiver, PATH).await;
    let ids = publish(&api, EVENTS).await;
    // Some second attempts were made, most are waiting, some third ones wait too.
    in_the_middle(&receiver, EVENTS + 50, 3 * EVENTS).await;
    cluster.kill("scheduler");
    cluster.restart("scheduler").await;

    receiver.wait_for(PATH, 3 * EVENTS, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    assert_each_times(&receiver, PATH, &ids, 3);
    let letters = api.get("/dead-letters").await;
    assert_eq!(letters["data"], json!([]));
}
