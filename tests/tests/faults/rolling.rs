//! Workers that are restarted one after the other, as an upgrade does.

use std::time::{Duration, Instant};

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{World, quick_sessions, takes};

const ENDPOINTS: usize = 12;
const PER_SECOND: f64 = 60.0;
const WORKERS: usize = 3;
/// What an orchestrator waits after a worker is ready.
const BETWEEN: Duration = Duration::from_secs(2);

on_kafka!(a_rolling_restart_doubles_nothing_and_stops_no_partition_for_long);

async fn a_rolling_restart_doubles_nothing_and_stops_no_partition_for_long(form: Form) {
    let mut figures = Figures::new("rolling-restart", form);
    let plan = quick_sessions().delivers(WORKERS);
    let mut world = World::start(plan, ENDPOINTS, PER_SECOND, |received| {
        takes(received, 100, 900)
    })
    .await;
    let rounds = form.pick(1, 5);
    for _ in 0..rounds {
        for worker in 0..WORKERS {
            let name = format!("deliver-{worker}");
            tokio::task::block_in_place(|| world.cluster.terminate(&name));
            world.cluster.restart(&name).await;
            world.flows_since(Instant::now()).await;
            tokio::time::sleep(BETWEEN).await;
        }
    }
    let settled = world.settle(&mut figures).await;
    figures.set("restarts", rounds * WORKERS);
    figures.save();
    settled.findings.assert_nothing_lost();
    assert_eq!(settled.findings.repeated, 0, "{:?}", settled.findings);
    assert_eq!(settled.findings.interrupted, 0, "{:?}", settled.findings);
    // The full form has the machine for itself.
    let at_most = form.pick(Duration::from_secs(20), Duration::from_secs(5));
    let gap = settled.longest_gap;
    assert!(gap <= at_most, "a partition stood still for {gap:?}");
}
