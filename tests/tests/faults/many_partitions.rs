//! Hundreds of partitions, and workers that are killed again and again before they have got all of
//! them ready.

use std::time::Duration;

use postrider_tests::KafkaBroker;

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{World, quick_sessions, takes};

const ENDPOINTS: usize = 40;
const PER_SECOND: f64 = 40.0;

on_kafka!(workers_in_a_restart_loop_recover_hundreds_of_partitions);

async fn workers_in_a_restart_loop_recover_hundreds_of_partitions(form: Form) {
    let mut figures = Figures::new("many-partitions", form);
    // So many partitions would slow down whoever shares a broker with them.
    let broker: &'static KafkaBroker = Box::leak(Box::new(KafkaBroker::start()));
    let partitions = form.pick(100, 400);
    let plan = quick_sessions()
        .broker(broker)
        .delivers(2)
        .set("POSTRIDER_TOPICS__PARTITIONS", &partitions.to_string());
    let mut world = World::start(plan, ENDPOINTS, PER_SECOND, |received| {
        takes(received, 20, 250)
    })
    .await;
    let restarts = form.pick(4, 30);
    for restart in 0..restarts {
        let name = format!("deliver-{}", restart % 2);
        world.cluster.kill(&name);
        world.cluster.restart(&name).await;
        // Ever later, from the first moment after it joined to the time when all is ready.
        let into_it = Duration::from_millis(500 * (restart % 8));
        tokio::time::sleep(into_it).await;
    }
    let stopped = std::time::Instant::now();
    let recovered = world.flows_since(stopped).await;
    let settled = world.settle(&mut figures).await;
    figures.set("partitions", partitions);
    figures.set("restarts", restarts);
    figures.set_time("recovery_s", recovered);
    figures.save();
    settled.findings.assert_nothing_lost();
    assert_eq!(settled.findings.settled_twice, 0, "{:?}", settled.findings);
}
