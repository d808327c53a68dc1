//! The log's clock, as far as one process knows it.
//!
//! Records are stamped by the log, so ages and due times are told by the log's clock, not by the
//! machine's. A process learns it from the stamps of records that it appends itself
//! ([`LogClock::sampled`]), and in between measures with the clock that nobody sets. So the
//! machine's clock may be days off, or be set while the process runs, and nothing is early, late or
//! old because of it.
//!
//! Which of two clocks is wrong, nobody can tell. While the machine's clock and the log's differ by
//! more than a bound, [`Clock::ages_tell`] says no.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::Clock;
use crate::port::{Log, NewRecord, Position, Producer, ProducerOptions, Target};

/// The log has not told its time for longer than this: its clock may have been set since.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(120);

/// What the log's clock said at some moment between two others of ours.
#[derive(Debug, Clone, Copy)]
pub struct TimeSample {
    /// Before the record was appended.
    pub before: Instant,
    /// After it was acknowledged.
    pub after: Instant,
    /// The time that the log gave it, Unix milliseconds.
    pub log_ms: i64,
}

/// The log's clock. Until the log has told its time it is the machine's, and no age tells anything.
#[derive(Debug)]
pub struct LogClock {
    machine: Arc<dyn Clock>,
    skew_ms_max: i64,
    known: Mutex<Option<Known>>,
    /// The log said that it keeps no time of its own.
    is_untimed: AtomicBool,
}

/// What is known of the log's clock.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// It said `log_ms` at that moment.
    at: Instant,
    log_ms: i64,
    /// When the log told its time last, what the machine's clock said then, and how far that was
    /// ahead of the log's.
    sampled_at: Instant,
    machine_ms: i64,
    skew_ms: i64,
}

impl Known {
    fn log_ms(&self, now: Instant) -> i64 {
        self.log_ms.saturating_add(millis(now, self.at))
    }

    /// By how much the machine's clock was set since the log told its time.
    fn set_ms(&self, machine_ms: i64, now: Instant) -> i64 {
        let expected_ms = self.machine_ms.saturating_add(millis(now, self.sampled_at));
        machine_ms.saturating_sub(expected_ms)
    }
}

impl LogClock {
    /// A clock that knows nothing of the log's yet. `skew_ms_max`: by how much it and the machine's
    /// may differ.
    pub fn new(machine: Arc<dyn Clock>, skew_ms_max: i64) -> Self {
        Self {
            machine,
            skew_ms_max,
            known: Mutex::new(None),
            is_untimed: AtomicBool::new(false),
        }
    }

    /// Takes in what the log's clock said. Of the log's clock, the machine's and the clock that
    /// nobody sets, two are right: a log that alone has changed its mind, as when one broker's
    /// clock was set, is not followed.
    pub fn sampled(&self, sample: TimeSample) {
        let machine_ms = self.machine.now_ms();
        let now = Instant::now();
        // The log's clock now is between these two.
        let (least, most) = (
            sample.log_ms.saturating_add(millis(now, sample.after)),
            sample.log_ms.saturating_add(millis(now, sample.before)),
        );
        let skew_ms = machine_ms.saturating_sub(machine_ms.clamp(least, most));
        let mut known = self.known.lock();
        let is_near = |ms: i64| ms.abs() <= self.skew_ms_max;
        let follows = known.is_none_or(|known| {
            let predicted = known.log_ms(now);
            let log_set_ms = predicted.clamp(least, most).saturating_sub(predicted);
            is_near(log_set_ms) || is_near(skew_ms) || !is_near(known.set_ms(machine_ms, now))
        });
        let (at, log_ms) = match *known {
            None => (now, least),
            Some(known) if follows => (now, known.log_ms(now).clamp(least, most)),
            Some(known) => (known.at, known.log_ms),
        };
        *known = Some(Known {
            at,
            log_ms,
            sampled_at: now,
            machine_ms,
            skew_ms,
        });
    }

    /// How far the machine's clock is ahead of the log's at least, in milliseconds; below 0:
    /// behind. `None`: not known.
    pub fn skew_ms(&self) -> Option<i64> {
        let known = self.known()?;
        let set_ms = known.set_ms(self.machine.now_ms(), Instant::now());
        Some(known.skew_ms.saturating_add(set_ms))
    }

    /// How long ago the log told its time; `None`: never.
    pub fn sample_age(&self) -> Option<Duration> {
        self.known().map(|known| known.sampled_at.elapsed())
    }

    fn known(&self) -> Option<Known> {
        *self.known.lock()
    }
}

/// How often the log is asked.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// When it did not say.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_QUEUE_BYTES_MAX: usize = 1 << 20;
const KEY: &str = "clock";

impl LogClock {
    /// Asks the log for its time, again and again, by records without a value. Another partition is
    /// asked after a failure. Never ends.
    pub async fn follow(&self, log: &dyn Log, topic: &str) {
        for number in 0_u64.. {
            let key = format!("{KEY}/{number}");
            let options = ProducerOptions {
                name: "clock",
                append_timeout: Some(ASK_TIMEOUT),
                linger: Duration::ZERO,
                queue_bytes_max: ASK_QUEUE_BYTES_MAX,
            };
            match log.producer(options).await {
                Ok(producer) => self.ask(&*producer, topic, &key).await,
                Err(error) => tracing::warn!(%error, "the log cannot be asked for its time"),
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Asks until the log does not answer.
    async fn ask(&self, producer: &dyn Producer, topic: &str, key: &str) {
        loop {
            let record = NewRecord {
                key: Bytes::copy_from_slice(key.as_bytes()),
                ..NewRecord::default()
            };
            let before = Instant::now();
            match producer.append(topic, Target::Key, record).await {
                Ok(Position {
                    timestamp_ms: Some(log_ms),
                    ..
                }) => self.sampled(TimeSample {
                    before,
                    after: Instant::now(),
                    log_ms,
                }),
                Ok(_) => {
                    self.is_untimed.store(true, Ordering::Relaxed);
                    tracing::error!(
                        topic,
                        "the topic keeps its writers' times, so that no age tells anything; set message.timestamp.type to \
                         LogAppendTime"
                    );
                }
                Err(error) => {
                    tracing::warn!(topic, %error, "the log did not say its time");
                    return;
                }
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// Waits until the log has told its time, or that it keeps none: what is due is not known
    /// before.
    pub async fn told(&self) {
        while self.known().is_none() && !self.is_untimed.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Clock for LogClock {
    fn now_ms(&self) -> i64 {
        self.known().map_or_else(
            || self.machine.now_ms(),
            |known| known.log_ms(Instant::now()),
        )
    }

    fn ages_tell(&self) -> bool {
        let fresh = self.sample_age().is_some_and(|age| age <= SAMPLE_AGE_MAX);
        let skew_ms = self.skew_ms();
        fresh && skew_ms.is_some_and(|skew_ms| skew_ms.abs() <= self.skew_ms_max)
    }
}

fn millis(later: Instant, earlier: Instant) -> i64 {
    i64::try_from(later.saturating_duration_since(earlier).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
