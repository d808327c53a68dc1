//! A log in memory, a registry, and processes that run one stage each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use postrider_delivery::config::DeliveryConfig;
use postrider_delivery::deliver::DeliverContext;
use postrider_delivery::fan_out::FanOutContext;
use postrider_delivery::lane_status::lane_questions;
use postrider_delivery::scheduler::SchedulerContext;
use postrider_delivery::sender::{MayLeave, Sender, WebhookRequest, WebhookResponse};
use postrider_delivery::standing::found;
use postrider_delivery::{DeliveryMetrics, StageContext, deliver, fan_out, scheduler};
use postrider_log::memory::MemoryLog;
use postrider_log::{Clock, Log, NewRecord, Position, ProducerOptions, Record, Target, TopicSpec};
use postrider_model::delivery::{DeadLetter, Delivery, Route};
use postrider_model::endpoint::Endpoint;
use postrider_model::event::Event;
use postrider_model::filter::EventTypeFilter;
use postrider_model::fixtures;
use postrider_model::ids::TenantId;
use postrider_model::outcome::Outcome;
use postrider_model::retry::{DelayLadder, RetrySchedule};
use postrider_model::signature::SigningSecret;
use postrider_model::tenant::Tenant;
use postrider_model::topics::{
    ATTEMPTS, DEAD_LETTERS, DELIVERIES, ENDPOINT_STATE, EVENTS, REGISTRY, RETRY, ROUTES,
};
use postrider_registry::{Keyring, Registry, RegistryOptions};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::held::{Held, HeldLog};

/// Partitions of `events`.
pub(crate) const PARTITIONS: i32 = 4;
pub(crate) const TENANT: &str = "acme";
/// Longer than anything here may take, on the paused clock.
const IN_TIME: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000 + i64::try_from(self.0.elapsed().as_millis()).expect("short")
    }
}

/// Answers 200 to everything, and counts it.
#[derive(Debug, Clone, Default)]
struct Agreeing(Arc<AtomicUsize>);

