//! Logs and traces.
//!
//! Logs go to standard error, for people on a terminal and as JSON otherwise. Logging never waits
//! for whoever reads it: lines that find no room are dropped and counted. Traces are exported by
//! OTLP over HTTP when an endpoint is configured. A log line carries the trace it belongs to, if
//! any, whether traces are exported or not.

mod context;
mod format;
mod spans;

use std::env;
use std::error::Error;
use std::io::{self, IsTerminal};
use std::panic;
use std::sync::OnceLock;
use std::time::Duration;

use axum::http::Uri;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize, Serializer};
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

pub use context::{current_traceparent, current_tracestate, set_parent, trace_id};
use format::WithTrace;
pub use spans::{calling, carry, context_in, describe, fail, follow, link, processing, sending};

use crate::lines::Lines;
use crate::tasks::panic_text;

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the process waits at its end for what was not exported yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it then waits for lines of the log that nobody has read yet.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// A panic may end the process.
const PANIC_FLUSH_TIMEOUT: Duration = Duration::from_millis(100);
/// What the targets of our own lines begin with.
const TARGETS: &str = "postrider";
/// The log of the process.
static LOG: OnceLock<Lines> = OnceLock::new();

/// Section of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TelemetryConfig {
    /// What is logged: a level, or directives such as `info,postrider_log=debug`.
    pub log: String,
    /// How logs look.
    pub format: LogFormat,
    /// Bytes of log lines that wait to be read, at most; further lines are dropped and counted.
    pub log_queue_bytes_max: usize,
    /// Base URL of an OTLP collector over HTTP, such as `http://localhost:4318`. Without it no
    /// trace is exported.
    #[serde(serialize_with = "without_credentials")]
    pub otlp_endpoint: Option<String>,
    /// Which part of the traces that begin here is recorded, from 0 to 1. Those that come from
    /// outside keep the decision they come with.
    pub otlp_sample_ratio: f64,
}

/// Shows a URL without the user and password in it.
fn without_credentials<S: Serializer>(
    url: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let shown = url.as_ref().map(|url| match url.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
            let hidden = if host > 0 { "***@" } else { "" };
            format!("{scheme}://{hidden}{}", &rest[host..])
        }
        None => url.clone(),
    });
    shown.serialize(serializer)
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log: "info".to_owned(),
            format: LogFormat::Auto,
            log_queue_bytes_max: 1 << 20,
            otlp_endpoint: None,
            otlp_sample_ratio: 1.0,
        }
    }
}

impl TelemetryConfig {
    /// Whether telemetry can start with these.
    ///
    /// # Errors
    /// Those of [`init`] that do not depend on the process.
    pub fn check(&self) -> Result<(), TelemetryError> {
        filter(&self.log)?;
        match &self.otlp_endpoint {
            Some(endpoint) if !is_of_http(endpoint) => Err(TelemetryError::Endpoint),
            _ => Ok(()),
        }
    }
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How logs look here, decided.
#[derive(Debug, Clone, Copy)]
enum Look {
    Text { color: bool },
    Json,
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The directives of `log` are not understood.
    #[error("telemetry.log is not understood: {0}")]
    Filter(String),
    /// The address of the collector is none. It is not shown, since it may have a password.
    #[error(
        "telemetry.otlp_endpoint must be the URL of a collector over HTTP, such as `http://localhost:4318`"
    )]
    Endpoint,
    /// The exporter could not be built.
    #[error("`telemetry.otlp_endpoint`: the OTLP exporter cannot be built")]
    Exporter(#[source] Box<dyn Error + Send + Sync>),
    /// Standard error cannot be used.
    #[error("the log cannot be written")]
    Log(#[source] io::Error),
    /// The process has a subscriber already.
    #[error("telemetry was started twice")]
    Twice,
}

/// Keeps telemetry going. Dropping it exports what is left, for at most five seconds, and writes
/// what was logged, for at most one.
#[derive(Debug)]
#[must_use = "dropping it ends the export of traces"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            tracing::warn!(%error, "traces were not all exported");
        }
        flush_log(LOG_FLUSH_TIMEOUT);
    }
}

