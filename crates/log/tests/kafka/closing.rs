//! Closing and dropping take their time, but never for ever, and never that of the caller.

use std::time::Duration;

use postrider_log::kafka::KafkaLog;
use postrider_log::{Group, GroupEvent, Log, LogError, Producer, Reader, Target};
use postrider_tests::KafkaBroker;
use tokio::time::Instant;

use crate::support::{PATIENCE, TOPIC, connect, create, join, numbered, producer, start_all};

/// Longer than a caller may be held up by a drop.
const AT_ONCE: Duration = Duration::from_millis(200);
/// The longest a close may take.
const BOUND: Duration = Duration::from_secs(10);

both_protocols!(
    closes_while_the_broker_serves,
    closes_while_the_broker_is_frozen,
    closes_while_the_broker_is_gone,
    closes_after_the_topic_was_deleted,
);

/// A producer, a member and a reader at work.
async fn at_work(log: &KafkaLog) -> (Box<dyn Producer>, Box<dyn Group>, Box<dyn Reader>) {
    create(log, 2).await;
    let producer = producer(log, None).await;
    producer
        .append(TOPIC, Target::Partition(0), numbered(0))
        .await
        .expect("it is appended");
    let mut group = join(log, Duration::from_secs(5)).await;
    start_all(&mut *group, 2).await;
    let mut reader = log.reader(TOPIC).await.expect("a reader is made");
    let batch = reader
        .read(0, 0, 1 << 20, PATIENCE)
        .await
        .expect("the log is read");
    assert_eq!(batch.records.len(), 1);
    (producer, group, reader)
}

async fn closes_in_time(log: &KafkaLog, hurt: impl FnOnce()) {
    let (producer, mut group, reader) = at_work(log).await;
    hurt();
    drop(producer.append(TOPIC, Target::Partition(1), numbered(1)));
    let began = Instant::now();
    drop(producer);
    drop(reader);
    assert!(
        began.elapsed() < AT_ONCE,
        "a drop took {:?}",
        began.elapsed()
    );
    tokio::time::timeout(BOUND, group.close())
        .await
        .expect("the member leaves in time");
    let began = Instant::now();
    drop(group);
    assert!(
        began.elapsed() < AT_ONCE,
        "a drop took {:?}",
        began.elapsed()
    );
}

async fn closes_while_the_broker_serves(properties: &[(&str, &str)]) {
    let log = connect(&KafkaBroker::shared().bootstrap(), properties);
    closes_in_time(&log, || ()).await;
    // Without close, a drop leaves the group too.
    let mut group = join(&log, Duration::from_secs(5)).await;
    start_all(&mut *group, 2).await;
    drop(group);
    let mut next = join(&log, Duration::from_secs(5)).await;
    let began = Instant::now();
    start_all(&mut *next, 2).await;
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "long before the session is over"
    );
}

async fn closes_while_the_broker_is_frozen(properties: &[(&str, &str)]) {
    let broker = KafkaBroker::start();
    let log = connect(&broker.bootstrap(), properties);
    closes_in_time(&log, || broker.freeze()).await;
}

async fn closes_while_the_broker_is_gone(properties: &[(&str, &str)]) {
    let broker = KafkaBroker::start();
    let log = connect(&broker.bootstrap(), properties);
    closes_in_time(&log, || broker.kill()).await;
    let answer = tokio::time::timeout(Duration::from_secs(30), log.bounds(TOPIC, 0)).await;
    assert!(matches!(
        answer.expect("in time"),
        Err(LogError::Unavailable(_))
    ));
}

async fn closes_after_the_topic_was_deleted(properties: &[(&str, &str)]) {
    let broker = KafkaBroker::shared();
    let mut properties = properties.to_vec();
    properties.push(("topic.metadata.refresh.interval.ms", "500"));
    let log = connect(&broker.bootstrap(), &properties);
    let (_producer, mut group, _reader) = at_work(&log).await;
    let topics = broker.tool("org.apache.kafka.tools.TopicCommand", &["--list"]);
    let prefix = log.prefix();
    let name = format!("{prefix}{TOPIC}");
    assert!(topics.lines().any(|line| line == name), "{topics}");
    broker.tool(
        "org.apache.kafka.tools.TopicCommand",
        &["--delete", "--topic", &name],
    );
    // The member hears of it: by an error, by a revoke, or by losing what it had.
    let heard = async { while let Ok(GroupEvent::Records(_)) = group.next().await {} };
    tokio::time::timeout(PATIENCE, heard)
        .await
        .expect("in time");
    tokio::time::timeout(BOUND, group.close())
        .await
        .expect("the member leaves in time");
}
