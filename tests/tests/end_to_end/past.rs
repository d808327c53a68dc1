//! Logs whose past is another than the one that was read: nothing that is new is lost without a
//! word. It goes on by itself, or is stopped with the true cause, and goes on when
//! `postrider recover` decides.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::Method;
use futures_util::StreamExt;
use futures_util::stream;

use postrider_tests::{Cluster, KafkaBroker, LogKind, Plan, Receiver, eventually};
use serde_json::json;

use crate::load::{ENDPOINTS, LOAD_WITHIN, assert_each_once, with_all_delivered};
use crate::topic_log::{TOPICS, delete_topic, drained, until_new, with_log};

const PATH: &str = "/hook";
const EVENTS: usize = 80;
const NEW_EVENTS: usize = 200;
const PARTITIONS: &str = "4";
/// A topic that was made again is noticed after a few seconds, and an operator looks now and then.
const RECOVERED_WITHIN: Duration = Duration::from_secs(180);

mod topics {
    use super::*;
    on_kafka!(
        events_made_again_under_running_roles_are_not_lost,
        deliveries_made_again_under_running_roles_are_not_lost,
        topics_made_again_while_nothing_runs_are_stopped_and_begin_anew,
        a_backlog_in_a_topic_that_was_made_again_is_not_lost_without_a_word,
        a_topic_that_grew_past_what_was_committed_in_another_is_stopped_and_then_read,
        a_tail_lost_while_the_broker_was_down_hides_nothing_that_is_new,
        states_made_again_hold_the_backlog_back_until_recover,
    );
}

async fn events_made_again_under_running_roles_are_not_lost(log: LogKind) {
    made_again_under_running_roles(log, "events").await;
}

async fn deliveries_made_again_under_running_roles_are_not_lost(log: LogKind) {
    made_again_under_running_roles(log, "deliveries").await;
}

async fn made_again_under_running_roles(log: LogKind, topic: &str) {
    let (cluster, receiver, _) = with_all_delivered(Plan::new(log), PATH, EVENTS).await;

    delete_topic(&cluster, topic);
    create(&cluster, topic);
    until_new(&cluster, topic).await;
    let ids = publish_whatever_it_takes(&cluster, NEW_EVENTS).await;
    all_come(&cluster, &receiver, &ids).await;
}

async fn topics_made_again_while_nothing_runs_are_stopped_and_begin_anew(log: LogKind) {
    let (mut cluster, receiver, mut ids) = with_all_delivered(Plan::new(log), PATH, EVENTS).await;
    for topics in [&["events"][..], &["deliveries"], &["events", "deliveries"]] {
        cluster.terminate("deliver");
        cluster.terminate("ingest-0");
        for topic in topics {
            delete_topic(&cluster, topic);
        }
        make_again(&cluster);
        for topic in topics {
            until_new(&cluster, topic).await;
        }
        cluster.restart("ingest-0").await;
        cluster.restart("deliver").await;
        for topic in topics {
            let stage = if *topic == "events" {
                "fan-out"
            } else {
                "deliver"
            };
            let shown = cluster.run(&["recover", "--stage", stage]);
            assert!(shown.contains("the topic was made again"), "{shown}");
        }
        ids.extend(publish_whatever_it_takes(&cluster, NEW_EVENTS).await);
        all_come(&cluster, &receiver, &ids).await;
        drained(&mut cluster).await;
        assert_each_once(&receiver, PATH, &ids);
    }
}

/// Creates what is missing, and is told that it had been there before.
fn make_again(cluster: &Cluster) {
    let created = cluster.command(&["topic", "create"]).output().unwrap();
    let said = String::from_utf8_lossy(&created.stderr);
    assert!(
        created.status.success() && said.contains("was there before"),
        "{said}"
    );
}

