//! An installation at work: processes, receivers, publishers, and what all scenarios do with them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postrider_log::partition_for;
use postrider_tests::{Cluster, LogKind, Plan, Received, Receiver, Reply, eventually};
use serde_json::json;

use crate::audit::{Findings, audit};
use crate::figures::Figures;
use crate::load::{Load, Told, event_type};
use crate::topics::{drained, log_of};

/// How long an installation may take to recover from anything, on a busy machine.
pub(crate) const RECOVERS_WITHIN: Duration = Duration::from_secs(120);

/// A plan whose members are missed soon: a session lasts six seconds.
pub(crate) fn quick_sessions() -> Plan {
    Plan::new(LogKind::Kafka)
        .set("POSTRIDER_KAFKA__SESSION_TIMEOUT_MS", "6000")
        .set("POSTRIDER_KAFKA__HEARTBEAT_INTERVAL_MS", "500")
        .set("POSTRIDER_DELIVERY__STAGE__COMMIT_IDLE_INTERVAL_MS", "1000")
        .set("POSTRIDER_DELIVERY__DELIVER__LEASE_MS", "4500")
}

/// How long a receiver takes for an event: between these, the same for every request of the event.
pub(crate) fn takes(received: &Received, from_ms: u64, to_ms: u64) -> Duration {
    let number = received
        .id
        .bytes()
        .fold(7, |sum: u64, byte| (sum * 31 + u64::from(byte)) % 1_000_003);
    Duration::from_millis(from_ms + number % (to_ms - from_ms))
}

/// An installation with endpoints, and publishers at work.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) receiver: Receiver,
    pub(crate) load: Load,
    /// The ids of the endpoints; their paths are [`path`].
    endpoints: Vec<String>,
}

/// Where an endpoint is.
pub(crate) fn path(endpoint: usize) -> String {
    format!("/endpoint-{endpoint}")
}

impl World {
    /// Starts it; receivers answer 200 after this time. Returns when events arrive everywhere.
    pub(crate) async fn start(
        plan: Plan,
        endpoints: usize,
        per_second: f64,
        after: impl Fn(&Received) -> Duration + Send + Sync + 'static,
    ) -> Self {
        let cluster = plan.start().await;
        let answer = move |received: &Received| Reply::status(200).after(after(received));
        let receiver = Receiver::start(answer).await;
        let settings: Vec<_> = (0..endpoints)
            .map(|endpoint| {
                json!({
                    "url": receiver.url(&path(endpoint)),
                    "event_types": [event_type(endpoint)],
                })
            })
            .collect();
        let ids = cluster.api().import_endpoints(&settings).await;
        let load = Load::start(cluster.apis(), endpoints, per_second);
        let world = Self {
            cluster,
            receiver,
            load,
            endpoints: ids,
        };
        world.flows_since(Instant::now()).await;
        world
    }

    /// Waits until something came to every endpoint after this moment, and tells how long after it
    /// the last one began.
    pub(crate) async fn flows_since(&self, moment: Instant) -> Duration {
        eventually("events come everywhere", RECOVERS_WITHIN, async || {
            let late = (0..self.endpoints.len())
                .filter(|endpoint| self.receiver.latest(&path(*endpoint)) <= Some(moment));
            match late.count() {
                0 => Ok(()),
                count => Err(format!("nothing yet at {count} endpoints")),
            }
        })
        .await;
        moment.elapsed()
    }

    /// Stops publishing, waits until all has come to its end, audits and notes the findings.
    pub(crate) async fn settle(mut self, figures: &mut Figures) -> Settled {
        let told = self.load.stop().await;
        let ids: Vec<String> = told.accepted.iter().map(|(id, _)| id.clone()).collect();
        let log = log_of(&self.cluster);
        eventually("all accepted events came", RECOVERS_WITHIN, async || {
            let received = self.receiver.everything();
            let came: std::collections::BTreeSet<&str> =
                received.iter().map(|one| one.id.as_str()).collect();
            match ids.iter().filter(|id| !came.contains(id.as_str())).count() {
                0 => Ok(()),
                missing => Err(format!("{missing} of {} are missing", ids.len())),
            }
        })
        .await;
        drained(&*log).await;
        nothing_in_flight(&mut self.cluster).await;
        let findings = audit(&*log, &told, &self.receiver).await;
        findings.tell(figures);
        let partitions = log.partition_count("deliveries").await.unwrap();
        let longest_gap = longest_gap(&self.receiver, &self.endpoints, partitions);
        figures.set_time("longest_gap_of_a_partition_s", longest_gap);
        Settled {
            _cluster: self.cluster,
            receiver: self.receiver,
            told,
            findings,
            longest_gap,
        }
    }
}

/// An installation that has done all its work.
#[derive(Debug)]
pub(crate) struct Settled {
    /// Its processes say what they did when a check fails.
    _cluster: Cluster,
    pub(crate) receiver: Receiver,
    pub(crate) told: Told,
    pub(crate) findings: Findings,
    /// The longest time in which nothing came of a partition.
    pub(crate) longest_gap: Duration,
}

impl Settled {
    /// Requests that came after this moment for events of which one had come before.
    pub(crate) fn repeated_after(&self, moment: Instant) -> usize {
        let received = self.receiver.everything();
        let (before, after): (Vec<_>, Vec<_>) = received.iter().partition(|one| one.at <= moment);
        let before: std::collections::BTreeSet<&str> =
            before.iter().map(|one| one.id.as_str()).collect();
        after
            .iter()
            .filter(|one| before.contains(one.id.as_str()))
            .count()
    }
}

/// The longest time between two requests of one partition of `deliveries`, from the first to the
/// last.
fn longest_gap(receiver: &Receiver, endpoints: &[String], partitions: i32) -> Duration {
    let partitions: BTreeMap<String, i32> = (0..)
        .zip(endpoints)
        .map(|(number, id)| (path(number), partition_for(id.as_bytes(), partitions)))
        .collect();
    let mut last: BTreeMap<i32, Instant> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    for received in receiver.everything() {
        let partition = partitions[&received.path];
        if let Some(before) = last.insert(partition, received.at) {
            longest = longest.max(received.at.duration_since(before));
        }
    }
    longest
}

/// Waits until every worker that runs says that no attempt is under way.
async fn nothing_in_flight(cluster: &mut Cluster) {
    let workers = cluster.processes().map(|(name, _)| name.to_owned());
    let mut workers: Vec<String> = workers.filter(|name| name.contains("deliver")).collect();
    workers.retain(|name| cluster.process(name).is_running());
    eventually("nothing is in flight", RECOVERS_WITHIN, async || {
        let mut in_flight = BTreeMap::new();
        for name in &workers {
            let metrics = cluster.metrics(name).await;
            let value = metric(&metrics, "postrider_attempts_in_flight");
            if value != 0.0 {
                in_flight.insert(name.clone(), value);
            }
        }
        if in_flight.is_empty() {
            Ok(())
        } else {
            Err(in_flight)
        }
    })
    .await;
}

/// The sum of a metric over its labels.
pub(crate) fn metric(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let own = series.split('{').next()? == name;
        own.then(|| value.parse::<f64>().ok()).flatten()
    });
    values.sum()
}
