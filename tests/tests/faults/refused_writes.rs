//! `retry` and `dead-letters` refuse what is written to them.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_model::delivery::{Attempt, Delivery, LaneState};
use postrider_tests::{Cluster, KafkaBroker, Received, Receiver, Reply, eventually};
use serde_json::json;

use crate::audit::audit;
use crate::figures::Figures;
use crate::form::Form;
use crate::load::{Load, event_type};
use crate::topics::{committed, drained, log_of, records};
use crate::world::{RECOVERS_WITHIN, quick_sessions};

/// Fails one of its events once.
const FAILS_ONCE: &str = "/fails-once";
/// Fails one of its events, and gets no second attempt.
const FAILS: &str = "/fails";
const HEALTHY: &str = "/healthy";
const PATHS: [&str; 3] = [FAILS_ONCE, FAILS, HEALTHY];
/// One of so many events fails, so that no breaker opens.
const ONE_OF: usize = 4;

on_kafka!(offsets_wait_for_refused_retries_and_dead_letters_and_go_on_when_these_are_taken);

async fn offsets_wait_for_refused_retries_and_dead_letters_and_go_on_when_these_are_taken(
    form: Form,
) {
    let mut figures = Figures::new("refused-writes", form);
    let cluster = quick_sessions().broker(guarded_broker()).start().await;
    let receiver = Receiver::start(|received: &Received| {
        let fails = match received.path.as_str() {
            FAILS => is_chosen(&received.id),
            FAILS_ONCE => is_chosen(&received.id) && received.number == 1,
            _ => false,
        };
        Reply::status(if fails { 500 } else { 200 })
    })
    .await;
    for (number, path) in PATHS.iter().enumerate() {
        let schedule: &[u64] = if *path == FAILS { &[] } else { &[1, 1] };
        let settings = json!({
            "event_types": [event_type(number)],
            "retry_schedule": schedule,
        });
        cluster
            .api()
            .create_endpoint(&receiver.url(path), settings)
            .await;
    }
    refuse(&cluster, true);
    let load = Load::start(cluster.apis(), PATHS.len(), 20.0);
    tokio::time::sleep(Duration::from_secs(form.pick(8, 40))).await;
    let told = load.stop().await;
    let per_path = told.accepted.len() / PATHS.len();
    // That it cannot write down what becomes of others holds back nobody.
    receiver.wait_for(HEALTHY, per_path, RECOVERS_WITHIN).await;
    let uncovered = passed_unsettled(&cluster).await;
    let failed = failed(&receiver);
    let settled_early = settlements(&cluster, &failed).await;

    refuse(&cluster, false);
    let log = log_of(&cluster);
    eventually(
        "what failed came a second time",
        RECOVERS_WITHIN,
        async || {
            let counts = receiver.counts(FAILS_ONCE);
            let failed = counts.iter().filter(|(id, _)| is_chosen(id));
            match failed.filter(|(_, count)| **count < 2).count() {
                0 => Ok(()),
                once => Err(once),
            }
        },
    )
    .await;
    drained(&*log).await;
    let findings = audit(&*log, &told, &receiver).await;
    findings.tell(&mut figures);
    figures.set("offsets_passed_while_refused", uncovered);
    figures.set("failed_while_refused", failed.len());
    figures.set("settled_while_refused", settled_early);
    figures.save();
    assert!(
        !failed.is_empty(),
        "nothing failed: this test shows nothing"
    );
    assert_eq!(uncovered, 0, "offsets went on without a settlement");
    assert_eq!(settled_early, 0, "settled without its consequence");
    findings.assert_nothing_lost();
    let dead = receiver
        .counts(FAILS)
        .into_keys()
        .filter(|id| is_chosen(id));
    assert_eq!(findings.dead_lettered, dead.count());
    assert_eq!(findings.settled_twice, 0, "{findings:?}");
    assert_eq!(findings.repeated, 0, "{findings:?}");
}

/// A broker that lets everybody do everything but what is denied.
fn guarded_broker() -> &'static KafkaBroker {
    let authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer";
    let broker = KafkaBroker::start_with(&[
        ("authorizer.class.name", authorizer),
        ("allow.everyone.if.no.acl.found", "true"),
    ]);
    Box::leak(Box::new(broker))
}

/// Denies writing to the two topics, or no more.
fn refuse(cluster: &Cluster, refuses: bool) {
    let topics = ["retry", "dead-letters"].map(|topic| format!("{}{topic}", cluster.prefix()));
    let of_topics = ["--topic", &topics[0], "--topic", &topics[1]];
    let acl = |change: &[&str]| {
        let arguments = [change, &of_topics[..]].concat();
        tokio::task::block_in_place(|| {
            let class = "org.apache.kafka.tools.AclCommand";
            cluster.broker().tool(class, &arguments)
        });
    };
    let writing = ["--operation", "Write", "--deny-principal", "User:*"];
    if refuses {
        // Where there is any rule, only what a rule allows is allowed.
        acl(&["--add", "--operation", "All", "--allow-principal", "User:*"]);
        acl(&[&["--add"][..], &writing[..]].concat());
    } else {
        acl(&[&["--remove", "--force"][..], &writing[..]].concat());
    }
}

/// Deliveries that a commit has passed although they have no settlement and no cursor of their lane
/// covers them.
async fn passed_unsettled(cluster: &Cluster) -> usize {
    let log = log_of(cluster);
    // What is committed first: the settlements it stands on were there before.
    let committed = committed(&*log, "deliver", "deliveries").await;
    let states = records(&*log, "endpoint-state").await;
    let states: Vec<LaneState> = states
        .iter()
        .filter_map(|record| LaneState::decode(record.value.as_ref()?).ok())
        .collect();
    let attempts = records(&*log, "attempts").await;
    let settled: BTreeSet<_> = attempts
        .iter()
        .filter_map(|record| Attempt::decode(record.value.as_ref()?).ok())
        .filter(|attempt| attempt.settlement.is_some())
        .map(|attempt| (attempt.work, attempt.number))
        .collect();
    let deliveries = records(&*log, "deliveries").await;
    let passed = deliveries.iter().filter(|record| {
        let passed = committed.get(&record.partition).copied().unwrap_or(0) > record.offset;
        let delivery = Delivery::decode(record.value.as_ref().unwrap()).unwrap();
        let covered = states.iter().any(|state| {
            state.endpoint == delivery.endpoint
                && state.cursor.as_ref().is_some_and(|cursor| {
                    cursor.lowest_unsettled <= record.offset && !cursor.has_settled(record.offset)
                })
        });
        passed && !covered && !settled.contains(&(delivery.work_id(), delivery.attempt))
    });
    passed.count()
}

/// Whether this is one of the events that fail.
fn is_chosen(id: &str) -> bool {
    let number: usize = id.trim_start_matches("evt_").parse().unwrap();
    (number / PATHS.len()).is_multiple_of(ONE_OF)
}

/// The events that failed so far.
fn failed(receiver: &Receiver) -> BTreeSet<String> {
    let mut came = receiver.counts(FAILS);
    came.append(&mut receiver.counts(FAILS_ONCE));
    came.into_keys().filter(|id| is_chosen(id)).collect()
}

/// How many settlements there are of these events.
async fn settlements(cluster: &Cluster, events: &BTreeSet<String>) -> usize {
    let attempts = records(&*log_of(cluster), "attempts").await;
    let settled = attempts.iter().filter(|record| {
        let attempt = Attempt::decode(record.value.as_ref().unwrap()).unwrap();
        attempt.settlement.is_some() && events.contains(attempt.event_id.as_str())
    });
    settled.count()
}
