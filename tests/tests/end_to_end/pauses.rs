//! What operators and tenants turn off and on: an endpoint, a tenant, everything; and who decides
//! last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use postrider_tests::{Api, LogKind, Plan, Receiver, Reply};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const OTHER_TENANT: &str = "globex";
/// Two endpoints of one tenant, and one of another.
const PATHS: [&str; 3] = ["/switched", "/sibling", "/other"];
/// More than a lane holds, so that most of the backlog stays in the log.
const BACKLOG: usize = 12;
const LANE_QUEUE_MAX: &str = "4";
/// Everybody knows by then that an endpoint was deleted.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

on_both_logs!(
    a_paused_endpoint_keeps_its_backlog_through_a_crash_and_gets_it_in_order,
    a_paused_tenant_keeps_its_backlog_through_a_crash_and_gets_it_in_order,
    a_paused_installation_keeps_its_backlog_through_a_crash_and_gets_it_in_order,
    nothing_reaches_an_endpoint_2_s_after_it_was_deleted,
    a_verdict_on_a_former_version_disables_nothing,
);

/// A switch, where it is, and the paths it silences.
struct Switch {
    at: String,
    silences: &'static [&'static str],
}

async fn a_paused_endpoint_keeps_its_backlog_through_a_crash_and_gets_it_in_order(log: LogKind) {
    let of_endpoint = |endpoint: &str| Switch {
        at: format!("/endpoints/{endpoint}"),
        silences: &PATHS[..1],
    };
    keeps_the_backlog(log, of_endpoint).await;
}

async fn a_paused_tenant_keeps_its_backlog_through_a_crash_and_gets_it_in_order(log: LogKind) {
    let of_tenant = |_: &str| Switch {
        at: String::new(),
        silences: &PATHS[..2],
    };
    keeps_the_backlog(log, of_tenant).await;
}

async fn a_paused_installation_keeps_its_backlog_through_a_crash_and_gets_it_in_order(
    log: LogKind,
) {
    let of_all = |_: &str| Switch {
        at: "/v1".to_owned(),
        silences: &PATHS,
    };
    keeps_the_backlog(log, of_all).await;
}

async fn keeps_the_backlog(log: LogKind, switch: impl Fn(&str) -> Switch) {
    let deliver = |key: &str| format!("POSTRIDER_DELIVERY__DELIVER__{key}");
    // One after the other, so that the order in which they arrive is that in which they were begun.
    let plan = Plan::new(log)
        .set(&deliver("LANE_QUEUE_MAX"), LANE_QUEUE_MAX)
        .set(&deliver("LANE_ATTEMPTS_IN_FLIGHT_INITIAL"), "1")
        .set(&deliver("LANE_ATTEMPTS_IN_FLIGHT_MAX"), "1");
    let mut cluster = plan.start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    let other = api.for_tenant(OTHER_TENANT);
    other.ensure_tenant().await;
    let settings = json!({ "rate_limit": { "per_second": 10, "burst": 1 } });
    let mut endpoints = Vec::new();
    for (path, api) in PATHS.iter().zip([&api, &api, &other]) {
        let url = receiver.url(path);
        endpoints.push(api.create_endpoint(&url, settings.clone()).await);
    }
    let switch = switch(&endpoints[0]);
    let turn = async |verb: &str| {
        let path = format!("{}/{verb}", switch.at);
        api.must(Method::POST, &path, &Value::Null).await;
    };

    turn("pause").await;
    let of_tenant = publish(&api, "first").await;
    let of_other = publish(&other, "first").await;
    let heard = |path: &&str| !switch.silences.contains(path);
    for path in PATHS.iter().copied().filter(heard) {
        receiver.wait_for(path, BACKLOG, SOON).await;
    }
    cluster.kill("deliver");
    cluster.restart("deliver").await;
    // One more, behind all: what was to come wrongly, has come.
    for api in [&api, &other] {
        let last = publish_one(api, "last").await;
        let routed = |event: &Value| event["route"].is_object();
        api.event_when(&last, "it is routed", routed).await;
    }
    let all = ["last".to_owned()];
    for path in PATHS.iter().copied().filter(heard) {
        receiver.wait_for_all(path, &all, SOON).await;
    }
    for path in switch.silences {
        assert_eq!(receiver.received(path).len(), 0, "{path} is paused");
    }

    turn("resume").await;
    for (path, ids) in PATHS.iter().zip([&of_tenant, &of_tenant, &of_other]) {
        receiver.wait_for_all(path, &all, SOON).await;
        let received = receiver.received(path).into_iter();
        let mut came: Vec<_> = received.map(|one| one.id).collect();
        // The kill may have cut an attempt off from its record, so that it was made again.
        came.dedup();
        assert_eq!(came.pop().as_deref(), Some("last"), "{path}");
        assert_eq!(came, *ids, "{path} got them in another order");
    }
}

