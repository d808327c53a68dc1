//! Whose installation it is, and what comes of a registry that lost records.

use std::future::ready;
use std::time::Duration;

use axum::http::Method;
use postrider_tests::{Api, Cluster, KafkaBroker, LogKind, Plan, Process, Receiver, eventually};
use serde_json::{Value, json};

use crate::topic_log::delete_topic;

/// Well-formed, and not the one that the other processes have.
const OTHER_KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";
const PATH: &str = "/hook";
/// A judgement of the log's past may take 10 s, and 10 s more until it is asked for.
const SOON: Duration = Duration::from_secs(90);

mod installations {
    use super::*;
    on_kafka!(
        another_key_is_refused_and_a_secret_that_does_not_open_is_told,
        a_registry_that_was_made_again_is_told_and_read_again,
        an_event_stamped_beyond_the_end_proves_that_the_registry_lost_its_tail,
    );
}

/// A process with the other key, beside those of the cluster.
fn stranger(cluster: &Cluster, name: &str, role: &[&str]) -> Process {
    let arguments = [role, &["--health-listen", "127.0.0.1:0"]].concat();
    let mut command = cluster.command(&arguments);
    command.env("POSTRIDER_KEYS__ENCRYPTION", OTHER_KEY);
    let directory = cluster.data_directory();
    let directory = directory.parent().expect("it is in that of the cluster");
    Process::start(name, directory, &mut command)
}

async fn refused(cluster: &Cluster, name: &str, role: &[&str]) {
    let mut process = stranger(cluster, name, role);
    let ended = eventually("it ends by itself", SOON, || {
        let ended = process.ended();
        ready(ended.ok_or_else(|| process.output()))
    });
    assert!(!ended.await.success());
    let said = process.output();
    assert!(
        said.contains("keys.encryption") && said.contains("kafka.prefix"),
        "{said}"
    );
}

async fn another_key_is_refused_and_a_secret_that_does_not_open_is_told(log: LogKind) {
    let mut cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let receiver = Receiver::healthy().await;
    let endpoint = api.create_endpoint(&receiver.url(PATH), json!({})).await;
    refused(&cluster, "other-deliver", &["deliver"]).await;
    refused(
        &cluster,
        "other-ingest",
        &["ingest", "--listen", "127.0.0.1:0"],
    )
    .await;
    let mut checking = cluster.command(&["check", "--json"]);
    checking.env("POSTRIDER_KEYS__ENCRYPTION", OTHER_KEY);
    let checked = checking.output().expect("the binary starts");
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        !checked.status.success() && said.contains("no role starts"),
        "{said}"
    );

    // An operator lets it in: it runs, but cannot sign for the endpoint that is there.
    let mut accepting = cluster.command(&["recover", "--registry", "--accept-keys", "--yes"]);
    accepting.env("POSTRIDER_KEYS__ENCRYPTION", OTHER_KEY);
    let accepted = accepting.output().expect("the binary starts");
    assert!(accepted.status.success(), "{accepted:?}");
    cluster.terminate("deliver");
    let stranger = stranger(&cluster, "other-deliver-again", &["deliver"]);
    let event = api
        .publish(&json!({"type": "invoice.paid", "data": {}}))
        .await;
    let told = eventually("status names the cause", SOON, async || {
        let status = api.get(&format!("/endpoints/{endpoint}/status")).await;
        let obstacles = status["live"]["obstacles"].to_string();
        if obstacles.contains("signing secret") {
            Ok(status)
        } else {
            Err(status)
        }
    });
    let owner = told.await["owner"].as_str().unwrap().to_owned();
    let metrics = Cluster::metrics_at(owner.parse().unwrap()).await;
    assert!(
        metrics
            .lines()
            .any(|line| line == "postrider_registry_endpoints_unsignable 1"),
        "{metrics}"
    );
    assert!(receiver.received(PATH).is_empty());
    assert!(stranger.output().contains("signing secrets do not open"));

    // It spent nothing: with the right key everything goes on.
    drop(stranger);
    cluster.restart("deliver").await;
    receiver.wait_for(PATH, 1, SOON).await;
    api.event_when(&event, "it is delivered", |event| {
        event["deliveries"].to_string().contains("delivered")
    })
    .await;
}

