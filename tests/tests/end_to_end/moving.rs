//! From the embedded log to Kafka, and a registry from a backup: nothing accepted is lost, and
//! endpoints stay who they are.

use std::collections::BTreeSet;

use axum::http::Method;
use bytes::Bytes;
use postrider_model::signature::{SigningSecret, sign};
use postrider_tests::{Api, Cluster, LogKind, Plan, Received, Receiver, Reply, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::load::LOAD_WITHIN;
use crate::topic_log::delete_topic;

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDazVmOB8HjEs=";
const EVENTS: usize = 60;

mod to_kafka {
    use super::*;
    on_kafka!(
        what_was_accepted_on_a_directory_is_delivered_from_kafka,
        a_registry_comes_back_from_its_backup,
        an_installation_moves_to_more_partitions_under_another_prefix,
        a_lost_key_costs_new_secrets_and_no_delivery,
    );
}

async fn publish(api: &Api, count: usize) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for number in 0..count {
        let event = json!({ "type": "moved.n", "data": { "number": number } });
        ids.insert(api.publish(&event).await);
    }
    ids
}

/// What is registered on the directory.
struct Registered {
    endpoints: [String; 3],
    gone: String,
}

async fn register(api: &Api, healthy: &Receiver, refusing: &Receiver) -> Registered {
    let secret = json!({ "secret": SECRET });
    let create = async |url: String| api.create_endpoint(&url, secret.clone()).await;
    let endpoints = [
        create(healthy.url("/healthy")).await,
        create(refusing.url("/refusing")).await,
        create(healthy.url("/paused")).await,
    ];
    let gone = create(healthy.url("/gone")).await;
    let pause = format!("/endpoints/{}/pause", endpoints[2]);
    api.must(Method::POST, &pause, &json!({})).await;
    let path = format!("/endpoints/{gone}");
    let deleted = api.call(Method::DELETE, &path, &[], Bytes::new()).await;
    deleted.unwrap();
    Registered { endpoints, gone }
}

/// Moves the data of a directory nobody works on.
fn move_data(before: &Cluster, after: &Cluster) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("moved.jsonl");
    let file = file.to_str().unwrap();
    before.run(&["export-data", "--file", file]);
    let again = before.command(&["export-data", "--file", file]);
    assert!(!ended_well(again), "a file is never overwritten");

    let import = ["import-data", "--file", file];
    let mut other_key = after.command(&import);
    other_key.env("POSTRIDER_KEYS__ENCRYPTION", "01".repeat(32));
    assert!(!ended_well(other_key));
    assert_eq!(after.records_written("registry"), 0, "nothing is half done");
    // As after an import that failed half-way.
    after.run(&import);
    after.run(&import);
}

async fn what_was_accepted_on_a_directory_is_delivered_from_kafka(log: LogKind) {
    // Long waits, so that much is under way when it stops.
    let schedule = "[20000, 20000, 20000]";
    let plan = |log| Plan::new(log).set("POSTRIDER_RETRY__DEFAULT_SCHEDULE_MS", schedule);
    let mut before = plan(LogKind::Embedded).start().await;
    let api = before.api();
    let healthy = Receiver::healthy().await;
    let refusing = Receiver::start(|_| Reply::status(503)).await;
    let Registered { endpoints, gone } = register(&api, &healthy, &refusing).await;
    let mut ids = publish(&api, EVENTS).await;
    let recorded = ids.clone();
    for id in &recorded {
        api.event_when(id, "it is recorded as delivered", is_delivered)
            .await;
    }
    // These are anywhere on their way.
    ids.extend(publish(&api, EVENTS).await);
    before.kill("up");

    let mut after = plan(log).prepare();
    move_data(&before, &after);
    after.begin().await;
    // The URL of an endpoint may change; who it is stays.
    let api = after.api();
    let receiver = Receiver::healthy().await;
    let moved = json!({ "url": receiver.url("/refusing") });
    let path = |id: &str, more: &str| format!("/endpoints/{id}{more}");
    api.must(Method::PATCH, &path(&endpoints[1], ""), &moved)
        .await;
    api.must(Method::POST, &path(&endpoints[2], "/resume"), &json!({}))
        .await;
    assert_eq!(listed(&api).await, endpoints.iter().cloned().collect());
    assert!(!endpoints.contains(&gone));
    // Their places are those that the moved ones had, and none is taken for a copy.
    ids.extend(publish(&api, EVENTS).await);

    let ids: Vec<String> = ids.into_iter().collect();
    healthy.wait_for_all("/healthy", &ids, LOAD_WITHIN).await;
    healthy.wait_for_all("/paused", &ids, LOAD_WITHIN).await;
    receiver.wait_for_all("/refusing", &ids, LOAD_WITHIN).await;
    assert_eq!(healthy.counts("/gone").len(), 0);
    let waited = [healthy.received("/paused"), receiver.received("/refusing")];
    assert!(waited.iter().flatten().all(is_signed));
    for (receiver, path) in [
        (&healthy, "/healthy"),
        (&healthy, "/paused"),
        (&receiver, "/refusing"),
    ] {
        let mut repeated = receiver.counts(path);
        repeated.retain(|_, count| *count > 1);
        assert!(
            repeated.len() < EVENTS / 2,
            "more than the kill left in doubt: {repeated:?}"
        );
        let again = recorded.iter().find(|id| repeated.contains_key(*id));
        assert_eq!(again, None, "what was settled is done again at {path}");
    }
}

/// To the healthy endpoint; the others don't take it.
fn is_delivered(event: &Value) -> bool {
    let deliveries = event["deliveries"].as_array();
    deliveries.is_some_and(|all| all.iter().any(|delivery| delivery["state"] == "delivered"))
}

