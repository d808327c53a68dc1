//! Partitions whose commits were lost: they are stopped, others go on, and an operator decides.
//!
//! The stage is the scheduler, as it needs the least; records that it cannot understand become dead letters, each once
//! for each time it is read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_delivery::config::DeliveryConfig;
use postrider_delivery::scheduler::{self, SchedulerContext};
use postrider_delivery::standing::{DecideError, Standing, decide, found, standings};
use postrider_delivery::{DeliveryMetrics, StageContext};
use postrider_log::memory::MemoryLog;
use postrider_log::{
    Clock, Committed, Log, NewRecord, Offset, Partition, ProducerOptions, Target, TopicSpec,
};
use postrider_model::retry::DelayLadder;
use postrider_model::topics::{DEAD_LETTERS, DELIVERIES, EVENTS, GROUP_SCHEDULER, RETRY};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const PARTITIONS: i32 = 3;
/// Longer than any watch takes to look again.
const A_WHILE: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000 + i64::try_from(self.0.elapsed().as_millis()).expect("short")
    }
}

struct World {
    log: Arc<MemoryLog>,
    clock: Arc<dyn Clock>,
    /// What `create_topics` answered.
    created: Vec<String>,
    metrics: Vec<DeliveryMetrics>,
    workers: JoinSet<()>,
    stop: CancellationToken,
}

impl World {
    async fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(PausedClock(Instant::now()));
        let log = MemoryLog::new(clock.clone(), 1);
        let spec = |name: &str, partitions| TopicSpec {
            name: name.to_owned(),
            partitions,
            retention: Some(Duration::from_secs(86_400)),
            message_bytes_max: 1 << 20,
            settings: Vec::new(),
        };
        let topics = [
            spec(EVENTS, 1),
            spec(DELIVERIES, 1),
            spec(DEAD_LETTERS, 1),
            spec(RETRY, PARTITIONS),
        ];
        let created = log.create_topics(&topics).await.expect("topics");
        Self {
            log,
            clock,
            created,
            metrics: Vec::new(),
            workers: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }

    async fn founded() -> Self {
        let world = Self::new().await;
        found(&*world.log, &world.created).await.expect("founded");
        world
    }

    fn start(&mut self, process: &str) {
        let config = DeliveryConfig::default();
        let metrics = DeliveryMetrics::detached();
        self.metrics.push(metrics.clone());
        let stage = StageContext {
            log: self.log.process(process),
            config: config.stage.clone(),
            lease_term: Duration::from_millis(config.deliver.lease_ms),
            metrics: metrics.clone(),
        };
        let context = SchedulerContext {
            clock: self.clock.clone(),
            ladder: DelayLadder::try_new(vec![1_000, 2_000, 4_000]).expect("a ladder"),
            config: config.scheduler.clone(),
            raw_record_bytes_max: config.stage.raw_record_bytes_max,
            metrics,
        };
        self.workers
            .spawn(scheduler::run(stage, context, self.stop.clone()));
    }

    async fn end_all(&mut self) {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        self.stop = CancellationToken::new();
        self.metrics.clear();
    }

    async fn append(&self, partition: Partition, count: usize) {
        let options = ProducerOptions {
            name: "test",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 20,
        };
        let producer = self.log.producer(options).await.expect("a producer");
        for _ in 0..count {
            let record = NewRecord {
                key: Bytes::from_static(b"key"),
                value: Some(Bytes::from_static(b"\xff")),
                headers: Vec::new(),
            };
            let append = producer.append(RETRY, Target::Partition(partition), record);
            append.await.expect("appended");
        }
    }

    async fn append_each(&self, count: usize) {
        for partition in 0..PARTITIONS {
            self.append(partition, count).await;
        }
    }

    /// How many records were read so far, counted as often as they were.
    fn read(&self) -> usize {
        self.log.snapshot(DEAD_LETTERS).len()
    }

    fn stopped(&self) -> i64 {
        let of = |metrics: &DeliveryMetrics| {
            let gauge = &metrics.partitions_stopped;
            gauge.with_label_values(&[GROUP_SCHEDULER]).get()
        };
        self.metrics.iter().map(of).sum()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = timeout(A_WHILE, async {
            while !holds(self) {
                sleep(Duration::from_millis(100)).await;
            }
        });
        let state = || format!("{} read, {} stopped", self.read(), self.stopped());
        waited
            .await
            .unwrap_or_else(|_| panic!("{what}: {}", state()));
        sleep(A_WHILE).await;
        assert!(holds(self), "{what} no more: {}", state());
    }

    async fn committed(&self) -> Vec<Option<Offset>> {
        let committed = self.log.committed(GROUP_SCHEDULER, RETRY).await;
        let offset = |one: Option<Committed>| one.map(|one| one.offset);
        committed
            .expect("commits")
            .into_iter()
            .map(offset)
            .collect()
    }

