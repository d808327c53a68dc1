//! Keys for the API: created by one process, used and revoked at all.

use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use postrider_tests::{Api, Cluster, LogKind, Plan};
use serde_json::{Value, json};

/// Everybody knows by then that a key was revoked.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

on_both_logs!(a_key_opens_what_it_should_at_every_process_until_it_is_revoked);

async fn status(api: &Api, method: Method, path: &str, body: &Value) -> StatusCode {
    let json = [("content-type", "application/json")];
    let answer = api.call(method, path, &json, body.to_string()).await;
    StatusCode::from_u16(answer.unwrap().status).unwrap()
}

async fn publish(api: &Api) -> StatusCode {
    let event = json!({ "type": "invoice.paid", "data": {} });
    status(api, Method::POST, "/events", &event).await
}

/// What a command answers in JSON.
fn asked(cluster: &Cluster, command: &[&str]) -> Value {
    let command: Vec<_> = command.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&cluster.operate(&command)).unwrap()
}

async fn a_key_opens_what_it_should_at_every_process_until_it_is_revoked(log: LogKind) {
    let (plan, one) = match log {
        LogKind::Kafka => (Plan::new(log).ingests(2), "ingest-0"),
        LogKind::Embedded => (Plan::new(log), "up"),
    };
    let mut cluster = plan.start().await;
    let tenant = cluster.api().tenant().to_owned();
    let of_tenant = ["--tenant", &tenant];
    let create = ["key", "create", "--name", "shop", "--scope", "publish"];
    let created = asked(&cluster, &[&create[..], &of_tenant].concat());
    let (id, key) = (
        created["id"].as_str().unwrap(),
        created["key"].as_str().unwrap(),
    );
    let issue = ["portal-token", "issue", "--scope", "read"];
    let issued = asked(&cluster, &[&issue[..], &of_tenant].concat());
    let token = issued["token"].as_str().unwrap();

    // At once, and at processes that may not have read of it yet.
    for api in cluster.apis() {
        opens_its_own(&api.with_key(key), &api.with_key(token)).await;
    }
    cluster.kill(one);
    cluster.restart(one).await;
    for api in cluster.apis() {
        opens_its_own(&api.with_key(key), &api.with_key(token)).await;
    }
    let shown = asked(&cluster, &[&["key", "show", id][..], &of_tenant].concat());
    assert!(shown["last_used_at"].is_string(), "{shown}");

    cluster.operate(&[&["key", "revoke", id, "--yes"][..], &of_tenant].concat());
    cluster.operate(&[&["portal-token", "revoke", "--yes"][..], &of_tenant].concat());
    let revoked = Instant::now();
    for api in cluster.apis() {
        for void in [key, token] {
            open_nothing_soon(&api.with_key(void), revoked).await;
        }
    }
    // Whatever partition a tenant's key would be put into.
    for number in 0..20 {
        cluster.operate(&["tenant", "create", &format!("t{number}")]);
    }
    let put = asked(
        &cluster,
        &["audit", "--action", "tenant.put", "--limit", "50"],
    );
    assert!(put["data"].as_array().unwrap().len() >= 20, "{put}");
    let audit = asked(&cluster, &[&["audit"][..], &of_tenant].concat());
    let entries = audit["data"].as_array().unwrap();
    let actions: Vec<_> = entries.iter().map(|entry| &entry["action"]).collect();
    let expected = [
        "portal_token.revoke",
        "key.revoke",
        "portal_token.issue",
        "key.create",
    ];
    assert_eq!(actions[..expected.len()], expected);
}

/// A key to publish and a token to read.
async fn opens_its_own(publisher: &Api, reader: &Api) {
    assert_eq!(publish(publisher).await, StatusCode::ACCEPTED);
    let others = publisher.for_tenant("globex");
    assert_eq!(publish(&others).await, StatusCode::FORBIDDEN);
    let endpoint = json!({ "url": "https://example.com/" });
    let created = status(publisher, Method::POST, "/endpoints", &endpoint).await;
    assert_eq!(created, StatusCode::FORBIDDEN);
    let read = status(reader, Method::GET, "/endpoints", &Value::Null).await;
    assert_eq!(read, StatusCode::OK);
    assert_eq!(publish(reader).await, StatusCode::FORBIDDEN);
}

async fn open_nothing_soon(api: &Api, revoked: Instant) {
    let ask = async || status(api, Method::GET, "/endpoints", &Value::Null).await;
    while ask().await != StatusCode::UNAUTHORIZED {
        let elapsed = revoked.elapsed();
        assert!(
            elapsed < KNOWN_WITHIN,
            "taken {elapsed:?} after it was revoked"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