async fn is_lost(cluster: &Cluster, process: &str, lost: u32) {
    let line = format!("postrider_registry_lost {lost}");
    eventually(&format!("{process}: {line}"), SOON, async || {
        let Ok(answer) = cluster.try_health(process, "/metrics").await else {
            return Err("it does not answer yet".to_owned());
        };
        let metrics = String::from_utf8_lossy(&answer.body).into_owned();
        if metrics.lines().any(|one| one == line) {
            Ok(())
        } else {
            Err(metrics)
        }
    })
    .await;
}

async fn create(api: &Api, receiver: &Receiver, id: &str) {
    let body = json!({"id": id, "url": receiver.url(&format!("/{id}"))});
    api.must(Method::POST, "/endpoints", &body).await;
}

fn event() -> Value {
    json!({"type": "invoice.paid", "data": {}})
}

async fn a_registry_that_was_made_again_is_told_and_read_again(log: LogKind) {
    let cluster = Plan::new(log).ingests(2).start().await;
    let apis = cluster.apis();
    let receiver = Receiver::healthy().await;
    create(&apis[0], &receiver, "ep_a").await;
    apis[0].publish(&event()).await;
    receiver.wait_for("/ep_a", 1, SOON).await;

    delete_topic(&cluster, "registry");
    cluster.run(&["topic", "create"]);
    for process in ["ingest-0", "ingest-1", "deliver"] {
        is_lost(&cluster, process, 1).await;
    }
    let checked = cluster
        .command(&["check"])
        .output()
        .expect("the binary starts");
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        !checked.status.success() && said.contains("lost records"),
        "{said}"
    );

    // Writes win, and every process shows the same.
    apis[1].ensure_tenant().await;
    create(&apis[1], &receiver, "ep_b").await;
    for api in &apis {
        api.list_when("/endpoints", "they show what is there", |list| {
            list.len() == 1 && list[0]["id"] == "ep_b"
        })
        .await;
    }
    // What is accepted now waits for the operator, and is lost on nobody.
    let waiting = apis[0].publish(&event()).await;
    apis[0]
        .event_when(&waiting, "it waits", |event| event["route"].is_null())
        .await;
    create(&apis[0], &receiver, "ep_a").await;
    let accept = ["recover", "--registry", "--accept-loss", "--yes"];
    let shown = cluster.run(&["recover", "--registry"]);
    assert!(shown.contains("found"), "{shown}");
    assert!(receiver.received("/ep_b").is_empty());
    cluster.run(&accept);
    receiver.wait_for("/ep_b", 1, SOON).await;
    receiver.wait_for("/ep_a", 2, SOON).await;
    for process in ["ingest-0", "ingest-1", "deliver"] {
        is_lost(&cluster, process, 0).await;
    }
}

async fn an_event_stamped_beyond_the_end_proves_that_the_registry_lost_its_tail(log: LogKind) {
    let broker: &'static KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let mut cluster = Plan::new(log).broker(broker).start().await;
    let api = cluster.api();
    let receiver = Receiver::healthy().await;
    create(&api, &receiver, "ep_a").await;
    api.publish(&event()).await;
    receiver.wait_for("/ep_a", 1, SOON).await;

    let partition = format!("{}registry-0", cluster.prefix());
    let before = broker.segment_bytes(&partition);
    cluster.terminate("deliver");
    create(&api, &receiver, "ep_b").await;
    api.publish(&event()).await;
    // Nobody who knew what was there is left.
    cluster.terminate("ingest-0");
    broker.kill();
    broker.cut_segment(&partition, before);
    broker.restart();

    cluster.start_again("deliver");
    is_lost(&cluster, "deliver", 1).await;
    let log = cluster.process("deliver").output();
    assert!(log.contains("registry lost records"), "{log}");
    cluster.restart("ingest-0").await;
    is_lost(&cluster, "ingest-0", 1).await;
    assert_eq!(receiver.received("/ep_a").len(), 1);

    create(&api, &receiver, "ep_b").await;
    cluster.run(&["recover", "--registry", "--accept-loss", "--yes"]);
    receiver.wait_for("/ep_b", 1, SOON).await;
    receiver.wait_for("/ep_a", 2, SOON).await;
    is_lost(&cluster, "deliver", 0).await;
}
