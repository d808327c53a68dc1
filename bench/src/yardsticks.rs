//! What the parts can do that Postrider stands on, alone, on the same machine in the same run: the
//! most that could be had, and the least that a delivery costs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use postrider_tests::KafkaBroker;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};

use crate::cpu::{self, Used};
use crate::figures::{Figures, tell};
use crate::pipe::{self, CONNECTIONS, Pipe};
use crate::publish::{self, data, producer};
use crate::receiver_process::ReceiverProcess;
use crate::report::record;
use crate::say;
use crate::throughput::{EVENTS, PACED_EVENTS, PACED_PER_SECOND, PARTITIONS, per_second};

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const CONSUMED_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// So that the broker's code is warm before anything is measured, and connections are open.
const WARM_UP_EVENTS: usize = 30_000;

/// Measures them all.
pub(crate) async fn bench() {
    say("\nyardsticks: the parts alone, 1 KiB each");
    let receiver = ReceiverProcess::start();
    let mut figures = Figures::default();
    http(&receiver, &mut figures).await;
    let broker = KafkaBroker::as_shipped();
    log(broker, &mut figures).await;
    pipe(broker, &receiver, &mut figures).await;
    let json = figures.json();
    tell(&[("alone", figures)]);
    record("yardsticks", &json);
}

/// A bare HTTP client, to the receiver of the benchmarks and to a handler that does nothing.
async fn http(receiver: &ReceiverProcess, figures: &mut Figures) {
    let client = pipe::client();
    for (name, url) in [
        ("reqwest", receiver.url()),
        ("handler", receiver.empty_url()),
    ] {
        post_all(&client, &url, EVENTS / 10).await;
        let used = Used::new(vec![("client".into(), std::process::id())]);
        let started = Instant::now();
        post_all(&client, &url, EVENTS).await;
        figures.set(format!("{name}/s"), per_second(EVENTS, started.elapsed()));
        used.tell(EVENTS, name, figures);
    }
    receiver.finished(EVENTS + EVENTS / 10).await;
}

async fn post_all(client: &reqwest::Client, url: &str, count: usize) {
    let bodies = stream::iter(0..count).map(|_| Bytes::from(data()));
    bodies
        .for_each_concurrent(CONNECTIONS, |body| pipe::post(client, url, body))
        .await;
}

/// A bare producer and a bare consumer.
async fn log(broker: &KafkaBroker, figures: &mut Figures) {
    const TOPIC: &str = "bench.log";
    create(broker, TOPIC);
    write(broker, TOPIC, WARM_UP_EVENTS);
    let started = Instant::now();
    write(broker, TOPIC, EVENTS);
    figures.set(
        "librdkafka produces/s",
        per_second(EVENTS, started.elapsed()),
    );

    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("group.id", TOPIC)
        .create()
        .expect("the configuration is good");
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(TOPIC, partition, Offset::Beginning)
            .expect("it is valid");
    }
    consumer.assign(&all).expect("it is assigned");
    let started = Instant::now();
    let mut first = None;
    let mut consumed = 0;
    while consumed < WARM_UP_EVENTS + EVENTS {
        if let Some(message) = consumer.poll(POLL) {
            message.expect("the broker answers");
            first.get_or_insert_with(Instant::now);
            consumed += 1;
        }
        assert!(
            started.elapsed() < CONSUMED_WITHIN,
            "{consumed} records came"
        );
    }
    let took = first.map_or(Duration::ZERO, |first| first.elapsed());
    figures.set("librdkafka consumes/s", per_second(consumed, took));
}

/// The pipe, at full load and at a fixed rate.
async fn pipe(broker: &KafkaBroker, receiver: &ReceiverProcess, figures: &mut Figures) {
    const TOPIC: &str = "bench.pipe";
    create(broker, TOPIC);
    let pipe = Pipe::start(&broker.bootstrap(), TOPIC, &receiver.url());
    write(broker, TOPIC, WARM_UP_EVENTS);
    receiver.finished(WARM_UP_EVENTS).await;

    let processes = || {
        let mut processes = cpu::brokers();
        processes.push(("pipe".to_owned(), pipe.id()));
        Used::new(processes)
    };
    let used = processes();
    let started = Instant::now();
    write(broker, TOPIC, EVENTS);
    receiver.finished(EVENTS).await;
    figures.set("pipe/s", per_second(EVENTS, started.elapsed()));
    used.tell(EVENTS, "pipe", figures);

    let used = processes();
    let producer = producer(&broker.bootstrap());
    publish::at_their_times(PACED_EVENTS, PACED_PER_SECOND)
        .for_each(async |number| {
            let key = number.to_string();
            publish::send(&producer, TOPIC, key.as_bytes(), data().as_bytes());
        })
        .await;
    let report = receiver.finished(PACED_EVENTS).await;
    let name = format!("pipe at {PACED_PER_SECOND}/s");
    used.tell(PACED_EVENTS, &name, figures);
    report.tell(&name, figures);
}

fn create(broker: &KafkaBroker, topic: &str) {
    let partitions = PARTITIONS.to_string();
    let create = ["--create", "--topic", topic, "--partitions", &partitions];
    broker.tool(TOPICS, &create);
}

fn write(broker: &KafkaBroker, topic: &str, count: usize) {
    let producer = producer(&broker.bootstrap());
    for number in 0..count {
        let key = number.to_string();
        publish::send(&producer, topic, key.as_bytes(), data().as_bytes());
    }
    producer
        .flush(CONSUMED_WITHIN)
        .expect("the broker takes it");
}
