//! Topics with other partitions than configured: nobody starts on them, and whoever runs stops and
//! says why.

use std::time::{Duration, Instant};

use axum::http::Method;
use postrider_tests::process::Process;
use postrider_tests::{Cluster, LogKind, Plan, Receiver, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const PATH: &str = "/hook";

mod counts {
    use super::*;
    on_kafka!(
        another_count_is_refused_by_create_and_by_every_role,
        added_partitions_stop_every_role_until_they_are_configured,
    );
}

async fn another_count_is_refused_by_create_and_by_every_role(log: LogKind) {
    let cluster = Plan::new(log).prepare();
    let other = ("POSTRIDER_TOPICS__PARTITIONS", "6");
    let mut create = cluster.command(&["topic", "create"]);
    let created = create.env(other.0, other.1).output().unwrap();
    let said = String::from_utf8_lossy(&created.stdout);
    assert!(!created.status.success(), "{said}");
    let refused = said
        .lines()
        .filter(|line| line.contains("has 4 partitions, configured are 6"));
    assert_eq!(refused.count(), 6, "{said}");

    let any = "127.0.0.1:0";
    for role in [
        &["ingest", "--listen", any, "--health-listen", any][..],
        &["deliver", "--health-listen", any],
    ] {
        let mut command = cluster.command(role);
        let said = refuses(command.env(other.0, other.1)).await;
        assert!(
            said.contains("the topic events has 4 partitions, configured are 6"),
            "{said}"
        );
    }
}

/// Runs a role that does not begin its work, and gives what it says.
async fn refuses(command: &mut std::process::Command) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut process = Process::start("refused", directory.path(), command);
    let started = Instant::now();
    let ended = loop {
        if let Some(ended) = process.ended() {
            break ended;
        }
        assert!(started.elapsed() < SOON, "it goes on: {}", process.output());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(!ended.success());
    process.output()
}

async fn added_partitions_stop_every_role_until_they_are_configured(log: LogKind) {
    let mut cluster = Plan::new(log).exports().start().await;
    let receiver = Receiver::healthy().await;
    let api = cluster.api();
    let endpoint = api.create_endpoint(&receiver.url(PATH), json!({})).await;
    api.publish(&json!({"type": "a.b", "data": {}})).await;
    receiver.wait_for(PATH, 1, SOON).await;

    alter(&cluster, "deliveries", 7);
    for name in ["ingest-0", "deliver", "exporter"] {
        shows(&cluster, name, 3).await;
    }
    let events = format!("/v1/tenants/{}/events", api.tenant());
    eventually("events are refused", SOON, async || {
        let event = json!({"type": "a.b", "data": {}});
        match api.json(Method::POST, &events, &event).await {
            Ok(answer) if answer.status == 503 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let said = cluster.process("deliver").output();
    assert!(
        said.contains("the partitions of a topic were changed"),
        "{said}"
    );
    for name in ["ingest-0", "deliver", "exporter"] {
        assert!(
            cluster.process(name).is_running(),
            "{name} stays to say why"
        );
    }
    cluster.terminate("deliver");
    let any = "127.0.0.1:0";
    let said = refuses(&mut cluster.command(&["deliver", "--health-listen", any])).await;
    assert!(
        said.contains("the topic deliveries has 7 partitions, configured are 4"),
        "{said}"
    );

    goes_on_as_the_runbook_says(&mut cluster, &receiver, &endpoint).await;
}

/// All of them the same, and configured.
async fn goes_on_as_the_runbook_says(cluster: &mut Cluster, receiver: &Receiver, endpoint: &str) {
    for topic in [
        "events",
        "routes",
        "dead-letters",
        "attempts",
        "endpoint-state",
    ] {
        alter(cluster, topic, 7);
    }
    cluster.configure("POSTRIDER_TOPICS__PARTITIONS_ADDED", "3");
    cluster.run(&["topic", "create"]);
    cluster.terminate("ingest-0");
    cluster.restart("ingest-0").await;
    cluster.restart("deliver").await;
    let api = cluster.api();
    let ids: Vec<String> = {
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(api.publish(&json!({"type": "a.b", "data": {}})).await);
        }
        ids
    };
    receiver.wait_for(PATH, 21, SOON).await;
    for id in &ids {
        api.event_when(id, "its delivery is told", |event| {
            event["deliveries"][0]["endpoint_id"] == endpoint
        })
        .await;
    }
    let bounds =
        crate::topic_log::with_log(cluster, async |log| log.all_bounds("events").await.unwrap())
            .await;
    assert!(
        bounds[4..].iter().all(|added| added.end == 0),
        "keys stay: {bounds:?}"
    );
}

fn alter(cluster: &Cluster, topic: &str, partitions: i32) {
    let topic = format!("{}{topic}", cluster.prefix());
    let partitions = partitions.to_string();
    cluster.broker().tool(
        "org.apache.kafka.tools.TopicCommand",
        &["--alter", "--topic", &topic, "--partitions", &partitions],
    );
}

/// Waits until the process is not ready for that reason, and shows how many partitions of
/// `deliveries` were added.
async fn shows(cluster: &Cluster, name: &str, added: i32) {
    let line = format!("postrider_topic_partitions_unexpected{{topic=\"deliveries\"}} {added}");
    eventually(&line, SOON, async || {
        let metrics = cluster.metrics(name).await;
        let ready = cluster.health(name, "/readyz").await;
        let ready = String::from_utf8_lossy(&ready.body).into_owned();
        let shown = metrics.lines().any(|one| one == line);
        if shown && ready.contains("partitions_as_configured") {
            return Ok(());
        }
        Err(ready)
    })
    .await;
}
