//! A receiver of traces that is not ours: the OpenTelemetry Collector if
//! `POSTRIDER_TEST_COLLECTOR=otelcol` (`make traces` builds it), else a small server on
//! OpenTelemetry's own package for Python. Both write what they understood to a file, as OTLP's
//! JSON.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::foreign::tool;
use crate::poll::eventually;
use crate::ports;
use crate::process::{Process, repository};

const START_TRIES: usize = 5;
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A span as the collector understood it.
#[derive(Debug, Clone)]
pub struct Span {
    /// The trace it is part of.
    pub trace: String,
    /// Its id.
    pub id: String,
    /// The id of its parent, empty for none.
    pub parent: String,
    /// What it is called.
    pub name: String,
    /// 2 server, 3 client, 4 producer, 5 consumer; 1 none of them.
    pub kind: i64,
    /// The process that made it.
    pub service: String,
    /// Whether it is marked as failed.
    pub failed: bool,
    /// What else it tells.
    pub attributes: BTreeMap<String, String>,
    /// Spans that it names without being their child: trace and id.
    pub links: Vec<(String, String)>,
}

/// A running collector. It ends when dropped.
#[derive(Debug)]
pub struct Collector {
    // Before the directory, so that it ends before that goes.
    _process: Process,
    port: u16,
    directory: TempDir,
}

impl Collector {
    /// Starts one.
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut said = String::new();
        for _ in 0..START_TRIES {
            let [port] = ports::unused();
            let mut command = command(port, directory.path());
            let mut process = Process::start("collector", directory.path(), &mut command);
            let listens = eventually("the collector listens", STARTS_WITHIN, || {
                let ended = process.ended();
                async move {
                    let connects = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
                    match (ended, connects) {
                        (Some(_), _) => Ok(false),
                        (None, true) => Ok(true),
                        (None, false) => Err("nobody listens"),
                    }
                }
            });
            if listens.await {
                return Self {
                    _process: process,
                    port,
                    directory,
                };
            }
            said = process.output();
        }
        panic!("the collector does not start: {said}");
    }

    /// Where it takes traces.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Every span it got so far.
    pub fn spans(&self) -> Vec<Span> {
        let text = fs::read_to_string(self.directory.path().join("traces")).unwrap_or_default();
        // The last line may be half written.
        let exports = text
            .lines()
            .map_while(|line| serde_json::from_str(line).ok());
        exports
            .flat_map(|export: Value| spans_of(&export))
            .collect()
    }

    /// Waits until the spans of a trace satisfy, and gives them.
    pub async fn trace_when(
        &self,
        trace: &str,
        what: &str,
        at_most: Duration,
        wanted: impl Fn(&[Span]) -> bool,
    ) -> Vec<Span> {
        eventually(what, at_most, async || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace == trace);
            if wanted(&spans) {
                Ok(spans)
            } else {
                Err(spans)
            }
        })
        .await
    }
}

fn command(port: u16, directory: &Path) -> Command {
    let file = directory.join("traces");
    if env::var("POSTRIDER_TEST_COLLECTOR").as_deref() == Ok("otelcol") {
        let configuration = format!(
            "receivers: {{otlp: {{protocols: {{http: {{endpoint: 127.0.0.1:{port}}}}}}}}}\n\
             exporters: {{file: {{path: {file:?}, flush_interval: 100ms}}}}\n\
             service:\n  pipelines: {{traces: {{receivers: [otlp], exporters: [file]}}}}\n\
             \x20 telemetry: {{metrics: {{level: none}}}}\n"
        );
        let path = directory.join("collector.yaml");
        fs::write(&path, configuration).expect("a temporary file can be written");
        let mut collector = Command::new(tool("otelcol/otelcol"));
        collector.arg("--config").arg(path);
        return collector;
    }
    let mut python = Command::new(tool("python/bin/python"));
    python
        .arg(repository().join("tests/receivers/python/otlp.py"))
        .arg(port.to_string())
        .arg(file);
    python
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn spans_of(export: &Value) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in list(export, "resourceSpans") {
        let service = attributes(&resource["resource"])
            .remove("service.name")
            .unwrap_or_default();
        for scope in list(resource, "scopeSpans") {
            spans.extend(list(scope, "spans").map(|span| span_of(span, &service)));
        }
    }
    spans
}

fn span_of(span: &Value, service: &str) -> Span {
    Span {
        trace: text(span, "traceId"),
        id: text(span, "spanId"),
        parent: text(span, "parentSpanId"),
        name: text(span, "name"),
        kind: span["kind"].as_i64().unwrap_or_default(),
        service: service.to_owned(),
        failed: span["status"]["code"] == 2,
        attributes: attributes(span),
        links: list(span, "links")
            .map(|link| (text(link, "traceId"), text(link, "spanId")))
            .collect(),
    }
}

/// Attributes with whatever value they have, as text.
fn attributes(of: &Value) -> BTreeMap<String, String> {
    list(of, "attributes")
        .map(|attribute| {
            let values = attribute["value"].as_object().into_iter().flatten();
            let value = values.map(|(_, value)| match value {
                Value::String(value) => value.clone(),
                other => other.to_string(),
            });
            (text(attribute, "key"), value.collect())
        })
        .collect()
}
