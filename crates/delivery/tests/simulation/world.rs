//! Workers, a producer and an adversary, all from one seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use postrider_delivery::config::DeliveryConfig;
use postrider_delivery::deliver::CarryContext;
use postrider_delivery::fan_out::FanOutContext;
use postrider_delivery::scheduler::SchedulerContext;
use postrider_delivery::standing::found;
use postrider_delivery::{DeliveryMetrics, StageContext, deliver, fan_out, scheduler};
use postrider_log::memory::{
    AppendFate, AppendPlan, CommitFault, MemoryLog, MemoryProcess, SplitMix64,
};
use postrider_log::{Clock, Log, NewRecord, Producer, ProducerOptions, Target, TopicSpec};
use postrider_model::delivery::Delivery;
use postrider_model::endpoint::{Endpoint, EndpointState, PayloadFormat};
use postrider_model::event::{Event, EventPosition, TraceContext};
use postrider_model::filter::{EventTypeFilter, EventTypeName};
use postrider_model::ids::{EndpointId, EventId, TenantId};
use postrider_model::retry::{DelayLadder, RetrySchedule};
use postrider_model::signature::SigningSecret;
use postrider_model::tenant::Tenant;
use postrider_model::topics::{
    ATTEMPTS, DEAD_LETTERS, DELIVERIES, ENDPOINT_STATE, EVENTS, GROUP_DELIVER, GROUP_FAN_OUT,
    GROUP_SCHEDULER, REGISTRY, RETRY, ROUTES, event_key,
};
use postrider_registry::{Keyring, Lookup, Registry, RegistryOptions};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::audit::Audit;
use super::network::{BEHAVIOURS, Network, ScriptedSender, Sent};

const STARTED_AT_MS: i64 = 1_700_000_000_000;
const LADDER_MS: [i64; 5] = [1_000, 2_000, 4_000, 8_000, 16_000];
const WORKERS: usize = 3;
const CHAOS_STEPS: u64 = 40;
const SETTLE_LIMIT: Duration = Duration::from_secs(3_600);

/// Wall time that runs with tokio's paused clock.
#[derive(Debug)]
struct SimulatedClock(Instant);

impl Clock for SimulatedClock {
    fn now_ms(&self) -> i64 {
        STARTED_AT_MS + i64::try_from(self.0.elapsed().as_millis()).expect("short")
    }
}

/// What a run was made of.
#[derive(Debug, Default, Clone)]
pub(crate) struct Report {
    pub(crate) events: usize,
    pub(crate) requests: usize,
    pub(crate) attempts: usize,
    pub(crate) retries: usize,
    pub(crate) dead_letters: usize,
    pub(crate) kills: usize,
    pub(crate) faults: usize,
    pub(crate) history: History,
}

/// Every request in order: equal histories mean equal runs.
#[derive(Default, Clone, PartialEq, Eq)]
pub(crate) struct History(Vec<Sent>);

impl std::fmt::Debug for History {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} requests", self.0.len())
    }
}

impl Report {
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.requests += other.requests;
        self.attempts += other.attempts;
        self.retries += other.retries;
        self.dead_letters += other.dead_letters;
        self.kills += other.kills;
        self.faults += other.faults;
    }
}

pub(crate) struct World {
    random: SplitMix64,
    log: Arc<MemoryLog>,
    clock: Arc<dyn Clock>,
    network: Arc<Network>,
    producer: Box<dyn Producer>,
    workers: Vec<Option<Worker>>,
    life_started_ms: Vec<i64>,
    published: u64,
    kills: usize,
    faults: Arc<AtomicUsize>,
    background: JoinSet<()>,
}

