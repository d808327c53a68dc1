//! Log lines that say which trace they belong to.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::context::trace_id_in;

/// Another format whose lines get the trace's id at their end.
#[derive(Debug)]
pub(super) struct WithTrace<F> {
    inner: F,
    json: bool,
}

impl<F> WithTrace<F> {
    pub(super) fn json(inner: F) -> Self {
        Self { inner, json: true }
    }

    pub(super) fn text(inner: F) -> Self {
        Self { inner, json: false }
    }
}

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(trace_id) = trace_id_in(context.lookup_current()) else {
            return self.inner.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.inner
            .format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n');
        match line.strip_suffix('}') {
            Some(open) if self.json => writeln!(writer, r#"{open},"trace_id":"{trace_id}"}}"#),
            _ => writeln!(writer, "{line} trace_id={trace_id}"),
        }
    }
}
