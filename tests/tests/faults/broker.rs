//! A broker that dies and one that freezes.

use std::time::{Duration, Instant};

use postrider_tests::KafkaBroker;

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{World, quick_sessions, takes};

const ENDPOINTS: usize = 12;
const PER_SECOND: f64 = 60.0;

on_kafka!(a_broker_killed_and_frozen_under_load_loses_nothing);

async fn a_broker_killed_and_frozen_under_load_loses_nothing(form: Form) {
    let mut figures = Figures::new("broker-killed-and-frozen", form);
    let broker: &'static KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let plan = quick_sessions()
        .broker(broker)
        .delivers(2)
        .set("POSTRIDER_INGEST__APPEND_TIMEOUT_MS", "2000");
    let mut world = World::start(plan, ENDPOINTS, PER_SECOND, |received| {
        takes(received, 20, 250)
    })
    .await;
    let away = Duration::from_secs(form.pick(5, 20));
    let mut recoveries = Vec::new();
    for _ in 0..form.pick(1, 3) {
        tokio::task::block_in_place(|| broker.kill());
        tokio::time::sleep(away).await;
        tokio::task::block_in_place(|| broker.restart());
        recoveries.push(world.flows_since(Instant::now()).await);
        broker.freeze();
        tokio::time::sleep(away).await;
        broker.thaw();
        recoveries.push(world.flows_since(Instant::now()).await);
    }
    let running = ["ingest-0", "deliver-0", "deliver-1"]
        .map(|name| (name, world.cluster.process(name).is_running()));
    let settled = world.settle(&mut figures).await;
    figures.set("refused", settled.told.refused.len());
    figures.set("unanswered", settled.told.unanswered);
    figures.set_time(
        "longest_recovery_s",
        recoveries.into_iter().max().unwrap_or_default(),
    );
    figures.save();
    settled.findings.assert_nothing_lost();
    assert_eq!(running.map(|(name, _)| (name, true)), running);
    let refused = &settled.told.refused;
    assert!(!refused.is_empty(), "nothing was refused meanwhile");
    for (status, retry_after, _) in refused {
        assert_eq!(*status, 503);
        assert!(
            retry_after.parse::<u32>().is_ok_and(|seconds| seconds > 0),
            "Retry-After: {retry_after:?}"
        );
    }
}
