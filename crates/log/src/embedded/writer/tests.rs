//! When fates are told, on a store whose steps a test controls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::clock::SystemClock;
use crate::local::producer::lone_fate;
use crate::port::Append;

const A_WHILE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(10);

/// A store that says when it reached the commit, and commits as it is told.
struct Scripted {
    at_commit: SyncSender<usize>,
    script: Receiver<Result<(), StoreError>>,
    append_fails: bool,
    appended: usize,
    rolled_back: Arc<AtomicUsize>,
    heads: Heads,
}

impl Store for Scripted {
    fn heads(&mut self) -> Result<Heads, StoreError> {
        Ok(self.heads.clone())
    }
    fn begin(&mut self) -> Result<(), StoreError> {
        self.appended = 0;
        Ok(())
    }
    fn append(&mut self, _: i64, _: Offset, _: i64, _: &NewRecord) -> Result<(), StoreError> {
        self.appended += 1;
        if self.append_fails {
            Err(StoreError::InvalidQuery)
        } else {
            Ok(())
        }
    }
    fn save_head(&mut self, _: i64, _: Head) -> Result<(), StoreError> {
        Ok(())
    }
    fn save_commits(&mut self, _: &str, _: i64, _: &[Commit]) -> Result<(), StoreError> {
        Ok(())
    }
    fn create_topic(&mut self, _: &TopicSpec) -> Result<i64, StoreError> {
        Ok(1)
    }
    fn delete_before(&mut self, _: i64, _: Offset, _: u32) -> Result<usize, StoreError> {
        Ok(0)
    }
    fn delete(&mut self, _: &[i64]) -> Result<usize, StoreError> {
        Ok(0)
    }
    fn write_probe(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn remove_probe(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn commit(&mut self) -> Result<(), StoreError> {
        self.at_commit.send(self.appended).unwrap();
        self.script.recv().unwrap_or(Ok(()))
    }
    fn rollback(&mut self) -> Result<(), StoreError> {
        self.rolled_back.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A writer on a scripted store.
struct Rig {
    queue: Arc<Queue>,
    tail: Arc<Tail>,
    topic: Arc<Topic>,
    at_commit: Receiver<usize>,
    script: SyncSender<Result<(), StoreError>>,
    rolled_back: Arc<AtomicUsize>,
}

impl Rig {
    fn new(append_fails: bool, heads: Heads) -> Self {
        let (at_commit_sender, at_commit) = sync_channel(100);
        let (script, script_receiver) = sync_channel(100);
        let rolled_back = Arc::new(AtomicUsize::new(0));
        let store = Scripted {
            at_commit: at_commit_sender,
            script: script_receiver,
            append_fails,
            appended: 0,
            rolled_back: Arc::clone(&rolled_back),
            heads,
        };
        let queue = Arc::new(Queue::default());
        let tail = Arc::new(Tail::new(1_000_000));
        let for_writer = (Arc::clone(&queue), Arc::clone(&tail));
        std::thread::spawn(move || run(store, &SystemClock, &for_writer.0, &for_writer.1));
        let spec = TopicSpec {
            name: "topic".into(),
            partitions: 1,
            retention: None,
            message_bytes_max: 1_000,
            settings: Vec::new(),
        };
        Self {
            queue,
            tail,
            topic: Arc::new(Topic::new(1, spec)),
            at_commit,
            script,
            rolled_back,
        }
    }

    fn append(&self) -> Append {
        self.append_within(Duration::ZERO)
    }

    fn append_within(&self, linger: Duration) -> Append {
        self.append_sized(linger, 0)
    }

    fn append_sized(&self, linger: Duration, bytes: usize) -> Append {
        let (origin, fate, append) = lone_fate(bytes);
        self.queue.push(Job::Append(Appending {
            origin,
            topic: Arc::clone(&self.topic),
            partition: 0,
            record: NewRecord {
                key: Bytes::from_static(b"key"),
                ..NewRecord::default()
            },
            timeout: None,
            linger,
            fate,
        }));
        append
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.queue.close();
    }
}

#[tokio::test]
async fn acknowledges_only_after_the_commit_returned() {
    let rig = Rig::new(false, Heads::new());
    let mut append = rig.append();
    assert_eq!(rig.at_commit.recv_timeout(PATIENCE), Ok(1));
    assert!(
        tokio::time::timeout(A_WHILE, &mut append).await.is_err(),
        "not while it commits"
    );
    assert_eq!(rig.topic.bounds(0).end, 0, "and nobody sees the record");
    rig.script.send(Ok(())).unwrap();
    assert_eq!(place(append.await), Ok((0, 0)));
    assert_eq!(rig.topic.bounds(0).end, 1);
}

fn place(fate: Result<Position, AppendError>) -> Result<(Partition, Offset), AppendError> {
    fate.map(|position| (position.partition, position.offset))
}

#[tokio::test]
async fn gathers_what_waits_into_one_commit() {
    let rig = Rig::new(false, Heads::new());
    let first = rig.append();
    assert_eq!(rig.at_commit.recv_timeout(PATIENCE), Ok(1));
    let others: Vec<Append> = (0..500).map(|_| rig.append()).collect();
    rig.script.send(Ok(())).unwrap();
    rig.script.send(Ok(())).unwrap();
    first.await.unwrap();
    assert_eq!(rig.at_commit.recv_timeout(PATIENCE), Ok(500));
    for (offset, append) in (1..).zip(others) {
        assert_eq!(place(append.await), Ok((0, offset)));
    }
}

#[tokio::test]
async fn what_may_gather_waits_for_what_may_not() {
    let rig = Rig::new(false, Heads::new());
    rig.script.send(Ok(())).unwrap();
    let hour = Duration::from_secs(3600);
    let gathers = [rig.append_within(hour), rig.append_within(hour)];
    assert!(rig.at_commit.recv_timeout(A_WHILE).is_err(), "nobody waits");
    let last = rig.append();
    assert_eq!(rig.at_commit.recv_timeout(PATIENCE), Ok(3));
    for (offset, append) in (0..).zip(gathers.into_iter().chain([last])) {
        assert_eq!(place(append.await), Ok((0, offset)));
    }
}

#[tokio::test]
async fn gathers_for_as_long_as_the_first_that_is_due() {
    let rig = Rig::new(false, Heads::new());
    let started = Instant::now();
    let gathers = [
        rig.append_within(Duration::from_secs(3600)),
        rig.append_within(Duration::from_secs(3600)),
        rig.append_within(A_WHILE),
    ];
    assert_eq!(rig.at_commit.recv_timeout(PATIENCE), Ok(3));
    assert!(started.elapsed() >= A_WHILE);
    rig.script.send(Ok(())).unwrap();
    for append in gathers {
        append.await.unwrap();
    }
    let last = rig.append_within(Duration::from_secs(3600));
    rig.queue.close();
    assert_eq!(
        rig.at_commit.recv_timeout(PATIENCE),
        Ok(1),
        "nor at the end"
    );
    rig.script.send(Ok(())).unwrap();
    last.await.unwrap();
}

#[tokio::test]
async fn what_a_transaction_has_no_room_for_goes_with_the_next() {
    let rig = Rig::new(false, Heads::new());
    let first = rig.append();
    assert_eq!(rig.at_commit.recv_timeout(PATIENCE), Ok(1));
    let hour = Duration::from_secs(3600);
    let gathers: Vec<_> = std::iter::repeat_with(|| rig.append_within(hour))
        .take(TRANSACTION_JOBS_MAX)
        .collect();
    let last = rig.append();
    for _ in 0..3 {
        rig.script.send(Ok(())).unwrap();
    }
    first.await.unwrap();
    last.await.unwrap();
    let sizes = [(); 2].map(|()| rig.at_commit.recv_timeout(PATIENCE).unwrap());
    assert_eq!(sizes, [TRANSACTION_JOBS_MAX, 1]);
    drop(gathers);
}

#[tokio::test]
async fn gathers_no_more_than_those_who_append_have_room_for() {
    let rig = Rig::new(false, Heads::new());
    let hour = Duration::from_secs(3600);
    let first = rig.append_sized(hour, GATHERED_BYTES_MAX / 2);
    assert!(rig.at_commit.recv_timeout(A_WHILE).is_err());
    let second = rig.append_sized(hour, GATHERED_BYTES_MAX / 2);
    assert_eq!(rig.at_commit.recv_timeout(PATIENCE), Ok(2));
    rig.script.send(Ok(())).unwrap();
    for append in [first, second] {
        append.await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_commit_is_of_unknown_fate_and_the_heads_are_read_again() {
    // The store turns out to have the records although their commit failed.
    let landed = Head {
        first: 0,
        next: 7,
        last_timestamp_ms: 0,
    };
    let rig = Rig::new(false, Heads::from([(slot(1, 0), landed)]));
    let tail = |from| rig.tail.read(slot(1, 0), from, Offset::MAX, usize::MAX);
    rig.script.send(Ok(())).unwrap();
    assert_eq!(place(rig.append().await), Ok((0, 7)));
    assert_eq!(tail(7).map(|chunk| chunk.next), Some(8));
    rig.script.send(Err(StoreError::InvalidQuery)).unwrap();
    rig.script.send(Ok(())).unwrap();
    assert!(matches!(rig.append().await, Err(AppendError::Unknown(_))));
    assert_eq!(place(rig.append().await), Ok((0, 7)), "as the store says");
    assert_eq!(tail(7).map(|chunk| chunk.records.len()), Some(1));
}

#[tokio::test]
async fn a_failure_before_the_commit_is_rolled_back_and_told_as_failed() {
    let rig = Rig::new(true, Heads::new());
    assert!(matches!(rig.append().await, Err(AppendError::Failed(_))));
    assert!(rig.rolled_back.load(Ordering::Relaxed) > 0);
    assert!(rig.at_commit.try_recv().is_err(), "nothing was committed");
    rig.queue.close();
    assert!(
        matches!(rig.append().await, Err(AppendError::Failed(_))),
        "nor after the end"
    );
}
