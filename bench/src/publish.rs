//! Events on their way in, as fast as they are accepted or at a fixed rate: over HTTP, or as
//! protobuf straight to Kafka.

use std::time::Duration;

use axum::http::Method;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use postrider_model::event::{Event, TraceContext};
use postrider_model::identity::RegistryStamp;
use postrider_model::topics::event_key;
use postrider_tests::{Api, Cluster};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::receiver_process::now_us;

/// Bytes of an event's data.
pub(crate) const EVENT_BYTES: usize = 1_024;
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);
const FLUSHED_WITHIN: Duration = Duration::from_secs(60);
/// Callers that keep a fixed rate; it does not need them all.
const PACED_CALLERS: usize = 64;

/// The data of an event, which tells when it was sent.
pub(crate) fn data() -> String {
    let head = format!(r#"{{"sent_us":{},"padding":""#, now_us());
    let padding = "x".repeat(EVENT_BYTES.saturating_sub(head.len() + 2));
    format!(r#"{head}{padding}"}}"#)
}

async fn publish_one(api: &Api, event_type: &str) {
    let body = format!(r#"{{"type":"{event_type}","data":{}}}"#, data());
    let json = [("content-type", "application/json")];
    let answer = api
        .call(Method::POST, "/events", &json, body)
        .await
        .expect("ingest answers");
    assert_eq!(answer.status, 202, "{}", answer.json());
}

/// Publishes so many events over HTTP, each caller one after the other.
pub(crate) async fn all(
    api: &Api,
    count: usize,
    callers: usize,
    event_type: impl Fn(usize) -> String,
) {
    stream::iter(0..count)
        .for_each_concurrent(callers, async |number| {
            publish_one(api, &event_type(number)).await;
        })
        .await;
}

/// Publishes so many events over HTTP, each at its time, whether the earlier ones were answered or
/// not.
pub(crate) async fn paced(
    api: &Api,
    count: usize,
    per_second: f64,
    event_type: impl Fn(usize) -> String,
) {
    at_their_times(count, per_second)
        .for_each_concurrent(PACED_CALLERS, async |number| {
            publish_one(api, &event_type(number)).await;
        })
        .await;
}

/// The numbers from 0, each at its time.
pub(crate) fn at_their_times(count: usize, per_second: f64) -> impl stream::Stream<Item = usize> {
    let started = tokio::time::Instant::now();
    stream::iter(0..count).then(move |number| async move {
        let after = f64::from(u32::try_from(number).unwrap_or(u32::MAX)) / per_second;
        tokio::time::sleep_until(started + Duration::from_secs_f64(after)).await;
        number
    })
}

/// Writes so many events to Kafka, as a producer's service does that has a client of its own.
pub(crate) fn straight(cluster: &Cluster, tenant: &str, count: usize) {
    let topic = format!("{}events", cluster.prefix());
    let producer = producer(&cluster.broker().bootstrap());
    for number in 0..count {
        let event = event(tenant, number);
        let key = event_key(&event.tenant, &event.ordering_key, &event.id);
        send(&producer, &topic, &key, &event.encode());
    }
    producer
        .flush(FLUSHED_WITHIN)
        .expect("the broker takes all of it");
}

fn event(tenant: &str, number: usize) -> Event {
    Event {
        id: format!("direct-{}-{number}", now_us())
            .parse()
            .expect("it is valid"),
        tenant: tenant.parse().expect("it is valid"),
        event_type: event_type(number).parse().expect("it is valid"),
        occurred_at_ms: 0,
        data: Bytes::from(data()),
        ordering_key: String::new(),
        registry: RegistryStamp::default(),
        accepted_at_ms: 0,
        trace: TraceContext::default(),
    }
}

/// Endpoints of which each event matches one.
pub(crate) const ENDPOINTS: usize = 16;

/// The type that one of the endpoints wants.
pub(crate) fn event_type(number: usize) -> String {
    format!("bench.n{}", number % ENDPOINTS)
}

/// A producer that loses nothing and says nothing of single records.
pub(crate) fn producer(bootstrap: &str) -> BaseProducer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .create()
        .expect("the configuration is good")
}

/// Hands a record over, waiting for room.
pub(crate) fn send(producer: &BaseProducer, topic: &str, key: &[u8], value: &[u8]) {
    let mut record = BaseRecord::to(topic).key(key).payload(value);
    while let Err((error, refused)) = producer.send(record) {
        assert_eq!(
            error,
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)
        );
        producer.poll(QUEUE_FULL_PAUSE);
        record = refused;
    }
    producer.poll(Duration::ZERO);
}
