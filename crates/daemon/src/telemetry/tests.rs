use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tracing::dispatcher::with_default;

use super::{
    Look, TelemetryConfig, TelemetryGuard, assemble, current_traceparent, current_tracestate,
    set_parent,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What was logged.
#[derive(Debug, Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }
}

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start(config: &TelemetryConfig, look: Look) -> (tracing::Dispatch, TelemetryGuard, Logged) {
    let logged = Logged::default();
    let writer = logged.clone();
    let (dispatch, guard) =
        assemble(config, "postrider-test", "0", look, move || writer.clone()).unwrap();
    (dispatch, guard, logged)
}

/// A request that a collector got: its head and its body.
struct Export {
    head: String,
    body: Vec<u8>,
}

/// A collector that answers every request with 200. The requests come by the channel.
fn collector() -> (String, Receiver<Export>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = sync_channel(16);
    thread::spawn(move || {
        for stream in listener.incoming() {
            if sender.send(answer(stream.unwrap())).is_err() {
                return;
            }
        }
    });
    (url, receiver)
}

fn answer(mut stream: TcpStream) -> Export {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "the request ended early");
        request.extend_from_slice(&chunk[..count]);
        let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(request[..end].to_vec())
            .unwrap()
            .to_lowercase();
        let length = head.split_once("content-length: ").unwrap().1;
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        let body = &request[end + 4..];
        if body.len() >= length {
            let body = body.to_vec();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .unwrap();
            return Export { head, body };
        }
    }
}

#[test]
fn json_lines_parse_and_carry_fields_spans_and_trace() {
    let (dispatch, _guard, logged) = start(&TelemetryConfig::default(), Look::Json);
    with_default(&dispatch, || {
        tracing::info!(answer = 42, text = "a \"quoted\"\nline }", "outside");
        let outer = tracing::info_span!("deliver", endpoint = "ep_1");
        assert!(set_parent(&outer, PARENT, "vendor=x"));
        let _outer = outer.enter();
        let inner = tracing::info_span!("attempt", number = 1);
        inner.in_scope(|| tracing::warn!("inside"));
        tracing::debug!("below the level");
    });
    let lines = logged.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0]["message"], "outside");
    assert_eq!(lines[0]["answer"], 42);
    assert_eq!(lines[0]["text"], "a \"quoted\"\nline }");
    assert_eq!(lines[0]["level"], "INFO");
    assert_eq!(lines[0].get("trace_id"), None);
    assert_eq!(lines[1]["trace_id"], TRACE);
    assert_eq!(lines[1]["spans"][0]["endpoint"], "ep_1");
    assert_eq!(lines[1]["spans"][1]["number"], 1);
}

#[test]
fn text_lines_carry_the_trace_and_colour_only_when_asked() {
    for color in [false, true] {
        let (dispatch, _guard, logged) = start(&TelemetryConfig::default(), Look::Text { color });
        with_default(&dispatch, || {
            let span = tracing::info_span!("deliver");
            assert!(set_parent(&span, PARENT, ""));
            span.in_scope(|| tracing::info!("inside"));
        });
        let text = logged.text();
        assert!(
            text.ends_with(&format!("inside trace_id={TRACE}\n")),
            "{text}"
        );
        assert_eq!(text.contains('\u{1b}'), color, "{text}");
    }
}

