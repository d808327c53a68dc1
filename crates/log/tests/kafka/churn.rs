//! Members that come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use postrider_log::kafka::KafkaLog;
use postrider_log::{
    Commit, CommitAck, CommitError, Committed, Generation, Group, GroupEvent, Log, Offset,
    Partition, Target,
};
use postrider_tests::KafkaBroker;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::support::{PATIENCE, TOPIC, connect, create, join, number, numbered, producer};

/// How often each number was seen, and how many partitions were lost rather than released.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) counts: BTreeMap<usize, usize>,
    pub(crate) lost: usize,
    /// The group changes its protocol, and while it does its coordinator may know a member no more.
    pub(crate) may_be_fenced: bool,
}

/// A member that works at once and commits after every event.
pub(crate) struct Worker {
    group: Box<dyn Group>,
    seen: Arc<Mutex<Seen>>,
    places: BTreeMap<Partition, (Generation, Offset)>,
    acks: Vec<CommitAck>,
    /// Whether every partition is paused and resumed whenever something of it comes.
    pauses: bool,
}

impl Worker {
    pub(crate) async fn join(log: &KafkaLog, seen: &Arc<Mutex<Seen>>) -> Self {
        let group = join(log, Duration::from_secs(10)).await;
        Self {
            group,
            seen: Arc::clone(seen),
            places: BTreeMap::new(),
            acks: Vec::new(),
            pauses: false,
        }
    }

    /// One that pauses and resumes each partition with its start and with every record.
    pub(crate) fn pausing(self) -> Self {
        Self {
            pauses: true,
            ..self
        }
    }

    /// Works until told to stop, then commits and leaves.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        loop {
            let event = tokio::select! {
                biased;
                _ = &mut stop => break,
                event = self.group.next() => event.expect("the group goes on"),
            };
            self.take(event).await;
        }
        let all: Vec<Partition> = self.places.keys().copied().collect();
        self.commit(&all);
        self.settle().await;
        tokio::time::timeout(PATIENCE, self.group.close())
            .await
            .expect("it leaves in time");
    }

    async fn take(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Assigned(assignments) => {
                for one in assignments {
                    let from = one
                        .committed
                        .map_or(one.bounds.start, |committed| committed.offset);
                    self.places.insert(one.partition, (one.generation, from));
                    self.group.start(one.partition, from);
                    self.pause_and_resume(one.partition);
                }
            }
            GroupEvent::Records(records) => {
                let mut touched = Vec::new();
                for record in &records {
                    let place = self.places.get_mut(&record.partition).expect("it is ours");
                    assert!(record.offset >= place.1, "{record:?} after {place:?}");
                    place.1 = record.offset + 1;
                    touched.push(record.partition);
                    *self.seen.lock().counts.entry(number(record)).or_default() += 1;
                }
                touched.dedup();
                self.commit(&touched);
                for partition in touched {
                    self.pause_and_resume(partition);
                }
            }
            GroupEvent::Revoke { partitions, .. } => {
                self.commit(&partitions);
                self.settle().await;
                self.group.release();
                self.places
                    .retain(|partition, _| !partitions.contains(partition));
            }
            GroupEvent::Lost(partitions) => {
                self.seen.lock().lost += partitions.len();
                self.places
                    .retain(|partition, _| !partitions.contains(partition));
            }
            GroupEvent::Truncated { .. } | GroupEvent::BeyondEnd { .. } => panic!("{event:?}"),
        }
    }

    fn pause_and_resume(&mut self, partition: Partition) {
        if self.pauses {
            self.group.pause(partition);
            self.group.resume(partition);
        }
    }

    fn commit(&mut self, partitions: &[Partition]) {
        let commits = partitions.iter().map(|partition| {
            let (generation, offset) = self.places[partition];
            let committed = Committed {
                offset,
                metadata: format!("at {offset}"),
            };
            Commit {
                partition: *partition,
                generation,
                committed,
            }
        });
        let ack = self.group.commit(commits.collect());
        self.acks.push(ack);
    }

    /// Every commit has an answer; what is still owned was accepted.
    async fn settle(&mut self) {
        for ack in self.acks.drain(..) {
            let answer = tokio::time::timeout(PATIENCE, ack)
                .await
                .expect("a commit is answered");
            let mut seen = self.seen.lock();
            if seen.may_be_fenced && answer == Err(CommitError::Fenced) {
                seen.lost += 1;
            }
            if seen.lost == 0 {
                answer.expect("a commit of an owner is accepted");
            }
        }
    }
}

