//! Programs that share no code with us: receivers on the public library, a producer in Python,
//! Kafka's own tools.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use futures_util::{StreamExt, stream};
use postrider_tests::foreign::{
    ForeignEvent, GitHubPayload, Library, LibraryReceiver, Verdict, github_payloads,
    publish_by_python,
};
use postrider_tests::http::HttpClient;
use postrider_tests::{Api, Cluster, LogKind, Plan, Received, Receiver};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const SOON: Duration = Duration::from_secs(30);
const LOAD_WITHIN: Duration = Duration::from_secs(120);
const PAYLOADS: usize = 329;

mod both {
    use super::*;
    on_both_logs!(
        every_real_payload_sent_by_http_arrives_verified_byte_for_byte,
        a_forged_request_is_rejected_by_the_libraries,
    );
}

mod kafka_only {
    use super::*;
    on_kafka!(
        every_real_payload_sent_by_a_python_producer_arrives_verified_byte_for_byte,
        kafkas_own_tool_shows_the_topics_as_documented,
    );
}

/// The body of the `standard` format, its data as it came.
#[derive(Deserialize)]
struct StandardBody<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Receivers on both libraries, each registered for every event.
async fn library_receivers(api: &Api) -> [LibraryReceiver; 2] {
    let receivers = [
        LibraryReceiver::start(Library::Node, SECRET).await,
        LibraryReceiver::start(Library::Python, SECRET).await,
    ];
    for receiver in &receivers {
        api.create_endpoint(&receiver.url("/hook"), json!({ "secret": SECRET }))
            .await;
    }
    receivers
}

fn event_type(payload: &GitHubPayload) -> String {
    format!("github.{}", payload.event_type)
}

