//! What endpoints in trouble cost the others: everything on a real Kafka, and all that is compared
//! within one run.
//!
//! An endpoint shares its partition with others, so few partitions make it harder to keep them
//! apart. Everything else is configured as it comes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use postrider_tests::{Api, Cluster, KafkaBroker, LogKind, Plan};
use serde_json::{Value, json};

use crate::flow::{Flow, Publisher, event_type};
use crate::receivers::{Manner, Receivers};
use crate::report::{Latencies, compare, record};
use crate::say;

mod backlog;
mod slow;

pub(crate) use backlog::backlog;
pub(crate) use slow::slow;

/// Connections open and code gets warm, unmeasured; the broker's takes longest.
const WARM_UP: Duration = Duration::from_secs(20);
/// The same once the broker is warm, which all scenarios share.
const WARM_UP_AGAIN: Duration = Duration::from_secs(6);
/// How long what was published may take to arrive after the last event.
const STRAGGLERS: Duration = Duration::from_secs(5);

/// How the scenarios of endpoints in trouble are run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Seconds of each phase that is measured; unless named, as the scenario needs.
    #[arg(long)]
    seconds: Option<u64>,
    /// Events per second over all endpoints, in `isolation` and `many-hang`.
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Tenants that the endpoints belong to.
    #[arg(long, default_value_t = 10)]
    tenants: usize,
    /// Partitions of each topic.
    #[arg(long, default_value_t = 4)]
    partitions: u32,
    /// Deliveries that a dead endpoint gathers.
    #[arg(long, default_value_t = 40_000)]
    backlog: u64,
}

impl Options {
    fn phase(&self, default_seconds: u64) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(default_seconds))
    }
}

/// An installation with its endpoints, each of which wants events of its own.
struct Stage {
    cluster: Arc<Cluster>,
    receivers: Receivers,
    apis: Vec<Api>,
}

impl Stage {
    async fn set(options: &Options, endpoints: usize) -> Self {
        let cluster = Plan::new(LogKind::Kafka)
            .broker(KafkaBroker::as_shipped())
            .set(
                "POSTRIDER_TOPICS__PARTITIONS",
                &options.partitions.to_string(),
            )
            .set("POSTRIDER_TOPICS__RETRY_DELAYS_MS", "")
            .set("POSTRIDER_RETRY__DEFAULT_SCHEDULE_MS", "")
            .start()
            .await;
        let receivers = Receivers::start(endpoints).await;
        let tenants = options.tenants.clamp(1, endpoints);
        let apis: Vec<Api> = (0..tenants)
            .map(|tenant| cluster.api().for_tenant(&format!("tenant-{tenant}")))
            .collect();
        join_all(apis.iter().enumerate().map(async |(tenant, api)| {
            api.ensure_tenant().await;
            let own = (tenant..endpoints).step_by(tenants).map(|endpoint| {
                json!({
                    "url": receivers.url(endpoint),
                    "event_types": [event_type(endpoint)],
                })
            });
            api.import_endpoints(&own.collect::<Vec<_>>()).await;
        }))
        .await;
        Self {
            cluster: Arc::new(cluster),
            receivers,
            apis,
        }
    }

    fn flow(&self, endpoint: usize, per_second: f64) -> Flow {
        Flow {
            endpoint,
            api: self.apis[endpoint % self.apis.len()].clone(),
            every: Duration::from_secs_f64(1.0 / per_second),
        }
    }

    /// One flow for each of the first endpoints.
    fn flows(&self, endpoints: usize, per_second: f64) -> Vec<Flow> {
        let endpoints = 0..endpoints;
        endpoints
            .map(|endpoint| self.flow(endpoint, per_second))
            .collect()
    }

    /// A phase of this length: the times at which events of it were due.
    async fn measure(&self, length: Duration) -> Range<u64> {
        let from = self.receivers.now_us();
        tokio::time::sleep(length).await;
        from..self.receivers.now_us()
    }

    /// A phase during which these flows come on top.
    async fn measure_with(
        &self,
        publisher: &Publisher<'_>,
        flows: &[Flow],
        length: Duration,
    ) -> Range<u64> {
        publisher.keep_pace(flows, self.measure(length)).await
    }
}

fn warm_up() -> Duration {
    static IS_WARM: AtomicBool = AtomicBool::new(false);
    if IS_WARM.swap(true, Ordering::Relaxed) {
        WARM_UP_AGAIN
    } else {
        WARM_UP
    }
}

