//! Runs the three stages over the adversarial memory log, a scripted network and paused time: one
//! seed, one history.
//!
//! Workers are killed at any await, frozen and thawed, partitions are revoked and lost, appends and
//! commits fail or meet an unknown fate, clocks are set, endpoints are slow, flaky, dead, lying or
//! gone, and tenants change them while everything runs. An auditor that knows only the topics and
//! what the network saw checks the promises all the while.
//!
//! `SEEDS=1000` runs more, `THREADS=2` spreads them; a failure shows its seed and history, `SEED=…`
//! runs that one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod simulation {
    mod adversary;
    pub(crate) mod audit;
    pub(crate) mod chronicle;
    pub(crate) mod clock;
    pub(crate) mod freeze;
    mod load;
    pub(crate) mod network;
    mod recovery;
    mod scenarios;
    pub(crate) mod tenants;
    pub(crate) mod watch;
    pub(crate) mod worker;
    pub(crate) mod world;
}

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};

use parking_lot::Mutex;
use simulation::chronicle::Chronicle;
use simulation::world::{Report, World};

const SEEDS_BY_DEFAULT: u64 = 200;

thread_local! {
    /// Whether anything panicked on this thread: a task's panic is not always its runtime's.
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

fn simulate<T>(simulation: impl Future<Output = T>) -> T {
    static NOTE_PANICS: Once = Once::new();
    NOTE_PANICS.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICKED.set(true);
            before(panic);
        }));
    });
    PANICKED.set(false);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let result = runtime.unwrap().block_on(simulation);
    assert!(!PANICKED.get(), "a task panicked, see above");
    result
}

/// Runs a seed; one that breaks a promise shows what happened.
fn run(seed: u64) -> Option<(Report, Arc<Chronicle>)> {
    let chronicle = Chronicle::start();
    let world = async { World::new(seed, chronicle.clone()).await.run().await };
    let report = catch_unwind(AssertUnwindSafe(|| simulate(world)));
    if report.is_err() {
        show_broken(seed, &chronicle);
    }
    Some((report.ok()?, chronicle))
}

#[expect(clippy::print_stdout, reason = "this is what a failed seed leaves")]
fn show_broken(seed: u64, chronicle: &Chronicle) {
    println!("{}", chronicle.show());
    println!("seed {seed} broke a promise; run it alone with SEED={seed}");
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
        let (report, chronicle) = run(seed).unwrap();
        println!("{}{report:#?}", chronicle.show());
        return;
    }
    let started = std::time::Instant::now();
    let seeds = from_env("SEEDS").unwrap_or(SEEDS_BY_DEFAULT);
    let (next, broken) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Report::default());
    let work = || {
        while !broken.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            match run(seed) {
                Some((report, _)) => total.lock().add(&report),
                None => broken.store(true, Ordering::Relaxed),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..from_env("THREADS").unwrap_or(1) {
            scope.spawn(work);
        }
    });
    assert!(!broken.load(Ordering::Relaxed), "see above");
    let total = total.into_inner();
    let seconds = started.elapsed().as_secs_f64();
    let events = total.counts.events as f64;
    println!("{total:#?}");
    println!(
        "{seeds} seeds in {seconds:.1} s, {:.0} events/s",
        events / seconds
    );
    let (counts, moves) = (&total.counts, &total.moves);
    let happened = [
        counts.retries,
        counts.dead_letters,
        counts.blocked,
        total.faults,
        moves.kills,
        moves.freezes,
        moves.clock_jumps,
        moves.changes,
        moves.bursts,
    ];
    assert!(happened.iter().all(|count| *count > 0), "{total:?}");
}

#[test]
fn one_seed_gives_one_history() {
    for seed in [1, 2, 3] {
        let (first, second) = (run(seed).unwrap(), run(seed).unwrap());
        assert_eq!(first.0, second.0, "seed {seed}");
        let (first, second) = (first.1.requests_from(0), second.1.requests_from(0));
        for (one, other) in first.iter().zip(&second) {
            assert_eq!(one, other, "seed {seed}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

#[test]
fn an_idle_system_retries_in_time_and_never_early() {
    let late_ms = simulate(async { World::plain(7, true).await.run_idle().await });
    assert!(late_ms.len() > 20, "there were retries: {late_ms:?}");
    assert!(
        late_ms.iter().all(|late_ms| (0..=1_000).contains(late_ms)),
        "{late_ms:?}"
    );
}

#[test]
fn slow_endpoints_under_load_cost_the_others_no_time() {
    let load = simulate(async { World::plain(3, true).await.run_half_slow().await });
    assert_eq!(load.healthy_made, load.healthy, "{load:?}");
    assert!(load.healthy_late_ms_max <= 500, "{load:?}");
    assert!(load.slow_made_meanwhile > 50, "{load:?}");
}

#[test]
fn what_retention_would_take_is_dead_lettered_first() {
    let expired = simulate(async { World::plain(5, true).await.run_expiry().await });
    assert!(expired > 10, "{expired} were dead-lettered in time");
}

#[test]
fn a_machine_whose_clock_is_off_by_days_expires_nothing_and_retries_in_time() {
    const DAYS_MS: i64 = 7 * 86_400_000;
    let run = |off_ms, by_log| {
        simulate(async move {
            World::plain(5, false)
                .await
                .run_clock_off(off_ms, by_log)
                .await
        })
    };
    let (expired, _) = run(DAYS_MS, false);
    assert!(
        expired > 10,
        "by its own clock it gives up what is a second old: {expired}"
    );
    for off_ms in [DAYS_MS, -DAYS_MS] {
        let (expired, late_ms) = run(off_ms, true);
        assert_eq!(expired, 0, "{off_ms}");
        assert!(late_ms.len() > 20, "there were retries: {late_ms:?}");
        assert!(
            late_ms.iter().all(|late_ms| *late_ms >= 0),
            "{off_ms}: {late_ms:?}"
        );
        let in_time = late_ms.iter().filter(|late_ms| **late_ms <= 10_000);
        assert!(in_time.count() * 2 > late_ms.len(), "{off_ms}: {late_ms:?}");
    }
}

#[test]
fn forged_records_hold_nothing_up() {
    assert!(
        simulate(async { World::plain(11, false).await.run_forged().await }),
        "the honest event was not delivered in 10 s"
    );
}

#[test]
fn an_endpoint_that_refused_connections_is_asked_soon_and_catches_up_at_once() {
    let recovery = simulate(async { World::plain(13, true).await.run_refused().await });
    // The breaker's pauses double, so the last is no longer than the outage was, jitter aside.
    assert!(recovery.asked_after <= 30_000, "{recovery:?}");
    assert!(recovery.caught_up_after <= 12_000, "{recovery:?}");
    assert!(recovery.waited_then <= 1_000, "{recovery:?}");
    assert!(recovery.neighbour_waited <= 1_000, "{recovery:?}");
}
