//! The producer of the API.

use std::time::Duration;

use postrider_daemon::{CancellationToken, telemetry};
use postrider_log::{
    AppendError, Log, LogError, NewRecord, Position, Producer, ProducerOptions, Target,
};
use postrider_model::event::TraceContext;
use tokio::time::timeout;

use tracing::{Instrument, Span};

use crate::config::IngestConfig;

/// Beyond the producer's own deadline, in case it does not keep it.
const GRACE: Duration = Duration::from_secs(1);

/// Appends, and waits for the fate of each append no longer than the configuration says. A producer
/// that failed for good is the log's to replace.
#[derive(Debug)]
pub(crate) struct Producing {
    producer: Box<dyn Producer>,
    append_timeout: Duration,
    halt: CancellationToken,
}

impl Producing {
    pub(crate) async fn open(
        log: &dyn Log,
        config: &IngestConfig,
        halt: CancellationToken,
    ) -> Result<Self, LogError> {
        let options = ProducerOptions {
            name: "ingest",
            append_timeout: Some(config.append_timeout()),
            linger: config.append_linger(),
            queue_bytes_max: config.append_queue_bytes_max,
        };
        let producer = log.producer(options).await?;
        Ok(Self {
            producer,
            append_timeout: config.append_timeout(),
            halt,
        })
    }

    /// Appends a record that belongs to this trace, and waits for its fate.
    pub(crate) async fn append(
        &self,
        topic: &str,
        mut record: NewRecord,
        trace: &TraceContext,
    ) -> Result<Position, AppendError> {
        if self.halt.is_cancelled() {
            let halted = "what the process counts on has changed, and only a new start goes on";
            return Err(AppendError::Failed(halted.to_owned()));
        }
        let span = sending(topic, trace);
        telemetry::carry(&span, &mut record.headers);
        let append = span.in_scope(|| self.producer.append(topic, Target::Key, record));
        let fate = timeout(self.append_timeout + GRACE, append)
            .instrument(span)
            .await;
        let late = |_| Err(AppendError::Unknown("the log did not answer".into()));
        let fate = fate.unwrap_or_else(late);
        if let Err(AppendError::Unknown(detail)) = &fate {
            tracing::warn!(topic, detail, "fate of an append is unknown");
        }
        fate
    }

    pub(crate) async fn flush(&self, at_most: Duration) {
        self.producer.flush(at_most).await;
    }
}

/// The span of an append. What has a trace of its own, an event whose producer set one or a
/// delivery that is made again, goes on with it, and the request, which may append a thousand such,
/// is linked.
fn sending(topic: &str, trace: &TraceContext) -> Span {
    let span = telemetry::sending(topic);
    if span.is_disabled() {
        return span;
    }
    let here = telemetry::current_traceparent();
    let here = here.as_deref().and_then(telemetry::trace_id);
    let elsewhere = here != telemetry::trace_id(&trace.traceparent);
    if elsewhere && telemetry::set_parent(&span, &trace.traceparent, &trace.tracestate) {
        telemetry::link(&span, &Span::current());
    }
    span
}
