//! A log, a registry, and what the other roles would have written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use postrider_exporter::{Exporter, ExporterConfig, ExporterContext, ExporterError};
use postrider_log::memory::{MemoryLog, MemoryProcess};
use postrider_log::{
    Clock, Committed, Log, NewRecord, Offset, Partition, Position, Producer, ProducerOptions,
    Target, TopicSpec, partition_for,
};
use postrider_model::delivery::{
    Attempt, AttemptOutcome, Cursor, DeadLetter, DeadLetterContent, Delivery, LaneState, Settlement,
};
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::event::{Event, EventPosition};
use postrider_model::fixtures;
use postrider_model::lane_states::StateRecord;
use postrider_model::outcome::Reason;
use postrider_model::retry::DelayLadder;
use postrider_model::tenant::Tenant;
use postrider_model::topics::{
    ATTEMPTS, DEAD_LETTERS, DELIVERIES, ENDPOINT_STATE, RETRY, TopicLayout,
};
use postrider_model::work::WorkId;
use postrider_registry::{Keyring, Registry, RegistryOptions};
use prometheus::TextEncoder;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const START_MS: i64 = 1_700_000_000_000;
const PARTITIONS: i32 = 4;
/// The delays of the retry topic.
const DELAYS_MS: [i64; 3] = [1_000, 60_000, 7_200_000];
/// The id under which lanes are behind.
const STATE_ID: i64 = 1;

#[derive(Debug)]
pub(crate) struct ManualClock(AtomicI64);

impl ManualClock {
    pub(crate) fn advance(&self, by_ms: i64) {
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    log: Arc<MemoryLog>,
    registry: Registry,
    producer: Box<dyn Producer>,
    first_deliveries: Mutex<BTreeMap<String, Position>>,
    processes: AtomicU32,
    _tasks: JoinSet<()>,
}

/// What an attempt was; by default a first one that succeeded, in 50 ms, 200 ms after its event was
/// accepted.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) number: u32,
    pub(crate) run: u64,
    pub(crate) outcome: AttemptOutcome,
    pub(crate) reason: Reason,
    pub(crate) settlement: Option<Settlement>,
    pub(crate) delivery_offset: Option<Offset>,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            number: 1,
            run: 0,
            outcome: AttemptOutcome::Succeeded,
            reason: Reason::Ok,
            settlement: Some(Settlement::Delivered),
            delivery_offset: None,
        }
    }
}

pub(crate) fn partition_of(endpoint: &str) -> Partition {
    partition_for(endpoint.as_bytes(), PARTITIONS)
}