both_protocols!(
    nothing_is_lost_or_doubled_while_members_come_and_go,
    none_of_many_partitions_gets_stuck,
);

async fn nothing_is_lost_or_doubled_while_members_come_and_go(properties: &[(&str, &str)]) {
    const PARTITIONS: i32 = 6;
    let log = connect(&KafkaBroker::shared().bootstrap(), properties);
    create(&log, PARTITIONS).await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut tasks = tokio::task::JoinSet::new();
    let (stop_first, stopped) = oneshot::channel();
    tasks.spawn(Worker::join(&log, &seen).await.run(stopped));
    let producer = producer(&log, None).await;
    let (mut appended, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(20) {
        let (stop_second, stopped) = oneshot::channel();
        let mut second = tokio::task::JoinSet::new();
        second.spawn(Worker::join(&log, &seen).await.run(stopped));
        let turn = Instant::now();
        while turn.elapsed() < Duration::from_secs(1) {
            for _ in 0..10 {
                producer
                    .append(TOPIC, Target::Key, numbered(appended))
                    .await
                    .expect("appended");
                appended += 1;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop_second.send(()).expect("the second member works");
        second
            .join_next()
            .await
            .unwrap()
            .expect("the second member did its work");
    }
    let deadline = Instant::now() + PATIENCE;
    while seen.lock().counts.len() < appended {
        assert!(
            Instant::now() < deadline,
            "{} of {appended} were seen",
            seen.lock().counts.len()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop_first.send(()).expect("the first member works");
    tasks
        .join_next()
        .await
        .unwrap()
        .expect("the first member did its work");
    {
        let seen = seen.lock();
        let doubled = seen.counts.values().filter(|count| **count > 1).count();
        assert!(doubled == 0 || seen.lost > 0, "{doubled} of {appended}");
    }
    let committed = log.committed("group", TOPIC).await.unwrap();
    for (partition, committed) in (0..PARTITIONS).zip(committed) {
        let end = log.bounds(TOPIC, partition).await.unwrap().end;
        assert_eq!(committed.map_or(0, |committed| committed.offset), end);
    }
}

async fn none_of_many_partitions_gets_stuck(properties: &[(&str, &str)]) {
    const PARTITIONS: i32 = 64;
    const EACH: usize = 5;
    let log = connect(&KafkaBroker::shared().bootstrap(), properties);
    create(&log, PARTITIONS).await;
    let producer = producer(&log, None).await;
    let mut appended = 0;
    for _ in 0..4 {
        let mut appends = Vec::new();
        for partition in 0..PARTITIONS {
            for _ in 0..EACH {
                appends.push(producer.append(
                    TOPIC,
                    Target::Partition(partition),
                    numbered(appended),
                ));
                appended += 1;
            }
        }
        for append in appends {
            append.await.expect("it is appended");
        }
        let mut group = join(&log, Duration::from_secs(5)).await;
        read_each(&mut *group, usize::try_from(PARTITIONS).unwrap(), EACH).await;
        group.close().await;
    }
}

/// Reads and commits so many records of each partition, pausing and resuming each in between.
async fn read_each(group: &mut dyn Group, partitions: usize, each: usize) {
    let mut generations = BTreeMap::new();
    let mut read: BTreeMap<Partition, usize> = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    while read.len() < partitions || read.values().any(|count| *count < each) {
        let event = tokio::time::timeout_at(deadline, group.next()).await;
        match event
            .unwrap_or_else(|_| panic!("stuck at {read:?}"))
            .expect("the group goes on")
        {
            GroupEvent::Assigned(assignments) => {
                for one in assignments {
                    let from = one.committed.map_or(0, |committed| committed.offset);
                    generations.insert(one.partition, one.generation);
                    group.start(one.partition, from);
                    group.pause(one.partition);
                    group.resume(one.partition);
                }
            }
            GroupEvent::Records(records) => {
                for record in records {
                    *read.entry(record.partition).or_default() += 1;
                    group.pause(record.partition);
                    let commit = Commit {
                        partition: record.partition,
                        generation: generations[&record.partition],
                        committed: Committed {
                            offset: record.offset + 1,
                            metadata: String::new(),
                        },
                    };
                    let ack = group.commit(vec![commit]);
                    if read[&record.partition].is_multiple_of(each) {
                        ack.await.expect("the commit is accepted");
                    }
                    group.resume(record.partition);
                }
            }
            event => panic!("{event:?}"),
        }
    }
}
