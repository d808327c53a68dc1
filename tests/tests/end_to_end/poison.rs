//! Records that cannot be taken further go to the dead letters and block nothing.

use std::time::Duration;

use bytes::Bytes;
use postrider_log::{NewRecord, ProducerOptions, Target};
use postrider_tests::{Api, LogKind, Plan, Receiver};
use serde_json::{Value, json};

use crate::topic_log::with_log;

const SOON: Duration = Duration::from_secs(30);
const PARTITIONS: i32 = 4;

on_both_logs!(
    malformed_protobuf_goes_to_the_dead_letters_and_blocks_nothing,
    an_event_too_large_for_the_next_topic_goes_to_the_dead_letters_and_blocks_nothing,
);

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
    let plan = Plan::new(log)
        .set("POSTRIDER_TOPICS__DERIVED_BYTES_MAX", "65536")
        .set("POSTRIDER_DELIVERY__STAGE__RAW_RECORD_BYTES_MAX", "16384");
    let cluster = plan.start().await;
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
}

/// Text that no compression makes much shorter: a broker looks at what a batch takes when compressed.
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