impl World {
    /// With the tenant `acme`.
    pub(crate) async fn new() -> Self {
        let clock = Arc::new(ManualClock(AtomicI64::new(START_MS)));
        let log = MemoryLog::new(clock.clone(), 1);
        let layout = TopicLayout {
            partitions: PARTITIONS,
            retry_delays_ms: DelayLadder::try_from(DELAYS_MS.to_vec()).unwrap(),
            ..TopicLayout::default()
        };
        let topics = layout.topics().into_iter().map(|plan| TopicSpec {
            name: plan.name.to_owned(),
            partitions: plan.partitions,
            retention: None,
            message_bytes_max: plan.message_bytes_max,
            settings: Vec::new(),
        });
        log.create_topics(&topics.collect::<Vec<_>>())
            .await
            .unwrap();
        let keyring = Arc::new(Keyring::from_bytes([7; 32], vec![]));
        let options = RegistryOptions::default();
        let opened = Registry::open(log.clone(), clock.clone(), keyring, options).await;
        let (registry, follower) = opened.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run(CancellationToken::new()));
        registry.caught_up().await;
        let tenant = Tenant {
            id: "acme".parse().unwrap(),
            name: String::new(),
            metadata: BTreeMap::new(),
            paused: false,
            created_at_ms: START_MS,
            portal_token_generation: 0,
        };
        registry.put_tenant(tenant).await.unwrap();
        let options = ProducerOptions {
            name: "test",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 64 << 20,
        };
        let producer = log.producer(options).await.unwrap();
        Self {
            clock,
            log,
            registry,
            producer,
            first_deliveries: Mutex::default(),
            processes: AtomicU32::new(0),
            _tasks: tasks,
        }
    }

    pub(crate) fn exporter(&self) -> Running {
        self.exporter_with(|_| {})
    }

    /// A new exporter, in a process of its own, that names two of the worst.
    pub(crate) fn exporter_with(&self, change: impl Fn(&mut ExporterConfig)) -> Running {
        let mut config = ExporterConfig {
            worst_max: 2,
            ..ExporterConfig::default()
        };
        change(&mut config);
        let number = self.processes.fetch_add(1, Ordering::Relaxed);
        let process = self.log.process(&format!("exporter-{number}"));
        let metrics = prometheus::Registry::new();
        let context = ExporterContext {
            log: process.clone(),
            registry: self.registry.clone(),
            clock: self.clock.clone(),
            ladder: DelayLadder::try_from(DELAYS_MS.to_vec()).unwrap(),
            config,
            metrics: &metrics,
        };
        let exporter = Exporter::new(context).unwrap();
        Running {
            exporter,
            metrics,
            process,
        }
    }

    async fn append(&self, topic: &str, target: Target, key: &str, value: Bytes) -> Position {
        let record = NewRecord {
            key: key.to_owned().into(),
            value: Some(value),
            headers: Vec::new(),
        };
        self.producer.append(topic, target, record).await.unwrap()
    }

    pub(crate) async fn endpoint(&self, id: &str, paused: bool) {
        let endpoint = Endpoint {
            created_at_ms: START_MS,
            ..fixtures::endpoint(id)
        };
        self.registry.create_endpoint(endpoint).await.unwrap();
        if paused {
            self.pause(id, true).await;
        }
    }

    pub(crate) async fn pause(&self, id: &str, paused: bool) {
        let state = if paused {
            EndpointState::Paused
        } else {
            EndpointState::Enabled
        };
        let change = |endpoint: &Endpoint| Endpoint {
            state: state.clone(),
            ..endpoint.clone()
        };
        let id = id.parse().unwrap();
        self.registry
            .update_endpoint(&id, None, change)
            .await
            .unwrap();
    }

    /// Appends a delivery whose next attempt has this number.
    pub(crate) async fn delivery(&self, endpoint: &str, attempt: u32) {
        let value = delivery(endpoint, attempt, 0).encode();
        let position = self.append(DELIVERIES, Target::Key, endpoint, value).await;
        let mut first = self.first_deliveries.lock();
        first.entry(endpoint.to_owned()).or_insert(position);
    }

    /// Appends a delivery that waits in this partition of the retry topic.
    pub(crate) async fn retry(&self, partition: Partition, due_in_ms: i64) {
        let value = delivery("ep_a", 2, self.clock.now_ms() + due_in_ms).encode();
        self.append(RETRY, Target::Partition(partition), "ep_a", value)
            .await;
    }

    /// Appends so many attempts that succeeded.
    pub(crate) async fn attempts(&self, endpoint: &str, count: usize) {
        for _ in 0..count {
            self.attempt(endpoint, Made::default()).await;
        }
    }

    pub(crate) async fn attempt(&self, endpoint: &str, made: Made) {
        let accepted_at_ms = self.clock.now_ms();
        let attempt = Attempt {
            event_id: "evt_1".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            event_type: "a.b".parse().unwrap(),
            work: WorkId {
                position: POSITION,
                endpoint: endpoint.parse().unwrap(),
                run: made.run,
            },
            number: made.number,
            started_at_ms: accepted_at_ms + 200,
            duration_ms: 50,
            outcome: made.outcome,
            reason: made.reason,
            status: None,
            detail: String::new(),
            response_excerpt: Bytes::new(),
            settlement: made.settlement,
            accepted_at_ms,
            traceparent: String::new(),
            delivery_offset: made.delivery_offset,
        };
        self.append(ATTEMPTS, Target::Key, endpoint, attempt.encode())
            .await;
    }

    pub(crate) async fn dead_letter(&self, endpoint: &str, reason: Reason) {
        let letter = DeadLetter {
            id: "dl_1".to_owned(),
            reason,
            detail: String::new(),
            dead_lettered_at_ms: self.clock.now_ms(),
            last_status: None,
            content: DeadLetterContent::Delivery(Box::new(delivery(endpoint, 1, 0))),
        };
        self.append(DEAD_LETTERS, Target::Key, endpoint, letter.encode())
            .await;
    }

    /// The endpoint's lane goes behind from its first delivery on.
    pub(crate) async fn behind(&self, endpoint: &str, failing: bool) {
        let position = self.first_deliveries.lock()[endpoint];
        let state = LaneState {
            blocked: Vec::new(),
            endpoint: endpoint.parse().unwrap(),
            state_id: STATE_ID,
            cursor: Some(Cursor {
                lowest_unsettled: position.offset,
                settled: BTreeSet::new(),
                behind_since_ms: self.clock.now_ms(),
            }),
            failing_since_ms: failing.then_some(START_MS),
            breaker_openings: u32::from(failing),
            breaker_open_until_ms: 0,
        };
        let partition = Target::Partition(position.partition);
        for StateRecord { key, value } in [StateRecord::of(&state), StateRecord::ready(STATE_ID)] {
            let key = std::str::from_utf8(&key).unwrap();
            let value = value.unwrap();
            self.append(ENDPOINT_STATE, partition, key, value).await;
        }
    }

    pub(crate) async fn commit(
        &self,
        group: &str,
        topic: &str,
        partition: Partition,
        offset: Offset,
        metadata: &str,
    ) {
        let metadata = metadata.to_owned();
        let commits = [(partition, Committed { offset, metadata })];
        self.log
            .set_committed(group, topic, &commits)
            .await
            .unwrap();
    }
}

