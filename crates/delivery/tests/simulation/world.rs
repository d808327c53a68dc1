//! Workers, a producer, tenants and an adversary, all from one seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use postrider_delivery::DeliveryMetrics;
use postrider_delivery::config::DeliveryConfig;
use postrider_delivery::standing::found;
use postrider_log::memory::{MemoryLog, SplitMix64};
use postrider_log::{Clock, Log, NewRecord, Producer, ProducerOptions, Target, TopicSpec};
use postrider_model::event::{Event, TraceContext};
use postrider_model::filter::EventTypeName;
use postrider_model::identity::RegistryStamp;
use postrider_model::ids::{EventId, TenantId};
use postrider_model::topics::{
    ATTEMPTS, DEAD_LETTERS, DELIVERIES, ENDPOINT_STATE, EVENTS, REGISTRY, RETRY, ROUTES, event_key,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::audit::{Audit, Counts, Rules};
use super::chronicle::{Chronicle, Sent};
use super::clock::SimulatedClock;
use super::freeze::Gate;
use super::network::Network;
use super::tenants::{TENANTS, Tenants, schedule};
use super::watch::Watch;
use super::worker::{LADDER_MS, Means, Worker, open_registry};

pub(super) const WORKERS: usize = 3;
const CHAOS_STEPS: u64 = 30;
const DELIVERY_PARTITIONS: i32 = 4;
const TICK: Duration = Duration::from_millis(250);
const SETTLE_LIMIT: Duration = Duration::from_secs(3_600);
/// A retry that is due later than this after everything else is settled was asked for by a liar.
const PATIENCE_MS: i64 = 600_000;
/// A member of a group that says nothing for so long has left it.
const SESSION: Duration = Duration::from_secs(10);

/// What a run was made of.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) counts: Counts,
    pub(crate) requests: usize,
    pub(crate) faults: usize,
    pub(crate) moves: Moves,
}

/// How often the adversary did what.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Moves {
    pub(crate) kills: usize,
    pub(crate) freezes: usize,
    pub(crate) clock_jumps: usize,
    pub(crate) changes: usize,
    pub(crate) bursts: usize,
}

impl Report {
    pub(crate) fn add(&mut self, other: &Self) {
        let (counts, moves) = (&mut self.counts, &mut self.moves);
        counts.events += other.counts.events;
        counts.attempts += other.counts.attempts;
        counts.retries += other.counts.retries;
        counts.dead_letters += other.counts.dead_letters;
        counts.lane_states += other.counts.lane_states;
        counts.covered += other.counts.covered;
        counts.blocked += other.counts.blocked;
        self.requests += other.requests;
        self.faults += other.faults;
        moves.kills += other.moves.kills;
        moves.freezes += other.moves.freezes;
        moves.clock_jumps += other.moves.clock_jumps;
        moves.changes += other.moves.changes;
        moves.bursts += other.moves.bursts;
    }
}

pub(crate) struct World {
    pub(super) random: SplitMix64,
    pub(super) log: Arc<MemoryLog>,
    pub(super) clock: Arc<SimulatedClock>,
    /// What workers take for the time.
    pub(super) worker_clock: Arc<dyn Clock>,
    pub(super) chronicle: Arc<Chronicle>,
    pub(super) watch: Arc<Watch>,
    pub(super) network: Arc<Network>,
    pub(super) producer: Box<dyn Producer>,
    pub(super) tenants: Tenants,
    pub(super) gates: Vec<Arc<Gate>>,
    pub(super) workers: Vec<Option<Worker>>,
    pub(super) background: JoinSet<()>,
    pub(super) faults: Arc<AtomicUsize>,
    pub(super) moves: Moves,
    pub(super) clock_is_set: bool,
    pub(super) config: DeliveryConfig,
    lives: usize,
    published: u64,
}

