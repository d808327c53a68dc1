//! Records that cannot be taken further go to the dead letters and block nothing.

use std::time::Duration;

use bytes::Bytes;
use postrider_log::{NewRecord, ProducerOptions, Target};
use postrider_tests::{Api, Cluster, LogKind, Plan, Receiver, Reply};
use serde_json::{Value, json};

use crate::topic_log::with_log;

const SOON: Duration = Duration::from_secs(30);
const PARTITIONS: i32 = 4;

on_both_logs!(malformed_protobuf_goes_to_the_dead_letters_and_blocks_nothing);

mod sizes {
    use super::*;
    on_kafka!(
        an_event_too_large_for_the_next_topic_goes_to_the_dead_letters_and_blocks_nothing,
        a_dead_letter_too_large_for_its_topic_is_shortened_and_its_settlement_says_so,
    );
}

/// Events for every partition, all delivered.
async fn assert_nothing_is_blocked(api: &Api, receiver: &Receiver) {
    let mut ids = Vec::new();
    for number in 0..4 * PARTITIONS {
        ids.push(
            api.publish(&json!({ "type": "after.poison", "data": { "number": number } }))
                .await,
        );
    }
    receiver.wait_for_all("/hook", &ids, SOON).await;
}

async fn raw_dead_letters(api: &Api, count: usize) -> Vec<Value> {
    api.list_when("/v1/dead-letters", "the records are listed", |letters| {
        letters.len() >= count
    })
    .await
}

async fn malformed_protobuf_goes_to_the_dead_letters_and_blocks_nothing(log: LogKind) {
    let mut cluster = Plan::new(log).start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    with_log(&mut cluster, async |log| {
        let options = ProducerOptions {
            name: "poison",
            append_timeout: Some(SOON),
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 20,
        };
        let producer = log.producer(options).await.unwrap();
        for partition in 0..PARTITIONS {
            let record = NewRecord {
                key: Bytes::from_static(b"acme/poison"),
                value: Some(Bytes::from_static(b"\xff\xff no protobuf")),
                headers: Vec::new(),
            };
            producer
                .append("events", Target::Partition(partition), record)
                .await
                .unwrap();
        }
    })
    .await;

    assert_nothing_is_blocked(&api, &receiver).await;
    let letters = raw_dead_letters(&api, 4).await;
    let mut partitions: Vec<_> = letters
        .iter()
        .map(|letter| letter["partition"].as_i64().unwrap())
        .collect();
    partitions.sort_unstable();
    assert_eq!(partitions, [0, 1, 2, 3]);
    for letter in letters {
        assert_eq!(
            (&letter["reason"], &letter["topic"]),
            (&json!("malformed"), &json!("events"))
        );
        assert_eq!(letter["value_bytes"], 14);
    }
}

async fn an_event_too_large_for_the_next_topic_goes_to_the_dead_letters_and_blocks_nothing(
    log: LogKind,
) {
    let cluster = Plan::new(log).start().await;
    take_at_most(&cluster, "deliveries", 65_536);
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    let id = api
        .publish(&json!({ "type": "too.large", "data": incompressible(100_000) }))
        .await;

    assert_nothing_is_blocked(&api, &receiver).await;
    let letters = raw_dead_letters(&api, 1).await;
    assert_eq!(
        (&letters[0]["reason"], &letters[0]["topic"]),
        (&json!("too_large"), &json!("events"))
    );
    assert!(letters[0]["value_bytes"].as_u64().unwrap() > 100_000);
    assert!(!receiver.counts("/hook").contains_key(&id));
    // Nothing says that a delivery waits that is not there.
    let event = api.get(&format!("/events/{id}")).await;
    assert_eq!(event["deliveries"], json!([]), "{event}");

    let any = "127.0.0.1:0";
    let mut deliver = cluster.command(&["deliver", "--health-listen", any]);
    let refused = deliver.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("largest record of deliveries"),
        "{said}"
    );
}

async fn a_dead_letter_too_large_for_its_topic_is_shortened_and_its_settlement_says_so(
    log: LogKind,
) {
    // A breaker that opens would hold the others back.
    let plan = Plan::new(log)
        .set("POSTRIDER_RETRY__DEFAULT_SCHEDULE_MS", "[1000]")
        .set("POSTRIDER_DELIVERY__DELIVER__BREAKER_FAILURES", "1000");
    let cluster = plan.start().await;
    take_at_most(&cluster, "dead-letters", 65_536);
    let (api, receiver) = (cluster.api(), Receiver::start(|_| Reply::status(500)).await);
    api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    let mut ids = Vec::new();
    for length in [100, 100_000].repeat(5) {
        let event = json!({ "type": "too.large", "data": incompressible(length) });
        ids.push((api.publish(&event).await, length));
    }
    for (id, length) in &ids {
        let told = api
            .event_when(id, "it is given up", |event| {
                event["deliveries"][0]["state"] == "dead_lettered"
            })
            .await
            .to_string();
        let short = told.contains("its dead letter holds the beginning only");
        assert_eq!(short, *length > 65_536, "{told}");
    }
    let whole = api.list_when("/dead-letters", "those that fit", |letters| {
        letters.len() == 5
    });
    whole.await;
    let shortened = raw_dead_letters(&api, 5).await;
    for letter in shortened {
        assert_eq!(
            (&letter["reason"], &letter["topic"]),
            (&json!("exhausted"), &json!("deliveries"))
        );
        assert!(letter["value_bytes"].as_u64().unwrap() > 100_000);
    }
}

/// Lowers what the topic takes, as an operator might by hand while everything runs.
fn take_at_most(cluster: &Cluster, topic: &str, bytes: u32) {
    let topic = format!("{}{topic}", cluster.prefix());
    cluster.broker().tool(
        "kafka.admin.ConfigCommand",
        &[
            "--alter",
            "--entity-type",
            "topics",
            "--entity-name",
            &topic,
            "--add-config",
            &format!("max.message.bytes={bytes}"),
        ],
    );
}

/// Text that no compression makes much shorter: a broker looks at what a batch takes when
/// compressed.
fn incompressible(length: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let letters = (0..length).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
                [(state >> 40) as usize % 64],
        )
    });
    letters.collect()
}