const POSITION: EventPosition = EventPosition {
    partition: 0,
    offset: 1,
    appended_at_ms: 5,
};

fn delivery(endpoint: &str, attempt: u32, due_at_ms: i64) -> Delivery {
    let event = Event {
        accepted_at_ms: START_MS,
        ..fixtures::event("evt_1")
    };
    Delivery {
        position: POSITION,
        attempt,
        due_at_ms,
        ..fixtures::delivery(event, endpoint, POSITION.offset)
    }
}

/// An exporter and what it shows.
pub(crate) struct Running {
    exporter: Exporter,
    metrics: prometheus::Registry,
    pub(crate) process: Arc<MemoryProcess>,
}

impl Running {
    pub(crate) async fn gather(&mut self) -> Result<(), ExporterError> {
        self.exporter.gather().await
    }

    fn samples(&self) -> Vec<(String, f64)> {
        let text = TextEncoder::new()
            .encode_to_string(&self.metrics.gather())
            .unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.filter_map(|line| line.rsplit_once(' '));
        samples
            .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
            .collect()
    }

    /// The value of a series, as `name{label="value",…}`.
    pub(crate) fn value(&self, series: &str) -> Option<f64> {
        let samples = self.samples();
        samples
            .iter()
            .find(|(shown, _)| shown == series)
            .map(|(_, value)| *value)
    }

    /// The highest value of a metric's series.
    pub(crate) fn most(&self, name: &str) -> f64 {
        let samples = self.samples();
        let of = samples
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(name));
        of.map(|(_, value)| *value).reduce(f64::max).unwrap()
    }

    /// How many series a metric has.
    pub(crate) fn count(&self, name: &str) -> usize {
        let samples = self.samples();
        samples
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .count()
    }
}
