//! One life of one worker: the three stages over a log of its own, until it is killed or told to
//! stop.

use std::sync::Arc;
use std::time::Duration;

use postrider_delivery::config::DeliveryConfig;
use postrider_delivery::deliver::DeliverContext;
use postrider_delivery::fan_out::FanOutContext;
use postrider_delivery::lane_status::lane_questions;
use postrider_delivery::scheduler::SchedulerContext;
use postrider_delivery::{DeliveryMetrics, StageContext, deliver, fan_out, scheduler};
use postrider_log::memory::MemoryProcess;
use postrider_log::{Clock, Log};
use postrider_model::retry::{DelayLadder, RetrySchedule};
use postrider_registry::{Keyring, Registry, RegistryOptions};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::freeze::Gate;
use super::network::{Network, ScriptedSender};
use super::watch::{Watch, WatchedLog};

pub(crate) const LADDER_MS: [i64; 5] = [1_000, 2_000, 4_000, 8_000, 16_000];

/// What a life works with.
pub(crate) struct Means {
    pub(crate) process: Arc<MemoryProcess>,
    pub(crate) life: usize,
    pub(crate) gate: Arc<Gate>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) network: Arc<Network>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: DeliveryConfig,
    pub(crate) metrics: DeliveryMetrics,
}

pub(crate) struct Worker {
    pub(crate) process: Arc<MemoryProcess>,
    pub(crate) metrics: DeliveryMetrics,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Worker {
    pub(crate) fn start(means: Means) -> Self {
        let stop = CancellationToken::new();
        let (process, metrics) = (means.process.clone(), means.metrics.clone());
        let (gate, told) = (means.gate.clone(), stop.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { gate.guard(Box::pin(work(means, told))).await });
        Self {
            process,
            metrics,
            tasks,
            stop,
        }
    }

    /// As kill -9 does it.
    pub(crate) fn kill(mut self) {
        self.process.kill();
        self.tasks.abort_all();
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.process.kill();
    }
}

async fn work(means: Means, stop: CancellationToken) {
    let mut background = JoinSet::new();
    let Means {
        process,
        life,
        gate,
        watch,
        network,
        clock,
        config,
        metrics,
    } = means;
    let log = Arc::new(WatchedLog {
        process,
        life,
        gate: gate.clone(),
        watch,
    });
    let registry = open_registry(log.clone(), clock.clone(), &mut background).await;
    let ladder = DelayLadder::try_new(LADDER_MS.to_vec()).expect("a ladder");
    let stage = StageContext {
        log,
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
    let carry = |producers| DeliverContext {
        registry: registry.clone(),
        sender: ScriptedSender {
            network: network.clone(),
            life,
            gate: gate.clone(),
        },
        clock: clock.clone(),
        producers,
        ladder: ladder.clone(),
        default_schedule: RetrySchedule::standard(),
        config: config.deliver.clone(),
        metrics: metrics.clone(),
    };
    futures_util::join!(
        fan_out::run(stage.clone(), fan_out, stop.clone()),
        deliver::run(stage.clone(), carry, lane_questions().1, stop.clone()),
        scheduler::run(stage.clone(), scheduler, stop.clone()),
    );
}

pub(crate) async fn open_registry(
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
