//! A worker that is frozen for longer than its session, and thawed when others have its partitions.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use postrider_tests::{LogKind, Plan, Receiver, Reply, eventually};

use crate::load::{LOAD_WITHIN, create_endpoints, publish};
use crate::topic_log::drained;

const PATH: &str = "/hook";
const EVENTS: usize = 400;
const SOON: Duration = Duration::from_secs(60);

on_kafka!(
    a_frozen_worker_of_a_classic_group_sends_nothing_stale,
    a_frozen_worker_of_a_consumer_group_sends_nothing_stale,
);

async fn a_frozen_worker_of_a_classic_group_sends_nothing_stale(log: LogKind) {
    a_frozen_worker_sends_nothing_stale(Plan::new(log).group_protocol("classic")).await;
}

async fn a_frozen_worker_of_a_consumer_group_sends_nothing_stale(log: LogKind) {
    a_frozen_worker_sends_nothing_stale(Plan::new(log).group_protocol("consumer")).await;
}

async fn a_frozen_worker_sends_nothing_stale(plan: Plan) {
    let mut cluster = plan.delivers(2).start().await;
    let api = cluster.api();
    let receiver = Receiver::start(|_| Reply::status(200).after(Duration::from_millis(500))).await;
    create_endpoints(&api, &receiver, PATH).await;
    for name in ["deliver-0", "deliver-1"] {
        let process = cluster.process(name);
        eventually("both have partitions", SOON, async || {
            let said = process.output();
            let mut lines = said.lines();
            let assigned = lines
                .any(|line| line.contains("partitions assigned") && line.contains("\"deliver\""));
            assigned.then_some(()).ok_or(said)
        })
        .await;
    }
    let ids = publish(&api, EVENTS).await;
    // In the middle of the work of both.
    receiver.wait_for(PATH, EVENTS / 10, LOAD_WITHIN).await;
    cluster.process("deliver-0").freeze();
    let received = receiver.received(PATH).len();
    assert!(received < EVENTS, "frozen when all was done");
    receiver.wait_for_all(PATH, &ids, LOAD_WITHIN).await;
    drained(&mut cluster).await;

    let thawed_at = Instant::now();
    cluster.process("deliver-0").thaw();
    let thawed = cluster.process("deliver-0");
    eventually("the thawed worker works again", SOON, async || {
        let said = thawed.output();
        match without_partitions(&said) {
            None => Err("nothing is lost yet".to_owned()),
            Some(stages) if stages.is_empty() => Ok(()),
            Some(stages) => Err(format!("{stages:?} did not get any again")),
        }
    })
    .await;
    let later = publish(&api, EVENTS).await;
    receiver.wait_for_all(PATH, &later, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    let after = receiver.counts(PATH);
    let stale: Vec<_> = receiver
        .received(PATH)
        .into_iter()
        .filter(|received| received.at > thawed_at && ids.contains(&received.id))
        .map(|received| (received.at - thawed_at, received.number, received.id))
        .collect();
    assert!(stale.is_empty(), "sent again after the thaw: {stale:?}");
    assert!(
        later.iter().all(|id| after[id] == 1),
        "the new ones came once"
    );
}

/// The stages that lost their partitions and were given none since; `None` while deliver has lost
/// none. A stage whose session outlasted the freeze loses nothing.
fn without_partitions(said: &str) -> Option<BTreeSet<String>> {
    let mut without = BTreeSet::new();
    let mut has_lost = false;
    for line in said.lines() {
        let stage = || Some(line.split_once("stage=\"")?.1.split_once('"')?.0.to_owned());
        if line.contains("partitions lost") {
            let stage = stage().expect("the line names its stage");
            has_lost |= stage == "deliver";
            without.insert(stage);
        } else if line.contains("partitions assigned")
            && let Some(stage) = stage()
        {
            without.remove(&stage);
        }
    }
    has_lost.then_some(without)
}