impl World {
    pub(crate) async fn new(seed: u64, chronicle: Arc<Chronicle>) -> Self {
        let mut random = SplitMix64::new(seed);
        let config = temper(&mut random);
        let clock_is_set = random.once_in(4);
        let rules = Rules {
            clock_is_set,
            honest: true,
            remembers_all: config.deliver.settled_max > 1_000 && !clock_is_set,
            schedule: schedule(),
            lease: Duration::from_millis(config.deliver.lease_ms),
            lane_in_flight_max: config.deliver.lane_attempts_in_flight_max,
        };
        let world = Self::with(seed, random, chronicle, config, rules).await;
        world.network.connect_slowly();
        world
    }

    /// A world with the limits as they come, but without breakers, which hold retries back.
    pub(crate) async fn plain(seed: u64, honest: bool) -> Self {
        let mut config = DeliveryConfig::default();
        config.deliver.breaker_failures = u32::MAX;
        let rules = Rules {
            clock_is_set: false,
            honest,
            remembers_all: true,
            schedule: schedule(),
            lease: Duration::from_millis(config.deliver.lease_ms),
            lane_in_flight_max: config.deliver.lane_attempts_in_flight_max,
        };
        let random = SplitMix64::new(seed);
        Self::with(seed, random, Chronicle::start(), config, rules).await
    }

    async fn with(
        seed: u64,
        random: SplitMix64,
        chronicle: Arc<Chronicle>,
        config: DeliveryConfig,
        rules: Rules,
    ) -> Self {
        let clock = SimulatedClock::start();
        let log = MemoryLog::new(clock.clone(), seed);
        let created = log.create_topics(&topics()).await.expect("topics");
        let founded = found(&*log, &created).await;
        founded.expect("the groups are founded");
        let options = ProducerOptions {
            name: "producer",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 24,
        };
        let producer = log.producer(options).await.expect("a producer");
        let mut background = JoinSet::new();
        let registry = open_registry(log.clone(), clock.clone(), &mut background).await;
        let clock_is_set = rules.clock_is_set;
        let audit = Audit::new(log.clone(), rules).await;
        let watch = Watch::new(log.clone(), clock.clone(), audit, DELIVERY_PARTITIONS);
        let tenants = Tenants::register(registry, watch.clone(), seed).await;
        Self {
            random,
            network: Network::new(seed, clock.clone(), chronicle.clone(), watch.clone()),
            log,
            worker_clock: clock.clone(),
            clock,
            chronicle,
            watch,
            producer,
            tenants,
            gates: (0..WORKERS).map(|_| Arc::new(Gate::open())).collect(),
            workers: (0..WORKERS).map(|_| None).collect(),
            background,
            faults: Arc::default(),
            moves: Moves::default(),
            clock_is_set,
            config,
            lives: 0,
            published: 0,
        }
    }

    pub(crate) async fn run(mut self) -> Report {
        self.note(format!(
            "limits: {:?} {:?}",
            self.config.deliver, self.config.scheduler
        ));
        for index in 0..WORKERS {
            self.start(index);
        }
        self.unleash();
        for _ in 0..CHAOS_STEPS {
            self.publish().await;
            self.disturb().await;
            let time = Duration::from_millis(self.random.below(3_000));
            self.pass(time).await;
        }
        self.calm();
        self.settle().await;
        self.come_to_rest().await;
        for worker in self.workers.iter_mut().filter_map(Option::take) {
            worker.stop().await;
        }
        self.watch.audit(Audit::check_commits);
        Report {
            counts: self.watch.audit(|audit| audit.counts),
            requests: self.chronicle.requests(),
            faults: self.faults.load(Ordering::Relaxed),
            moves: self.moves,
        }
    }

    pub(super) fn note(&self, what: String) {
        self.chronicle.note(self.clock.elapsed_ms(), what);
    }

    pub(super) fn sent(&self) -> Vec<Sent> {
        self.chronicle.requests_from(0)
    }