struct Worker {
    process: Arc<MemoryProcess>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl World {
    pub(crate) async fn new(seed: u64) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SimulatedClock(Instant::now()));
        let log = MemoryLog::new(clock.clone(), seed);
        let created = log.create_topics(&topics()).await.expect("topics");
        found(&*log, &created)
            .await
            .expect("the groups are founded");
        let options = ProducerOptions {
            name: "producer",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 24,
        };
        let producer = log.producer(options).await.expect("a producer");
        let mut world = Self {
            random: SplitMix64::new(seed),
            network: Network::new(seed, clock.clone()),
            producer,
            workers: (0..WORKERS).map(|_| None).collect(),
            life_started_ms: Vec::new(),
            published: 0,
            kills: 0,
            faults: Arc::default(),
            background: JoinSet::new(),
            log,
            clock,
        };
        world.register_endpoints().await;
        world
    }

    pub(crate) async fn run(mut self) -> Report {
        for index in 0..WORKERS {
            self.start(index).await;
        }
        self.unleash();
        for _ in 0..CHAOS_STEPS {
            self.publish().await;
            self.disturb().await;
            sleep(Duration::from_millis(self.random.below(3_000))).await;
            self.check().await;
        }
        self.calm().await;
        self.enable_all().await;
        sleep(Duration::from_secs(120)).await;
        self.network.heal();
        let audit = self.settle().await;
        for worker in self.workers.iter_mut().flatten() {
            worker.stop.cancel();
            while worker.tasks.join_next().await.is_some() {}
        }
        let sent = self.network.sent();
        audit.check_requests(&sent, &self.life_started_ms);
        audit.check_attempts_were_made(&sent);
        Report {
            events: audit.events(),
            requests: sent.len(),
            attempts: audit.attempts(),
            retries: audit.retries(),
            dead_letters: audit.dead_letters(),
            kills: self.kills,
            faults: self.faults.load(Ordering::Relaxed),
            history: History(sent),
        }
    }

    /// One event at a time and no adversary: answers with how late each retry left, in milliseconds.
    pub(crate) async fn run_idle(mut self) -> Vec<i64> {
        self.start(0).await;
        for _ in 0..5 {
            self.publish().await;
            sleep(Duration::from_secs(60)).await;
        }
        let audit = self.settle().await;
        audit.lateness(&self.network.sent())
    }

    /// Records that say what no honest writer would, then an honest event: answers whether that was delivered soon and
    /// everything was settled in the end.
    pub(crate) async fn run_forged(mut self) -> bool {
        self.start(0).await;
        let far = Event {
            registry_position: u64::MAX,
            accepted_at_ms: i64::MIN,
            ..self.event()
        };
        let delivery = |run, attempt, due_at_ms| Delivery {
            event: far.clone(),
            endpoint: EndpointId::try_new("ep_healthy").expect("an id"),
            position: EventPosition {
                partition: 0,
                offset: i64::MAX,
            },
            run,
            attempt,
            registry_position: u64::MAX,
            due_at_ms,
        };
        let mut forged = vec![(EVENTS, Target::Partition(0), far.encode())];
        for partition in 0..4 {
            forged.push((
                DELIVERIES,
                Target::Partition(partition),
                delivery(1, 1, i64::MIN).encode(),
            ));
            forged.push((
                DELIVERIES,
                Target::Partition(partition),
                delivery(2, u32::MAX, i64::MAX).encode(),
            ));
            forged.push((
                RETRY,
                Target::Partition(partition),
                delivery(3, 7, i64::MIN).encode(),
            ));
        }
        for (topic, target, value) in forged {
            let record = NewRecord {
                key: Bytes::from_static(b"x"),
                value: Some(value),
                headers: Vec::new(),
            };
            self.producer
                .append(topic, target, record)
                .await
                .expect("appended");
        }
        let honest = self.event();
        let record = NewRecord {
            key: Bytes::new(),
            value: Some(honest.encode()),
            headers: Vec::new(),
        };
        self.producer
            .append(EVENTS, Target::Partition(0), record)
            .await
            .expect("appended");
        sleep(Duration::from_secs(10)).await;
        let arrived =
            |sent: &Sent| sent.event_id == honest.id.as_str() && sent.endpoint == "healthy";
        let in_time = self.network.sent().iter().any(arrived);
        sleep(Duration::from_secs(120)).await;
        in_time && self.is_all_committed().await
    }

    async fn is_all_committed(&self) -> bool {
        for (topic, group) in [
            (EVENTS, GROUP_FAN_OUT),
            (DELIVERIES, GROUP_DELIVER),
            (RETRY, GROUP_SCHEDULER),
        ] {
            for (partition, committed) in
                (0..).zip(self.log.committed(group, topic).await.expect("commits"))
            {
                let end = self.log.bounds(topic, partition).await.expect("bounds").end;
                if committed.map_or(0, |committed| committed.offset) != end {
                    return false;
                }
            }
        }
        true
    }

    async fn register_endpoints(&mut self) {
        let registry =
            open_registry(self.log.clone(), self.clock.clone(), &mut self.background).await;
        let tenant = TenantId::try_new("acme").expect("an id");
        let created = Tenant {
            id: tenant.clone(),
            name: String::new(),
            metadata: [].into(),
            created_at_ms: 1,
        };
        registry.put_tenant(created).await.expect("a tenant");
        for behaviour in BEHAVIOURS {
            let id = EndpointId::try_new(&format!("ep_{behaviour}")).expect("an id");
            let secret = registry.seal(&id, &SigningSecret::generate(&[7; 32]));
            let endpoint = Endpoint {
                id,
                tenant: tenant.clone(),
                url: format!("https://example.com/{behaviour}")
                    .parse()
                    .expect("a url"),
                description: String::new(),
                metadata: [].into(),
                event_types: EventTypeFilter::try_new(Vec::new()).expect("a filter"),
                format: PayloadFormat::Standard,
                retry_schedule: Some(
                    RetrySchedule::try_new(vec![1_000, 3_000, 20_000]).expect("a schedule"),
                ),
                attempt_timeout_ms: Some(5_000),
                secrets: vec![secret],
                state: EndpointState::Enabled,
                created_at_ms: 1,
            };
            registry
                .create_endpoint(endpoint)
                .await
                .expect("an endpoint");
        }
    }

    async fn start(&mut self, index: usize) {
        let process = self.log.process(&format!("worker-{index}"));
        let life = self.life_started_ms.len();
        self.life_started_ms.push(self.clock.now_ms());
        let worker = Worker::start(process, self.clock.clone(), self.network.clone(), life);
        self.workers[index] = Some(worker);
    }

    async fn publish(&mut self) {
        for _ in 0..self.random.below(12) {
            let event = self.event();
            let poison = self.random.once_in(50);
            let value = if poison {
                Bytes::from_static(b"\xff\xff")
            } else {
                event.encode()
            };
            let key = event_key(&event.tenant, &event.ordering_key, &event.id);
            let record = NewRecord {
                key,
                value: Some(value),
                headers: Vec::new(),
            };
            self.producer
                .append(EVENTS, Target::Key, record)
                .await
                .expect("the producer is spared");
        }
    }

    fn event(&mut self) -> Event {
        self.published += 1;
        Event {
            id: EventId::try_new(&format!("evt_{}", self.published)).expect("an id"),
            tenant: TenantId::try_new("acme").expect("an id"),
            event_type: EventTypeName::try_new("thing.happened").expect("a type"),
            occurred_at_ms: self.clock.now_ms(),
            data: Bytes::from(format!("{{\"n\":{}}}", self.published)),
            ordering_key: String::new(),
            registry_position: 0,
            accepted_at_ms: self.clock.now_ms(),
            trace: TraceContext::default(),
        }
    }

    /// From now on the workers' appends and commits meet every fate.
    fn unleash(&self) {
        let faults = self.faults.clone();
        self.log.faults().on_append(move |site, random| {
            let delay = Duration::from_millis(random.below(30));
            if !site.process.starts_with("worker") || !random.once_in(25) {
                return AppendPlan {
                    delay,
                    fate: AppendFate::Acked,
                };
            }
            faults.fetch_add(1, Ordering::Relaxed);
            let fate = match random.below(4) {
                0 => AppendFate::Failed,
                1 => AppendFate::UnknownLanded,
                2 => AppendFate::UnknownAbsent,
                _ => AppendFate::UnknownLate,
            };
            AppendPlan { delay, fate }
        });
        self.log
            .faults()
            .on_commit(|_, random| match random.below(8) {
                0 => CommitFault::UnknownLanded,
                1 => CommitFault::UnknownAbsent,
                _ => CommitFault::Acked,
            });
    }

    async fn disturb(&mut self) {
        let index = usize::try_from(self.random.below(WORKERS as u64)).expect("small");
        let groups = [GROUP_FAN_OUT, GROUP_DELIVER, GROUP_SCHEDULER];
        let group = groups[usize::try_from(self.random.below(3)).expect("small")];
        let faults = self.log.faults();
        match self.random.below(8) {
            0 | 1 => match self.workers[index].take() {
                Some(worker) => {
                    self.kills += 1;
                    worker.kill();
                }
                None => self.start(index).await,
            },
            2 => match self.workers[index].take() {
                Some(worker) => {
                    self.background.spawn(worker.stop());
                }
                None => self.start(index).await,
            },
            3 => faults.rebalance(group),
            4 => {
                if let Some(worker) = &self.workers[index] {
                    faults.lose(&worker.process, group);
                }
            }
            5 => {
                faults.release_late();
            }
            6 => faults.gap(DELIVERIES, 0, 3),
            _ => {}
        }
    }

    async fn check(&self) {
        let audit = Audit::take(&self.log).await;
        audit.check_commits();
        audit.check_settlements();
    }

    async fn calm(&mut self) {
        self.log.faults().calm();
        self.log.faults().forget_late();
        for index in 0..WORKERS {
            if self.workers[index].is_none() {
                self.start(index).await;
            }
        }
    }

    /// What is disabled would wait for ever: it is deleted, so that everything ends.
    async fn enable_all(&mut self) {
        let registry =
            open_registry(self.log.clone(), self.clock.clone(), &mut self.background).await;
        for behaviour in BEHAVIOURS {
            let id = EndpointId::try_new(&format!("ep_{behaviour}")).expect("an id");
            let Lookup::Found(endpoint) = registry.endpoint(&id) else {
                continue;
            };
            if matches!(endpoint.value.state, EndpointState::Disabled { .. }) {
                registry.delete_endpoint(&id, None).await.expect("deleted");
            }
        }
    }

    /// Waits until every promise of a route is kept.
    async fn settle(&self) -> Audit {
        let settled = async {
            loop {
                sleep(Duration::from_secs(5)).await;
                let audit = Audit::take(&self.log).await;
                audit.check_commits();
                audit.check_settlements();
                if audit.unrouted() == 0 && audit.unsettled().is_empty() {
                    return audit;
                }
            }
        };
        match timeout(SETTLE_LIMIT, settled).await {
            Ok(audit) => audit,
            Err(_) => {
                let audit = Audit::take(&self.log).await;
                let unsettled = audit.unsettled();
                panic!(
                    "{} events without a route, {} unsettled: {:?}…",
                    audit.unrouted(),
                    unsettled.len(),
                    unsettled.iter().take(5).collect::<Vec<_>>()
                );
            }
        }
    }
}

