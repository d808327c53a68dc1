//! Brokers that die or freeze, and clients that are past their end.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_log::kafka::KafkaLog;
use postrider_log::{AppendError, Committed, GroupEvent, Log, LogError, Target};
use postrider_tests::KafkaBroker;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::time::Instant;

use crate::support::{
    PATIENCE, TOPIC, connect, connect_to, create, join, number, numbered, producer, read_all,
    start_all,
};

both_protocols!(keeps_every_record_once_and_in_order_while_the_broker_is_killed);

async fn keeps_every_record_once_and_in_order_while_the_broker_is_killed(
    properties: &[(&str, &str)],
) {
    const RECORDS: usize = 6_000;
    let broker = KafkaBroker::start();
    let log = connect(&broker.bootstrap(), properties);
    create(&log, 1).await;
    let producer = producer(&log, None).await;
    let mut group = join(&log, Duration::from_secs(5)).await;
    start_all(&mut *group, 1).await;
    let mut appends = Vec::new();
    for turn in 0..RECORDS {
        appends.push(producer.append(TOPIC, Target::Partition(0), numbered(turn)));
        if turn == RECORDS / 3 {
            broker.kill();
        }
        if turn == RECORDS / 2 {
            tokio::task::block_in_place(|| broker.restart());
        }
        if turn == RECORDS * 2 / 3 {
            tokio::task::block_in_place(|| broker.restart());
        }
        if turn % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for (turn, append) in appends.into_iter().enumerate() {
        let fate = tokio::time::timeout(PATIENCE, append)
            .await
            .expect("in time");
        assert_eq!(fate.unwrap().offset, i64::try_from(turn).unwrap());
    }
    let numbers: Vec<usize> = read_all(&log, 0).await.iter().map(number).collect();
    assert_eq!(numbers, (0..RECORDS).collect::<Vec<_>>());

    let mut seen = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < RECORDS {
        let event = tokio::time::timeout_at(deadline, group.next()).await;
        match event.expect("in time").expect("the group goes on") {
            GroupEvent::Records(records) => seen.extend(records.iter().map(number)),
            GroupEvent::Assigned(assignments) => {
                // The broker may have forgotten the member; then it begins where it stopped.
                group.start(assignments[0].partition, i64::try_from(seen.len()).unwrap());
            }
            GroupEvent::Lost(_) => {}
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(seen, numbers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_in_time_while_the_broker_is_frozen_and_recovers() {
    let broker = KafkaBroker::start();
    let log = connect(&broker.bootstrap(), &[("socket.timeout.ms", "3000")]);
    create(&log, 1).await;
    let impatient = producer(&log, Some(Duration::from_secs(2))).await;
    let patient = producer(&log, None).await;
    for (turn, producer) in [&impatient, &patient].into_iter().enumerate() {
        producer
            .append(TOPIC, Target::Partition(0), numbered(turn))
            .await
            .expect("it is appended");
    }
    broker.freeze();
    let held = patient.append(TOPIC, Target::Partition(0), numbered(2));
    let given_up = impatient.append(TOPIC, Target::Partition(0), numbered(3));
    let fate = tokio::time::timeout(Duration::from_secs(10), given_up)
        .await
        .expect("in time");
    assert!(matches!(fate, Err(AppendError::Unknown(_))), "{fate:?}");
    let began = Instant::now();
    impatient.flush(Duration::from_secs(1)).await;
    patient.flush(Duration::from_secs(1)).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "flush keeps to its time"
    );
    let bounds = tokio::time::timeout(Duration::from_secs(30), log.bounds(TOPIC, 0)).await;
    assert!(matches!(
        bounds.expect("in time"),
        Err(LogError::Unavailable(_))
    ));
    assert!(!connected(&log));
    broker.thaw();
    tokio::time::timeout(PATIENCE, held)
        .await
        .expect("in time")
        .expect("it is appended at last");
    impatient
        .append(TOPIC, Target::Partition(0), numbered(4))
        .await
        .expect("it is appended");
    let deadline = Instant::now() + PATIENCE;
    while !connected(&log) {
        assert!(Instant::now() < deadline, "{:?}", log.clients());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let numbers: BTreeSet<usize> = read_all(&log, 0).await.iter().map(number).collect();
    assert!(numbers.is_superset(&[0, 1, 2, 4].into()), "{numbers:?}");
}

#[tokio::test]
async fn a_producer_past_its_end_is_replaced() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    let log = connect(&cluster.bootstrap_servers(), &[]);
    let producer = producer(&log, None).await;
    producer
        .append(TOPIC, Target::Partition(0), numbered(0))
        .await
        .expect("it is appended");
    // For the first request under way this means that the client and the broker disagree for good.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    let fate = producer
        .append(TOPIC, Target::Partition(0), numbered(1))
        .await;
    assert!(matches!(fate, Err(AppendError::Unknown(_))), "{fate:?}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let append = producer.append(TOPIC, Target::Partition(0), numbered(9));
        match tokio::time::timeout_at(deadline, append)
            .await
            .expect("in time")
        {
            Ok(_) => break,
            // While it is replaced, there is no room.
            Err(AppendError::QueueFull) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => assert!(matches!(error, AppendError::Unknown(_)), "{error:?}"),
        }
        assert!(Instant::now() < deadline, "it is replaced");
    }
}

#[tokio::test]
async fn what_was_committed_is_told_as_soon_as_a_new_coordinator_knows() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    let log = connect(&cluster.bootstrap_servers(), &[]);
    // Where nobody is asked to, a topic is created by who writes to it.
    let append = producer(&log, None).await;
    let append = append.append(TOPIC, Target::Partition(0), numbered(0));
    append.await.expect("it is appended");
    let commit = Committed {
        offset: 7,
        metadata: "here".to_owned(),
    };
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
    cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[error; 8]);
    log.set_committed("group", TOPIC, &[(0, commit.clone())])
        .await
        .expect("it is committed");
    cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[error; 8]);
    let committed = log.committed("group", TOPIC).await.expect("it is told");
    assert_eq!(committed[0], Some(commit));
}

/// The client that asks neither reads nor writes the topic, so nothing else tells it of a new
/// leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_now_is_asked_when_the_former_leader_is_frozen() {
    const TOPIC_OF_MOCK: &str = "mock.topic";
    let cluster = MockCluster::new(3).expect("a mock cluster");
    cluster.create_topic(TOPIC_OF_MOCK, 1, 3).unwrap();
    cluster.partition_leader(TOPIC_OF_MOCK, 0, Some(1)).unwrap();
    let properties = [("socket.timeout.ms", "3000")];
    let log = connect_to("mock.", &cluster.bootstrap_servers(), &properties);
    log.bounds(TOPIC, 0).await.expect("the leader answers");

    let frozen = Duration::from_secs(3600);
    cluster.broker_round_trip_time(1, frozen).unwrap();
    cluster.partition_leader(TOPIC_OF_MOCK, 0, Some(2)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = log.bounds(TOPIC, 0).await {
        assert!(Instant::now() < deadline, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_ends_in_time_though_who_leads_is_frozen_and_the_others_are_slow() {
    const TOPIC_OF_MOCK: &str = "mock.topic";
    /// 10 s, and what a busy machine adds.
    const ENDS_WITHIN: Duration = Duration::from_secs(13);
    let cluster = MockCluster::new(3).expect("a mock cluster");
    cluster.create_topic(TOPIC_OF_MOCK, 1, 3).unwrap();
    cluster.partition_leader(TOPIC_OF_MOCK, 0, Some(1)).unwrap();
    let log = connect_to("mock.", &cluster.bootstrap_servers(), &[]);
    log.bounds(TOPIC, 0).await.expect("the leader answers");

    for (broker, milliseconds) in [(1, 3_600_000), (2, 4_500), (3, 4_500)] {
        let takes = Duration::from_millis(milliseconds);
        cluster.broker_round_trip_time(broker, takes).unwrap();
    }
    let answer = tokio::time::timeout(ENDS_WITHIN, log.bounds(TOPIC, 0)).await;
    answer.expect("it ends in time").expect_err("nobody knows");
}

/// Whether the client for questions reaches a broker.
fn connected(log: &KafkaLog) -> bool {
    let clients = log.clients();
    clients
        .iter()
        .any(|client| client.client == "query" && client.connected == Some(true))
}

/// A reader is looked after only while somebody reads, so it tells of an outage when the next read
/// comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_nobody_used_during_an_outage_reads_when_it_is_over() {
    let broker = KafkaBroker::start();
    let log = connect(&broker.bootstrap(), &[]);
    create(&log, 1).await;
    let producer = producer(&log, None).await;
    producer
        .append(TOPIC, Target::Partition(0), numbered(0))
        .await
        .expect("it is appended");
    let mut reader = log.reader(TOPIC).await.expect("a reader is made");
    let first = reader.read(0, 0, 1 << 20, PATIENCE).await;
    assert_eq!(first.expect("it is read").records.len(), 1);
    broker.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    tokio::task::block_in_place(|| broker.restart());
    producer
        .append(TOPIC, Target::Partition(0), numbered(1))
        .await
        .expect("brokers answer again");
    // The client that asks does so every 2 s.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let next = reader.read(0, 1, 1 << 20, PATIENCE).await;
    assert_eq!(next.expect("it is over").records.len(), 1);
}