    /// A new life for a worker.
    pub(super) fn start(&mut self, index: usize) {
        self.gates[index].thaw();
        let means = Means {
            process: self.log.process(&format!("worker-{index}")),
            life: self.lives,
            gate: self.gates[index].clone(),
            watch: self.watch.clone(),
            network: self.network.clone(),
            clock: self.worker_clock.clone(),
            config: self.config.clone(),
            metrics: DeliveryMetrics::detached(),
        };
        self.note(format!("worker {index} starts as life {}", self.lives));
        self.lives += 1;
        self.workers[index] = Some(Worker::start(means));
    }

    /// Lets time pass, and looks again and again.
    pub(super) async fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            sleep(left.min(TICK)).await;
            self.expire_sessions();
            self.watch.audit(|audit| {
                audit.check_commits();
                audit.check_views(&self.tenants.registry);
            });
        }
    }

    pub(super) async fn publish(&mut self) {
        for _ in 0..self.random.below(8) {
            self.publish_one().await;
        }
    }

    pub(super) async fn publish_one(&mut self) {
        let tenant = TENANTS[usize::try_from(self.random.below(3)).expect("few")];
        let tenant = TenantId::try_new(tenant).expect("an id");
        let event = self.event(tenant, "thing.happened");
        let poison = self.random.once_in(50);
        self.append_event(&event, poison).await;
    }

    /// More to one endpoint than its lane holds.
    pub(super) async fn burst(&mut self) {
        let Some((name, tenant)) = self.tenants.pick(&mut self.random) else {
            return;
        };
        let size = 10 + self.random.below(50);
        self.note(format!("{size} events for {name} at once"));
        self.moves.bursts += 1;
        for _ in 0..size {
            let event = self.event(tenant.clone(), &format!("to.{name}"));
            self.append_event(&event, false).await;
        }
    }

    pub(super) async fn append_event(&mut self, event: &Event, poison: bool) {
        let value = if poison {
            Bytes::from_static(b"\xff\xff")
        } else {
            event.encode()
        };
        let record = NewRecord {
            key: event_key(&event.tenant, &event.ordering_key, &event.id),
            value: Some(value),
            headers: Vec::new(),
        };
        let appended = self.producer.append(EVENTS, Target::Key, record).await;
        appended.expect("the producer is spared");
    }

    /// An event as ingest accepts it: with the position of the registry it knows.
    pub(super) fn event(&mut self, tenant: TenantId, event_type: &str) -> Event {
        self.published += 1;
        let id = EventId::try_new(&format!("evt_{}", self.published)).expect("an id");
        let event_type = EventTypeName::try_new(event_type).expect("a type");
        let keys = ["", "a", "a", "b", "c", "d"];
        let key = self.random.below(keys.len() as u64);
        let ordering_key = keys[usize::try_from(key).expect("few")].to_owned();
        let (registry_position, wanted) = self.tenants.who_wants(&tenant, &event_type);
        self.watch.audit(|audit| audit.wanted(id.clone(), wanted));
        Event {
            id,
            tenant,
            event_type,
            occurred_at_ms: self.clock.now_ms(),
            data: Bytes::from(format!("{{\"n\":{}}}", self.published)),
            ordering_key,
            registry: RegistryStamp::of_unknown(registry_position),
            accepted_at_ms: self.clock.now_ms(),
            trace: TraceContext::default(),
        }
    }

    /// The log tells the others that a worker is gone that was frozen for too long.
    fn expire_sessions(&self) {
        for (index, gate) in self.gates.iter().enumerate() {
            if gate.frozen_for() > SESSION
                && let Some(worker) = &self.workers[index]
            {
                self.lose(worker);
            }
        }
    }

    /// Waits until every promise of a route is kept.
    pub(super) async fn settle(&mut self) {
        let settled = async {
            loop {
                self.pass(Duration::from_secs(2)).await;
                self.tenants.make_peace(self.clock.elapsed_ms()).await;
                let patience_ends_at_ms = self.clock.now_ms() + PATIENCE_MS;
                if self
                    .watch
                    .audit(|audit| audit.is_settled(patience_ends_at_ms))
                {
                    return;
                }
            }
        };
        if timeout(SETTLE_LIMIT, settled).await.is_err() {
            let patience_ends_at_ms = self.clock.now_ms() + PATIENCE_MS;
            let shown = self
                .watch
                .audit(|audit| audit.show_unsettled(patience_ends_at_ms));
            panic!("nothing settles any more: {shown}");
        }
    }

    /// With everything settled nothing is under way and every lane is live.
    async fn come_to_rest(&mut self) {
        let mut behind = Vec::new();
        for _ in 0..900 {
            self.pass(Duration::from_secs(2)).await;
            let workers = self.workers.iter().flatten();
            let in_flight = workers.map(|worker| worker.metrics.attempts_in_flight.get());
            behind = {
                let patience_ends_at_ms = self.clock.now_ms() + PATIENCE_MS;
                self.watch.audit(|audit| audit.behind(patience_ends_at_ms))
            };
            if in_flight.sum::<i64>() == 0 && behind.is_empty() {
                return;
            }
        }
        let shown = self.watch.audit(|audit| audit.show_unsettled(i64::MAX));
        panic!("attempts are under way or lanes behind: {behind:?}\n{shown}");
    }
}