async fn publish(api: &Api, name: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..BACKLOG {
        ids.push(publish_one(api, &format!("{name}-{number}")).await);
    }
    ids
}

/// Events of one key are in one partition, so that they are accepted in an order.
async fn publish_one(api: &Api, id: &str) -> String {
    let event = json!({ "id": id, "type": "a.b", "data": {}, "ordering_key": "one" });
    api.publish(&event).await
}

async fn nothing_reaches_an_endpoint_2_s_after_it_was_deleted(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let receiver = Receiver::start(|received| {
        let status = if received.path == "/failing" {
            500
        } else {
            200
        };
        Reply::status(status).after(Duration::from_millis(50))
    })
    .await;
    let busy = json!({ "event_types": ["busy"], "rate_limit": { "per_second": 20, "burst": 1 } });
    let failing = json!({ "event_types": ["failing"], "retry_schedule": [5] });
    let busy = api.create_endpoint(&receiver.url("/busy"), busy).await;
    let failing = api
        .create_endpoint(&receiver.url("/failing"), failing)
        .await;
    let mut last = String::new();
    for _ in 0..200 {
        last = api.publish(&json!({ "type": "busy", "data": {} })).await;
    }
    let failed = api.publish(&json!({ "type": "failing", "data": {} })).await;
    receiver.wait_for("/busy", 20, SOON).await;
    receiver.wait_for("/failing", 1, SOON).await;
    let scheduled = |event: &Value| event["deliveries"][0]["attempts"][0]["settlement"].is_string();
    api.event_when(&failed, "its retry waits", scheduled).await;

    for endpoint in [busy, failing] {
        let path = format!("/endpoints/{endpoint}");
        api.must(Method::DELETE, &path, &Value::Null).await;
    }
    let deleted = Instant::now();
    for id in [&last, &failed] {
        let dropped = |event: &Value| event["deliveries"][0]["state"] == "dropped";
        api.event_when(id, "it is dropped", dropped).await;
    }
    let late = receiver.everything();
    let late = late.iter().filter(|one| one.at > deleted + KNOWN_WITHIN);
    assert_eq!(late.count(), 0, "requests after everybody had to know");
    assert!(
        receiver.received("/busy").len() < 200,
        "everything was delivered before: this test shows nothing"
    );
}

async fn a_verdict_on_a_former_version_disables_nothing(log: LogKind) {
    let takes = Duration::from_secs(6);
    let cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let asked_before = AtomicBool::new(false);
    let receiver = Receiver::start(move |_| {
        if asked_before.swap(true, Ordering::Relaxed) {
            Reply::status(200)
        } else {
            Reply::status(410).after(takes)
        }
    })
    .await;
    let endpoint = api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    let event = json!({ "type": "a.b", "data": {} });
    let judged = api.publish(&event).await;
    let asked = receiver.wait_for("/hook", 1, SOON).await[0].at;
    // The tenant enables it while the endpoint is about to say that it is gone.
    for verb in ["disable", "enable"] {
        let path = format!("/endpoints/{endpoint}/{verb}");
        api.must(Method::POST, &path, &json!({})).await;
    }
    assert!(
        asked.elapsed() < takes,
        "it was enabled too late: this test shows nothing"
    );
    let buried = |event: &Value| event["deliveries"][0]["state"] == "dead_lettered";
    api.event_when(&judged, "it is given up", buried).await;
    let shown = api.get(&format!("/endpoints/{endpoint}")).await;
    assert_eq!(shown["state"], "enabled", "{shown}");
    let next = api.publish(&event).await;
    receiver.wait_for_all("/hook", &[next], SOON).await;
}