/// What waits for a paused endpoint is in `deliveries`. It is gone with it, but not the events.
async fn a_backlog_in_a_topic_that_was_made_again_is_not_lost_without_a_word(log: LogKind) {
    let (mut cluster, receiver, mut ids) = with_all_delivered(Plan::new(log), PATH, EVENTS).await;
    let api = cluster.api();
    let tenant = api.tenant().to_owned();
    let types = json!({ "event_types": ["load.paused"] });
    let endpoint = api.create_endpoint(&receiver.url(PATH), types).await;
    let of_endpoint = |verb: &str| format!("/v1/tenants/{tenant}/endpoints/{endpoint}/{verb}");
    api.must(Method::POST, &of_endpoint("pause"), &json!({}))
        .await;
    let mut lost = Vec::new();
    for number in 0..20 {
        let event = json!({ "type": "load.paused", "data": { "number": number } });
        lost.push(api.publish(&event).await);
    }
    for id in &lost {
        let matched = |event: &serde_json::Value| event["deliveries"][0]["state"] == "pending";
        api.event_when(id, "it waits", matched).await;
    }
    let bounds = with_log(&mut cluster, async |log| log.all_bounds("deliveries").await);
    let bounds = bounds.await.unwrap();
    let filled = bounds.iter().filter(|one| one.end > 0).count();
    delete_topic(&cluster, "deliveries");
    let missing = async || {
        let ready = cluster.health("deliver", "/readyz").await;
        let ready = String::from_utf8_lossy(&ready.body).into_owned();
        let metrics = cluster.metrics("deliver").await;
        let line = "postrider_topic_partitions_unexpected{topic=\"deliveries\"} -4";
        let shown = metrics.lines().any(|one| one == line);
        let told = shown && ready.contains("partitions_as_configured");
        told.then_some(()).ok_or(ready)
    };
    eventually("the topic is missed", RECOVERED_WITHIN, missing).await;
    make_again(&cluster);
    until_new(&cluster, "deliveries").await;
    api.must(Method::POST, &of_endpoint("resume"), &json!({}))
        .await;
    let told = async || {
        let shown = cluster.run(&["recover", "--stage", "deliver"]);
        let told = shown.contains("the topic was made again");
        told.then_some(()).ok_or(shown)
    };
    eventually("the loss is told", RECOVERED_WITHIN, told).await;
    // One that was empty loses nothing, and is stopped only if its commit went with the topic.
    let stopped = async || {
        let metrics = cluster.metrics("deliver").await;
        let line = "postrider_partitions_stopped{stage=\"deliver\"} ";
        let shown = metrics.lines().find_map(|one| one.strip_prefix(line));
        let stopped: Option<usize> = shown.and_then(|shown| shown.parse().ok());
        let all = stopped.is_some_and(|stopped| stopped >= filled);
        all.then_some(()).ok_or(metrics)
    };
    eventually(
        "every partition that held something is stopped",
        RECOVERED_WITHIN,
        stopped,
    )
    .await;
    assert_obstacle(&cluster, &endpoint, "its topic was made again").await;
    ids.extend(publish_whatever_it_takes(&cluster, EVENTS).await);
    all_come(&cluster, &receiver, &ids).await;
    let since = json!({ "since": "2026-01-01T00:00:00Z" });
    api.must(Method::POST, &of_endpoint("replay"), &since).await;
    receiver.wait_for_all(PATH, &lost, LOAD_WITHIN).await;
    let ready = cluster.health("deliver", "/readyz").await;
    assert_eq!(ready.status, 200);
}

async fn a_topic_that_grew_past_what_was_committed_in_another_is_stopped_and_then_read(
    log: LogKind,
) {
    let (mut cluster, receiver, _) = with_all_delivered(Plan::new(log), PATH, EVENTS).await;
    cluster.terminate("deliver");
    let committed = with_log(&mut cluster, async |log| {
        log.committed("fan-out", "events").await
    });
    let committed = (0..).zip(committed.await.unwrap().into_iter().flatten());
    let committed: Vec<_> = committed.collect();
    assert_eq!(committed.len(), 4, "every partition has a commit");
    delete_topic(&cluster, "events");
    create(&cluster, "events");
    until_new(&cluster, "events").await;
    let ids = publish_whatever_it_takes(&cluster, NEW_EVENTS).await;
    // Where a broker keeps the commits of a topic that is deleted, as a mirror's does.
    with_log(&mut cluster, async |log| {
        log.set_committed("fan-out", "events", &committed).await
    })
    .await
    .unwrap();
    cluster.restart("deliver").await;
    all_come(&cluster, &receiver, &ids).await;
}

/// The broker comes back without the last records of every partition, as after a power cut, and the
/// roles go on running.
async fn a_tail_lost_while_the_broker_was_down_hides_nothing_that_is_new(log: LogKind) {
    let broker: &KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let plan = Plan::new(log).broker(broker);
    let (cluster, receiver, _) = with_all_delivered(plan, PATH, EVENTS).await;
    broker.kill();
    for topic in ["events", "deliveries"] {
        broker.lose_tails(&format!("{}{topic}", cluster.prefix()));
    }
    broker.restart();
    let ids = publish_whatever_it_takes(&cluster, NEW_EVENTS).await;
    all_come(&cluster, &receiver, &ids).await;
}

