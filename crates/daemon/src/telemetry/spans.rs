//! Spans that exist for traces alone: records that go through a log, and calls to the outside.
//!
//! They have a target of their own, which the lines of the log never take in. While no traces are
//! exported they are not made, which costs one look at an atomic.
//!
//! Between two processes a trace goes through the headers of records: whoever appends puts the
//! context of its `send` span there, whoever reads goes on from it. What an exporter does not
//! sample goes on as not sampled, so that a trace is there as a whole or not at all.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use opentelemetry::trace::{Status, TraceContextExt};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::context::{Place, parse, set_parent};

/// The target of these spans.
pub(super) const TARGET: &str = "postrider_traces";

/// Whether this process exports traces. It never stops while it runs.
static EXPORTING: AtomicBool = AtomicBool::new(false);

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// From now on spans for traces are made.
pub(super) fn begin_export() {
    EXPORTING.store(true, Ordering::Relaxed);
}

fn exporting() -> bool {
    EXPORTING.load(Ordering::Relaxed)
}

/// An append to a topic, as a child of the present span.
pub fn sending(topic: &str) -> Span {
    if !exporting() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET,
        "send",
        otel.name = %format_args!("send {topic}"),
        otel.kind = "producer",
        messaging.operation.r#type = "send",
        messaging.destination.name = topic,
    )
}

/// The work on a record of a topic; it begins a trace unless it is given a parent.
pub fn processing(topic: &str, partition: i32, offset: i64) -> Span {
    if !exporting() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET,
        parent: None,
        "process",
        otel.name = %format_args!("process {topic}"),
        otel.kind = "consumer",
        messaging.operation.r#type = "process",
        messaging.destination.name = topic,
        messaging.destination.partition.id = partition,
        messaging.kafka.offset = offset,
    )
}

/// A request to somebody else, as a child of the present span.
pub fn calling(method: &'static str) -> Span {
    if !exporting() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = method,
        otel.kind = "client",
        http.request.method = method,
    )
}

/// The trace context in the headers of a record, if there is a well-formed one: `traceparent` and
/// `tracestate`.
pub fn context_in(headers: &[(String, Bytes)]) -> Option<(&str, &str)> {
    let text = |wanted: &str| {
        let (_, value) = headers.iter().find(|(name, _)| name == wanted)?;
        std::str::from_utf8(value).ok()
    };
    let traceparent = text(TRACEPARENT)?;
    let tracestate = text(TRACESTATE).unwrap_or_default();
    parse(traceparent, "").map(|_| (traceparent, tracestate))
}

/// Makes the span a child of what the headers of a record say. Says whether it did.
pub fn follow(span: &Span, headers: &[(String, Bytes)]) -> bool {
    !span.is_disabled()
        && context_in(headers).is_some_and(|(parent, state)| set_parent(span, parent, state))
}

/// Puts the span's context into the headers of a record, in place of what is there. Does nothing
/// with a span that is disabled.
pub fn carry(span: &Span, headers: &mut Vec<(String, Bytes)>) {
    if span.is_disabled() {
        return;
    }
    let Some(place) = Place::of_span(span) else {
        return;
    };
    headers.retain(|(name, _)| name != TRACEPARENT && name != TRACESTATE);
    headers.push((TRACEPARENT.to_owned(), place.traceparent().into()));
    if let Some(tracestate) = place.tracestate() {
        headers.push((TRACESTATE.to_owned(), tracestate.into()));
    }
}

/// Links the span to another that it is not a child of, because one of them did the work of many.
pub fn link(span: &Span, other: &Span) {
    let context = other.context();
    let other = context.span().span_context().clone();
    if other.is_valid() {
        span.add_link(other);
    }
}

/// Tells the trace, and only it, what was not known when the span began.
pub fn describe(span: &Span, name: &'static str, value: impl Into<opentelemetry::Value>) {
    span.set_attribute(name, value);
}

/// Marks the span as failed.
pub fn fail(span: &Span, reason: &'static str) {
    span.set_attribute("error.type", reason);
    span.set_status(Status::error(reason));
}
