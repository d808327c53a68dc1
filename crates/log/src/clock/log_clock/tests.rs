use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;
use tokio::time::advance;

use super::*;

const DAY_MS: i64 = 86_400_000;
const BOUND_MS: i64 = 60_000;
const STARTED_AT_MS: i64 = 1_700_000_000_000;

/// A clock that is set as told, on tokio's paused time.
#[derive(Debug)]
struct SetClock {
    started: Instant,
    off_ms: AtomicI64,
}

impl SetClock {
    fn start() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            off_ms: AtomicI64::new(0),
        })
    }

    fn set_off(&self, off_ms: i64) {
        self.off_ms.store(off_ms, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    fn now_ms(&self) -> i64 {
        STARTED_AT_MS + millis(Instant::now(), self.started) + self.off_ms.load(Ordering::Relaxed)
    }
}

/// A machine, a log and what the machine knows of the log's clock.
struct World {
    machine: Arc<SetClock>,
    log: Arc<SetClock>,
    clock: LogClock,
}

impl World {
    fn new() -> Self {
        let machine = SetClock::start();
        Self {
            log: SetClock::start(),
            clock: LogClock::new(machine.clone(), BOUND_MS),
            machine,
        }
    }

    async fn sample(&self, round_trip_ms: u64) {
        let before = Instant::now();
        advance(Duration::from_millis(round_trip_ms / 2)).await;
        let log_ms = self.log.now_ms();
        advance(Duration::from_millis(round_trip_ms - round_trip_ms / 2)).await;
        let after = Instant::now();
        self.clock.sampled(TimeSample {
            before,
            after,
            log_ms,
        });
    }

    fn off_ms(&self) -> i64 {
        self.clock.now_ms() - self.log.now_ms()
    }
}

#[tokio::test(start_paused = true)]
async fn before_the_log_has_told_its_time_no_age_tells_anything() {
    let world = World::new();
    assert_eq!(world.clock.now_ms(), world.machine.now_ms());
    assert!(!world.clock.ages_tell());
    assert_eq!(
        (world.clock.skew_ms(), world.clock.sample_age()),
        (None, None)
    );
    world.sample(10).await;
    assert!(world.clock.ages_tell());
    assert_eq!(world.clock.skew_ms(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_machine_whose_clock_is_off_goes_by_the_logs_and_destroys_nothing() {
    for off_ms in [7 * DAY_MS, -7 * DAY_MS, BOUND_MS + 10_000] {
        let world = World::new();
        world.machine.set_off(off_ms);
        world.sample(10).await;
        assert!(world.off_ms().abs() <= 10);
        assert!(!world.clock.ages_tell());
        let skew_ms = world.clock.skew_ms().unwrap();
        assert!((skew_ms - off_ms).abs() <= 10, "{skew_ms}");
        advance(Duration::from_secs(3_600)).await;
        assert!(world.off_ms().abs() <= 10);
        world.machine.set_off(0);
        world.sample(10).await;
        assert!(world.clock.ages_tell());
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_is_noticed_at_once_and_moves_nothing() {
    let world = World::new();
    world.sample(10).await;
    for off_ms in [7 * DAY_MS, -DAY_MS] {
        world.machine.set_off(off_ms);
        assert!(!world.clock.ages_tell());
        assert!(world.off_ms().abs() <= 10);
        world.sample(10).await;
        assert!(!world.clock.ages_tell());
        assert!(world.off_ms().abs() <= 10);
    }
    world.machine.set_off(0);
    world.sample(10).await;
    assert!(world.clock.ages_tell());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_alone_changes_its_mind_is_not_followed() {
    let world = World::new();
    world.sample(10).await;
    world.log.set_off(7 * DAY_MS);
    world.sample(10).await;
    assert!((world.clock.now_ms() - world.machine.now_ms()).abs() <= 10);
    assert!(!world.clock.ages_tell());
    world.log.set_off(0);
    world.sample(10).await;
    assert!(world.clock.ages_tell() && world.off_ms().abs() <= 10);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_catches_up() {
    let world = World::new();
    world.sample(10).await;
    // The clock that nobody sets stood still meanwhile, so that both others seem to be set.
    world.machine.set_off(DAY_MS / 3);
    world.log.set_off(DAY_MS / 3);
    assert!(!world.clock.ages_tell());
    world.sample(10).await;
    assert!(world.clock.ages_tell() && world.off_ms().abs() <= 10);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_wrong_when_it_was_asked_first_is_followed_when_it_is_right() {
    let world = World::new();
    world.log.set_off(-7 * DAY_MS);
    world.sample(10).await;
    assert!(!world.clock.ages_tell());
    world.log.set_off(0);
    world.sample(10).await;
    assert!(world.clock.ages_tell() && world.off_ms().abs() <= 10);
}

#[tokio::test(start_paused = true)]
async fn what_was_told_long_ago_tells_nothing() {
    let world = World::new();
    world.sample(10).await;
    advance(SAMPLE_AGE_MAX + Duration::from_secs(1)).await;
    assert!(!world.clock.ages_tell());
    world.sample(10).await;
    assert!(world.clock.ages_tell());
}

proptest! {
    /// However the machine's clock is set and however slow the log answers, the time told is the
    /// log's, within the slowest answer; and an age tells only when the machine's clock is within
    /// the bound, too.
    #[test]
    fn the_time_is_the_logs_whatever_the_machine_says(
        steps in prop::collection::vec((-10 * DAY_MS..10 * DAY_MS, 0_u64..3_000, 0_u64..100_000), 1..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let world = World::new();
            for (off_ms, round_trip_ms, pause_ms) in steps {
                world.machine.set_off(off_ms);
                world.sample(round_trip_ms).await;
                advance(Duration::from_millis(pause_ms)).await;
                assert!(world.off_ms().abs() <= 3_001, "{}", world.off_ms());
                if off_ms.abs() > BOUND_MS + 3_001 {
                    assert!(!world.clock.ages_tell());
                }
                if off_ms.abs() + 3_001 < BOUND_MS {
                    assert!(world.clock.ages_tell());
                }
            }
        });
    }
}
