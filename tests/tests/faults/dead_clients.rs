//! Brokers that come back from a freeze, a restart or an upgrade, after which clients of Kafka may
//! know of no broker any more: every role goes on by itself.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use postrider_tests::http::HttpClient;
use postrider_tests::{Cluster, KafkaBroker, Plan, eventually};

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{RECOVERS_WITHIN, World, metric, quick_sessions, takes};

const ENDPOINTS: usize = 12;
const PER_SECOND: f64 = 40.0;
/// Longer than clients wait for an answer: they connect again, and nothing answers.
const FROZEN_FOR: Duration = Duration::from_secs(35);
const DOWN_FOR: Duration = Duration::from_secs(48);
/// How long everything may take to go on. Beside other tests it may take longer.
const GOES_ON_WITHIN: Duration = Duration::from_secs(60);

on_kafka!(
    all_roles_go_on_after_the_only_broker_was_frozen_or_restarted,
    workers_that_start_shortly_before_the_only_broker_freezes_go_on,
    all_roles_go_on_after_three_brokers_were_upgraded,
);

async fn all_roles_go_on_after_the_only_broker_was_frozen_or_restarted(form: Form) {
    let broker: &'static KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let plan = quick_sessions().broker(broker).delivers(2).exports();
    let mut trial = Trial::start("dead-clients-one-broker", form, plan).await;
    for _ in 0..form.pick(1, 10) {
        broker.freeze();
        tokio::time::sleep(FROZEN_FOR).await;
        broker.thaw();
        trial.goes_on("a freeze").await;
    }
    for _ in 0..form.pick(0, 10) {
        tokio::task::block_in_place(|| broker.kill());
        tokio::time::sleep(DOWN_FOR).await;
        tokio::task::block_in_place(|| broker.restart());
        trial.goes_on("a restart").await;
    }
    trial.end().await;
}

async fn workers_that_start_shortly_before_the_only_broker_freezes_go_on(form: Form) {
    let broker: &'static KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let workers = form.pick(2, 6);
    let plan = quick_sessions().broker(broker).delivers(workers);
    let mut trial = Trial::start("dead-clients-fresh-workers", form, plan).await;
    for _ in 0..form.pick(1, 3) {
        let cluster = &mut trial.world.cluster;
        for worker in 0..workers {
            tokio::task::block_in_place(|| cluster.terminate(&format!("deliver-{worker}")));
        }
        for worker in 0..workers {
            cluster.start_again(&format!("deliver-{worker}"));
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        broker.freeze();
        tokio::time::sleep(Duration::from_secs(10)).await;
        broker.thaw();
        trial.goes_on("a freeze after a start").await;
    }
    trial.end().await;
}

async fn all_roles_go_on_after_three_brokers_were_upgraded(form: Form) {
    let brokers: &'static [KafkaBroker; 3] = Box::leak(Box::new(KafkaBroker::start_three()));
    let plan = quick_sessions().broker(&brokers[0]).delivers(2).exports();
    let mut trial = Trial::start("dead-clients-three-brokers", form, plan).await;
    for _ in 0..form.pick(1, 3) {
        for broker in brokers {
            tokio::task::block_in_place(|| broker.restart());
            tokio::time::sleep(Duration::from_secs(form.pick(2, 10))).await;
        }
        trial.goes_on("an upgrade").await;
    }
    trial.end().await;
}

/// An installation at work, and how long each time it took to go on.
struct Trial {
    world: World,
    figures: Figures,
    form: Form,
    recoveries: Vec<Duration>,
}

impl Trial {
    async fn start(scenario: &'static str, form: Form, plan: Plan) -> Self {
        let figures = Figures::new(scenario, form);
        let world = World::start(plan, ENDPOINTS, PER_SECOND, |received| {
            takes(received, 20, 250)
        });
        Self {
            world: world.await,
            figures,
            form,
            recoveries: Vec::new(),
        }
    }

    /// Waits until events come everywhere and every process is ready and alive.
    async fn goes_on(&mut self, after: &str) {
        let back = Instant::now();
        self.world.flows_since(back).await;
        all_ready(&self.world.cluster, after).await;
        self.recoveries.push(back.elapsed());
    }

    async fn end(mut self) {
        let names = self
            .world
            .cluster
            .processes()
            .map(|(name, _)| name.to_owned());
        let mut replaced = 0.0;
        for name in names.collect::<Vec<_>>() {
            let metrics = self.world.cluster.metrics(&name).await;
            replaced += metric(&metrics, "postrider_kafka_clients_replaced_total");
        }
        let settled = self.world.settle(&mut self.figures).await;
        let longest = self.recoveries.iter().max().copied().unwrap_or_default();
        self.figures.set("clients_replaced", replaced);
        self.figures.set("times", self.recoveries.len());
        self.figures.set_time("longest_recovery_s", longest);
        self.figures.save();
        settled.findings.assert_nothing_lost();
        let at_most = self.form.pick(RECOVERS_WITHIN, GOES_ON_WITHIN);
        assert!(longest <= at_most, "{:?}", self.recoveries);
    }
}

async fn all_ready(cluster: &Cluster, after: &str) {
    eventually(
        &format!("all are ready after {after}"),
        RECOVERS_WITHIN,
        async || {
            for address in cluster.health_addresses() {
                for path in ["/readyz", "/livez"] {
                    let request = Request::get(path).body(Body::empty()).unwrap();
                    match HttpClient::new(address).send(request).await {
                        Ok(answer) if answer.status == 200 => {}
                        other => return Err(format!("{path}: {other:?}")),
                    }
                }
            }
            Ok(())
        },
    )
    .await;
}