    async fn decide(&self, partition: Partition, offset: Offset) -> Result<(), DecideError> {
        let offsets = BTreeMap::from([(partition, offset)]);
        decide(&*self.log, GROUP_SCHEDULER, RETRY, offsets).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_whose_commit_was_lost_waits_for_a_decision_while_others_go_on() {
    let mut world = World::founded().await;
    world.start("one");
    world.append_each(3).await;
    world.until("all are read", |world| world.read() == 9).await;
    world.end_all().await;

    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 1);
    world.append_each(2).await;
    world.start("two");
    let others = |world: &World| world.read() == 13 && world.stopped() == 1;
    world.until("the others are read", others).await;
    assert_eq!(world.committed().await, [Some(5), None, Some(5)]);

    world.decide(1, 3).await.expect("the owner takes it");
    let all = |world: &World| world.read() == 15 && world.stopped() == 0;
    world.until("the rest is read", all).await;
    assert_eq!(world.committed().await, [Some(5); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_decision_reaches_a_partition_that_moves() {
    let mut world = World::founded().await;
    world.append_each(2).await;
    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 2);
    world.start("one");
    world.start("two");
    let others = |world: &World| world.read() == 4 && world.stopped() == 1;
    world.until("the others are read", others).await;
    let moving = async {
        for _ in 0..5 {
            world.log.faults().rebalance(GROUP_SCHEDULER);
            sleep(Duration::from_secs(4)).await;
        }
    };
    let (decided, ()) = futures_util::join!(world.decide(2, 0), moving);
    decided.expect("an owner takes it");
    let all = |world: &World| world.read() == 6 && world.stopped() == 0;
    world.until("the rest is read", all).await;
}

#[tokio::test(start_paused = true)]
async fn a_decision_of_an_earlier_time_is_not_followed() {
    let mut world = World::founded().await;
    world.append(0, 3).await;
    let faults = world.log.faults();
    for decided in 1..=2 {
        faults.forget_commit(GROUP_SCHEDULER, RETRY, 0);
        world.start("a life");
        let stopped = |world: &World| world.stopped() == 1 && world.read() == 3 * (decided - 1);
        world.until("it is stopped", stopped).await;
        world.decide(0, 0).await.expect("the owner takes it");
        let all = |world: &World| world.read() == 3 * decided;
        world.until("all is read", all).await;
        world.end_all().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_beyond_the_end_stops_the_partition() {
    let mut world = World::founded().await;
    world.append_each(2).await;
    let beyond = Committed {
        offset: 3,
        metadata: String::new(),
    };
    let commits = [(0, beyond)];
    let set = world.log.set_committed(GROUP_SCHEDULER, RETRY, &commits);
    set.await.expect("nobody is in the group");
    world.start("one");
    let others = |world: &World| world.read() == 4 && world.stopped() == 1;
    world.until("the others are read", others).await;
    let standings = standings(&*world.log, GROUP_SCHEDULER, RETRY).await;
    assert_eq!(
        standings.expect("standings")[0].standing,
        Standing::BeyondEnd(3)
    );
    world.decide(0, 1).await.expect("the owner takes it");
    let all = |world: &World| world.read() == 5 && world.stopped() == 0;
    world.until("the rest is read", all).await;
}

#[tokio::test(start_paused = true)]
async fn without_processes_a_decision_is_the_commit() {
    let mut world = World::founded().await;
    world.append(1, 5).await;
    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 1);
    world.decide(1, 4).await.expect("nobody is in the group");
    assert_eq!(world.committed().await, [Some(0), Some(4), Some(0)]);
    world.start("one");
    world.until("one is read", |world| world.read() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_nobody_can_take_is_reported() {
    let mut world = World::founded().await;
    world.append(1, 1).await;
    world.log.faults().forget_commit(GROUP_SCHEDULER, RETRY, 1);
    world.start("one");
    world
        .until("it is stopped", |world| world.stopped() == 1)
        .await;
    let beyond = world.decide(1, 7).await;
    assert!(matches!(beyond, Err(DecideError::NotTaken(partitions)) if partitions == [1]));
    assert_eq!(world.stopped(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_never_held_a_record_needs_no_founding() {
    let mut world = World::new().await;
    world.start("one");
    let own = |world: &World| world.stopped() == 0;
    world.until("nothing is stopped", own).await;
    assert_eq!(world.committed().await, [Some(0); 3]);
    world.append_each(2).await;
    world.until("all are read", |world| world.read() == 6).await;
}

#[tokio::test(start_paused = true)]
async fn founding_reaches_a_group_at_work() {
    let mut world = World::new().await;
    world.append(1, 2).await;
    world.start("one");
    world
        .until("it is stopped", |world| world.stopped() == 1)
        .await;
    found(&*world.log, &[]).await.expect("founded");
    assert_eq!(
        world.stopped(),
        1,
        "records are there, and the topic is not new"
    );
    found(&*world.log, &world.created).await.expect("founded");
    world.until("all are read", |world| world.read() == 2).await;
    found(&*world.log, &world.created).await.expect("founded");
    assert_eq!(world.committed().await, [Some(0), Some(2), Some(0)]);
}
