//! Trace context as text, as W3C Trace Context writes it, so that it can go through records of a
//! log.
//!
//! With export on, a span that is given a parent joins its trace and has a `traceparent` of its
//! own. With export off the parent's text is kept beside the span and handed on unchanged by it and
//! the spans inside.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetrySpanExt, SetParentError};
use tracing_subscriber::Registry;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// A parent that came from outside, kept in the extensions of a span.
#[derive(Debug, Clone)]
struct Carried {
    traceparent: String,
    tracestate: String,
}

/// Makes the span a child of the trace that the texts describe. Call it before the span is entered
/// for the first time. Says whether it did: not if `traceparent` is malformed, or the span is
/// disabled or began already.
pub fn set_parent(span: &Span, traceparent: &str, tracestate: &str) -> bool {
    let Some(parent) = parse(traceparent, tracestate) else {
        return false;
    };
    match span.set_parent(Context::new().with_remote_span_context(parent)) {
        Ok(()) => true,
        Err(SetParentError::LayerNotFound) => carry(span, traceparent, tracestate),
        Err(_) => false,
    }
}

/// The place of an exported span in its trace, as it is told to others.
pub(super) struct Place(SpanContext);

impl Place {
    pub(super) fn of_span(span: &Span) -> Option<Self> {
        Self::of(&span.context())
    }

    fn of(context: &Context) -> Option<Self> {
        let span = context.span();
        let span_context = span.span_context();
        span_context.is_valid().then(|| Self(span_context.clone()))
    }

    pub(super) fn traceparent(&self) -> String {
        let (trace, span) = (self.0.trace_id(), self.0.span_id());
        format!("00-{trace}-{span}-{:02x}", self.0.trace_flags().to_u8())
    }

    pub(super) fn tracestate(&self) -> Option<String> {
        Some(self.0.trace_state().header()).filter(|state| !state.is_empty())
    }
}

/// The `traceparent` to send on from here, if this is part of a trace.
pub fn current_traceparent() -> Option<String> {
    match exported() {
        Some(place) => Some(place.traceparent()),
        None => current_carried(|carried| carried.traceparent.clone()),
    }
}

/// The `tracestate` to send on from here, if there is one.
pub fn current_tracestate() -> Option<String> {
    match exported() {
        Some(place) => place.tracestate(),
        None => {
            current_carried(|carried| carried.tracestate.clone()).filter(|state| !state.is_empty())
        }
    }
}

/// The trace id of a well-formed `traceparent`.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    parse(traceparent, "").map(|_| &traceparent[3..35])
}

/// The trace id of what is being logged: of the exported span that is entered, else carried by the
/// span or one around it.
pub(super) fn trace_id_in<S>(span: Option<SpanRef<'_, S>>) -> Option<String>
where
    S: for<'a> LookupSpan<'a>,
{
    if let Some(Place(exported)) = exported() {
        return Some(exported.trace_id().to_string());
    }
    let read = |carried: &Carried| trace_id(&carried.traceparent).map(str::to_owned);
    span.and_then(|span| carried_by(&span, read)).flatten()
}

/// The exported span that is entered on this thread.
fn exported() -> Option<Place> {
    Place::of(&Context::current())
}

fn carry(span: &Span, traceparent: &str, tracestate: &str) -> bool {
    let carried = span.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.extensions_mut().replace(Carried {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate.to_owned(),
        });
        Some(())
    });
    carried.flatten().is_some()
}

fn current_carried(read: impl Fn(&Carried) -> String) -> Option<String> {
    let found = Span::current().with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        carried_by(&span, read)
    });
    found.flatten()
}

fn carried_by<S, V>(span: &SpanRef<'_, S>, read: impl Fn(&Carried) -> V) -> Option<V>
where
    S: for<'a> LookupSpan<'a>,
{
    span.scope()
        .find_map(|span| span.extensions().get::<Carried>().map(&read))
}

/// Reads `version-trace-span-flags`. Of a later version than ours only these fields are known, and
/// more may follow.
///
/// The SDK's propagator does not stand here: it takes ids and flags of other lengths, signs, spaces
/// around and a dash at the end, and what it takes is handed on to receivers as it came, and cut at
/// fixed places for logs.
pub(super) fn parse(traceparent: &str, tracestate: &str) -> Option<SpanContext> {
    let (known, rest) = traceparent.split_at_checked(55)?;
    let mut fields = known.split('-');
    let version = hex(fields.next()?, 2)?;
    let trace = hex(fields.next()?, 32)?;
    let span = hex(fields.next()?, 16)?;
    let flags = hex(fields.next()?, 2)?;
    let rest_allowed = rest.is_empty() || (version != "00" && rest.starts_with('-'));
    if fields.next().is_some() || version == "ff" || !rest_allowed {
        return None;
    }
    let parsed = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        tracestate.parse::<TraceState>().unwrap_or_default(),
    );
    parsed.is_valid().then_some(parsed)
}

fn hex(text: &str, length: usize) -> Option<&str> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == length && text.bytes().all(is_hex)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::trace_id;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn takes_a_traceparent_only_as_the_standard_writes_it() {
        let good = format!("00-{TRACE}-b7ad6b7169203331-01");
        assert_eq!(trace_id(&good), Some(TRACE));
        assert_eq!(
            trace_id(&format!("01-{TRACE}-b7ad6b7169203331-01-more")),
            Some(TRACE)
        );
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-b7ad6b7169203331-1"),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{zeros}-b7ad6b7169203331-01"),
            good.to_uppercase(),
            good.replace('b', "é"),
            good.replace('-', "_"),
            "00-1-2-01".to_owned(),
            format!("{good}-"),
            format!(" {good}"),
            good.replace("-0a", "-+a"),
        ] {
            assert_eq!(trace_id(&bad), None, "{bad}");
        }
    }
}
