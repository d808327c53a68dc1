//! Workers that come and go all the time.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use postrider_tests::eventually;

use crate::figures::Figures;
use crate::form::Form;
use crate::world::{RECOVERS_WITHIN, World, quick_sessions, takes};

const ENDPOINTS: usize = 12;
const PER_SECOND: f64 = 60.0;
/// Processes that stay, and those that come and go.
const STAYS: [&str; 2] = ["deliver-0", "deliver-1"];
const COMES_AND_GOES: [&str; 2] = ["deliver-2", "deliver-3"];
const EVERY: Duration = Duration::from_secs(2);
const SIGTERM: i32 = 15;
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

on_kafka!(workers_that_come_and_go_leave_nothing_stuck_lost_or_leaking);

async fn workers_that_come_and_go_leave_nothing_stuck_lost_or_leaking(form: Form) {
    let mut figures = Figures::new("churn", form);
    let plan = quick_sessions().delivers(STAYS.len() + COMES_AND_GOES.len());
    let mut world = World::start(plan, ENDPOINTS, PER_SECOND, |received| {
        takes(received, 20, 250)
    })
    .await;
    let length = Duration::from_secs(form.pick(20, 300));
    let (began, mut changes) = (Instant::now(), 0);
    let mut ticks = tokio::time::interval(EVERY);
    let (mut memory_early, mut leaving) = (None, BTreeSet::new());
    while began.elapsed() < length {
        ticks.tick().await;
        let name = COMES_AND_GOES[changes % COMES_AND_GOES.len()];
        change(&mut world, name, &mut leaving);
        changes += 1;
        if began.elapsed() >= length / 3 {
            memory_early.get_or_insert_with(|| memory(&mut world));
        }
    }
    let (memory_early, memory_late) = (memory_early.unwrap_or_default(), memory(&mut world));
    for name in COMES_AND_GOES {
        if !leaving.contains(name) {
            world.cluster.process(name).ask_to_end();
        }
        let process = world.cluster.process(name);
        eventually("it has left", RECOVERS_WITHIN, || {
            let ended = process.ended().ok_or("it still runs");
            async move { ended }
        })
        .await;
    }
    world.flows_since(Instant::now()).await;
    let settled = world.settle(&mut figures).await;
    figures.set("changes", changes);
    figures.set("memory_early_bytes", memory_early);
    figures.set("memory_late_bytes", memory_late);
    figures.save();
    settled.findings.assert_nothing_lost();
    assert_eq!(settled.findings.settled_twice, 0, "{:?}", settled.findings);
    assert_eq!(settled.findings.repeated, 0, "{:?}", settled.findings);
    assert!(
        memory_late < memory_early + GROWTH_BYTES_MAX,
        "grew from {memory_early} to {memory_late} bytes"
    );
    let gap = settled.longest_gap;
    assert!(
        gap <= Duration::from_secs(30),
        "a partition stood still for {gap:?}"
    );
}

/// Lets it go if it is there, and come if it has gone, well.
fn change(world: &mut World, name: &'static str, leaving: &mut BTreeSet<&str>) {
    if leaving.insert(name) {
        world.cluster.process(name).ask_to_end();
    } else if let Some(status) = world.cluster.process(name).ended() {
        // A signal may come before it can be heard.
        let well = status.success() || status.signal() == Some(SIGTERM);
        assert!(well, "{name} ended with {status}");
        world.cluster.start_again(name);
        leaving.remove(name);
    }
}

/// The most that one of those that stay has in memory.
fn memory(world: &mut World) -> u64 {
    let each = STAYS.map(|name| world.cluster.process(name).memory_bytes());
    each.into_iter().max().unwrap_or_default()
}