async fn listed(api: &Api) -> BTreeSet<String> {
    let answer = api.get("/endpoints").await;
    let list = answer["data"].as_array().unwrap().iter();
    list.map(|endpoint| endpoint["id"].as_str().unwrap().to_owned())
        .collect()
}

fn is_signed(received: &Received) -> bool {
    let header = |name: &str| received.headers[name].to_str().unwrap().to_owned();
    let timestamp = header("webhook-timestamp").parse().unwrap();
    let secret = SigningSecret::parse(SECRET).unwrap();
    let signature = sign(&[secret], &received.id, timestamp, &received.body);
    header("webhook-signature") == signature
}

/// An installation on Kafka with an endpoint, and a backup of its registry.
struct Source {
    cluster: Cluster,
    endpoint: String,
    directory: TempDir,
}

impl Source {
    async fn start(log: LogKind, receiver: &Receiver) -> Self {
        let cluster = Plan::new(log).start().await;
        let settings =
            json!({ "secret": SECRET, "description": "the first", "event_types": ["a.b"] });
        let (api, url) = (cluster.api(), receiver.url("/hook"));
        let source = Self {
            cluster,
            endpoint: api.create_endpoint(&url, settings).await,
            directory: tempfile::tempdir().unwrap(),
        };
        let more = ["export-data", "--from", "kafka", "--file", &source.file()];
        let refused = source.cluster.command(&more);
        assert!(!ended_well(refused), "more than the registry while it runs");
        let backup = [&more[..], &["--registry-only"]].concat();
        source.cluster.run(&backup);
        source
    }

    fn file(&self) -> String {
        let path = self.directory.path().join("registry.jsonl");
        path.to_str().unwrap().to_owned()
    }

    async fn shown_by(&self, cluster: &Cluster) -> Value {
        let path = format!("/endpoints/{}", self.endpoint);
        cluster.api().get(&path).await
    }
}

async fn delivers(cluster: &Cluster, receiver: &Receiver) {
    let event = json!({ "type": "a.b", "data": {} });
    let event = cluster.api().publish(&event).await;
    receiver.wait_for_all("/hook", &[event], LOAD_WITHIN).await;
    assert!(receiver.received("/hook").iter().all(is_signed));
}

async fn a_registry_comes_back_from_its_backup(log: LogKind) {
    let receiver = Receiver::healthy().await;
    let mut source = Source::start(log, &receiver).await;
    delivers(&source.cluster, &receiver).await;
    let before = source.shown_by(&source.cluster).await;
    for name in ["ingest-0", "deliver"] {
        source.cluster.kill(name);
    }
    delete_topic(&source.cluster, "registry");
    source.cluster.run(&["topic", "create"]);
    let file = source.file();
    let import = ["import-data", "--registry-only", "--file", &file];
    source.cluster.run(&import);
    // Once more does nothing.
    source.cluster.run(&import);
    source.cluster.begin().await;
    assert_eq!(source.shown_by(&source.cluster).await, before);
    delivers(&source.cluster, &receiver).await;
}

async fn an_installation_moves_to_more_partitions_under_another_prefix(log: LogKind) {
    let receiver = Receiver::healthy().await;
    let source = Source::start(log, &receiver).await;
    let file = source.file();
    let import = ["import-data", "--registry-only", "--file", &file];
    // One with entities of its own is not mixed with it.
    let occupied = Plan::new(log).start().await;
    assert!(!ended_well(occupied.command(&import)));

    let wider = Plan::new(log).set("POSTRIDER_TOPICS__PARTITIONS", "8");
    let mut wider = wider.prepare();
    wider.run(&import);
    wider.begin().await;
    let before = source.shown_by(&source.cluster).await;
    assert_eq!(source.shown_by(&wider).await, before);
    // The old one serves what it has until it is empty.
    delivers(&source.cluster, &receiver).await;
    delivers(&wider, &receiver).await;
}

async fn a_lost_key_costs_new_secrets_and_no_delivery(log: LogKind) {
    let receiver = Receiver::healthy().await;
    let source = Source::start(log, &receiver).await;
    let other_key = Plan::new(log).set("POSTRIDER_KEYS__ENCRYPTION", &"01".repeat(32));
    let mut lost = other_key.prepare();
    let file = source.file();
    let import = ["import-data", "--registry-only", "--file", &file];
    let mut import = source.cluster.command(&import);
    import.env("POSTRIDER_KAFKA__PREFIX", lost.prefix());
    assert!(ended_well(import));
    // With other keys than what is there was sealed with, no role starts until an operator says
    // that they are right.
    lost.run(&["recover", "--registry", "--accept-keys", "--yes"]);
    lost.begin().await;
    let api = lost.api();
    let event = api.publish(&json!({ "type": "a.b", "data": {} })).await;
    let held = "postrider_attempt_permits{use=\"held\"} 1";
    eventually("a delivery waits for its secret", LOAD_WITHIN, async || {
        let metrics = lost.metrics("deliver").await;
        metrics.contains(held).then_some(()).ok_or(metrics)
    })
    .await;

    let rotate = format!("/endpoints/{}/secret/rotate", source.endpoint);
    let anew = json!({ "secret": SECRET, "overlap": 0 });
    api.must(Method::POST, &rotate, &anew).await;
    receiver.wait_for_all("/hook", &[event], LOAD_WITHIN).await;
    assert!(receiver.received("/hook").iter().all(is_signed));
}

fn ended_well(mut command: std::process::Command) -> bool {
    command
        .output()
        .expect("the binary starts")
        .status
        .success()
}
