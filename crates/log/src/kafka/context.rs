//! What every client has in common: its log lines go to tracing, and it notices when no broker can be reached.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::statistics::Board;
use crate::port::LogError;

/// Whether brokers could be reached, as far as the clients of one log know, and if not, why.
#[derive(Debug, Clone)]
pub(super) struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    connected: AtomicBool,
    /// What a client said last since brokers were reached: a refused password or certificate, an unknown host.
    trouble: Mutex<Option<String>>,
    statistics: Arc<Board>,
}

impl Health {
    pub(super) fn new() -> Self {
        Self(Arc::new(State {
            connected: AtomicBool::new(true),
            trouble: Mutex::new(None),
            statistics: Arc::default(),
        }))
    }

    pub(super) fn connected(&self) -> bool {
        self.0.connected.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, connected: bool) {
        self.0.connected.store(connected, Ordering::Relaxed);
        if connected {
            *self.trouble() = None;
        }
    }

    /// What the clients told of themselves.
    pub(super) fn statistics(&self) -> &Arc<Board> {
        &self.0.statistics
    }

    /// Adds to an error that names no cause what the clients know of it.
    pub(super) fn explain(&self, error: LogError) -> LogError {
        match (error, &*self.trouble()) {
            (LogError::Unavailable(text), Some(trouble)) => {
                LogError::Unavailable(format!("{text}: {trouble}"))
            }
            (error, _) => error,
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.0
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The context of a client that needs no more than this.
#[derive(Debug, Clone)]
pub(super) struct PlainContext {
    pub(super) client: &'static str,
    pub(super) health: Health,
}

impl ClientContext for PlainContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(self.client, level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        note_error(self.client, &self.health, &error, reason);
    }

    /// Nobody asks these clients for statistics: some are not polled for long, and would gather them.
    fn stats_raw(&self, _: &[u8]) {}
}

impl ConsumerContext for PlainContext {}

/// A line of librdkafka's own log.
pub(super) fn log_line(client: &str, level: RDKafkaLogLevel, facility: &str, text: &str) {
    match level {
        // Every client is given every property, so each says of some that they are not for it.
        _ if facility == "CONFWARN" => tracing::debug!(client, facility, text, "librdkafka"),
        // A broker that has just started is asked again until it has loaded what it needs.
        _ if facility == "GETPID" => tracing::info!(client, facility, text, "librdkafka"),
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(client, facility, text, "librdkafka");
        }
        // Lost connections come as errors; librdkafka repairs them by itself.
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(client, facility, text, "librdkafka");
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(client, facility, text, "librdkafka");
        }
        RDKafkaLogLevel::Debug => tracing::debug!(client, facility, text, "librdkafka"),
    }
}

/// An error that belongs to no call.
pub(super) fn note_error(client: &str, health: &Health, error: &KafkaError, reason: &str) {
    let code = error.rdkafka_error_code();
    // Readers ask to be told of the end of a partition; it is no fault.
    if matches!(error, KafkaError::PartitionEOF(_)) || code == Some(RDKafkaErrorCode::PartitionEOF)
    {
        return;
    }
    if code == Some(RDKafkaErrorCode::AllBrokersDown) {
        // Every client says so again and again; once for each outage is enough.
        if health.0.connected.swap(false, Ordering::Relaxed) {
            tracing::warn!(client, reason, "no kafka broker can be reached");
        }
        return;
    }
    *health.trouble() = Some(reason.to_owned());
    tracing::warn!(client, %error, reason, "kafka client reports an error");
}
