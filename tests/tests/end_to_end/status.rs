//! What `postrider endpoint status` tells of an endpoint that hangs.

use std::time::Duration;

use postrider_tests::{Cluster, LogKind, Plan, Receiver, Reply, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const EVENTS: usize = 40;

on_both_logs!(the_status_of_an_endpoint_that_hangs_tells_whatever_the_worst_hour_asks);

async fn the_status_of_an_endpoint_that_hangs_tells_whatever_the_worst_hour_asks(log: LogKind) {
    let cluster = Plan::new(log)
        .set("POSTRIDER_DELIVERY__DELIVER__LANE_QUEUE_MAX", "8")
        .set("POSTRIDER_DELIVERY__DELIVER__ATTEMPT_TIMEOUT_MS", "4000")
        .start()
        .await;
    let api = cluster.api();
    let receiver = Receiver::start(|_| Reply::status(200).after(Duration::from_secs(600))).await;
    let settings = json!({ "retry_schedule": [300] });
    let endpoint = api.create_endpoint(&receiver.url("/hangs"), settings).await;
    for number in 0..EVENTS {
        let event = json!({ "type": "a.b", "data": { "number": number } });
        api.publish(&event).await;
    }

    // Before the first attempt has timed out.
    let hangs = |status: &Value| {
        let live = &status["live"];
        live["in_flight"].as_u64() > Some(0) && live["queued"].as_u64() > Some(0)
    };
    let status = status_when(&cluster, &endpoint, "attempts are under way", hangs).await;
    let owner = cluster.health_address("deliver").to_string();
    assert_eq!(status["owner"], json!(owner), "{status}");
    assert_eq!(status["gate"], "open");
    assert_eq!(status["partition"], status["live"]["partition"]);
    assert!(status["live"]["concurrency_limit"].as_u64() > Some(0));

    let told = |status: &Value| {
        let (lane, live) = (&status["lane"], &status["live"]);
        status["partition_lag"].is_u64()
            && lane["behind"]["since"].is_string()
            && lane["behind"]["records_at_most"].as_u64() > Some(0)
            && lane["breaker"]["openings"].as_u64() > Some(0)
            && live["breaker"].as_str().is_some_and(|it| it != "closed")
            && live["behind_since"].is_string()
            && status["next_retry_at"].is_string()
            && status["last_error"]["reason"] == "timeout"
    };
    status_when(&cluster, &endpoint, "all that is wrong is told", told).await;
    // And to people.
    let shown = cluster.operate(&["endpoint", "status", "-t", api.tenant(), &endpoint]);
    for fact in [
        "owner",
        "partition lag",
        "behind since",
        "behind by at most",
        "breaker open until",
        "next retry",
        "last error",
        "live queued",
        "live in flight",
        "live concurrency limit",
        "live breaker",
    ] {
        assert!(
            shown.lines().any(|line| line.trim().starts_with(fact)),
            "{fact} is not told:\n{shown}"
        );
    }
}

/// What the command says once it is as wanted.
async fn status_when(
    cluster: &Cluster,
    endpoint: &str,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    let tenant = cluster.api().tenant().to_owned();
    let arguments = ["endpoint", "status", "-t", &tenant, endpoint, "--json"];
    eventually(what, SOON, async || {
        let said = tokio::task::block_in_place(|| cluster.operate(&arguments));
        let status: Value = serde_json::from_str(&said).unwrap();
        if wanted(&status) {
            Ok(status)
        } else {
            Err(status)
        }
    })
    .await
}
