//! Many partitions.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use postrider_log::{GroupOptions, Log, NewRecord, Target};
use postrider_tests::{KafkaBroker, eventually};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::churn::{Seen, Worker};
use crate::support::{TOPIC, connect, connect_to, create, numbered, producer, start_all};

/// The longest that any partition may stand still.
const STANDS_AT_MOST: Duration = Duration::from_secs(30);
const CHILD_BOOTSTRAP: &str = "POSTRIDER_TEST_READ_AHEAD_BOOTSTRAP";
const CHILD_PREFIX: &str = "POSTRIDER_TEST_READ_AHEAD_PREFIX";

both_protocols!(none_of_400_partitions_stays_paused_in_a_restart_loop);

async fn none_of_400_partitions_stays_paused_in_a_restart_loop(properties: &[(&str, &str)]) {
    const PARTITIONS: i32 = 400;
    const ROUNDS: usize = 5;
    let log = connect(&KafkaBroker::shared().bootstrap(), properties);
    create(&log, PARTITIONS).await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut first = JoinSet::new();
    let (stop_first, stopped) = oneshot::channel();
    first.spawn(Worker::join(&log, &seen).await.pausing().run(stopped));
    let producer = producer(&log, None).await;
    let mut appended = 0;
    for _ in 0..ROUNDS {
        let (stop_second, stopped) = oneshot::channel();
        let mut second = JoinSet::new();
        second.spawn(Worker::join(&log, &seen).await.pausing().run(stopped));
        for _ in 0..2 {
            let target = |partition| Target::Partition(partition);
            let appends: Vec<_> = (0..PARTITIONS)
                .map(|partition| {
                    appended += 1;
                    producer.append(TOPIC, target(partition), numbered(appended))
                })
                .collect();
            for append in appends {
                append.await.expect("appended");
            }
            eventually("each partition is read", STANDS_AT_MOST, async || {
                let read = seen.lock().counts.len();
                if read == appended { Ok(()) } else { Err(read) }
            })
            .await;
        }
        stop_second.send(()).expect("the second member works");
        let done = second.join_next().await.expect("it was started");
        done.expect("the second member did its work");
    }
    stop_first.send(()).expect("the first member works");
    let done = first.join_next().await.expect("it was started");
    done.expect("the first member did its work");
}

/// What lies in the client counts decompressed, and a user that takes nothing stops it soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_takes_nothing_reads_ahead_no_more_than_its_bounds() {
    const PARTITIONS: i32 = 64;
    const RECORDS: i32 = 384;
    /// Of the 240 MiB there are: the bound of 8 MiB, two fetches of 4 MiB that are eight times as
    /// much when decompressed, and what an allocator keeps.
    const GROWTH_MIB_MAX: u64 = 120;
    let broker = KafkaBroker::shared().bootstrap();
    let log = connect(&broker, &[("compression.type", "zstd")]);
    create(&log, PARTITIONS).await;
    let producer = producer(&log, None).await;
    for turn in 0..RECORDS {
        let appends: Vec<_> = (0..PARTITIONS)
            .map(|partition| {
                let record = compressible(u64::try_from(turn * PARTITIONS + partition).unwrap());
                producer.append(TOPIC, Target::Partition(partition), record)
            })
            .collect();
        for append in appends {
            append.await.expect("appended");
        }
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crowds::read_ahead_child", "--nocapture"])
        .env(CHILD_BOOTSTRAP, &broker)
        .env(CHILD_PREFIX, log.prefix())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let growth = said.split_once("grew by ").expect(&said).1;
    let growth_mib: u64 = growth.split(' ').next().unwrap().parse().unwrap();
    assert!(growth_mib > 2, "it read something ahead: {said}");
    assert!(growth_mib < GROWTH_MIB_MAX, "{said}");
}

/// The process whose memory is looked at. A test only in name, so that the test binary can be
/// started as this process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_ahead_child() {
    let (Ok(bootstrap), Ok(prefix)) = (std::env::var(CHILD_BOOTSTRAP), std::env::var(CHILD_PREFIX))
    else {
        return;
    };
    let log = connect_to(&prefix, &bootstrap, &[]);
    let options = GroupOptions {
        group: "group".into(),
        topic: TOPIC.into(),
        revoke_deadline: Duration::from_secs(5),
        prefetch_bytes_max: 8 << 20,
    };
    let mut group = log.group(options).await.expect("the group is joined");
    let before = resident_mib();
    start_all(&mut *group, 64).await;
    // It would read for as long as it likes: until it has not grown for some seconds.
    let mut highest = (before, 0);
    while highest.1 < 50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = resident_mib();
        highest = if now > highest.0 {
            (now, 0)
        } else {
            (highest.0, highest.1 + 1)
        };
    }
    println!("grew by {} MiB from {before} MiB", highest.0 - before);
    group.close().await;
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

/// A record of 10 kB, an eighth of which does not compress.
fn compressible(seed: u64) -> NewRecord {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = Vec::with_capacity(10_000);
    while value.len() < 10_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.extend_from_slice(&state.to_le_bytes());
        value.extend_from_slice(&[0; 56]);
    }
    NewRecord {
        key: Bytes::from(seed.to_string()),
        value: Some(Bytes::from(value)),
        headers: Vec::new(),
    }
}
