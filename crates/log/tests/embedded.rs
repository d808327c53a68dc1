//! What only the embedded log promises: it survives kill -9, keeps to retention, and keeps others
//! out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use postrider_log::embedded::{EmbeddedLog, Maintained};
use postrider_log::{
    Append, Clock, Log, NewRecord, ProducerOptions, Record, Stretch, SystemClock, Target, TopicSpec,
};

const TOPIC: &str = "topic";
const PARTITIONS: i32 = 4;
/// Set for the process that [`survives_kill_9_after_an_acknowledgement`] starts and kills.
const CHILD_DIR: &str = "POSTRIDER_TEST_CRASH_DIR";
/// How many records that process appends at once, and how often; without it 20 until it is killed.
const CHILD_TURNS: &str = "POSTRIDER_TEST_CRASH_TURNS";

#[derive(Debug, Default)]
struct ManualClock(AtomicI64);

impl ManualClock {
    fn set(&self, now_ms: i64) {
        self.0.store(now_ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn spec(retention: Option<Duration>, settings: &[(&str, &str)]) -> TopicSpec {
    TopicSpec {
        name: TOPIC.into(),
        partitions: PARTITIONS,
        retention,
        message_bytes_max: 1 << 20,
        settings: settings
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
    }
}

const KEPT_FOR_AN_HOUR: Option<Duration> = Some(Duration::from_secs(3600));

async fn append_all(log: &EmbeddedLog, records: impl IntoIterator<Item = (i32, NewRecord)>) {
    let options = ProducerOptions {
        name: "test",
        append_timeout: None,
        linger: Duration::ZERO,
        queue_bytes_max: 64 << 20,
    };
    let producer = log.producer(options).await.unwrap();
    let appends: Vec<Append> = records
        .into_iter()
        .map(|(partition, record)| producer.append(TOPIC, Target::Partition(partition), record))
        .collect();
    for append in appends {
        append.await.unwrap();
    }
}

fn record(key: &str, value: Option<&str>) -> NewRecord {
    NewRecord {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        headers: Vec::new(),
    }
}

async fn read_all(log: &EmbeddedLog, partition: i32) -> Vec<Record> {
    let mut reader = log.reader(TOPIC).await.unwrap();
    let bounds = log.bounds(TOPIC, partition).await.unwrap();
    let mut stretch = Stretch::new(partition, bounds.start..bounds.end);
    let mut records = Vec::new();
    while let Some(more) = stretch.read(&mut *reader).await.unwrap() {
        records.extend(more);
    }
    records
}

/// The process that is killed: appends without end, and prints what was acknowledged. A test only
/// in name, so that the test binary can be started as this process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_child() {
    let Ok(dir) = std::env::var(CHILD_DIR) else {
        return;
    };
    let log = EmbeddedLog::open(Path::new(&dir), Arc::new(SystemClock)).unwrap();
    log.create_topics(&[spec(KEPT_FOR_AN_HOUR, &[])])
        .await
        .unwrap();
    let options = ProducerOptions {
        name: "crash",
        append_timeout: None,
        linger: Duration::ZERO,
        queue_bytes_max: 1 << 20,
    };
    let producer = log.producer(options).await.unwrap();
    let turns: Option<usize> = std::env::var(CHILD_TURNS)
        .ok()
        .and_then(|turns| turns.parse().ok());
    let at_once = if turns.is_some() { 1 } else { 20 };
    for turn in 0..turns.unwrap_or(usize::MAX) {
        let appends: Vec<Append> = (0..at_once)
            .map(|index| {
                let partition = index % PARTITIONS;
                let record = record(&format!("{turn}-{index}"), Some(&"x".repeat(1_000)));
                producer.append(TOPIC, Target::Partition(partition), record)
            })
            .collect();
        for (index, append) in appends.into_iter().enumerate() {
            let position = append.await.unwrap();
            println!(
                "acked {} {} {turn}-{index}",
                position.partition, position.offset
            );
        }
    }
}

/// What a child printed as acknowledged before it was killed after `lines` lines.
fn acknowledged_before_kill(dir: &Path, lines: usize) -> Vec<(i32, i64, String)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash_child", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut acknowledged = Vec::new();
    let mut line = String::new();
    // What is in the pipe was acknowledged too, so it is read to its end, which the kill brings
    // about.
    while output.read_line(&mut line).unwrap() > 0 {
        // A line that the kill cut off has no end.
        if line.ends_with('\n') {
            acknowledged.extend(parse(line.trim_end()));
        }
        line.clear();
        if acknowledged.len() == lines {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(
        acknowledged.len() >= lines,
        "the child ended by itself after {}",
        acknowledged.len()
    );
    acknowledged
}

fn parse(line: &str) -> Option<(i32, i64, String)> {
    let mut words = line.strip_prefix("acked ")?.split(' ');
    let (partition, offset) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((partition, offset, words.next()?.to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_kill_9_after_an_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for life in 0..12 {
        let path = dir.path().to_owned();
        // Odd numbers of lines, so that the kill falls into the middle of transactions.
        let child =
            tokio::task::spawn_blocking(move || acknowledged_before_kill(&path, 3 + life * 37));
        acknowledged.extend(child.await.unwrap());
        let log = EmbeddedLog::open(dir.path(), Arc::new(SystemClock)).unwrap();
        for partition in 0..PARTITIONS {
            let records = read_all(&log, partition).await;
            let offsets: Vec<i64> = records.iter().map(|record| record.offset).collect();
            assert_eq!(
                offsets,
                (0..offsets.len() as i64).collect::<Vec<_>>(),
                "no holes"
            );
            for (_, offset, key) in acknowledged
                .iter()
                .filter(|(in_partition, ..)| *in_partition == partition)
            {
                let kept = records.get(usize::try_from(*offset).unwrap());
                assert_eq!(
                    kept.map(|record| &record.key[..]),
                    Some(key.as_bytes()),
                    "offset {offset}"
                );
            }
        }
    }
    assert!(acknowledged.len() > 2_000, "{}", acknowledged.len());
}

#[tokio::test]
async fn says_that_a_directory_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _first = EmbeddedLog::open(dir.path(), Arc::new(SystemClock)).unwrap();
    let error = EmbeddedLog::open(dir.path(), Arc::new(SystemClock)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} is in use by another process", dir.path().display())
    );
}

#[tokio::test]
async fn removes_what_is_past_retention_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let log = EmbeddedLog::open(dir.path(), clock.clone()).unwrap();
    log.create_topics(&[spec(KEPT_FOR_AN_HOUR, &[])])
        .await
        .unwrap();
    for minute in 0..90 {
        clock.set(minute * 60_000);
        // More than one transaction deletes.
        append_all(&log, (0..50).map(|_| (1, record("key", Some("value"))))).await;
    }
    assert_eq!(
        log.maintain().await.unwrap(),
        Maintained {
            expired: 29 * 50,
            compacted: 0
        }
    );
    assert_eq!(log.bounds(TOPIC, 1).await.unwrap().start, 29 * 50);
    let kept = read_all(&log, 1).await;
    assert_eq!((kept.len(), kept[0].timestamp_ms), (61 * 50, 29 * 60_000));
    assert_eq!(
        log.maintain().await.unwrap(),
        Maintained::default(),
        "there is no more"
    );

    clock.set(1_000 * 60_000);
    assert_eq!(log.maintain().await.unwrap().expired, 61 * 50);
    let bounds = log.bounds(TOPIC, 1).await.unwrap();
    assert_eq!((bounds.start, bounds.end), (90 * 50, 90 * 50));
    drop(log);
    let log = EmbeddedLog::open(dir.path(), clock).unwrap();
    assert_eq!(
        log.bounds(TOPIC, 1).await.unwrap(),
        bounds,
        "an empty partition remembers where it was"
    );
}

#[tokio::test]
async fn compaction_waits_for_its_lag_and_keeps_tombstones_for_a_day() {
    const DAY_MS: i64 = 24 * 3600 * 1000;
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    clock.set(DAY_MS);
    let log = EmbeddedLog::open(dir.path(), clock.clone()).unwrap();
    log.create_topics(&[spec(None, &[("min.compaction.lag.ms", "60000")])])
        .await
        .unwrap();
    let versions = ["0", "1", "2"].map(|value| (0, record("a", Some(value))));
    append_all(&log, versions).await;
    append_all(&log, [(0, record("b", Some("0"))), (0, record("b", None))]).await;
    assert_eq!(log.maintain().await.unwrap().compacted, 0, "too young");

    clock.set(DAY_MS + 60_001);
    assert_eq!(log.maintain().await.unwrap().compacted, 3);
    let offsets = |records: Vec<Record>| {
        records
            .iter()
            .map(|record| record.offset)
            .collect::<Vec<_>>()
    };
    assert_eq!(offsets(read_all(&log, 0).await), [2, 4]);

    clock.set(2 * DAY_MS + 1);
    assert_eq!(
        log.maintain().await.unwrap().compacted,
        1,
        "the tombstone has had its day"
    );
    assert_eq!(offsets(read_all(&log, 0).await), [2]);
    let bounds = log.bounds(TOPIC, 0).await.unwrap();
    assert_eq!((bounds.start, bounds.end), (0, 5));
}

#[tokio::test]
async fn times_never_fall_although_the_clock_does() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let mut log = EmbeddedLog::open(dir.path(), clock.clone()).unwrap();
    log.create_topics(&[spec(KEPT_FOR_AN_HOUR, &[])])
        .await
        .unwrap();
    for now_ms in [1_000, 500, 2_000, 100] {
        clock.set(now_ms);
        append_all(&log, [(0, record("key", Some("value")))]).await;
        drop(log);
        log = EmbeddedLog::open(dir.path(), clock.clone()).unwrap();
    }
    let times: Vec<i64> = read_all(&log, 0)
        .await
        .iter()
        .map(|record| record.timestamp_ms)
        .collect();
    assert_eq!(times, [1_000, 1_000, 2_000, 2_000]);
    for (time_ms, offset) in [(0, 0), (1_000, 0), (1_001, 2), (2_000, 2), (2_001, 4)] {
        assert_eq!(
            log.offset_for_time(TOPIC, 0, time_ms).await,
            Ok(offset),
            "{time_ms}"
        );
    }
}

/// The order of the system calls themselves, where strace can be had: before each acknowledgement
/// the write-ahead log was written, and synced after that.
#[test]
fn the_fsync_precedes_the_acknowledgement() {
    let strace = Command::new("strace").arg("-V").output();
    if !strace.is_ok_and(|output| output.status.success()) {
        println!("skipped: strace is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let output = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-qq",
            "-s",
            "16",
            "-e",
            "trace=write,pwrite64,fsync,fdatasync",
            "-o",
        ])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "crash_child", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir.path().join("log"))
        .env(CHILD_TURNS, "200")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let trace = std::fs::read_to_string(&trace).unwrap();
    assert_eq!(acknowledged_in_order(&trace), 200);
}

/// How many acknowledgements a trace has, each of which must come after a sync that came after a
/// write.
fn acknowledged_in_order(trace: &str) -> usize {
    let (mut unsynced, mut syncs, mut acknowledged) = (false, 0, 0);
    // The thread that is inside a sync of the write-ahead log.
    let mut syncing = None;
    for line in trace.lines() {
        let thread = line.split_whitespace().next();
        let of_wal = line.contains("log.sqlite-wal>");
        let sync = line.contains("fsync(") || line.contains("fdatasync(");
        let succeeded = line.ends_with("= 0");
        if line.contains("\"acked ") {
            assert!(!unsynced && syncs > 0, "acknowledged too early: {line}");
            acknowledged += 1;
            syncs = 0;
        } else if of_wal && sync && !succeeded {
            syncing = thread;
        } else if (of_wal && sync)
            || (succeeded && line.contains("sync resumed>") && syncing == thread)
        {
            unsynced = false;
            syncs += 1;
        } else if of_wal {
            unsynced = true;
        }
    }
    acknowledged
}