async fn states_made_again_hold_the_backlog_back_until_recover(log: LogKind) {
    let mut cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let receiver = Receiver::healthy().await;
    let types = json!({ "event_types": ["load.n0"] });
    let endpoint = api.create_endpoint(&receiver.url(PATH), types).await;
    let pause = format!("/v1/tenants/{}/endpoints/{endpoint}/pause", api.tenant());
    api.must(Method::POST, &pause, &json!({})).await;
    let events = stream::iter(0..EVENTS).map(async |number| {
        let event = json!({ "type": "load.n0", "data": { "number": number } });
        api.publish(&event).await
    });
    let ids: Vec<String> = events.buffer_unordered(8).collect().await;
    // A cursor takes their place, and the commit passes them.
    drained(&mut cluster).await;
    cluster.terminate("deliver");
    delete_topic(&cluster, "endpoint-state");
    cluster.run(&["topic", "create"]);
    cluster.restart("deliver").await;
    let resume = format!("/v1/tenants/{}/endpoints/{endpoint}/resume", api.tenant());
    api.must(Method::POST, &resume, &json!({})).await;
    let told = async || {
        let shown = cluster.run(&["recover", "--stage", "deliver"]);
        let told = shown.contains("endpoint-state");
        told.then_some(()).ok_or(shown)
    };
    eventually("the cause is told", RECOVERED_WITHIN, told).await;
    assert_obstacle(
        &cluster,
        &endpoint,
        "of endpoint-state was written and is gone",
    )
    .await;
    all_come(&cluster, &receiver, &ids).await;
}

/// The tenant is told as well.
async fn assert_obstacle(cluster: &Cluster, endpoint: &str, cause: &str) {
    let path = format!("/endpoints/{endpoint}/status");
    eventually("the obstacle is shown", RECOVERED_WITHIN, async || {
        let answer = cluster.api().call(Method::GET, &path, &[], "").await;
        let shown = answer.map_err(|error| format!("{error:?}"))?.json();
        let told = shown["obstacles"].to_string().contains(cause);
        told.then_some(()).ok_or(shown.to_string())
    })
    .await;
}

/// Past `postrider topic create`, which would found the groups.
fn create(cluster: &Cluster, topic: &str) {
    let name = format!("{}{topic}", cluster.prefix());
    let create = ["--create", "--topic", &name, "--partitions", PARTITIONS];
    let settings = ["--config", "message.timestamp.type=LogAppendTime"];
    cluster
        .broker()
        .tool(TOPICS, &[&create[..], &settings].concat());
}

/// Publishes so many events, each again until it is accepted.
async fn publish_whatever_it_takes(cluster: &Cluster, count: usize) -> Vec<String> {
    let api = cluster.api();
    static ROUNDS: AtomicUsize = AtomicUsize::new(0);
    let round = ROUNDS.fetch_add(1, Ordering::Relaxed);
    let events = stream::iter(0..count).map(async |number| {
        let id = format!("evt_{round}_{number}");
        let event_type = format!("load.n{}", number % ENDPOINTS);
        let event = json!({ "id": id, "type": event_type, "data": { "number": number } });
        let publish = async || match api.json(Method::POST, "/events", &event).await {
            Ok(answer) if answer.status == 202 => Ok(()),
            other => Err(format!("{other:?}")),
        };
        eventually("the event is accepted", LOAD_WITHIN, publish).await;
        id
    });
    events.buffer_unordered(8).collect().await
}

/// Waits until all events have come, deciding as an operator would who is called.
async fn all_come(cluster: &Cluster, receiver: &Receiver, ids: &[String]) {
    eventually("all events come", RECOVERED_WITHIN, async || {
        let counts = receiver.counts(PATH);
        let missing = ids.iter().filter(|id| !counts.contains_key(*id)).count();
        if missing == 0 {
            return Ok(());
        }
        let mut stopped = Vec::new();
        for stage in ["fan-out", "deliver", "scheduler"] {
            let undone = ["recover", "--stage", stage, "--from", "undone", "--yes"];
            let said = cluster.command(&undone).output().expect("it starts");
            stopped.push(format!(
                "{stage}: {}{}",
                String::from_utf8_lossy(&said.stdout),
                String::from_utf8_lossy(&said.stderr)
            ));
        }
        Err(format!("{missing} missing; {stopped:?}"))
    })
    .await;
}
