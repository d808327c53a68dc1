//! A worker that is frozen under load, while others take over its work, and thawed.

use std::time::{Duration, Instant};

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{World, quick_sessions, takes};

const ENDPOINTS: usize = 12;
const PER_SECOND: f64 = 60.0;
const FROZEN: &str = "deliver-0";
/// What was written before the worker froze has come by then.
const ON_THE_WAY: Duration = Duration::from_millis(500);

on_kafka!(a_worker_thawed_under_load_sends_nothing_that_others_sent_meanwhile);

async fn a_worker_thawed_under_load_sends_nothing_that_others_sent_meanwhile(form: Form) {
    let mut figures = Figures::new("frozen-worker", form);
    let plan = quick_sessions().delivers(2);
    let mut world = World::start(plan, ENDPOINTS, PER_SECOND, |received| {
        takes(received, 20, 250)
    })
    .await;
    let rounds = form.pick(1, 3);
    let mut stale_from = Vec::new();
    for _ in 0..rounds {
        world.cluster.process(FROZEN).freeze();
        let frozen = Instant::now();
        world.flows_since(frozen + ON_THE_WAY).await;
        let length = Duration::from_secs(form.pick(12, 60));
        tokio::time::sleep(length.saturating_sub(frozen.elapsed())).await;
        stale_from.push(Instant::now());
        world.cluster.process(FROZEN).thaw();
        // Long enough for whatever it had in hand.
        world.flows_since(Instant::now() + ON_THE_WAY).await;
        tokio::time::sleep(Duration::from_secs(form.pick(2, 10))).await;
    }
    let settled = world.settle(&mut figures).await;
    let stale = stale_from
        .iter()
        .map(|thawed| settled.repeated_after(*thawed))
        .max();
    let stale = stale.unwrap_or_default();
    figures.set("freezes", rounds);
    figures.set("stale", stale);
    figures.save();
    settled.findings.assert_nothing_lost();
    assert_eq!(stale, 0, "sent again after the thaw");
}
