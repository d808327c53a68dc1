//! What every client has in common: its log lines go to tracing, and it notices when no broker can be reached.

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientContext, Statistics};

use super::clients::Place;

/// The context of a client that needs no more than this.
#[derive(Debug)]
pub(super) struct PlainContext {
    pub(super) place: Place,
}

impl ClientContext for PlainContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(self.place.name(), level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        note_error(&self.place, &error, reason);
    }

    /// Only the client for questions tells; it is asked all the time whether brokers answer.
    fn stats(&self, statistics: Statistics) {
        self.place.told(&statistics, true);
    }
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
pub(super) fn note_error(place: &Place, error: &KafkaError, reason: &str) {
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
