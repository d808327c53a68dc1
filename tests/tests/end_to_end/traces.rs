//! Traces as a receiver that is not ours understands them.

use std::time::Duration;

use axum::http::Method;
use postrider_tests::collector::Span;
use postrider_tests::{Api, Collector, LogKind, Plan, Receiver, Reply, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER: &str = "00f067aa0ba902b7";

/// What a producer without sampling of its own sends.
const EVENT: &str = r#"{"type":"invoice.paid","data":{}}"#;

on_both_logs!(
    one_trace_leads_from_the_producer_to_the_last_attempt,
    a_redrive_goes_on_in_the_trace_of_its_event_and_names_the_command,
    what_is_not_sampled_is_not_sampled_anywhere,
    without_export_the_context_passes_unchanged_and_lines_name_the_trace,
);

fn traced(log: LogKind, collector: &Collector) -> Plan {
    Plan::new(log)
        .set("POSTRIDER_TELEMETRY__OTLP_ENDPOINT", &collector.url())
        // The exporter's own setting; the default is 5 s.
        .set("OTEL_BSP_SCHEDULE_DELAY", "100")
}

async fn publish(api: &Api, traceparent: Option<&str>) -> String {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(traceparent.map(|traceparent| ("traceparent", traceparent)));
    let answer = api
        .call(Method::POST, "/events", &headers, EVENT)
        .await
        .unwrap();
    assert_eq!(answer.status, 202);
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// The names from a span up to the one without a parent among these.
fn line_of<'a>(spans: &'a [Span], mut span: &'a Span) -> (Vec<&'a str>, &'a Span) {
    let mut names = vec![span.name.as_str()];
    while let Some(parent) = spans.iter().find(|parent| parent.id == span.parent) {
        names.push(&parent.name);
        span = parent;
        assert!(names.len() < 50, "a circle: {names:?}");
    }
    (names, span)
}

async fn one_trace_leads_from_the_producer_to_the_last_attempt(log: LogKind) {
    let collector = Collector::start().await;
    let cluster = traced(log, &collector).start().await;
    let api = cluster.api();
    let receiver =
        Receiver::start(|received| Reply::status(if received.number < 2 { 500 } else { 200 }))
            .await;
    api.create_endpoint(&receiver.url("/hook"), json!({ "retry_schedule": [1] }))
        .await;
    publish(&api, Some(&format!("00-{TRACE}-{PRODUCER}-01"))).await;
    let received = receiver.wait_for("/hook", 2, SOON).await;

    let count = |spans: &[Span], name: &str| spans.iter().filter(|span| span.name == name).count();
    let all = |spans: &[Span]| count(spans, "attempt") == 2 && count(spans, "request") == 1;
    let spans = collector
        .trace_when(TRACE, "all spans are exported", SOON, all)
        .await;
    let mut posts: Vec<&Span> = spans.iter().filter(|span| span.name == "POST").collect();
    posts.sort_by_key(|post| post.attributes["http.response.status_code"] == "200");
    for (post, request) in posts.iter().zip(&received) {
        let sent = request.headers["traceparent"].to_str().unwrap();
        assert_eq!(sent, format!("00-{TRACE}-{}-01", post.id));
        assert_eq!(post.kind, 3);
    }
    assert_eq!(posts[0].attributes["http.response.status_code"], "500");

    let (names, first) = line_of(&spans, posts[1]);
    let expected = [
        "POST",
        "attempt",
        "send deliveries",
        "process retry",
        "send retry",
        "attempt",
        "send deliveries",
        "process events",
        "send events",
        "request",
    ];
    assert_eq!(names, expected, "{spans:#?}");
    assert_eq!(first.parent, PRODUCER);
    assert_eq!(first.kind, 2);
    let (first_names, _) = line_of(&spans, posts[0]);
    assert_eq!(
        first_names,
        expected[5..].iter().fold(vec!["POST"], |mut names, name| {
            names.push(name);
            names
        })
    );

    let attempt = |number: &str| {
        spans
            .iter()
            .find(|span| span.name == "attempt" && span.attributes["attempt"] == number)
            .unwrap()
    };
    assert!(attempt("1").failed && !attempt("2").failed);
    assert_eq!(attempt("1").attributes["settlement"], "retry_scheduled");
    assert_eq!(attempt("2").attributes["settlement"], "delivered");
    assert_eq!(count(&spans, "send routes"), 1);
    assert_eq!(count(&spans, "send attempts"), 2);
    let services = match log {
        LogKind::Embedded => ["postrider-up", "postrider-up"],
        LogKind::Kafka => ["postrider-ingest", "postrider-deliver"],
    };
    assert_eq!([&first.service, &posts[1].service], services);
}

async fn a_redrive_goes_on_in_the_trace_of_its_event_and_names_the_command(log: LogKind) {
    let collector = Collector::start().await;
    let cluster = traced(log, &collector).start().await;
    let api = cluster.api();
    let receiver =
        Receiver::start(|received| Reply::status(if received.number < 2 { 500 } else { 200 }))
            .await;
    api.create_endpoint(&receiver.url("/hook"), json!({ "retry_schedule": [] }))
        .await;
    publish(&api, Some(&format!("00-{TRACE}-{PRODUCER}-01"))).await;
    let letters = api
        .list_when("/dead-letters", "it is given up", |list| list.len() == 1)
        .await;
    let ids = json!({ "ids": [letters[0]["id"]] });
    api.must(Method::POST, "/dead-letters/redrive", &ids).await;
    receiver.wait_for("/hook", 2, SOON).await;

    // Each process exports in its own time.
    let complete = |spans: &[Span]| {
        spans.iter().filter(|span| span.name == "attempt").count() == 2
            && spans.iter().any(|span| !span.links.is_empty())
    };
    let spans = collector
        .trace_when(
            TRACE,
            "both attempts and the redrive are exported",
            SOON,
            complete,
        )
        .await;
    let redriven = spans.iter().find(|span| !span.links.is_empty()).unwrap();
    assert_eq!(redriven.name, "send deliveries");
    let (trace, id) = &redriven.links[0];
    assert_ne!(trace, TRACE);
    let command = collector
        .trace_when(trace, "the command is exported", SOON, |spans| {
            spans.iter().any(|span| span.id == *id)
        })
        .await;
    let command = command.iter().find(|span| span.id == *id).unwrap();
    assert!(
        command.attributes["route"].ends_with("/redrive"),
        "{command:?}"
    );
}

async fn what_is_not_sampled_is_not_sampled_anywhere(log: LogKind) {
    let collector = Collector::start().await;
    let plan = traced(log, &collector).set("POSTRIDER_TELEMETRY__OTLP_SAMPLE_RATIO", "0");
    let cluster = plan.start().await;
    let (api, receiver) = (cluster.api(), Receiver::healthy().await);
    api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    let unsampled = publish(&api, None).await;
    receiver.wait_for("/hook", 1, SOON).await;
    // The caller's own decision counts for what comes from it.
    publish(&api, Some(&format!("00-{TRACE}-{PRODUCER}-01"))).await;
    let received = receiver.wait_for("/hook", 2, SOON).await;
    let sent = |id: &str| {
        let request = received.iter().find(|request| request.id == id).unwrap();
        request.headers["traceparent"].to_str().unwrap().to_owned()
    };
    assert!(sent(&unsampled).ends_with("-00"), "{}", sent(&unsampled));

    let attempted = |spans: &[Span]| spans.iter().any(|span| span.name == "attempt");
    collector
        .trace_when(TRACE, "the sampled trace is exported", SOON, attempted)
        .await;
    let other = collector
        .spans()
        .into_iter()
        .find(|span| span.trace != TRACE);
    assert!(other.is_none(), "{other:?}");
}

async fn without_export_the_context_passes_unchanged_and_lines_name_the_trace(log: LogKind) {
    let mut cluster = Plan::new(log).start().await;
    let api = cluster.api();
    let receiver = Receiver::start(|_| Reply::status(500)).await;
    api.create_endpoint(&receiver.url("/hook"), json!({ "retry_schedule": [1] }))
        .await;
    let traceparent = format!("00-{TRACE}-{PRODUCER}-01");
    publish(&api, Some(&traceparent)).await;
    let received = receiver.wait_for("/hook", 2, SOON).await;
    for request in received {
        assert_eq!(request.headers["traceparent"], traceparent.as_str());
    }
    let delivering = match log {
        LogKind::Embedded => "up",
        LogKind::Kafka => "deliver",
    };
    let process = cluster.process(delivering);
    let line = eventually("the dead letter is logged", SOON, async || {
        let output = process.output();
        let mut lines = output.lines();
        let line = lines.find(|line| line.contains("dead letter written"));
        line.map(str::to_owned).ok_or("no line")
    })
    .await;
    assert!(line.ends_with(&format!("trace_id={TRACE}")), "{line}");
}
