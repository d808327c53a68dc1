//! A worker that stands still while time goes on, as a process does that is swapped out or
//! suspended.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

#[derive(Debug)]
pub(crate) struct Gate(Mutex<Frozen>);

#[derive(Debug, Clone, Copy)]
struct Frozen {
    since: Instant,
    thaws_at: Instant,
}

impl Gate {
    pub(crate) fn open() -> Self {
        let now = Instant::now();
        Self(Mutex::new(Frozen {
            since: now,
            thaws_at: now,
        }))
    }

    pub(crate) fn freeze(&self, time: Duration) {
        let since = Instant::now();
        let thaws_at = since + time;
        *self.frozen() = Frozen { since, thaws_at };
    }

    pub(crate) fn thaw(&self) {
        let mut frozen = self.frozen();
        frozen.thaws_at = frozen.thaws_at.min(Instant::now());
    }

    /// How long it is frozen yet.
    pub(crate) fn remaining(&self) -> Duration {
        let thaws_at = self.frozen().thaws_at;
        thaws_at.saturating_duration_since(Instant::now())
    }

    /// How long it has been frozen, zero if it is not.
    pub(crate) fn frozen_for(&self) -> Duration {
        let Frozen { since, thaws_at } = *self.frozen();
        if thaws_at > Instant::now() {
            since.elapsed()
        } else {
            Duration::ZERO
        }
    }

    /// How long it has not been.
    pub(crate) fn since_thaw(&self) -> Duration {
        self.frozen().thaws_at.elapsed()
    }

    /// Returns when it is not frozen.
    pub(crate) async fn passed(&self) {
        loop {
            let thaws_at = self.frozen().thaws_at;
            if thaws_at <= Instant::now() {
                return;
            }
            // It may be thawed early.
            sleep_until(thaws_at.min(Instant::now() + Duration::from_secs(1))).await;
        }
    }

    /// Runs a future that is not polled while the gate is frozen.
    pub(crate) async fn guard(&self, inner: impl Future<Output = ()>) {
        let mut inner = pin!(inner);
        loop {
            self.passed().await;
            let ran = poll_fn(|context| {
                if !self.remaining().is_zero() {
                    return Poll::Ready(false);
                }
                inner.as_mut().poll(context).map(|()| true)
            });
            if ran.await {
                return;
            }
        }
    }

    fn frozen(&self) -> MutexGuard<'_, Frozen> {
        self.0.lock()
    }
}
