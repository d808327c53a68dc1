//! Runs the three stages over the adversarial memory log, a scripted network and paused time: one seed, one history.
//!
//! Workers are killed at any await, partitions are revoked and lost, appends and commits fail or meet an unknown fate,
//! endpoints are slow, flaky, dead or gone. An auditor that knows only the topics and what the network saw checks the
//! promises all the while and at the end. `SEEDS=1000` runs more; a failure prints its seed, `SEED=…` runs that one.

mod simulation {
    pub(crate) mod audit;
    pub(crate) mod network;
    pub(crate) mod world;
}

use simulation::world::{Report, World};

const SEEDS_BY_DEFAULT: u64 = 60;

fn run(seed: u64) -> Report {
    simulate(async move { World::new(seed).await.run().await })
}

fn simulate<T>(simulation: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(simulation)
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number"))
    })
}

#[test]
fn keeps_its_promises_whatever_fails() {
    if let Some(seed) = from_env("SEED") {
        println!("{:#?}", run(seed));
        return;
    }
    let started = std::time::Instant::now();
    let mut total = Report::default();
    for seed in 0..from_env("SEEDS").unwrap_or(SEEDS_BY_DEFAULT) {
        let report = std::panic::catch_unwind(|| run(seed));
        let Ok(report) = report else {
            panic!("seed {seed} broke a promise; run it alone with SEED={seed}")
        };
        total.add(&report);
    }
    println!("{total:?} in {:?}", started.elapsed());
    assert!(
        total.kills > 0 && total.faults > 0 && total.retries > 0 && total.dead_letters > 0,
        "{total:?}"
    );
}

#[test]
fn one_seed_gives_one_history() {
    for seed in [1, 2, 3] {
        assert_eq!(run(seed).history, run(seed).history, "seed {seed}");
    }
}

#[test]
fn an_idle_system_retries_in_time_and_never_early() {
    let late_ms = simulate(async { World::new(7).await.run_idle().await });
    assert!(late_ms.len() > 20, "there were retries: {late_ms:?}");
    assert!(
        late_ms.iter().all(|late_ms| (0..=1_000).contains(late_ms)),
        "{late_ms:?}"
    );
}

#[test]
fn forged_records_hold_nothing_up() {
    assert!(
        simulate(async { World::new(11).await.run_forged().await }),
        "the honest event was not delivered in 10 s"
    );
}
