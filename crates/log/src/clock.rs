//! Wall-clock time as an argument.

mod log_clock;

use std::fmt::Debug;

pub use log_clock::{LogClock, TimeSample};

/// Tells the time of day. Intervals are measured with [`tokio::time::Instant`], which tests can
/// pause; this is for times that are written down.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Unix time in milliseconds.
    fn now_ms(&self) -> i64;

    /// Whether the age of a record, by this clock, tells anything. If not, two clocks disagree, or
    /// only one is known, and nothing may be given up because of its age.
    fn ages_tell(&self) -> bool {
        true
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the wall clock"
    )]
    fn now_ms(&self) -> i64 {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }
}
