//! Retries come back when they are due, once, and not all at once: the scheduler over the log in
//! memory, on paused time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use postrider_delivery::config::{DeliveryConfig, SchedulerConfig};
use postrider_delivery::scheduler::{self, SchedulerContext};
use postrider_delivery::standing::found;
use postrider_delivery::{DeliveryMetrics, StageContext};
use postrider_log::memory::{AppendFate, AppendPlan, MemoryLog, MemoryProcess};
use postrider_log::{
    Clock, Log, NewRecord, Partition, Producer, ProducerOptions, Target, TopicSpec, partition_for,
};
use postrider_model::delivery::Delivery;
use postrider_model::event::Event;
use postrider_model::fixtures;
use postrider_model::ids::EndpointId;
use postrider_model::retry::{DelayLadder, RetrySchedule};
use postrider_model::topics::{DEAD_LETTERS, DELIVERIES, EVENTS, GROUP_SCHEDULER, RETRY};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const STARTED_AT_MS: i64 = 1_700_000_000_000;
const PARTITIONS: i32 = 12;

#[derive(Debug)]
struct PausedClock(Instant);

impl PausedClock {
    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.0.elapsed().as_millis()).expect("short")
    }
}

impl Clock for PausedClock {
    fn now_ms(&self) -> i64 {
        STARTED_AT_MS + self.elapsed_ms()
    }
}

/// A retry that came back; times in milliseconds since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Returned {
    number: i64,
    partition: Partition,
    at_ms: i64,
}

struct World {
    log: Arc<MemoryLog>,
    clock: Arc<PausedClock>,
    producer: Box<dyn Producer>,
    ladder: DelayLadder,
    config: SchedulerConfig,
    metrics: DeliveryMetrics,
    /// By number of the retry, when it is due.
    due: BTreeMap<i64, i64>,
    workers: JoinSet<()>,
    processes: Vec<Arc<MemoryProcess>>,
    stop: CancellationToken,
}

impl World {
    async fn new(ladder: DelayLadder, config: SchedulerConfig) -> Self {
        let clock = Arc::new(PausedClock(Instant::now()));
        let log = MemoryLog::new(clock.clone(), 1);
        let spec = |name: &str, partitions| TopicSpec {
            name: name.to_owned(),
            partitions,
            retention: Some(Duration::from_secs(864_000)),
            message_bytes_max: 1 << 20,
            settings: Vec::new(),
        };
        let delays = i32::try_from(ladder.len()).expect("few");
        let topics = [
            spec(EVENTS, 1),
            spec(DELIVERIES, PARTITIONS),
            spec(DEAD_LETTERS, 1),
            spec(RETRY, delays),
        ];
        let created = log.create_topics(&topics).await.expect("topics");
        found(&*log, &created).await.expect("founded");
        let options = ProducerOptions {
            name: "deliver",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 30,
        };
        Self {
            producer: log.producer(options).await.expect("a producer"),
            log,
            clock,
            ladder,
            config,
            metrics: DeliveryMetrics::detached(),
            due: BTreeMap::new(),
            workers: JoinSet::new(),
            processes: Vec::new(),
            stop: CancellationToken::new(),
        }
    }

    async fn standard() -> Self {
        Self::new(DelayLadder::standard(), SchedulerConfig::default()).await
    }

    fn start(&mut self, process: &str) {
        let limits = DeliveryConfig::default();
        let process = self.log.process(process);
        self.processes.push(process.clone());
        let stage = StageContext {
            log: process,
            config: limits.stage.clone(),
            lease_term: Duration::from_secs(20),
            metrics: self.metrics.clone(),
        };
        let context = SchedulerContext {
            clock: self.clock.clone(),
            ladder: self.ladder.clone(),
            config: self.config.clone(),
            raw_record_bytes_max: limits.stage.raw_record_bytes_max,
            metrics: self.metrics.clone(),
        };
        self.workers
            .spawn(scheduler::run(stage, context, self.stop.clone()));
    }

