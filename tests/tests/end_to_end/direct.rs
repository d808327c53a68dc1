//! Producers that write to the log themselves, and such as repeat what they wrote.

use std::time::Duration;

use postrider_log::{NewRecord, ProducerOptions, Target};
use postrider_model::event::{Event, TraceContext};
use postrider_model::identity::RegistryStamp;
use postrider_tests::{Api, LogKind, Plan, Receiver};
use serde_json::json;

use crate::load::{LOAD_WITHIN, assert_each_once};
use crate::topic_log::{drained, with_log};

const PATH: &str = "/hook";
const ENDPOINTS: usize = 300;
const REPEATED: usize = 40;

on_kafka!(
    an_endpoint_gets_what_is_produced_as_soon_as_it_is_created,
    an_id_that_was_accepted_before_is_dropped_after_a_restart,
);

async fn an_endpoint_gets_what_is_produced_as_soon_as_it_is_created(log: LogKind) {
    let mut cluster = Plan::new(log).delivers(2).start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    let produced = with_log(&mut cluster, async |log| {
        let options = ProducerOptions {
            name: "direct",
            append_timeout: Some(LOAD_WITHIN),
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 20,
        };
        let producer = log.producer(options).await.unwrap();
        let mut ids = Vec::new();
        for number in 0..ENDPOINTS {
            let (id, event_type) = (format!("evt_{number}"), format!("made.n{number}"));
            let types = json!({ "event_types": [event_type] });
            api.create_endpoint(&receiver.url(PATH), types).await;
            let event = Event {
                id: id.parse().unwrap(),
                tenant: "acme".parse().unwrap(),
                event_type: event_type.parse().unwrap(),
                occurred_at_ms: 0,
                data: "{}".into(),
                ordering_key: String::new(),
                registry: RegistryStamp::default(),
                accepted_at_ms: 0,
                trace: TraceContext::default(),
            };
            let record = NewRecord {
                key: format!("acme/{id}").into(),
                value: Some(event.encode()),
                headers: Vec::new(),
            };
            let appended = producer.append("events", Target::Key, record).await;
            appended.unwrap();
            ids.push(id);
        }
        ids
    });
    let produced = produced.await;
    receiver.wait_for_all(PATH, &produced, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    assert_each_once(&receiver, PATH, &produced);
}

async fn publish_all(api: &Api) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..REPEATED {
        let id = format!("evt_again_{number}");
        let event = json!({ "id": id, "type": "thing.happened", "data": { "number": number } });
        ids.push(api.publish(&event).await);
    }
    ids
}

async fn an_id_that_was_accepted_before_is_dropped_after_a_restart(log: LogKind) {
    let mut cluster = Plan::new(log).delivers(2).start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    api.create_endpoint(&receiver.url(PATH), json!({})).await;
    let ids = publish_all(&api).await;
    receiver.wait_for_all(PATH, &ids, LOAD_WITHIN).await;
    drained(&mut cluster).await;
    // One after the other, so that partitions also go from one to the other.
    for name in ["deliver-0", "deliver-1"] {
        cluster.terminate(name);
        publish_all(&api).await;
        cluster.restart(name).await;
        publish_all(&api).await;
    }
    drained(&mut cluster).await;
    assert_each_once(&receiver, PATH, &ids);
}
