//! One worker that becomes three and one again, while every receiver takes three seconds.

use std::time::{Duration, Instant};

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{World, quick_sessions};

const ENDPOINTS: usize = 6;
const PER_SECOND: f64 = 12.0;
const STAYS: &str = "deliver-0";
const COME_AND_GO: [&str; 2] = ["deliver-1", "deliver-2"];
const TAKES: Duration = Duration::from_secs(3);

on_kafka!(scaling_to_three_workers_and_back_repeats_nothing_that_takes_3_s);

async fn scaling_to_three_workers_and_back_repeats_nothing_that_takes_3_s(form: Form) {
    let mut figures = Figures::new("scaling", form);
    let plan = quick_sessions().delivers(1 + COME_AND_GO.len());
    let mut world = World::start(plan, ENDPOINTS, PER_SECOND, |_| TAKES).await;
    let stays_so = Duration::from_secs(form.pick(4, 20));
    let rounds = form.pick(1, 5);
    for _ in 0..rounds {
        // A worker that leaves has as long as its attempts take, and so has one that gives
        // partitions away.
        for name in COME_AND_GO {
            tokio::task::block_in_place(|| world.cluster.terminate(name));
        }
        world.flows_since(Instant::now()).await;
        tokio::time::sleep(stays_so).await;
        for name in COME_AND_GO {
            world.cluster.restart(name).await;
        }
        world.flows_since(Instant::now()).await;
        tokio::time::sleep(stays_so).await;
    }
    let said = world.cluster.process(STAYS).output();
    let assigned = said.matches("partitions assigned").count();
    let settled = world.settle(&mut figures).await;
    figures.set("rounds", rounds);
    figures.set("assignments_of_the_one_that_stays", assigned);
    figures.save();
    settled.findings.assert_nothing_lost();
    assert!(
        assigned > 1,
        "it kept its partitions: this test shows nothing"
    );
    assert_eq!(settled.findings.settled_twice, 0, "{:?}", settled.findings);
    assert_eq!(settled.findings.interrupted, 0, "{:?}", settled.findings);
    assert_eq!(settled.findings.repeated, 0, "{:?}", settled.findings);
}
