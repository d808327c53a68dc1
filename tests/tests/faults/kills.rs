//! Workers that die.

use std::time::{Duration, Instant};

use postrider_tests::{Plan, Received};

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{World, metric, quick_sessions, takes};

const ENDPOINTS: usize = 12;
const PER_SECOND: f64 = 100.0;
const WORKERS: usize = 3;
/// What an answered attempt may take, on a busy machine, until its record is durable.
const RECORDED_WITHIN: Duration = Duration::from_secs(1);
/// Requests that were on their way when a worker died have come by then.
const ON_THE_WAY: Duration = Duration::from_millis(500);

on_kafka!(
    killed_workers_lose_nothing_and_repeat_only_what_was_not_recorded,
    killed_workers_of_a_consumer_group_lose_nothing_either,
);

async fn killed_workers_lose_nothing_and_repeat_only_what_was_not_recorded(form: Form) {
    let kills = form.pick(3, 50);
    scenario("kills", form, quick_sessions(), kills).await;
}

async fn killed_workers_of_a_consumer_group_lose_nothing_either(form: Form) {
    let plan = quick_sessions().group_protocol("consumer");
    scenario("kills-consumer-protocol", form, plan, form.pick(1, 10)).await;
}

fn answers_after(received: &Received) -> Duration {
    takes(received, 20, 250)
}

async fn scenario(name: &'static str, form: Form, plan: Plan, kills: usize) {
    let mut figures = Figures::new(name, form);
    let plan = plan.delivers(WORKERS);
    let mut world = World::start(plan, ENDPOINTS, PER_SECOND, answers_after).await;
    let (mut killed_at, mut recoveries) = (Vec::new(), Vec::new());
    let mut in_flight = 0.0;
    for kill in 0..kills {
        let victim = format!("deliver-{}", kill % WORKERS);
        let metrics = world.cluster.metrics(&victim).await;
        in_flight += metric(&metrics, "postrider_attempts_in_flight");
        killed_at.push(Instant::now());
        world.cluster.kill(&victim);
        world.cluster.restart(&victim).await;
        // Every third time the next one dies while the group is still sorting itself out.
        if kill % 3 != 1 {
            let killed = *killed_at.last().unwrap();
            recoveries.push(world.flows_since(killed + ON_THE_WAY).await);
        }
    }
    let settled = world.settle(&mut figures).await;
    let not_recorded: usize = killed_at
        .iter()
        .map(|killed| not_surely_recorded(&settled.receiver.everything(), *killed))
        .sum();
    figures.set("kills", kills);
    figures.set("in_flight_at_kills", in_flight);
    figures.set("not_surely_recorded_at_kills", not_recorded);
    figures.set_time(
        "longest_recovery_s",
        recoveries.into_iter().max().unwrap_or_default(),
    );
    figures.save();
    settled.findings.assert_nothing_lost();
    assert_eq!(
        settled.findings.settled_twice, 0,
        "repeated although recorded"
    );
    assert!(
        settled.findings.repeated <= not_recorded,
        "{} repeated, of which at most {not_recorded} were not recorded",
        settled.findings.repeated
    );
}

/// Requests that had come and were not answered for long enough: those of all workers, of which one
/// died.
fn not_surely_recorded(received: &[Received], killed: Instant) -> usize {
    received
        .iter()
        .filter(|one| {
            let came = one.at <= killed + ON_THE_WAY;
            came && one.at + answers_after(one) + RECORDED_WITHIN >= killed
        })
        .count()
}
