//! Processes that begin while no broker is there.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::Method;
use postrider_tests::{Api, KafkaBroker, LogKind, Plan, Receiver, eventually};
use serde_json::json;

const PATH: &str = "/hook";
const SOON: Duration = Duration::from_secs(30);
/// Nothing is under way.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// What an operator asks of brokers that are not there.
const COMMAND_WITHIN: Duration = Duration::from_secs(45);
const ROLES: [&str; 3] = ["ingest-0", "deliver", "exporter"];

on_kafka!(roles_that_begin_before_the_broker_say_so_and_begin_with_it);

async fn roles_that_begin_before_the_broker_say_so_and_begin_with_it(log: LogKind) {
    let broker: &'static KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let mut cluster = Plan::new(log).broker(broker).exports().prepare();
    tokio::task::block_in_place(|| broker.kill());
    for name in ROLES {
        cluster.start_again(name);
    }
    let api = cluster.api();
    refuses_all_but_strangers(&api).await;
    for name in ROLES {
        eventually("it answers", SOON, async || {
            let live = cluster.try_health(name, "/livez").await;
            live.map(|answer| assert_eq!(answer.status, 200))
        })
        .await;
        let ready = cluster.health(name, "/readyz").await;
        assert_eq!(ready.status, 503, "{name}: {ready:?}");
    }
    let metrics = cluster.metrics("ingest-0").await;
    let refused = r#"postrider_events_refused_total{reason="log-unavailable"}"#;
    let counted = metrics.lines().find(|line| line.starts_with(refused));
    assert!(
        counted.is_some_and(|line| !line.ends_with(" 0")),
        "{metrics}"
    );
    for name in ROLES {
        let status = cluster.process(name).terminate(ENDS_WITHIN);
        assert!(status.success(), "{name} ended with {status}");
        cluster.start_again(name);
    }
    commands_give_up(|arguments| cluster.command(arguments));

    tokio::task::block_in_place(|| broker.restart());
    for name in ROLES {
        cluster.ready(name).await;
    }
    let receiver = Receiver::healthy().await;
    api.ensure_tenant().await;
    api.create_endpoint(&receiver.url(PATH), json!({})).await;
    let id = api.publish(&json!({ "type": "a.b", "data": {} })).await;
    receiver.wait_for_all(PATH, &[id], SOON).await;
}

async fn refuses_all_but_strangers(api: &Api) {
    let event = json!({ "type": "a.b", "data": {} });
    let refused = eventually("the API answers", SOON, async || {
        api.json(Method::POST, "/events", &event).await
    })
    .await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.header("retry-after"), "5");
    assert_eq!(refused.header("content-type"), "application/problem+json");
    let kind = refused.json()["type"].clone();
    assert_eq!(kind, "urn:postrider:problem:log-unavailable");
    let reads = api.call(Method::GET, "/endpoints", &[], Bytes::new()).await;
    assert_eq!(reads.unwrap().status, 503);
    let stranger = api.with_key("prk_somebody_elses_key_of_enough_length");
    let unknown = stranger.json(Method::POST, "/events", &event).await;
    assert_eq!(unknown.unwrap().status, 401);
}

/// Commands of an operator end by themselves, and say why.
fn commands_give_up(command: impl Fn(&[&str]) -> Command) {
    let asked: [&[&str]; 5] = [
        &["topic", "check"],
        &["topic", "create"],
        &["recover", "--stage", "deliver"],
        &["check"],
        &[
            "export-data",
            "--from",
            "kafka",
            "--registry-only",
            "--file",
            "exported.jsonl",
        ],
    ];
    let running = asked.map(|arguments| {
        let mut command = command(arguments);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        (arguments, command.stderr(Stdio::piped()).spawn().unwrap())
    });
    let started = Instant::now();
    for (arguments, child) in running {
        let output = child.wait_with_output().unwrap();
        assert!(started.elapsed() < COMMAND_WITHIN, "{arguments:?}");
        assert!(!output.status.success(), "{arguments:?}: {output:?}");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(
            said.contains("the log is not available"),
            "{arguments:?}: {said}"
        );
    }
}