    /// Writes a retry as deliver does, due after the delay.
    fn fail(&mut self, endpoint: &EndpointId, delay_ms: i64) {
        let number = i64::try_from(self.due.len()).expect("few");
        let due_ms = self.clock.elapsed_ms() + delay_ms;
        let retry = delivery(number, endpoint, STARTED_AT_MS + due_ms);
        let record = NewRecord {
            key: Bytes::copy_from_slice(endpoint.as_str().as_bytes()),
            value: Some(retry.encode()),
            headers: Vec::new(),
        };
        let partition = self.ladder.place(delay_ms).unwrap_or(0);
        // The log in memory has it at once, so its fate need not be awaited.
        drop(
            self.producer
                .append(RETRY, Target::Partition(partition), record),
        );
        self.due.insert(number, due_ms);
    }

    fn returned(&self) -> Vec<Returned> {
        let records = self.log.snapshot(DELIVERIES).into_iter();
        let returned = records.map(|record| {
            let value = record.value.expect("no tombstone");
            Returned {
                number: Delivery::decode(&value).expect("decodes").position.offset,
                partition: record.partition,
                at_ms: record.timestamp_ms - STARTED_AT_MS,
            }
        });
        returned.collect()
    }

    /// Waits until every retry came back. Each did once, and none early.
    async fn all_returned(&self) -> Vec<Returned> {
        let started = Instant::now();
        loop {
            let mut count = 0;
            for partition in 0..PARTITIONS {
                let bounds = self.log.bounds(DELIVERIES, partition).await;
                count += usize::try_from(bounds.expect("bounds").end).expect("positive");
            }
            if count >= self.due.len() {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(200_000), "{count}");
            sleep(Duration::from_secs(10)).await;
        }
        let returned = self.returned();
        let numbers: BTreeSet<i64> = returned.iter().map(|retry| retry.number).collect();
        assert_eq!(numbers.len(), returned.len(), "each once");
        for retry in &returned {
            assert!(retry.at_ms >= self.due[&retry.number], "early: {retry:?}");
        }
        returned
    }

    fn late_ms(&self, retry: &Returned) -> i64 {
        retry.at_ms - self.due[&retry.number]
    }

    /// Notes which process returned each retry.
    fn note_who_returns(&self) -> Arc<Mutex<Vec<String>>> {
        let who: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = who.clone();
        self.log.faults().on_append(move |site, _| {
            if site.topic == DELIVERIES {
                noted.lock().push(site.process.to_owned());
            }
            AppendPlan::default()
        });
        who
    }
}

fn endpoint(number: usize) -> EndpointId {
    EndpointId::try_new(&format!("ep_{number}")).expect("an id")
}

fn delivery(number: i64, endpoint: &EndpointId, due_at_ms: i64) -> Delivery {
    let event = Event {
        accepted_at_ms: STARTED_AT_MS,
        ..fixtures::event(&format!("evt_{number}"))
    };
    Delivery {
        attempt: 2,
        due_at_ms,
        ..fixtures::delivery(event, endpoint.as_str(), number)
    }
}