impl Worker {
    fn start(
        process: Arc<MemoryProcess>,
        clock: Arc<dyn Clock>,
        network: Arc<Network>,
        life: usize,
    ) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(work(process.clone(), clock, network, life, stop.clone()));
        Self {
            process,
            tasks,
            stop,
        }
    }

    /// As kill -9 does it.
    fn kill(mut self) {
        self.process.kill();
        self.tasks.abort_all();
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.process.kill();
    }
}

async fn work(
    process: Arc<MemoryProcess>,
    clock: Arc<dyn Clock>,
    network: Arc<Network>,
    life: usize,
    stop: CancellationToken,
) {
    let mut background = JoinSet::new();
    let registry = open_registry(process.clone(), clock.clone(), &mut background).await;
    let mut config = DeliveryConfig::default();
    config.deliver.breaker_pause_ms_max = 4_000;
    config.deliver.lane_queue_max = 6;
    let metrics = DeliveryMetrics::detached();
    let ladder = DelayLadder::try_new(LADDER_MS.to_vec()).expect("a ladder");
    let stage = StageContext {
        log: process,
        config: config.stage.clone(),
        lease_term: Duration::from_millis(config.deliver.lease_ms),
        metrics: metrics.clone(),
    };
    let fan_out = FanOutContext {
        registry: registry.clone(),
        clock: clock.clone(),
        config: config.fan_out.clone(),
        raw_record_bytes_max: config.stage.raw_record_bytes_max,
        metrics: metrics.clone(),
    };
    let scheduler = SchedulerContext {
        clock: clock.clone(),
        ladder: ladder.clone(),
        config: config.scheduler.clone(),
        raw_record_bytes_max: config.stage.raw_record_bytes_max,
        metrics: metrics.clone(),
    };
    let carry = |producer| CarryContext {
        registry: registry.clone(),
        sender: ScriptedSender {
            network: network.clone(),
            life,
        },
        clock: clock.clone(),
        producer,
        ladder: ladder.clone(),
        default_schedule: RetrySchedule::standard(),
        config: config.deliver.clone(),
        metrics: metrics.clone(),
    };
    futures_util::join!(
        fan_out::run(stage.clone(), fan_out, stop.clone()),
        deliver::run(stage.clone(), carry, stop.clone()),
        scheduler::run(stage.clone(), scheduler, stop.clone()),
    );
}

async fn open_registry(
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    tasks: &mut JoinSet<()>,
) -> Registry {
    let keyring = Arc::new(Keyring::from_bytes([9; 32], Vec::new()));
    let options = RegistryOptions::default();
    let (registry, follower) = Registry::open(log, clock, keyring, options)
        .await
        .expect("the registry opens");
    tasks.spawn(follower.run(CancellationToken::new()));
    registry.caught_up().await;
    registry
}

fn topics() -> Vec<TopicSpec> {
    let spec = |name: &str, partitions: usize, kept: bool| TopicSpec {
        name: name.to_owned(),
        partitions: i32::try_from(partitions).expect("few"),
        retention: kept.then_some(Duration::from_secs(7 * 86_400)),
        message_bytes_max: 1 << 20,
        settings: Vec::new(),
    };
    vec![
        spec(EVENTS, 3, true),
        spec(ROUTES, 2, true),
        spec(DELIVERIES, 4, true),
        spec(ATTEMPTS, 4, true),
        spec(RETRY, LADDER_MS.len(), true),
        spec(DEAD_LETTERS, 2, true),
        spec(REGISTRY, 1, false),
        spec(ENDPOINT_STATE, 4, false),
    ]
}
