//! The dashboards and rules on a real run: Postrider on a real Kafka with endpoints in every kind
//! of trouble, a real Prometheus that scrapes it, and the query of every panel and every rule, each
//! of which must return data.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use axum::http::Method;
use postrider_tests::process::repository;
use postrider_tests::prometheus::Prometheus;
use postrider_tests::{Api, LogKind, Plan, Receiver, Reply, eventually};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const RULES: &str = "deploy/prometheus/postrider.rules.yaml";
const DASHBOARDS: &str = "deploy/grafana";
const WITHIN: Duration = Duration::from_secs(240);
/// An alert that fires, so that the list of alerts has one: the real ones are silent when all is
/// well.
const ALWAYS: &str =
    r#"{"groups": [{"name": "test", "rules": [{"alert": "PostriderTest", "expr": "vector(1)"}]}]}"#;
/// Between two events.
const PACE: Duration = Duration::from_millis(20);
/// What is not on this page is no name of a metric.
const METRICS: &str = "docs/metrics.md";

/// Queries by where they are.
type Queries = BTreeMap<String, String>;

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_and_every_rule_has_data_on_kafka() {
    let cluster = Plan::new(LogKind::Kafka)
        .delivers(2)
        .exports()
        // Two attempts and then the dead letters, so that these come soon.
        .set("POSTRIDER_RETRY__DEFAULT_SCHEDULE_MS", "[1000]")
        .set("POSTRIDER_KAFKA__STATISTICS_INTERVAL_MS", "1000")
        .start()
        .await;
    let _receivers = endpoints_in_trouble(&cluster.api()).await;
    let mut load = JoinSet::new();
    load.spawn(publish(cluster.api()));
    let (rules, scratch) = (repository().join(RULES), tempfile::tempdir().unwrap());
    let always = scratch.path().join("always.yaml");
    fs::write(&always, ALWAYS).unwrap();
    let prometheus = Prometheus::start(&cluster.health_addresses(), &[&rules, &always]).await;

    let panels = panels();
    assert!(panels.len() > 70, "only {} queries found", panels.len());
    let shown = have_data(&prometheus, panels).await;
    let all = prometheus.rules().await;
    for rule in &all {
        assert_eq!(rule["health"], "ok", "{rule:#}");
    }
    let rules = have_data(&prometheus, queries_of(&all)).await;
    drop(cluster);
    println!(
        "{shown} queries of panels and {rules} of {} rules have data",
        all.len()
    );
}

/// One endpoint of each kind: well, failing, gone, silent, slow, paused, disabled; in two tenants.
async fn endpoints_in_trouble(api: &Api) -> Vec<Receiver> {
    let other = api.for_tenant("umbrella");
    other.ensure_tenant().await;
    let receivers = [
        Receiver::healthy().await,
        Receiver::start(|_| Reply::status(500)).await,
        Receiver::start(|_| Reply::status(410)).await,
        Receiver::start(|_| Reply::status(200).after(Duration::from_secs(30))).await,
        Receiver::start(|_| Reply::status(429).header("retry-after", "1")).await,
    ];
    for receiver in &receivers {
        for tenant in [api, &other] {
            let timeout = json!({ "attempt_timeout": 1 });
            tenant
                .create_endpoint(&receiver.url("/hook"), timeout)
                .await;
        }
    }
    let url = receivers[0].url("/held");
    let slow = json!({ "rate_limit": { "per_second": 0.5 } });
    api.create_endpoint(&url, slow).await;
    for state in ["pause", "disable"] {
        let id = api.create_endpoint(&url, json!({})).await;
        api.must(
            Method::POST,
            &format!("/endpoints/{id}/{state}"),
            &json!({}),
        )
        .await;
    }
    // Each attempt to it ends in a dead letter at once.
    let url = receivers[1].url("/hook");
    api.create_endpoint(&url, json!({ "retry_schedule": [] }))
        .await;
    receivers.into()
}

/// Publishes until it is dropped; one event in ten is none.
async fn publish(api: Api) {
    let other = api.for_tenant("umbrella");
    for number in 0_u64.. {
        let tenant = if number.is_multiple_of(3) {
            &other
        } else {
            &api
        };
        let event = match number % 10 {
            0 => json!({ "type": "no data" }),
            _ => json!({ "type": "invoice.paid", "data": {} }),
        };
        // A refusal is wanted, no answer shows by the panels.
        drop(tenant.json(Method::POST, "/events", &event).await);
        tokio::time::sleep(PACE).await;
    }
}

/// The queries of all panels, with every variable at "all".
fn panels() -> Queries {
    let mut queries = Queries::new();
    for entry in fs::read_dir(repository().join(DASHBOARDS)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let dashboard: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let place = format!(
                    "{}: {} {}",
                    path.file_name().unwrap().display(),
                    panel["title"],
                    target["refId"]
                );
                let mut query = target["expr"].as_str().unwrap().to_owned();
                for variable in ["$job", "$instance", "$tenant", "$endpoint"] {
                    query = query.replace(variable, ".+");
                }
                let query = query.replace("$__rate_interval", "1m");
                assert!(!query.contains('$'), "{place}: unknown variable in {query}");
                queries.insert(place, query);
            }
        }
    }
    queries
}

/// What rules record, and the series that alerts look at: an alert itself says nothing while all is
/// well.
fn queries_of(rules: &[Value]) -> Queries {
    let metrics = fs::read_to_string(repository().join(METRICS)).unwrap();
    let mut queries = Queries::new();
    for rule in rules {
        let name = rule["name"].as_str().unwrap();
        if rule["type"] == "recording" {
            queries.insert(format!("rule {name}"), name.to_owned());
            continue;
        }
        let is_of_a_name = |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
        let words = rule["query"]
            .as_str()
            .unwrap()
            .split(|letter| !is_of_a_name(letter));
        for word in words {
            let family = word.trim_end_matches("_bucket").trim_end_matches("_count");
            let is_metric =
                family.starts_with("postrider_") && metrics.contains(&format!("| `{family}` |"));
            if is_metric || word.contains(":postrider_") {
                queries.insert(format!("alert {name}: {word}"), word.to_owned());
            }
        }
    }
    queries
}

/// Waits until each query has returned data; how many there are.
async fn have_data(prometheus: &Prometheus, queries: Queries) -> usize {
    let count = queries.len();
    let waiting = parking_lot::Mutex::new(queries);
    eventually("every query has data", WITHIN, async || {
        let without = waiting.lock().clone();
        for (place, query) in without {
            if !prometheus.query(&query).await.unwrap().is_empty() {
                waiting.lock().remove(&place);
            }
        }
        let waiting = waiting.lock().clone();
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(waiting)
        }
    })
    .await;
    count
}
