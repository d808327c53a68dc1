//! Members that have had nothing to do for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_log::{GroupEvent, Partition, Target};
use postrider_tests::KafkaBroker;
use tokio::time::Instant;

use crate::support::{PATIENCE, TOPIC, connect, create, join, numbered, producer, start_all};

const IDLE: Duration = Duration::from_secs(3);
/// Much less than the minutes after which a client looks by itself.
const WAKES_WITHIN: Duration = Duration::from_secs(10);

both_protocols!(a_record_wakes_an_idle_member_whose_client_tells_statistics);

/// Statistics are events that the client tells as it tells of records: one must not be taken for
/// the other.
async fn a_record_wakes_an_idle_member_whose_client_tells_statistics(properties: &[(&str, &str)]) {
    const PARTITIONS: i32 = 4;
    let mut properties = properties.to_vec();
    properties.push(("statistics.interval.ms", "100"));
    let log = connect(&KafkaBroker::shared().bootstrap(), &properties);
    create(&log, PARTITIONS).await;
    let mut group = join(&log, Duration::from_secs(5)).await;
    start_all(&mut *group, PARTITIONS as usize).await;
    let producer = producer(&log, None).await;
    for turn in 0..3 {
        let nothing = tokio::time::timeout(IDLE, group.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        for partition in 0..PARTITIONS {
            let append = producer.append(TOPIC, Target::Partition(partition), numbered(turn));
            let appended = tokio::time::timeout(PATIENCE, append).await;
            appended.expect("in time").expect("appended");
        }
        let mut woken: BTreeSet<Partition> = BTreeSet::new();
        let deadline = Instant::now() + WAKES_WITHIN;
        while woken.len() < PARTITIONS as usize {
            let event = tokio::time::timeout_at(deadline, group.next()).await;
            match event.unwrap_or_else(|_| panic!("only {woken:?} woke")) {
                Ok(GroupEvent::Records(records)) => {
                    woken.extend(records.iter().map(|record| record.partition));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    group.close().await;
}
