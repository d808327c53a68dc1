//! What one machine carries end to end.
//!
//! Each event is 1 KiB, the receiver a process of its own that answers 200 at once. First as many
//! events as fit through, by each way in and to few or many endpoints: deliveries per second, and
//! the CPU that each process took. Then events come at fixed rates that leave the machine room: how
//! long from the moment before an event is sent until its webhook is at the receiver. Publisher,
//! broker and receiver share the machine with what is measured.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use postrider_tests::{Api, Cluster, KafkaBroker, LogKind, Plan};
use serde_json::json;

use crate::builds::{Build, Options};
use crate::cpu::{self, Used};
use crate::figures::Figures;
use crate::perf::Recording;
use crate::publish::{self, ENDPOINTS, EVENT_BYTES, event_type};
use crate::receiver_process::ReceiverProcess;
use crate::say;

pub(crate) const EVENTS: usize = 20_000;
pub(crate) const PARTITIONS: i32 = 12;
pub(crate) const PACED_EVENTS: usize = 5_000;
pub(crate) const PACED_PER_SECOND: f64 = 500.0;
/// Code gets warm, the broker's slowest, and connections are opened.
const WARM_UP_EVENTS: usize = 30_000;
const WARM_UP_CALLERS: usize = 64;
const FEW_CALLERS: usize = 32;
pub(crate) const MANY_CALLERS: usize = 256;
const FAN_OUT: usize = 50;
const SLOW_PER_SECOND: f64 = 100.0;
const SLOW_EVENTS: usize = 1_000;
const IDLE_FOR: Duration = Duration::from_secs(8);
/// What was done before has no more work after this time.
const CALM: Duration = Duration::from_secs(2);

/// Measures each build.
pub(crate) async fn bench(log: LogKind, options: &Options) {
    say(&format!(
        "\n{log:?}: {EVENT_BYTES} byte events; CPU in seconds per 100,000 events"
    ));
    let scenario = format!("{log:?}").to_lowercase();
    let measure = async |build, perf| Bench::start(log, build, perf).await.measure().await;
    if log == LogKind::Kafka && options.compares() {
        // All builds are measured with one broker, whose code gets warm for more than a minute.
        drop(measure(Options::this(), None).await);
    }
    let measure = |build| measure(build, options.perf.clone());
    options.compare(&scenario, measure).await;
}

/// An installation that is measured.
struct Bench {
    receiver: ReceiverProcess,
    cluster: Cluster,
    api: Api,
    figures: Figures,
    build: &'static str,
    /// Where profiles go, if they are made.
    perf: Option<PathBuf>,
}

/// What is measured of a phase that has begun.
struct Phase {
    name: String,
    started: Instant,
    used: Used,
    _recording: Option<Recording>,
}

impl Bench {
    async fn start(log: LogKind, build: Build, perf: Option<PathBuf>) -> Self {
        let mut plan = Plan::new(log)
            .binary(&build.binary)
            .set("POSTRIDER_TOPICS__PARTITIONS", &PARTITIONS.to_string());
        for (name, value) in &build.settings {
            plan = plan.set(name, value);
        }
        if log == LogKind::Kafka {
            plan = plan.broker(KafkaBroker::as_shipped());
        }
        let receiver = ReceiverProcess::start();
        let cluster = plan.start().await;
        let api = cluster.api();
        let wanted = (0..ENDPOINTS).map(event_type);
        let wanted = wanted.chain(["bench.hot".to_owned()]);
        let wanted = wanted.chain(std::iter::repeat_n("bench.wide".to_owned(), FAN_OUT));
        for event_type in wanted {
            let types = json!({ "event_types": [event_type] });
            api.create_endpoint(&receiver.url(), types).await;
        }
        let bench = Self {
            receiver,
            cluster,
            api,
            figures: Figures::default(),
            build: build.name,
            perf,
        };
        publish::all(&bench.api, WARM_UP_EVENTS, WARM_UP_CALLERS, event_type).await;
        bench.receiver.finished(WARM_UP_EVENTS).await;
        bench
    }

    async fn measure(mut self) -> Figures {
        self.idle().await;
        self.full(FEW_CALLERS).await;
        self.full(MANY_CALLERS).await;
        if self.cluster.log() == LogKind::Kafka {
            self.straight().await;
        }
        self.hot().await;
        self.wide().await;
        self.paced(PACED_EVENTS, PACED_PER_SECOND).await;
        self.paced(SLOW_EVENTS, SLOW_PER_SECOND).await;
        self.figures
    }

    fn used(&self) -> Used {
        let mut processes = cpu::processes(&self.cluster, "publisher");
        processes.push(("receiver".to_owned(), self.receiver.id()));
        Used::new(processes)
    }

    async fn idle(&mut self) {
        tokio::time::sleep(CALM).await;
        let used = self.used();
        tokio::time::sleep(IDLE_FOR).await;
        used.tell_cores(IDLE_FOR, "idle", &mut self.figures);
    }

    fn begins(&self, name: String) -> Phase {
        let processes = cpu::processes(&self.cluster, "publisher").into_iter();
        let is_ours = |name: &str| ["deliver", "up"].contains(&name) || name.starts_with("ingest");
        let ours = processes.filter(|(name, _)| is_ours(name));
        let record = |dir: &PathBuf| Recording::start(dir, self.build, &name, ours);
        Phase {
            _recording: self.perf.as_ref().map(record),
            name,
            started: Instant::now(),
            used: self.used(),
        }
    }

    /// Notes what came of a flow at full load.
    async fn ended(&mut self, phase: Phase, deliveries: usize) {
        self.receiver.finished(deliveries).await;
        let rate = per_second(deliveries, phase.started.elapsed());
        self.figures
            .set(format!("{}: delivered/s", phase.name), rate);
        phase.used.tell(deliveries, &phase.name, &mut self.figures);
    }

    async fn full(&mut self, callers: usize) {
        let phase = self.begins(format!("{callers} callers"));
        publish::all(&self.api, EVENTS, callers, event_type).await;
        let accepted = per_second(EVENTS, phase.started.elapsed());
        self.figures
            .set(format!("{}: accepted/s", phase.name), accepted);
        self.ended(phase, EVENTS).await;
    }

    async fn straight(&mut self) {
        let phase = self.begins("protobuf".to_owned());
        publish::straight(&self.cluster, self.api.tenant(), EVENTS);
        self.ended(phase, EVENTS).await;
    }

    async fn hot(&mut self) {
        let phase = self.begins("one endpoint".to_owned());
        let hot = |_| "bench.hot".to_owned();
        publish::all(&self.api, EVENTS, MANY_CALLERS, hot).await;
        self.ended(phase, EVENTS).await;
    }

    async fn wide(&mut self) {
        let phase = self.begins(format!("fan-out {FAN_OUT}"));
        let events = EVENTS / FAN_OUT;
        let wide = |_| "bench.wide".to_owned();
        publish::all(&self.api, events, MANY_CALLERS, wide).await;
        self.ended(phase, events * FAN_OUT).await;
    }

    async fn paced(&mut self, events: usize, rate: f64) {
        tokio::time::sleep(CALM).await;
        let phase = self.begins(format!("{rate}/s"));
        publish::paced(&self.api, events, rate, event_type).await;
        let report = self.receiver.finished(events).await;
        phase.used.tell(events, &phase.name, &mut self.figures);
        report.tell(&phase.name, &mut self.figures);
    }
}

/// So many in this time, by the second.
pub(crate) fn per_second(events: usize, time: Duration) -> f64 {
    count(events) / time.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(crate) fn count(events: usize) -> f64 {
    events as f64
}