/// Starts logs and traces for the whole process, and logs panics.
///
/// # Errors
/// When the configuration is wrong or telemetry was started before.
pub fn init(
    config: &TelemetryConfig,
    service: &str,
    version: &str,
) -> Result<TelemetryGuard, TelemetryError> {
    let terminal = io::stderr().is_terminal();
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let look = match config.format {
        LogFormat::Auto if !terminal => Look::Json,
        LogFormat::Json => Look::Json,
        LogFormat::Auto | LogFormat::Text => Look::Text {
            color: terminal && !no_color,
        },
    };
    let log = Lines::start("log", io::stderr(), config.log_queue_bytes_max, say_dropped)
        .map_err(TelemetryError::Log)?;
    let writer = log.clone();
    let (dispatch, guard) = assemble(config, service, version, look, move || writer.clone())?;
    dispatch.try_init().map_err(|_| TelemetryError::Twice)?;
    LOG.set(log).map_err(|_| TelemetryError::Twice)?;
    panic::set_hook(Box::new(|panic| {
        let location = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let message = panic_text(panic.payload());
        tracing::error!(location, panic = message, "panicked");
        flush_log(PANIC_FLUSH_TIMEOUT);
    }));
    Ok(guard)
}

fn say_dropped(lines: u64) {
    tracing::warn!(
        lines,
        "log lines were dropped, as nobody had read those before them"
    );
}

/// Lines of the log that were dropped because nobody read those before them.
pub fn log_lines_dropped_total() -> u64 {
    LOG.get().map_or(0, Lines::dropped_total)
}

/// Whether this process has a log, by [`init`].
pub fn is_started() -> bool {
    LOG.get().is_some()
}

/// Waits until what was logged is written, at most this long.
pub fn flush_log(at_most: Duration) {
    if let Some(log) = LOG.get() {
        log.flush(at_most);
    }
}

/// Settles for the process which cryptography TLS uses. Every client built on rustls needs it;
/// calling it again is harmless.
pub fn install_crypto() {
    // It fails only if there is one already, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
}

fn assemble<W>(
    config: &TelemetryConfig,
    service: &str,
    version: &str,
    look: Look,
    writer: W,
) -> Result<(Dispatch, TelemetryGuard), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(&config.log)?;
    let provider = match &config.otlp_endpoint {
        Some(endpoint) => Some(exporting(
            endpoint,
            config.otlp_sample_ratio,
            service,
            version,
        )?),
        None => None,
    };
    if provider.is_some() {
        spans::begin_export();
    }
    // The filter is for the lines written; a span that is not logged is still part of its trace.
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("postrider"))
            .with_location(false)
            .with_threads(false)
            .with_filter(LevelFilter::INFO)
    });
    let lines = lines(look, writer).with_filter(filter);
    let dispatch = Dispatch::new(Registry::default().with(traces).with(lines));
    Ok((dispatch, TelemetryGuard { provider }))
}

/// A word that is no level would be taken for a target, and nothing else would be logged. So one of
/// the directives must be understood otherwise.
fn filter(log: &str) -> Result<EnvFilter, TelemetryError> {
    let directives: Vec<_> = log
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty())
        .collect();
    let is_understood = |directive: &&str| {
        directive.parse::<LevelFilter>().is_ok()
            || directive.starts_with(TARGETS)
            || directive.contains(['=', '['])
    };
    if !directives.iter().any(is_understood) {
        return Err(TelemetryError::Filter(format!(
            "`{log}` is neither a level (off, error, warn, info, debug, trace), nor one of the targets {TARGETS}…, nor a \
             target with a level, such as `hyper=debug`"
        )));
    }
    let directives = format!("{}=off,{}", spans::TARGET, directives.join(","));
    EnvFilter::try_new(directives).map_err(|error| TelemetryError::Filter(error.to_string()))
}

fn lines<S, W>(look: Look, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match look {
        Look::Json => {
            let format = tracing_subscriber::fmt::format()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(true);
            Box::new(
                layer
                    .fmt_fields(JsonFields::new())
                    .event_format(WithTrace::json(format)),
            )
        }
        Look::Text { color } => {
            let format = tracing_subscriber::fmt::format().with_ansi(color);
            Box::new(layer.with_ansi(color).event_format(WithTrace::text(format)))
        }
    }
}

/// The exporter has a thread of its own with a blocking client, so it neither needs nor disturbs a
/// runtime.
/// Whether it is a URL of HTTP with a host.
fn is_of_http(endpoint: &str) -> bool {
    endpoint.parse::<Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
    })
}

fn exporting(
    endpoint: &str,
    sample_ratio: f64,
    service: &str,
    version: &str,
) -> Result<SdkTracerProvider, TelemetryError> {
    install_crypto();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| TelemetryError::Exporter(error.into()))?;
    // With what the standard variables of OpenTelemetry add, such as the pod's name.
    let resource = Resource::builder()
        .with_attribute(KeyValue::new("service.name", service.to_owned()))
        .with_attribute(KeyValue::new("service.version", version.to_owned()))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
            sample_ratio,
        ))))
        .with_resource(resource)
        .build())
}

#[cfg(test)]
mod tests;
