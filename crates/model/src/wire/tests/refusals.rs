//! What producers may leave out, and what is refused.

use bytes::Bytes;
use prost::Message;

use super::CONTEXT;
use crate::delivery::Delivery;
use crate::endpoint::Endpoint;
use crate::event::{Event, EventPosition, TraceContext};
use crate::outcome::Reason;
use crate::wire::{EventContext, InvalidRecord, proto};

/// What a producer that writes to Kafka itself has to set.
fn minimal_event() -> proto::Event {
    proto::Event {
        tenant: "acme".to_owned(),
        r#type: "invoice.paid".to_owned(),
        data: Bytes::from_static(b"{}"),
        ..proto::Event::default()
    }
}

fn decode_event(event: &proto::Event) -> Result<Event, InvalidRecord> {
    Event::decode(&event.encode_to_vec().into(), CONTEXT)
}

#[test]
fn what_a_producer_leaves_out_comes_from_the_record() {
    let event = decode_event(&minimal_event()).unwrap();
    assert_eq!(event.id.as_str(), "evt_p3_42_1700000000000");
    assert_eq!(event.occurred_at_ms, CONTEXT.position.appended_at_ms);
    assert_eq!(event.accepted_at_ms, CONTEXT.position.appended_at_ms);
    assert_eq!(Some(event.trace.traceparent.as_str()), CONTEXT.traceparent);
    assert_eq!(event, decode_event(&minimal_event()).unwrap());
}

#[test]
fn a_record_at_the_place_of_another_is_another_event() {
    let at = |appended_at_ms| {
        let context = EventContext {
            position: EventPosition {
                appended_at_ms,
                ..CONTEXT.position
            },
            ..CONTEXT
        };
        Event::decode(&minimal_event().encode_to_vec().into(), context).unwrap()
    };
    assert_ne!(at(1).id, at(2).id, "receivers drop an id that comes again");
}

#[test]
fn what_a_producer_sets_is_kept() {
    let given = proto::Event {
        id: "mine".to_owned(),
        occurred_at_ms: -5,
        accepted_at_ms: 6,
        traceparent: "00-1-2-00".to_owned(),
        data_content_type: "Application/JSON".to_owned(),
        ..minimal_event()
    };
    let event = decode_event(&given).unwrap();
    assert_eq!(
        (
            event.id.as_str(),
            event.occurred_at_ms,
            event.accepted_at_ms
        ),
        ("mine", -5, 6)
    );
    assert_eq!(event.trace.traceparent, "00-1-2-00");
}

#[test]
fn a_trace_context_that_is_no_header_does_not_hold_up_the_event() {
    for bad in ["00-1\r\nx: y", "ü", &"0".repeat(600)] {
        let given = proto::Event {
            traceparent: bad.to_owned(),
            tracestate: bad.to_owned(),
            ..minimal_event()
        };
        assert_eq!(decode_event(&given).unwrap().trace, TraceContext::default());
    }
}

#[test]
fn events_that_ask_for_what_is_not_honoured_are_unsupported() {
    let cases = [
        (
            "channels",
            proto::Event {
                channels: vec!["c".to_owned()],
                ..minimal_event()
            },
        ),
        (
            "source",
            proto::Event {
                source: "/s".to_owned(),
                ..minimal_event()
            },
        ),
        (
            "data_content_type",
            proto::Event {
                data_content_type: "text/xml".to_owned(),
                ..minimal_event()
            },
        ),
    ];
    for (field, event) in cases {
        let error = decode_event(&event).unwrap_err();
        assert_eq!(error, InvalidRecord::Unsupported { field });
        assert_eq!(error.reason(), Reason::Unsupported);
    }
}

#[test]
fn events_that_cannot_be_understood_are_malformed() {
    let cases = [
        (
            "tenant",
            proto::Event {
                tenant: String::new(),
                ..minimal_event()
            },
        ),
        (
            "tenant",
            proto::Event {
                tenant: "a/b".to_owned(),
                ..minimal_event()
            },
        ),
        (
            "type",
            proto::Event {
                r#type: "a..b".to_owned(),
                ..minimal_event()
            },
        ),
        (
            "id",
            proto::Event {
                id: "a.b".to_owned(),
                ..minimal_event()
            },
        ),
        (
            "ordering_key",
            proto::Event {
                ordering_key: "k".repeat(129),
                ..minimal_event()
            },
        ),
        (
            "occurred_at_ms",
            proto::Event {
                occurred_at_ms: i64::MAX,
                ..minimal_event()
            },
        ),
    ];
    for (name, event) in cases {
        assert_malformed(name, decode_event(&event));
    }
    assert_malformed(
        "event",
        Event::decode(&Bytes::from_static(b"\xff\xff"), CONTEXT),
    );
}

