//! Questions while a fetch waits for records that do not come.

use std::time::Duration;

use postrider_log::{GroupEvent, Log, Target};
use postrider_tests::KafkaBroker;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{PATIENCE, TOPIC, connect, create, join, numbered, producer, start_all};

/// A broker answers what comes by one connection in its order.
const FETCH_WAITS: [(&str, &str); 1] = [("fetch.wait.max.ms", "40000")];
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_at_the_end_gives_what_is_appended_before_its_fetch_is_over() {
    let log = connect(&KafkaBroker::shared().bootstrap(), &FETCH_WAITS);
    create(&log, 1).await;
    let producer = producer(&log, None).await;
    let mut reader = log.reader(TOPIC).await.expect("a reader is made");
    let mut next = 0;
    for number in 0..3 {
        let appended = producer.append(TOPIC, Target::Partition(0), numbered(number));
        appended.await.expect("it is appended");
        let batch = timeout(SOON, reader.read(0, next, 1 << 20, PATIENCE)).await;
        let batch = batch.expect("soon").expect("it is read");
        assert_eq!(batch.records.len(), 1);
        next = batch.next;
        let at_end = timeout(SOON, reader.read(0, next, 1 << 20, Duration::ZERO)).await;
        let at_end = at_end.expect("soon").expect("the end is known");
        assert_eq!((at_end.records.len(), at_end.end), (0, next));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_assigned_before_the_fetch_of_others_is_over() {
    let log = connect(&KafkaBroker::shared().bootstrap(), &FETCH_WAITS);
    create(&log, 2).await;
    let mut stays = join(&log, Duration::from_secs(5)).await;
    start_all(&mut *stays, 2).await;
    let mut leaves = join(&log, Duration::from_secs(5)).await;
    let mut others = JoinSet::new();
    others.spawn(async move {
        start_all(&mut *leaves, 1).await;
        leaves.close().await;
    });
    loop {
        let event = timeout(PATIENCE, stays.next()).await.expect("in time");
        if matches!(event.expect("the group goes on"), GroupEvent::Revoke { .. }) {
            stays.release();
            break;
        }
    }
    others.join_next().await.expect("one runs").unwrap();
    let again = timeout(SOON, start_all(&mut *stays, 1)).await;
    again.expect("soon");
}
