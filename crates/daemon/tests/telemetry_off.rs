//! What traces cost while they are not exported. Alone in its process, as the real ones are:
//! whether traces are exported is the process's.

use postrider_daemon::telemetry::{
    TelemetryConfig, calling, carry, current_traceparent, init, processing, sending, set_parent,
};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn spans_for_traces_alone_are_disabled_and_records_carry_nothing() {
    let _guard = init(&TelemetryConfig::default(), "test", "0").unwrap();
    let request = tracing::info_span!("request");
    assert!(set_parent(&request, PARENT, ""));
    request.in_scope(|| {
        for span in [
            sending("events"),
            processing("events", 3, 4),
            calling("POST"),
        ] {
            assert!(span.is_disabled());
            let mut headers = vec![("traceparent".to_owned(), "theirs".into())];
            carry(&span, &mut headers);
            assert_eq!(headers, [("traceparent".to_owned(), "theirs".into())]);
            let here = span.in_scope(current_traceparent);
            assert_eq!(here.as_deref(), Some(PARENT), "the context passes through");
        }
    });
}
