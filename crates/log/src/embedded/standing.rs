//! Whether the log can be written: what became of the last writes, and how long one has been under
//! way.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A write that takes longer will perhaps never return.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

/// What the writer tells of itself.
#[derive(Debug, Default)]
pub(super) struct Standing(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Why a write failed, until a probe succeeds: a smaller write that succeeds proves little.
    failed: Option<String>,
    writing_since: Option<Instant>,
}

impl Standing {
    pub(super) fn begins(&self) {
        self.0.lock().writing_since = Some(Instant::now());
    }

    pub(super) fn ended(&self, result: Result<(), String>, was_probe: bool) {
        let mut state = self.0.lock();
        state.writing_since = None;
        match result {
            Err(reason) => state.failed = Some(reason),
            Ok(()) if was_probe => state.failed = None,
            Ok(()) => {}
        }
    }

    /// Why the log cannot be written, if it cannot.
    pub(super) fn trouble(&self) -> Option<String> {
        let state = self.0.lock();
        let hangs = |since: Instant| since.elapsed() > WRITE_TIME_MAX;
        if state.writing_since.is_some_and(hangs) {
            return Some("a write does not return".to_owned());
        }
        state.failed.clone()
    }
}