#[test]
fn deliveries_without_their_parts_are_malformed() {
    let whole = proto::Delivery {
        event: Some(proto::Event {
            id: "evt_1".to_owned(),
            ..minimal_event()
        }),
        endpoint_id: "ep_1".to_owned(),
        position: Some(proto::EventPosition {
            partition: 0,
            offset: 0,
            appended_at_ms: 0,
        }),
        attempt: 1,
        ..proto::Delivery::default()
    };
    let decode = |delivery: &proto::Delivery| Delivery::decode(&delivery.encode_to_vec());
    assert!(decode(&whole).is_ok());
    let negative = proto::EventPosition {
        partition: 0,
        offset: -1,
        appended_at_ms: 0,
    };
    let cases = [
        (
            "event",
            proto::Delivery {
                event: None,
                ..whole.clone()
            },
        ),
        (
            "id",
            proto::Delivery {
                event: Some(minimal_event()),
                ..whole.clone()
            },
        ),
        (
            "endpoint_id",
            proto::Delivery {
                endpoint_id: "1".to_owned(),
                ..whole.clone()
            },
        ),
        (
            "position",
            proto::Delivery {
                position: None,
                ..whole.clone()
            },
        ),
        (
            "position",
            proto::Delivery {
                position: Some(negative),
                ..whole.clone()
            },
        ),
        (
            "attempt",
            proto::Delivery {
                attempt: 0,
                ..whole
            },
        ),
    ];
    for (name, delivery) in cases {
        assert_malformed(name, decode(&delivery));
    }
}

fn assert_malformed<T: std::fmt::Debug>(name: &str, decoded: Result<T, InvalidRecord>) {
    let error = decoded.unwrap_err();
    assert_eq!(error.reason(), Reason::Malformed, "{name}");
    assert!(
        matches!(error, InvalidRecord::Malformed { field, .. } if field == name),
        "{error:?}"
    );
}

fn minimal_endpoint() -> proto::Endpoint {
    proto::Endpoint {
        id: "ep_1".to_owned(),
        tenant: "acme".to_owned(),
        url: "https://example.com/".to_owned(),
        format: proto::PayloadFormat::Standard.into(),
        state: proto::EndpointState::Enabled.into(),
        ..proto::Endpoint::default()
    }
}

#[test]
fn endpoints_that_ask_for_what_is_not_honoured_are_unsupported() {
    assert!(Endpoint::try_from(minimal_endpoint()).is_ok());
    let cloudevents = proto::PayloadFormat::Cloudevents.into();
    let binary = proto::PayloadFormat::CloudeventsBinary.into();
    let cases = [
        (
            "channels",
            proto::Endpoint {
                channels: vec!["c".to_owned()],
                ..minimal_endpoint()
            },
        ),
        (
            "format",
            proto::Endpoint {
                format: cloudevents,
                ..minimal_endpoint()
            },
        ),
        (
            "format",
            proto::Endpoint {
                format: binary,
                ..minimal_endpoint()
            },
        ),
    ];
    for (field, endpoint) in cases {
        assert_eq!(
            Endpoint::try_from(endpoint),
            Err(InvalidRecord::Unsupported { field })
        );
    }
}

#[test]
fn endpoints_that_cannot_be_understood_are_malformed() {
    let url = "https://me:pw@example.com/".to_owned();
    let schedule = Some(proto::RetrySchedule {
        delays_ms: vec![u64::MAX],
    });
    let rate_limit = Some(proto::RateLimit {
        per_second: f64::INFINITY,
        burst: 1,
    });
    let cases = [
        (
            "rate_limit",
            proto::Endpoint {
                rate_limit,
                ..minimal_endpoint()
            },
        ),
        (
            "id",
            proto::Endpoint {
                id: "1".to_owned(),
                ..minimal_endpoint()
            },
        ),
        (
            "url",
            proto::Endpoint {
                url,
                ..minimal_endpoint()
            },
        ),
        (
            "format",
            proto::Endpoint {
                format: 99,
                ..minimal_endpoint()
            },
        ),
        (
            "format",
            proto::Endpoint {
                format: 0,
                ..minimal_endpoint()
            },
        ),
        (
            "state",
            proto::Endpoint {
                state: 0,
                ..minimal_endpoint()
            },
        ),
        (
            "retry_schedule",
            proto::Endpoint {
                retry_schedule: schedule,
                ..minimal_endpoint()
            },
        ),
    ];
    for (name, endpoint) in cases {
        assert_malformed(name, Endpoint::try_from(endpoint));
    }
}
