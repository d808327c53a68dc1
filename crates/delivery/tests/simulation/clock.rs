//! Wall time that runs with tokio's paused clock, and that the adversary sets forward and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use postrider_log::Clock;
use tokio::time::Instant;

const STARTED_AT_MS: i64 = 1_700_000_000_000;

#[derive(Debug)]
pub(crate) struct SimulatedClock {
    started: Instant,
    offset_ms: AtomicI64,
}

impl SimulatedClock {
    pub(crate) fn start() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            offset_ms: AtomicI64::new(0),
        })
    }

    /// Time that nobody sets.
    pub(crate) fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).expect("short")
    }

    /// Sets the clock this much off what it would be.
    pub(crate) fn set_off(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}

impl Clock for SimulatedClock {
    fn now_ms(&self) -> i64 {
        STARTED_AT_MS + self.elapsed_ms() + self.offset_ms.load(Ordering::Relaxed)
    }
}
