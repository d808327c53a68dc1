//! Half of the endpoints take their time, under more load than those can take.

use std::time::{Duration, Instant};

use postrider_tests::{LogKind, Plan, Received, eventually};

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{RECOVERS_WITHIN, World, path, takes};

const ENDPOINTS: usize = 20;
const WORKER: &str = "deliver";
/// Attempts under way at one endpoint, so that the slow fall behind.
const IN_FLIGHT_MAX: &str = "2";
const LANE_QUEUE_MAX: &str = "32";
/// What a process may have in memory beyond what it had when all was well.
const GROWTH_BYTES_MAX: u64 = 128 * 1024 * 1024;

on_kafka!(half_of_the_endpoints_being_slow_costs_the_others_nothing_and_memory_stays_bounded);

async fn half_of_the_endpoints_being_slow_costs_the_others_nothing_and_memory_stays_bounded(
    form: Form,
) {
    let mut figures = Figures::new("slow-half", form);
    let plan = Plan::new(LogKind::Kafka)
        .set(
            "POSTRIDER_DELIVERY__DELIVER__LANE_ATTEMPTS_IN_FLIGHT_MAX",
            IN_FLIGHT_MAX,
        )
        .set(
            "POSTRIDER_DELIVERY__DELIVER__LANE_QUEUE_MAX",
            LANE_QUEUE_MAX,
        );
    let per_second = form.pick(100.0, 150.0);
    let mut world = World::start(plan, ENDPOINTS, per_second, |received| {
        if is_slow(received) {
            takes(received, 200, 2_000)
        } else {
            Duration::from_millis(5)
        }
    })
    .await;
    let memory_early = world.cluster.process(WORKER).memory_bytes();
    tokio::time::sleep(Duration::from_secs(form.pick(10, 30))).await;
    let memory_late = world.cluster.process(WORKER).memory_bytes();

    // Whatever was accepted until now for those that are quick has come to them soon, whatever
    // waits for the others.
    let (told, asked) = (world.load.told(), Instant::now());
    let quick: Vec<String> = told.accepted.into_iter().map(|(id, _)| id).collect();
    let quick: Vec<String> = quick.into_iter().filter(|id| !goes_to_slow(id)).collect();
    let arrived = eventually("the quick have theirs", RECOVERS_WITHIN, async || {
        let received = world.receiver.everything();
        let came: std::collections::BTreeSet<&str> =
            received.iter().map(|one| one.id.as_str()).collect();
        match quick
            .iter()
            .filter(|id| !came.contains(id.as_str()))
            .count()
        {
            0 => Ok(asked.elapsed()),
            missing => Err(missing),
        }
    })
    .await;
    let waiting = world.load.told().accepted.len() - world.receiver.count();
    let settled = world.settle(&mut figures).await;
    figures.set("waiting_for_the_slow", waiting);
    figures.set_time("the_quick_have_theirs_after_s", arrived);
    figures.set("memory_early_bytes", memory_early);
    figures.set("memory_late_bytes", memory_late);
    figures.save();
    assert!(
        waiting > 100,
        "the slow are not behind: this test shows nothing"
    );
    settled.findings.assert_nothing_lost();
    assert_eq!(settled.findings.repeated, 0, "{:?}", settled.findings);
    assert!(
        memory_late < memory_early + GROWTH_BYTES_MAX,
        "grew from {memory_early} to {memory_late} bytes"
    );
}

fn is_slow(received: &Received) -> bool {
    (0..ENDPOINTS)
        .step_by(2)
        .any(|slow| received.path == path(slow))
}

/// Events are spread over the endpoints by their numbers.
fn goes_to_slow(id: &str) -> bool {
    let number: usize = id.trim_start_matches("evt_").parse().unwrap();
    number.is_multiple_of(2)
}