/// So many retries of these endpoints, whose first attempts failed within one second.
async fn fail_together(world: &mut World, count: usize, endpoints: usize) {
    let schedule = RetrySchedule::standard();
    for part in 0..10 {
        for number in (part..count).step_by(10) {
            let endpoint = endpoint(number % endpoints);
            let offset = i64::try_from(world.due.len()).expect("few");
            let work = delivery(offset, &endpoint, 0).work_id();
            let delay_ms = schedule.delay_after(&work, 1).expect("a retry follows");
            world.fail(&endpoint, delay_ms);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The records of the busiest second, and of a second on average from the first to the last.
fn busiest_and_mean(returned: &[Returned]) -> (usize, usize) {
    let mut seconds: BTreeMap<i64, usize> = BTreeMap::new();
    for retry in returned {
        *seconds.entry(retry.at_ms / 1_000).or_default() += 1;
    }
    let (first, _) = seconds.first_key_value().expect("some");
    let (last, _) = seconds.last_key_value().expect("some");
    let span = usize::try_from(last - first + 1).expect("positive");
    let busiest = seconds.values().max().copied().unwrap_or(0);
    (busiest, returned.len() / span)
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_that_failed_in_one_second_come_back_spread_out() {
    let mut world = World::standard().await;
    world.start("one");
    fail_together(&mut world, 100_000, 1_000).await;
    let returned = world.all_returned().await;
    let (busiest, mean) = busiest_and_mean(&returned);
    assert!(busiest <= 3 * mean, "{busiest} at most, {mean} on average");
    for partition in 0..PARTITIONS {
        let of = |retry: &&Returned| retry.partition == partition;
        let returned: Vec<Returned> = returned.iter().filter(of).copied().collect();
        let (busiest, _) = busiest_and_mean(&returned);
        assert!(busiest <= 1_051, "{busiest} in a second into {partition}");
    }
    let last_ms = returned.iter().map(|retry| retry.at_ms).max();
    assert!(
        last_ms.unwrap() <= 30_000,
        "they are done soon: {last_ms:?}"
    );
    // What came too soon waited in memory.
    assert_eq!(world.log.snapshot(RETRY).len(), 100_000);
}

#[tokio::test(start_paused = true)]
async fn one_endpoint_with_a_hundred_thousand_does_not_make_its_neighbours_late() {
    let mut world = World::standard().await;
    world.start("one");
    let same_partition = |number: &usize| {
        let partition = |number: usize| partition_for(endpoint(number).as_str().as_bytes(), 12);
        partition(*number) == partition(0)
    };
    let neighbour = endpoint((1..).find(same_partition).expect("some"));
    fail_together(&mut world, 100_000, 1).await;
    let flood = i64::try_from(world.due.len()).expect("few");
    for _ in 0..60 {
        world.fail(&neighbour, 5_300);
        sleep(Duration::from_secs(1)).await;
    }
    let returned = world.all_returned().await;
    let (busiest, mean) = busiest_and_mean(&returned);
    assert!(busiest <= 3 * mean, "{busiest} at most, {mean} on average");
    let neighbours = returned.iter().filter(|retry| retry.number >= flood);
    let late_ms: Vec<i64> = neighbours.map(|retry| world.late_ms(retry)).collect();
    assert_eq!(late_ms.len(), 60);
    assert!(
        late_ms.iter().all(|late_ms| *late_ms <= 1_000),
        "{late_ms:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_memory_does_not_hold_waits_in_the_log() {
    let config = SchedulerConfig {
        timer_bytes_max: 400_000,
        releases_per_second_max: 200,
        ..SchedulerConfig::default()
    };
    let mut world = World::new(DelayLadder::standard(), config).await;
    world.start("one");
    fail_together(&mut world, 20_000, 7).await;
    for number in 0..500 {
        world.fail(&endpoint(7 + number), 20_000);
    }
    let returned = world.all_returned().await;
    let (busiest, mean) = busiest_and_mean(&returned);
    assert!(busiest <= 3 * mean, "{busiest} at most, {mean} on average");
    let writes = world.log.snapshot(RETRY).len();
    assert!(writes > 40_000, "the test fills the memory: {writes}");
    assert!(writes <= 8 * world.due.len(), "{writes} writes");
}

#[tokio::test(start_paused = true)]
async fn heads_are_waited_for_and_an_idle_system_is_on_time() {
    let mut world = World::standard().await;
    world.start("one");
    // Long delays first, so that each of them has a head that waits while shorter ones pass it.
    for delay_ms in [
        7_200_000, 1_800_000, 300_000, 61_000, 5_000, 1_000, 1_001, 1_999,
    ] {
        for extra_ms in [0, 17, 450, 999] {
            world.fail(&endpoint(1), delay_ms + extra_ms);
            sleep(Duration::from_millis(370)).await;
        }
    }
    for _ in 0..300 {
        world.fail(&endpoint(2), 5_000);
        sleep(Duration::from_secs(10)).await;
    }
    for retry in world.all_returned().await {
        let late_ms = world.late_ms(&retry);
        assert!(late_ms <= 1_000, "{late_ms} ms late: {retry:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn on_the_default_schedule_appends_to_retry_are_few() {
    const EACH: usize = 40;
    let schedule = RetrySchedule::standard();
    let (mut writes, mut weights) = (0.0, 0.0);
    for attempt in 1..=schedule.delays_ms().len() {
        let mut world = World::standard().await;
        world.start("one");
        let attempt = u32::try_from(attempt).expect("few");
        for number in 0..EACH {
            let endpoint = endpoint(number);
            let offset = i64::try_from(number).expect("few");
            let work = delivery(offset, &endpoint, 0).work_id();
            let delay_ms = schedule.delay_after(&work, attempt).expect("a retry");
            world.fail(&endpoint, delay_ms);
        }
        for retry in world.all_returned().await {
            let late_ms = world.late_ms(&retry);
            assert!(late_ms <= 1_000, "{late_ms} ms late: {retry:?}");
        }
        let appends = world.log.snapshot(RETRY).len();
        let weight = 0.6_f64.powi(i32::try_from(attempt).expect("few"));
        writes += weight * appends as f64 / EACH as f64;
        weights += weight;
    }
    assert!(writes <= 2.0 * weights, "{} a retry", writes / weights);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_moves_inside_its_delay_goes_on_with_whoever_has_it() {
    for moves in 0..=5_u64 {
        let ladder = DelayLadder::try_new(vec![60_000]).expect("a ladder");
        let mut world = World::new(ladder, SchedulerConfig::default()).await;
        let who = world.note_who_returns();
        world.start("a");
        sleep(Duration::from_secs(1)).await;
        world.start("b");
        sleep(Duration::from_secs(20)).await;
        world.fail(&endpoint(1), 65_000);
        // Its head is far off, so the partition is paused each time before it moves.
        for _ in 0..moves {
            sleep(Duration::from_secs(8)).await;
            world.log.faults().rebalance(GROUP_SCHEDULER);
        }
        sleep(Duration::from_secs(8)).await;
        world.fail(&endpoint(1), 61_000);
        for retry in world.all_returned().await {
            let late_ms = world.late_ms(&retry);
            assert!(late_ms <= 1_000, "{late_ms} ms late after {moves} moves");
        }
        let owner = if moves % 2 == 0 { "a" } else { "b" };
        assert_eq!(*who.lock(), [owner, owner], "{moves} moves");
        sleep(Duration::from_secs(10)).await;
        let committed = world.log.committed(GROUP_SCHEDULER, RETRY).await;
        let committed = committed.expect("commits").remove(0).expect("a commit");
        assert_eq!(committed.offset, 2, "after {moves} moves");
        world.stop.cancel();
        while world.workers.join_next().await.is_some() {}
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_when_the_log_refuses_and_partitions_are_lost() {
    let config = SchedulerConfig {
        timer_bytes_max: 50_000,
        releases_per_second_max: 50,
        ..SchedulerConfig::default()
    };
    let mut world = World::new(DelayLadder::standard(), config).await;
    world.start("a");
    world.start("b");
    let faults = world.log.faults();
    faults.on_append(|site, random| {
        let is_spared = site.process == "main" || !random.once_in(10);
        let fate = if is_spared {
            AppendFate::Acked
        } else {
            AppendFate::Failed
        };
        fate.into()
    });
    fail_together(&mut world, 2_000, 5).await;
    for round in 0..10 {
        sleep(Duration::from_secs(7)).await;
        if round % 2 == 0 {
            faults.rebalance(GROUP_SCHEDULER);
        } else {
            faults.lose(&world.processes[round % 4 / 2], GROUP_SCHEDULER);
        }
    }
    sleep(Duration::from_secs(600)).await;
    let returned = world.returned();
    let numbers: BTreeSet<i64> = returned.iter().map(|retry| retry.number).collect();
    assert_eq!(numbers.len(), 2_000, "each at least once");
    for retry in &returned {
        assert!(retry.at_ms >= world.due[&retry.number], "early: {retry:?}");
    }
}