impl Sender for Agreeing {
    async fn send(&self, _: WebhookRequest, _: MayLeave) -> Option<WebhookResponse> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Some(WebhookResponse {
            outcome: Outcome::Answered {
                status: 200,
                retry_after_ms: None,
            },
            detail: String::new(),
            excerpt: Bytes::new(),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StageName {
    FanOut,
    Deliver,
    Scheduler,
}

impl StageName {
    pub(crate) const ALL: [Self; 3] = [Self::FanOut, Self::Deliver, Self::Scheduler];
}

/// A process that runs one stage.
pub(crate) struct Process {
    pub(crate) held: Held,
    pub(crate) metrics: DeliveryMetrics,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _background: JoinSet<()>,
}

impl Process {
    /// Tells it to stop; answers with how long that took.
    pub(crate) async fn stop(mut self) -> Duration {
        let asked = Instant::now();
        self.stop.cancel();
        let ended = timeout(IN_TIME, self.tasks.join_next()).await;
        let ended = ended.expect("it ends").expect("it runs");
        ended.expect("it does not panic");
        asked.elapsed()
    }
}

pub(crate) struct World {
    pub(crate) log: Arc<MemoryLog>,
    clock: Arc<dyn Clock>,
    pub(crate) config: DeliveryConfig,
    /// How late the records of the registry come to processes that are started.
    pub(crate) registry_late: Duration,
    /// Who writes the registry.
    pub(crate) registry: Registry,
    sender: Agreeing,
    _background: JoinSet<()>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(PausedClock(Instant::now()));
        let log = MemoryLog::new(clock.clone(), 1);
        let spec = |name: &str, partitions, retention| TopicSpec {
            name: name.to_owned(),
            partitions,
            retention,
            message_bytes_max: 1 << 20,
            settings: Vec::new(),
        };
        let week = Some(Duration::from_secs(7 * 86_400));
        let topics = [
            spec(EVENTS, PARTITIONS, week),
            spec(ROUTES, 1, week),
            spec(DELIVERIES, PARTITIONS, week),
            spec(ATTEMPTS, PARTITIONS, week),
            spec(RETRY, 3, week),
            spec(DEAD_LETTERS, 1, week),
            spec(REGISTRY, 1, None),
            spec(ENDPOINT_STATE, PARTITIONS, None),
        ];
        let created = log.create_topics(&topics).await.expect("topics");
        found(&*log, &created).await.expect("founded");
        let mut background = JoinSet::new();
        let registry = open_registry(log.clone(), clock.clone(), &mut background).await;
        Self {
            log,
            clock,
            config: DeliveryConfig::default(),
            registry_late: Duration::ZERO,
            registry,
            sender: Agreeing::default(),
            _background: background,
        }
    }

    /// The same, with a tenant.
    pub(crate) async fn with_tenant() -> Self {
        let world = Self::new().await;
        world.create_tenant(TENANT).await;
        world
    }

    pub(crate) async fn create_tenant(&self, id: &str) {
        let tenant = Tenant {
            id: TenantId::try_new(id).expect("an id"),
            name: String::new(),
            metadata: [].into(),
            paused: false,
            created_at_ms: self.clock.now_ms(),
            portal_token_generation: 0,
        };
        self.registry.put_tenant(tenant).await.expect("a tenant");
    }

    /// Creates an endpoint that wants every thing.
    pub(crate) async fn create_endpoint(&self, name: &str) {
        self.create_endpoint_for(name, "thing.*").await;
    }

    pub(crate) async fn create_endpoint_for(&self, name: &str, event_type: &str) {
        let id = format!("ep_{name}");
        let wanted = fixtures::endpoint(&id);
        let secret = SigningSecret::generate(&[7; 32]);
        let endpoint = Endpoint {
            event_types: EventTypeFilter::try_new(vec![event_type.to_owned()]).expect("a filter"),
            secrets: vec![self.registry.seal(&wanted.id, &secret)],
            ..wanted
        };
        let created = self.registry.create_endpoint(endpoint).await;
        created.expect("an endpoint");
    }

    /// Starts a process whose parts answer, until they are held back, and waits until its registry
    /// is there.
    pub(crate) async fn start(&self, name: &str, stage: StageName) -> Process {
        self.start_held(name, stage, Held::default()).await
    }

    /// The same, with parts that are held back from the beginning.
    pub(crate) async fn start_held(&self, name: &str, stage: StageName, held: Held) -> Process {
        let process = self.log.process(name);
        let mut background = JoinSet::new();
        let log: Arc<dyn Log> = Arc::new(HeldLog {
            process,
            held: held.clone(),
            registry_late: self.registry_late,
        });
        let registry = open_registry(log.clone(), self.clock.clone(), &mut background).await;
        let (metrics, stop) = (DeliveryMetrics::detached(), CancellationToken::new());
        let context = StageContext {
            log,
            config: self.config.stage.clone(),
            lease_term: Duration::from_millis(self.config.deliver.lease_ms),
            metrics: metrics.clone(),
        };
        let mut tasks = JoinSet::new();
        match stage {
            StageName::FanOut => {
                let fan_out = self.fan_out(registry, metrics.clone());
                tasks.spawn(fan_out::run(context, fan_out, stop.clone()));
            }
            StageName::Scheduler => {
                let scheduler = self.scheduler(metrics.clone());
                tasks.spawn(scheduler::run(context, scheduler, stop.clone()));
            }
            StageName::Deliver => {
                tasks.spawn(self.deliver(context, registry, metrics.clone(), stop.clone()));
            }
        }
        Process {
            held,
            metrics,
            stop,
            tasks,
            _background: background,
        }
    }

    fn fan_out(&self, registry: Registry, metrics: DeliveryMetrics) -> FanOutContext {
        FanOutContext {
            registry,
            clock: self.clock.clone(),
            config: self.config.fan_out.clone(),
            raw_record_bytes_max: self.config.stage.raw_record_bytes_max,
            metrics,
        }
    }

    fn scheduler(&self, metrics: DeliveryMetrics) -> SchedulerContext {
        SchedulerContext {
            clock: self.clock.clone(),
            ladder: ladder(),
            config: self.config.scheduler.clone(),
            raw_record_bytes_max: self.config.stage.raw_record_bytes_max,
            metrics,
        }
    }

    fn deliver(
        &self,
        stage: StageContext,
        registry: Registry,
        metrics: DeliveryMetrics,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (clock, config) = (self.clock.clone(), self.config.deliver.clone());
        let sender = self.sender.clone();
        let context = move |producers| DeliverContext {
            registry: registry.clone(),
            sender: sender.clone(),
            clock: clock.clone(),
            producers,
            ladder: ladder(),
            default_schedule: RetrySchedule::standard(),
            config: config.clone(),
            metrics: metrics.clone(),
        };
        deliver::run(stage, context, lane_questions().1, stop)
    }

    /// Appends events as a producer of its own does that knows nothing of the registry.
    pub(crate) async fn produce(&self, ids: impl IntoIterator<Item = String>) -> Vec<Position> {
        let events: Vec<Event> = ids.into_iter().map(|id| event(&id)).collect();
        self.append_events(&events).await
    }

    pub(crate) async fn append_events(&self, events: &[Event]) -> Vec<Position> {
        let values = events.iter().map(|event| {
            let key = Bytes::copy_from_slice(event.id.as_str().as_bytes());
            (key, event.encode())
        });
        self.append(EVENTS, Target::Key, values.collect()).await
    }

    pub(crate) async fn append(
        &self,
        topic: &str,
        target: Target,
        records: Vec<(Bytes, Bytes)>,
    ) -> Vec<Position> {
        let options = ProducerOptions {
            name: "test",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 30,
        };
        let producer = self.log.producer(options).await.expect("a producer");
        let mut positions = Vec::new();
        for (key, value) in records {
            let record = NewRecord {
                key,
                value: Some(value),
                headers: Vec::new(),
            };
            let appended = producer.append(topic, target, record).await;
            positions.push(appended.expect("appended"));
        }
        positions
    }

    /// Requests that endpoints got.
    pub(crate) fn requests(&self) -> usize {
        self.sender.0.load(Ordering::Relaxed)
    }

    pub(crate) fn records(&self, topic: &str) -> Vec<Record> {
        self.log.snapshot(topic)
    }

    pub(crate) fn dead_letters(&self) -> Vec<DeadLetter> {
        let records = self.records(DEAD_LETTERS);
        let decode = |record: Record| DeadLetter::decode(&record.value.expect("a value"));
        records
            .into_iter()
            .map(|record| decode(record).expect("a dead letter"))
            .collect()
    }

    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        let records = self.records(DELIVERIES);
        let decode = |record: Record| Delivery::decode(&record.value.expect("a value"));
        records
            .into_iter()
            .map(|record| decode(record).expect("a delivery"))
            .collect()
    }

    pub(crate) fn routes(&self) -> Vec<Route> {
        let records = self.records(ROUTES);
        let decode = |record: Record| Route::decode(&record.value.expect("a value"));
        records
            .into_iter()
            .map(|record| decode(record).expect("a route"))
            .collect()
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = timeout(IN_TIME, async {
            while !holds(self) {
                sleep(Duration::from_millis(10)).await;
            }
        });
        let counts = || (self.routes().len(), self.deliveries().len());
        waited
            .await
            .unwrap_or_else(|_| panic!("{what}; (routes, deliveries) {:?}", counts()));
    }
}

fn ladder() -> DelayLadder {
    DelayLadder::try_new(vec![1_000, 2_000, 4_000]).expect("a ladder")
}

/// An event of the tenant.
pub(crate) fn event(id: &str) -> Event {
    Event {
        occurred_at_ms: 1_700_000_000_000,
        accepted_at_ms: 1_700_000_000_000,
        ..fixtures::event(id)
    }
}

async fn open_registry(
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    background: &mut JoinSet<()>,
) -> Registry {
    let keyring = Arc::new(Keyring::from_bytes([9; 32], Vec::new()));
    let opened = Registry::open(log, clock, keyring, RegistryOptions::default()).await;
    let (registry, follower) = opened.expect("the registry opens");
    background.spawn(follower.run(CancellationToken::new()));
    registry.caught_up().await;
    registry
}