/// Checks that the receivers verified each event once, with the data that was sent.
async fn assert_all_arrive(receivers: &[LibraryReceiver], sent: &BTreeMap<String, GitHubPayload>) {
    assert_eq!(sent.len(), PAYLOADS);
    for receiver in receivers {
        let verdicts = receiver.wait_for(PAYLOADS, LOAD_WITHIN).await;
        assert_eq!(verdicts.len(), PAYLOADS);
        let by_id: BTreeMap<_, _> = verdicts
            .iter()
            .map(|verdict| (&verdict.id, verdict))
            .collect();
        for (id, payload) in sent {
            let verdict: &Verdict = by_id
                .get(id)
                .unwrap_or_else(|| panic!("{id} did not arrive"));
            assert!(verdict.verified, "{id}: {}", verdict.error);
            let body = verdict.body();
            let body: StandardBody<'_> = serde_json::from_slice(&body).unwrap();
            assert_eq!(body.r#type, event_type(payload));
            assert!(
                body.data.get().as_bytes() == payload.data,
                "the data of {id} is not as it was sent"
            );
        }
    }
}

async fn every_real_payload_sent_by_http_arrives_verified_byte_for_byte(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let receivers = library_receivers(&api).await;
    let sent = stream::iter(github_payloads()).map(async |payload| {
        let json = [("content-type", "application/json")];
        let mut body = format!(r#"{{"type":"{}","data":"#, event_type(&payload)).into_bytes();
        body.extend(&payload.data);
        body.push(b'}');
        let answer = api
            .call(axum::http::Method::POST, "/events", &json, body)
            .await
            .unwrap();
        assert_eq!(answer.status, 202, "{}", answer.json());
        (answer.json()["id"].as_str().unwrap().to_owned(), payload)
    });
    let sent = sent.buffer_unordered(8).collect().await;
    assert_all_arrive(&receivers, &sent).await;
}

async fn every_real_payload_sent_by_a_python_producer_arrives_verified_byte_for_byte(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let receivers = library_receivers(&api).await;
    let named = |(number, payload)| (format!("github-{number}"), payload);
    let sent: BTreeMap<_, _> = github_payloads()
        .into_iter()
        .enumerate()
        .map(named)
        .collect();
    let events = sent.iter().map(|(id, payload)| ForeignEvent {
        id: id.clone(),
        tenant: api.tenant().to_owned(),
        event_type: event_type(payload),
        data: payload.data.clone(),
    });
    let (events, topic) = (
        events.collect::<Vec<_>>(),
        format!("{}events", cluster.prefix()),
    );
    tokio::task::block_in_place(|| {
        publish_by_python(&cluster.broker().bootstrap(), &topic, &events);
    });
    assert_all_arrive(&receivers, &sent).await;
}

/// Sends a webhook again, as somebody who listened could.
async fn replay(receiver: &LibraryReceiver, headers: &HeaderMap, body: &[u8]) -> u16 {
    let mut request = Request::post("/hook").header("host", "receiver");
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        request = request.header(name, headers[name].clone());
    }
    let request = request.body(Body::from(body.to_vec())).unwrap();
    HttpClient::new(receiver.address())
        .send(request)
        .await
        .unwrap()
        .status
}

async fn a_forged_request_is_rejected_by_the_libraries(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let (api, tap) = (cluster.api(), Receiver::healthy().await);
    api.create_endpoint(&tap.url("/ours"), json!({ "secret": SECRET }))
        .await;
    api.create_endpoint(&tap.url("/other"), json!({ "secret": OTHER_SECRET }))
        .await;
    api.publish(&json!({ "type": "invoice.paid", "data": { "amount": 4200 } }))
        .await;
    let ours: Received = tap.wait_for("/ours", 1, SOON).await.remove(0);
    let other: Received = tap.wait_for("/other", 1, SOON).await.remove(0);

    let changed = String::from_utf8(ours.body.to_vec())
        .unwrap()
        .replace("4200", "4201");
    let mut later = ours.headers.clone();
    let seconds: i64 = ours.headers["webhook-timestamp"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    later.insert("webhook-timestamp", (seconds + 1).into());
    for library in [Library::Node, Library::Python] {
        let receiver = LibraryReceiver::start(library, SECRET).await;
        assert_eq!(
            replay(&receiver, &ours.headers, &ours.body).await,
            204,
            "{library:?}: the genuine one"
        );
        assert_eq!(
            replay(&receiver, &ours.headers, changed.as_bytes()).await,
            401,
            "{library:?}: other data"
        );
        assert_eq!(
            replay(&receiver, &later, &ours.body).await,
            401,
            "{library:?}: another time"
        );
        assert_eq!(
            replay(&receiver, &other.headers, &other.body).await,
            401,
            "{library:?}: another secret"
        );
        let verified = receiver
            .wait_for(4, SOON)
            .await
            .iter()
            .filter(|verdict| verdict.verified)
            .count();
        assert_eq!(verified, 1);
    }
}

/// A topic as `kafka-topics --describe` prints it.
struct Described {
    partitions: u32,
    configs: BTreeMap<String, String>,
}

fn describe(cluster: &Cluster) -> BTreeMap<String, Described> {
    let pattern = format!("{}.*", cluster.prefix().replace('.', "\\."));
    let text = cluster.broker().tool(
        "org.apache.kafka.tools.TopicCommand",
        &["--describe", "--topic", &pattern],
    );
    let heads = text.lines().filter(|line| line.starts_with("Topic:"));
    let parsed = heads.map(|head| {
        let fields: BTreeMap<&str, &str> = head
            .split('\t')
            .filter_map(|field| field.trim().split_once(": "))
            .collect();
        let configs = fields
            .get("Configs")
            .copied()
            .unwrap_or_default()
            .split(',');
        let configs = configs.filter_map(|pair| pair.split_once('='));
        let described = Described {
            partitions: fields["PartitionCount"].parse().unwrap(),
            configs: configs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        };
        (
            fields["Topic"]
                .strip_prefix(cluster.prefix())
                .unwrap()
                .to_owned(),
            described,
        )
    });
    parsed.collect()
}

async fn kafkas_own_tool_shows_the_topics_as_documented(log: LogKind) {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    const MIB: u32 = 1024 * 1024;
    let defaults = Plan::new(log)
        .set("POSTRIDER_TOPICS__PARTITIONS", "")
        .set("POSTRIDER_TOPICS__RETRY_DELAYS_MS", "");
    let cluster = defaults.start().await;
    let mut topics = tokio::task::block_in_place(|| describe(&cluster));
    for (name, partitions, days, bytes_max) in [
        ("events", 12, Some(7), MIB),
        ("routes", 12, Some(7), 2 * MIB),
        ("deliveries", 12, Some(7), 2 * MIB),
        ("retry", 57, Some(9), 2 * MIB),
        ("dead-letters", 12, Some(30), 2 * MIB),
        ("attempts", 12, Some(7), 2 * MIB),
        ("audit", 1, Some(365), MIB),
        ("registry", 1, None, MIB),
        ("endpoint-state", 12, None, MIB),
    ] {
        let topic = topics
            .remove(name)
            .unwrap_or_else(|| panic!("there is no {name}"));
        assert_eq!(topic.partitions, partitions, "{name}");
        let config = |key: &str| topic.configs.get(key).map(String::as_str);
        let retention = days.map(|days: u64| (days * DAY_MS).to_string());
        assert_eq!(config("retention.ms"), retention.as_deref(), "{name}");
        let compacted = days.is_none().then_some("compact");
        assert_eq!(
            config("cleanup.policy").filter(|policy| *policy != "delete"),
            compacted,
            "{name}"
        );
        assert_eq!(
            config("max.message.bytes"),
            Some(bytes_max.to_string().as_str()),
            "{name}"
        );
        assert_eq!(
            config("message.timestamp.type"),
            Some("LogAppendTime"),
            "{name}"
        );
    }
    assert!(topics.is_empty(), "undocumented: {:?}", topics.keys());
}