/// Runs two phases, the second after `trouble`, while the flows keep their pace, and compares the
/// healthy ones.
async fn two_phases(
    stage: &Stage,
    flows: &[Flow],
    healthy: impl Fn(usize) -> bool,
    lengths: [Duration; 2],
    trouble: impl FnOnce(),
) -> Value {
    let publisher = Publisher::new(&stage.receivers);
    let phases = publisher.keep_pace(flows, async {
        tokio::time::sleep(warm_up()).await;
        let before = stage.measure(lengths[0]).await;
        trouble();
        let during = stage.measure(lengths[1]).await;
        (before, during)
    });
    let (before, during) = phases.await;
    tokio::time::sleep(STRAGGLERS).await;
    let latencies = |due_us| Latencies::of(&publisher, &stage.receivers, &healthy, due_us);
    let (before, during) = (latencies(&before), latencies(&during));
    before.say("before");
    during.say("during");
    let comparison = compare(&before, &during);
    json!({ "before": before.json(), "during": during.json(), "comparison": comparison })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "rates and counts are far below 2^53"
)]
fn share(rate: u64, endpoints: usize) -> f64 {
    rate as f64 / endpoints as f64
}

/// Ten endpoints; then one never answers and one answers 500.
pub(crate) async fn two_of_ten(options: &Options) {
    const ENDPOINTS: usize = 10;
    say(&format!(
        "\nisolation: {ENDPOINTS} endpoints of {} tenants, {} events/s over all; then one never answers, one answers 500",
        options.tenants.min(ENDPOINTS),
        options.rate
    ));
    let stage = Stage::set(options, ENDPOINTS).await;
    let flows = stage.flows(ENDPOINTS, share(options.rate, ENDPOINTS));
    let lengths = [options.phase(8), options.phase(15)];
    let figures = two_phases(
        &stage,
        &flows,
        |flow| flow >= 2,
        lengths,
        || {
            stage.receivers.set(0, Manner::Hangs);
            stage.receivers.set(1, Manner::Refuses(500));
        },
    );
    record("isolation", &figures.await);
}

/// A thousand endpoints; then three of ten never answer.
pub(crate) async fn many_hang(options: &Options) {
    const ENDPOINTS: usize = 1_000;
    let hangs = |endpoint: usize| endpoint / options.tenants.max(1) % 10 < 3;
    let hanging = (0..ENDPOINTS).filter(|endpoint| hangs(*endpoint)).count();
    say(&format!(
        "\nmany-hang: {ENDPOINTS} endpoints of {} tenants, {} events/s over all; then {hanging} never answer",
        options.tenants, options.rate
    ));
    let stage = Stage::set(options, ENDPOINTS).await;
    let flows = stage.flows(ENDPOINTS, share(options.rate, ENDPOINTS));
    let lengths = [options.phase(8), options.phase(20)];
    let figures = two_phases(
        &stage,
        &flows,
        |flow| !hangs(flow),
        lengths,
        || {
            (0..ENDPOINTS)
                .filter(|endpoint| hangs(*endpoint))
                .for_each(|endpoint| stage.receivers.set(endpoint, Manner::Hangs));
        },
    );
    record("many-hang", &figures.await);
}

/// One tenant publishes a hundred times its share while the others trickle. Before that all publish
/// as much together, evenly: what the flood costs beyond that, it costs because one tenant sends
/// it.
pub(crate) async fn flood(options: &Options) {
    const SHARE_PER_SECOND: f64 = 10.0;
    const TIMES: u64 = 100;
    let tenants = options.tenants.max(2);
    say(&format!(
        "\nflood: {tenants} tenants with an endpoint and {SHARE_PER_SECOND} events/s each, of which one then \
         publishes {TIMES} times as many; before, all publish as many as these together, evenly"
    ));
    let options = Options {
        tenants,
        ..options.clone()
    };
    let stage = Stage::set(&options, tenants).await;
    let trickle = stage.flows(tenants, SHARE_PER_SECOND);
    let flooding = [stage.flow(0, SHARE_PER_SECOND * share(TIMES - 1, 1))];
    let even = stage.flows(tenants, SHARE_PER_SECOND * share(TIMES - 1, tenants));

    let publisher = Publisher::new(&stage.receivers);
    let length = options.phase(15);
    let phases = publisher.keep_pace(&trickle, async {
        stage.measure_with(&publisher, &even, warm_up()).await;
        let even = stage.measure_with(&publisher, &even, length).await;
        tokio::time::sleep(STRAGGLERS).await;
        let before = stage.measure(length).await;
        let during = stage.measure_with(&publisher, &flooding, length).await;
        [even, before, during]
    });
    let phases = phases.await;
    tokio::time::sleep(STRAGGLERS).await;
    let [even, before, during] =
        phases.map(|due_us| Latencies::of(&publisher, &stage.receivers, |flow| flow != 0, &due_us));
    even.say("evenly");
    before.say("before");
    during.say("during");
    let comparison = compare(&before, &during);
    record(
        "flood",
        &json!({ "before": before.json(), "during": during.json(), "evenly": even.json(), "comparison": comparison }),
    );
}