#[test]
fn hands_a_parent_on_unchanged_when_export_is_off() {
    let (dispatch, guard, _logged) = start(&TelemetryConfig::default(), Look::Json);
    assert!(guard.provider.is_none(), "export is off by default");
    with_default(&dispatch, || {
        assert_eq!(current_traceparent(), None);
        let outer = tracing::info_span!("outer");
        assert!(!set_parent(&outer, "nonsense", ""));
        assert!(set_parent(&outer, PARENT, "vendor=x"));
        let _outer = outer.enter();
        let _inner = tracing::info_span!("inner").entered();
        assert_eq!(current_traceparent().as_deref(), Some(PARENT));
        assert_eq!(current_tracestate().as_deref(), Some("vendor=x"));
    });
    // Nobody listens at all.
    assert!(!set_parent(&tracing::info_span!("none"), PARENT, ""));
    assert_eq!(current_traceparent(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_traces_from_within_a_runtime() {
    let (url, exports) = collector();
    // The log level does not decide what is traced.
    let config = TelemetryConfig {
        otlp_endpoint: Some(url),
        log: "error".to_owned(),
        ..TelemetryConfig::default()
    };
    let (dispatch, guard, logged) = start(&config, Look::Json);
    with_default(&dispatch, || {
        let span = tracing::info_span!("deliver-something");
        assert!(set_parent(&span, PARENT, "vendor=x"));
        let _entered = span.enter();
        let sent_on = current_traceparent().unwrap();
        assert!(sent_on.starts_with(&format!("00-{TRACE}-")), "{sent_on}");
        assert!(sent_on.ends_with("-01"), "{sent_on}");
        assert_ne!(sent_on, PARENT, "the span has an id of its own");
        assert_eq!(current_tracestate().as_deref(), Some("vendor=x"));
        tracing::error!("inside");
    });
    drop(guard);
    let export = exports.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(
        export.head.starts_with("post /v1/traces "),
        "{}",
        export.head
    );
    assert!(
        export.head.contains("content-type: application/x-protobuf"),
        "{}",
        export.head
    );
    let trace = u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes();
    for part in [&trace[..], b"deliver-something", b"postrider-test"] {
        assert!(
            export.body.windows(part.len()).any(|window| window == part),
            "{part:?}"
        );
    }
    assert_eq!(logged.lines()[0]["trace_id"], TRACE);
}

#[test]
fn starts_a_trace_of_its_own_when_export_is_on() {
    let (url, exports) = collector();
    let config = TelemetryConfig {
        otlp_endpoint: Some(url),
        ..TelemetryConfig::default()
    };
    let (dispatch, guard, logged) = start(&config, Look::Json);
    with_default(&dispatch, || {
        let _span = tracing::info_span!("publish").entered();
        let traceparent = current_traceparent().unwrap();
        tracing::info!("inside");
        assert_eq!(
            logged.lines()[0]["trace_id"],
            super::trace_id(&traceparent).unwrap()
        );
    });
    drop(guard);
    assert!(exports.recv_timeout(Duration::from_secs(10)).is_ok());
}

#[test]
fn exports_nothing_that_was_not_sampled() {
    let (url, exports) = collector();
    let config = TelemetryConfig {
        otlp_endpoint: Some(url),
        otlp_sample_ratio: 0.0,
        ..TelemetryConfig::default()
    };
    let (dispatch, guard, _logged) = start(&config, Look::Json);
    with_default(&dispatch, || {
        let _span = tracing::info_span!("publish").entered();
        assert!(current_traceparent().unwrap().ends_with("-00"));
    });
    drop(guard);
    assert!(
        exports.try_recv().is_err(),
        "dropping the guard exports all there is"
    );
}

#[test]
fn gives_up_on_a_dead_collector_in_time() {
    // It accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let config = TelemetryConfig {
        otlp_endpoint: Some(url),
        ..TelemetryConfig::default()
    };
    let (dispatch, guard, _logged) = start(&config, Look::Json);
    with_default(&dispatch, || tracing::info_span!("publish").in_scope(|| {}));
    let began = Instant::now();
    drop(guard);
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn refuses_a_filter_it_does_not_understand() {
    let config = TelemetryConfig {
        log: "info,=,".to_owned(),
        ..TelemetryConfig::default()
    };
    let error = assemble(&config, "t", "0", Look::Json, io::sink).unwrap_err();
    assert!(error.to_string().starts_with("telemetry.log"), "{error}");
}

#[test]
fn a_collector_is_named_by_a_url_which_an_error_does_not_show() {
    let checked = |endpoint: &str| {
        let config = TelemetryConfig {
            otlp_endpoint: Some(endpoint.to_owned()),
            ..TelemetryConfig::default()
        };
        config.check().map_err(|error| error.to_string())
    };
    for endpoint in [
        "",
        "nonsense",
        "grpc://b:4317",
        "http://",
        "http://user:p<w@b:4318",
        "b:4318",
    ] {
        let said = checked(endpoint).unwrap_err();
        assert!(
            said.starts_with("telemetry.otlp_endpoint") && !said.contains("p<w"),
            "{said}"
        );
    }
    for endpoint in ["http://localhost:4318", "https://user:pw@[::1]:4318/otlp/"] {
        assert_eq!(checked(endpoint), Ok(()));
    }
}

#[test]
fn refuses_words_that_are_neither_a_level_nor_a_target_here() {
    let filtered = |log: &str| {
        let config = TelemetryConfig {
            log: log.to_owned(),
            ..TelemetryConfig::default()
        };
        assemble(&config, "t", "0", Look::Json, io::sink)
    };
    for log in ["verbose", "", " ", "foo,bar", "postrid"] {
        let Err(error) = filtered(log) else {
            panic!("{log:?} is taken");
        };
        let text = error.to_string();
        assert!(
            text.starts_with("telemetry.log") && text.contains("off, error, warn, info, debug"),
            "{text}"
        );
    }
    for log in [
        "off",
        "INFO",
        " info, postrider_log=debug",
        "postrider",
        "postrider_delivery",
        "hyper=debug",
        "hyper,info",
        "[attempt]",
    ] {
        assert!(filtered(log).is_ok(), "{log:?}");
    }
}

#[test]
fn a_record_carries_the_trace_and_its_reader_goes_on_from_it() {
    let (url, exports) = collector();
    let config = TelemetryConfig {
        otlp_endpoint: Some(url),
        ..TelemetryConfig::default()
    };
    let (dispatch, guard, logged) = start(&config, Look::Json);
    with_default(&dispatch, || {
        let request = tracing::info_span!("request");
        assert!(set_parent(&request, PARENT, "vendor=x"));
        let sending = request.in_scope(|| super::sending("events"));
        let mut headers = vec![
            ("traceparent".to_owned(), "theirs".into()),
            ("other".to_owned(), "kept".into()),
        ];
        super::carry(&sending, &mut headers);
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["other", "traceparent", "tracestate"]);
        let (traceparent, tracestate) = super::context_in(&headers).unwrap();
        assert_eq!(super::trace_id(traceparent), Some(TRACE));
        assert_eq!(tracestate, "vendor=x");

        // Elsewhere, in a span that has nothing to do with it.
        let _elsewhere = tracing::info_span!("elsewhere").entered();
        let processing = super::processing("events", 3, 4);
        assert!(super::follow(&processing, &headers));
        processing.in_scope(|| {
            tracing::info!("inside");
            assert_eq!(
                super::trace_id(&current_traceparent().unwrap()),
                Some(TRACE)
            );
        });
        assert!(!super::follow(&super::processing("events", 3, 5), &[]));
    });
    drop(guard);
    assert_eq!(logged.lines()[0]["trace_id"], TRACE);
    let export = exports.recv_timeout(Duration::from_secs(10)).unwrap();
    for part in [&b"send events"[..], b"process events"] {
        assert!(
            export.body.windows(part.len()).any(|window| window == part),
            "{part:?}"
        );
    }
}
