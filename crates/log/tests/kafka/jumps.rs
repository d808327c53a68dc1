//! Readers that go from place to place, and are dropped on the way.

use std::time::Duration;

use futures_util::FutureExt;
use postrider_log::kafka::KafkaLog;
use postrider_log::{Log, Offset, Target};
use postrider_tests::KafkaBroker;
use tokio::task::JoinSet;

use crate::support::{PATIENCE, TOPIC, connect, create, numbered, producer};

const RECORDS: usize = 10;
const READERS: usize = 120;
const AT_ONCE: usize = 8;

/// The client aborts the process when a partition is taken from it again before it has stopped
/// fetching it (librdkafka#5573).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_dropped_right_after_a_jump_aborts_nothing() {
    let log = connect(&KafkaBroker::shared().bootstrap(), &[]);
    create(&log, 1).await;
    let producer = producer(&log, None).await;
    for number in 0..RECORDS {
        let appended = producer.append(TOPIC, Target::Partition(0), numbered(number));
        appended.await.expect("it is appended");
    }
    let mut jumping = JoinSet::new();
    for reader in 0..READERS {
        if jumping.len() >= AT_ONCE {
            jumping
                .join_next()
                .await
                .expect("one runs")
                .expect("it jumps");
        }
        let log = log.clone();
        jumping.spawn(async move { jump(&log, Offset::try_from(reader % RECORDS).unwrap()).await });
    }
    while let Some(jumped) = jumping.join_next().await {
        jumped.expect("it jumps");
    }
}

async fn jump(log: &KafkaLog, to: Offset) {
    let mut reader = log.reader(TOPIC).await.expect("a reader is made");
    for from in [0, to, 0] {
        let batch = reader.read(0, from, 1, PATIENCE).await.expect("it is read");
        assert_eq!(batch.records[0].offset, from);
    }
    // Whoever asked gives up, and what was begun goes on beside.
    drop(reader.read(0, to, 1, Duration::ZERO).now_or_never());
}
