//! A scheduler over a log in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_delivery::config::DeliveryConfig;
use postrider_delivery::scheduler::{self, SchedulerContext};
use postrider_delivery::standing::{DecideError, PartitionStanding, decide, found, standings};
use postrider_delivery::{DeliveryMetrics, StageContext};
use postrider_log::memory::MemoryLog;
use postrider_log::{
    Clock, Committed, Log, NewRecord, Offset, Partition, ProducerOptions, Target, TopicSpec,
};
use postrider_model::retry::DelayLadder;
use postrider_model::topics::{ATTEMPTS, DEAD_LETTERS, DELIVERIES, EVENTS, GROUP_SCHEDULER, RETRY};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const PARTITIONS: i32 = 3;
/// Longer than any watch takes to look again.
pub(crate) const A_WHILE: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000 + i64::try_from(self.0.elapsed().as_millis()).expect("short")
    }
}

pub(crate) struct World {
    pub(crate) log: Arc<MemoryLog>,
    clock: Arc<dyn Clock>,
    /// What `create_topics` answered.
    pub(crate) created: Vec<String>,
    metrics: Vec<DeliveryMetrics>,
    workers: JoinSet<()>,
    stop: CancellationToken,
}

impl World {
    pub(crate) async fn new() -> Self {
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
            spec(DELIVERIES, PARTITIONS),
            spec(ATTEMPTS, PARTITIONS),
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

    pub(crate) async fn founded() -> Self {
        let world = Self::new().await;
        found(&*world.log, &world.created).await.expect("founded");
        world
    }

    pub(crate) fn start(&mut self, process: &str) {
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

    pub(crate) async fn end_all(&mut self) {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        self.stop = CancellationToken::new();
        self.metrics.clear();
    }

    pub(crate) async fn append(&self, partition: Partition, count: usize) {
        self.append_to(RETRY, partition, count).await;
    }

    pub(crate) async fn append_to(&self, topic: &str, partition: Partition, count: usize) {
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
            let append = producer.append(topic, Target::Partition(partition), record);
            append.await.expect("appended");
        }
    }

    pub(crate) async fn append_each(&self, count: usize) {
        for partition in 0..PARTITIONS {
            self.append(partition, count).await;
        }
    }

    /// How many records were read so far, counted as often as they were.
    pub(crate) fn read(&self) -> usize {
        self.log.snapshot(DEAD_LETTERS).len()
    }

    pub(crate) fn stopped(&self) -> i64 {
        let of = |metrics: &DeliveryMetrics| {
            let gauge = &metrics.partitions_stopped;
            gauge.with_label_values(&[GROUP_SCHEDULER]).get()
        };
        self.metrics.iter().map(of).sum()
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
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

    pub(crate) async fn committed(&self) -> Vec<Option<Offset>> {
        let committed = self.log.committed(GROUP_SCHEDULER, RETRY).await;
        let offset = |one: Option<Committed>| one.map(|one| one.offset);
        committed
            .expect("commits")
            .into_iter()
            .map(offset)
            .collect()
    }

    pub(crate) async fn standing(&self, partition: Partition) -> PartitionStanding {
        let standings = standings(&*self.log, GROUP_SCHEDULER, RETRY).await;
        let of_partition = |one: &PartitionStanding| one.partition == partition;
        let mut standings = standings.expect("standings").into_iter();
        standings.find(of_partition).expect("a partition")
    }

    pub(crate) async fn decide(
        &self,
        partition: Partition,
        offset: Offset,
    ) -> Result<(), DecideError> {
        let decided = self.standing(partition).await.standing.decided(offset);
        let decisions = BTreeMap::from([(partition, decided)]);
        decide(&*self.log, GROUP_SCHEDULER, RETRY, decisions).await
    }
}
