//! The exporter: right when nothing else runs, and exact across its own death.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_tests::{Cluster, LogKind, Plan, Receiver, eventually};
use serde_json::json;

const PATH: &str = "/hook";
const WITHIN: Duration = Duration::from_secs(60);
const DELIVERED: &str = "postrider_recorded_deliveries_total{outcome=\"delivered\",reason=\"ok\"}";
const LATENCIES: &str = "postrider_recorded_delivery_latency_seconds_count";
const READY_AGE: &str = "postrider_deliveries_ready_age_seconds";

mod both {
    use super::every_metric_shown_is_documented;

    on_both_logs!(every_metric_shown_is_documented);
}
on_kafka!(shows_what_waits_while_nothing_else_runs_and_skips_nothing_when_killed);

/// The series of a process that begin so, with their values.
async fn series(cluster: &Cluster, process: &str, start: &str) -> Vec<(String, f64)> {
    let metrics = cluster.metrics(process).await;
    let lines = metrics.lines().filter(|line| line.starts_with(start));
    let samples = lines.map(|line| line.rsplit_once(' ').unwrap());
    samples
        .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
        .collect()
}

async fn sum(cluster: &Cluster, start: &str) -> f64 {
    let series = series(cluster, "exporter", start).await;
    series.iter().map(|(_, value)| value).sum()
}

/// Lag of the group that delivers, over all partitions.
async fn lag(cluster: &Cluster) -> f64 {
    sum(cluster, "postrider_consumer_lag_records{group=\"deliver\"").await
}

async fn until(cluster: &Cluster, what: &str, start: &str, holds: impl Fn(f64) -> bool) {
    eventually(what, WITHIN, || async {
        let value = sum(cluster, start).await;
        holds(value).then_some(()).ok_or(value)
    })
    .await;
}

async fn publish(cluster: &Cluster, count: usize) {
    for _ in 0..count {
        let event = json!({ "type": "invoice.paid", "data": {} });
        cluster.api().publish(&event).await;
    }
}

async fn shows_what_waits_while_nothing_else_runs_and_skips_nothing_when_killed(log: LogKind) {
    let mut cluster = Plan::new(log).stages_apart().exports().start().await;
    let receiver = Receiver::healthy().await;
    cluster
        .api()
        .create_endpoint(&receiver.url(PATH), json!({}))
        .await;
    publish(&cluster, 5).await;
    receiver.wait_for(PATH, 5, WITHIN).await;
    until(&cluster, "five are counted", DELIVERED, |count| {
        count == 5.0
    })
    .await;

    // It dies; what happens meanwhile is counted when it is back, and nothing twice.
    cluster.kill("exporter");
    publish(&cluster, 3).await;
    receiver.wait_for(PATH, 8, WITHIN).await;
    cluster.restart("exporter").await;
    let first = sum(&cluster, DELIVERED).await;
    assert!(
        (5.0..=8.0).contains(&first),
        "it goes on where it was: {first}"
    );
    until(&cluster, "eight are counted", DELIVERED, |count| {
        count == 8.0
    })
    .await;
    until(&cluster, "nothing waits", READY_AGE, |age| age == 0.0).await;

    // Nobody delivers any more: what waits, and for how long, is seen from the log alone.
    cluster.kill("deliver");
    publish(&cluster, 4).await;
    eventually("four wait", WITHIN, || async {
        let lag = lag(&cluster).await;
        (lag == 4.0).then_some(()).ok_or(lag)
    })
    .await;
    for process in ["fan-out", "scheduler", "ingest-0"] {
        cluster.kill(process);
    }
    until(&cluster, "it grows older", READY_AGE, |age| age > 3.0).await;
    cluster.kill("exporter");
    cluster.restart("exporter").await;
    until(&cluster, "it still grows older", READY_AGE, |age| age > 5.0).await;
    assert_eq!(lag(&cluster).await, 4.0);
    assert_eq!(sum(&cluster, DELIVERED).await, 8.0);

    cluster.restart("deliver").await;
    receiver.wait_for(PATH, 12, WITHIN).await;
    until(&cluster, "all are counted", DELIVERED, |count| {
        count == 12.0
    })
    .await;
    until(&cluster, "nothing waits", READY_AGE, |age| age == 0.0).await;
    assert_eq!(sum(&cluster, LATENCIES).await, 12.0);
    assert_eq!(receiver.count(), 12);
}

/// The names that docs/metrics.md lists, those of a histogram's series included.
fn documented() -> BTreeSet<String> {
    let page = include_str!("../../../docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut names = BTreeSet::new();
    for row in rows {
        let (name, rest) = row.split_once('`').unwrap();
        if rest.starts_with(" | histogram") {
            names.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        } else {
            names.insert(name.to_owned());
        }
    }
    names
}

async fn every_metric_shown_is_documented(log: LogKind) {
    let cluster = Plan::new(log).exports().start().await;
    let receiver = Receiver::healthy().await;
    cluster
        .api()
        .create_endpoint(&receiver.url(PATH), json!({}))
        .await;
    publish(&cluster, 1).await;
    receiver.wait_for(PATH, 1, WITHIN).await;
    until(&cluster, "it is counted", DELIVERED, |count| count == 1.0).await;
    let documented = documented();
    let mut shown = BTreeSet::new();
    for process in ["ingest-0", "deliver", "exporter"] {
        for start in ["postrider_", "process_"] {
            let series = series(&cluster, process, start).await;
            shown.extend(series.into_iter().map(|(series, _)| {
                let (name, _) = series.split_once('{').unwrap_or((&series, ""));
                name.to_owned()
            }));
        }
    }
    let undocumented: Vec<_> = shown.difference(&documented).collect();
    assert!(undocumented.is_empty(), "{undocumented:?}");
    for name in [
        "postrider_build_info",
        "postrider_event_loop_lag_seconds_count",
        "postrider_registry_view_age_seconds",
        "postrider_events_accepted_total",
        "postrider_deliveries_total",
        "postrider_partitions_owned",
        "postrider_lanes",
        "postrider_breakers",
        "postrider_attempt_permits",
        "postrider_consumer_lag_seconds",
        "postrider_registry_last_write_timestamp_seconds",
        "postrider_exporter_last_collection_timestamp_seconds",
    ] {
        assert!(shown.contains(name), "{name} is missing of {shown:?}");
    }
    if log == LogKind::Kafka {
        // The clients tell of themselves every five seconds.
        let clients = "postrider_kafka_sent_bytes_total{client=\"deliver\"}";
        eventually("clients tell", WITHIN, || async {
            let series = series(&cluster, "deliver", clients).await;
            series
                .iter()
                .any(|(_, bytes)| *bytes > 0.0)
                .then_some(())
                .ok_or(series)
        })
        .await;
    }
}