/// Limits that are reached here and not there.
fn temper(random: &mut SplitMix64) -> DeliveryConfig {
    let mut config = DeliveryConfig::default();
    let mut pick = |choices: [usize; 3]| choices[usize::try_from(random.below(3)).expect("few")];
    config.deliver.attempts_in_flight_max = pick([8, 64, 1_024]);
    config.deliver.lane_attempts_in_flight_max = pick([1, 4, 32]);
    config.deliver.lane_queue_max = pick([4, 32, 512]);
    config.deliver.breaker_pause_ms_max = 4_000;
    config.deliver.partition_unsettled_max = pick([16, 200, 2_000]);
    if pick([0, 1, 2]) == 0 {
        config.deliver.settled_max = 4;
        config.deliver.settled_age_ms = 2_000;
    }
    config.deliver.unsettled_bytes_max = pick([1 << 16, 1 << 20, 1 << 28]);
    config.deliver.catch_up_read_bytes_max = pick([1_000, 20_000, 1 << 20]);
    config.deliver.hold_ms_max = pick([500, 5_000, 5_000]) as u64;
    config.deliver.state_interval_ms = pick([100, 1_000, 1_000]) as u64;
    config.deliver.lane_blocked_keys_max = pick([1, 2, 4_096]);
    config.deliver.lane_blocked_offsets_max = pick([3, 20, 100_000]);
    config.deliver.blocked_ms_max = pick([4_000, 3_600_000, 3_600_000]) as u64;
    config.deliver.lease_ms = pick([8_000, 12_000, 20_000]) as u64;
    config.scheduler.timer_ms_max = pick([0, 2_000, 90_000]) as u64;
    config.scheduler.timer_bytes_max = pick([1, 10_000, 1 << 27]);
    config.scheduler.releases_per_second_max =
        u32::try_from(pick([2, 1_000, 1_000])).expect("small");
    // Some are over before an attempt is, which is cut then.
    config.stage.revoke_drain_ms = pick([200, 1_000, 5_000]) as u64;
    config.stage.stop_drain_ms = pick([200, 1_000, 25_000]) as u64;
    config
}

fn topics() -> Vec<TopicSpec> {
    let spec = |name: &str, partitions: i32, kept: bool| TopicSpec {
        name: name.to_owned(),
        partitions,
        retention: kept.then_some(Duration::from_secs(7 * 86_400)),
        message_bytes_max: 1 << 20,
        settings: Vec::new(),
    };
    vec![
        spec(EVENTS, 3, true),
        spec(ROUTES, 2, true),
        spec(DELIVERIES, DELIVERY_PARTITIONS, true),
        spec(ATTEMPTS, DELIVERY_PARTITIONS, true),
        spec(ENDPOINT_STATE, DELIVERY_PARTITIONS, false),
        spec(RETRY, i32::try_from(LADDER_MS.len()).expect("few"), true),
        spec(DEAD_LETTERS, 2, true),
        spec(REGISTRY, 1, false),
    ]
}
