//! What every client has in common: its log lines go to tracing, and it notices when no broker can
//! be reached.

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientContext, Statistics};

use super::clients::Place;

/// The context of a client. What it hears besides is its own; of most, nothing.
#[derive(Debug)]
pub(super) struct Context<Own = ()> {
    pub(super) place: Place,
    pub(super) own: Own,
}

/// What differs between the clients.
pub(super) trait Hears: Send + Sync + 'static {
    /// Whether the client waits for an answer. The one for questions is asked all the time whether
    /// brokers answer, and a member that has nothing to read sends heartbeats.
    fn waits(&self) -> bool {
        true
    }

    /// Hears a line of librdkafka's own log.
    fn line(&self, client: &str, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(client, level, facility, text);
    }
}

impl Hears for () {}

impl Context {
    /// Of a client that hears nothing of its own.
    pub(super) fn new(place: Place) -> Self {
        Self { place, own: () }
    }
}

impl<Own: Hears> ClientContext for Context<Own> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.own.line(self.place.name(), level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        note_error(&self.place, &error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.place.told(&statistics, self.own.waits());
    }
}

impl ConsumerContext for Context {}

/// A line of librdkafka's own log.
fn log_line(client: &str, level: RDKafkaLogLevel, facility: &str, text: &str) {
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
fn note_error(place: &Place, error: &KafkaError, reason: &str) {
    let client = place.name();
    let code = error.rdkafka_error_code();
    // Readers ask to be told of the end of a partition; it is no fault.
    if matches!(error, KafkaError::PartitionEOF(_)) || code == Some(RDKafkaErrorCode::PartitionEOF)
    {
        return;
    }
    if code == Some(RDKafkaErrorCode::AllBrokersDown) {
        return place.unreachable(reason);
    }
    place.trouble(reason);
    tracing::warn!(client, %error, reason, "kafka client reports an error");
}
