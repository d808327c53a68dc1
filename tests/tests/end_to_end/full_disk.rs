//! The disk of the embedded log is full, and has room again.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use axum::http::Method;
use postrider_tests::{LogKind, Plan, Receiver, eventually};
use serde_json::json;

const PATH: &str = "/hook";
const SOON: Duration = Duration::from_secs(30);
const DISK_BYTES: u64 = 64 << 20;
/// More than what the log's files still have room for, in all the events tried.
const EVENT_BYTES: usize = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_over_when_there_is_room() {
    let receiver = Receiver::healthy().await;
    let plan = Plan::new(LogKind::Embedded).disk_bytes(DISK_BYTES);
    let mut cluster = plan.start().await;
    let api = cluster.api();
    api.create_endpoint(&receiver.url(PATH), json!({})).await;
    let filler = cluster.data_directory_inside("up").join("filler");
    fill(&filler);
    let event = json!({ "type": "a.b", "data": "x".repeat(EVENT_BYTES) });
    let refused = eventually("an event is refused", SOON, async || {
        let answer = api.json(Method::POST, "/events", &event).await;
        match answer {
            Ok(answer) if answer.status == 503 => Ok(answer),
            other => Err(other),
        }
    })
    .await;
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    ready_is(&cluster, 503).await;
    let unready = cluster.health("up", "/readyz").await.json();
    assert_eq!(unready["unmet"], json!(["log_writable"]));
    let metrics = cluster.metrics("up").await;
    assert!(
        metrics.contains("\npostrider_embedded_log_writable 0\n"),
        "{metrics}"
    );

    fs::remove_file(&filler).unwrap();
    ready_is(&cluster, 200).await;
    let id = api.publish(&event).await;
    receiver.wait_for_all(PATH, &[id], SOON).await;
    cluster.terminate("up");
}

async fn ready_is(cluster: &postrider_tests::Cluster, status: u16) {
    eventually("readiness changes", SOON, async || {
        let ready = cluster.health("up", "/readyz").await;
        if ready.status == status {
            Ok(())
        } else {
            Err(ready)
        }
    })
    .await;
}

fn fill(filler: &Path) {
    let mut file = File::create(filler).unwrap();
    let chunk = vec![0; 64 << 10];
    while file.write_all(&chunk).is_ok() {}
}
