use proptest::prelude::*;

use super::*;
use crate::filter::EventTypeName;
use crate::fixtures;

fn event(data: impl Into<Bytes>) -> Event {
    Event {
        event_type: EventTypeName::try_new("invoice.paid").unwrap(),
        occurred_at_ms: 1_649_367_553_042,
        data: data.into(),
        ..fixtures::event("evt_1")
    }
}

#[test]
fn standard_wraps_the_data_without_touching_it() {
    let data = "\n{ \"b\": 1.0e2,\t\"a\" : \"\\u00e9\",\"a\":18446744073709551616 } ";
    let wrapped = body(&event(data), PayloadFormat::Standard).unwrap();
    let head = r#"{"type":"invoice.paid","timestamp":"2022-04-07T21:39:13.042Z","data":"#;
    assert_eq!(wrapped, format!("{head}{data}}}"));
}

#[test]
fn standard_refuses_data_that_is_not_json() {
    let cases: [&[u8]; 8] = [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"text",
        b"{\"a\":1},\"b\":{",
        b"\"\xff\"",
        b"\xef\xbb\xbf{}",
    ];
    for data in cases {
        assert!(
            body(&event(data), PayloadFormat::Standard).is_err(),
            "{data:?}"
        );
        assert_eq!(body(&event(data), PayloadFormat::Raw).unwrap(), data);
    }
}

#[test]
fn deeply_nested_data_is_no_stack_overflow() {
    let deep = "[".repeat(1_000_000);
    assert!(body(&event(deep), PayloadFormat::Standard).is_err());
}

#[test]
fn times_are_read_with_and_without_offset_and_fraction() {
    assert_eq!(
        parse_rfc3339("2022-04-07T21:39:13.042Z"),
        Some(1_649_367_553_042)
    );
    assert_eq!(
        parse_rfc3339("2022-04-07T23:39:13.0425+02:00"),
        Some(1_649_367_553_042)
    );
    assert_eq!(
        parse_rfc3339("2022-04-07T21:39:13Z"),
        Some(1_649_367_553_000)
    );
    for text in [
        "",
        "now",
        "2022-04-07",
        "2022-04-07T21:39:13",
        "2022-13-07T21:39:13Z",
        "-000001-01-01T00:00:00Z",
    ] {
        assert_eq!(parse_rfc3339(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn every_representable_time_survives_being_written(
        time_ms in TIME_MS_MIN..=Timestamp::MAX.as_millisecond(),
    ) {
        let text = rfc3339(time_ms);
        prop_assert_eq!(text.len(), "2022-04-07T21:39:13.042Z".len());
        prop_assert_eq!(parse_rfc3339(&text), Some(time_ms));
    }

    #[test]
    fn any_time_is_written(time_ms: i64) {
        prop_assert_eq!(parse_rfc3339(&rfc3339(time_ms)).is_some(), true);
    }

    #[test]
    fn any_text_is_a_time_or_none(text in "\\PC{0,60}") {
        if let Some(time_ms) = parse_rfc3339(&text) {
            prop_assert!(is_representable(time_ms));
        }
    }

    #[test]
    fn a_wrapped_body_is_json_and_ends_with_the_data(text in "\\PC{0,60}") {
        let data = serde_json::to_string(&text).unwrap();
        let wrapped = body(&event(data.clone()), PayloadFormat::Standard).unwrap();
        let parsed: serde_json::Value = serde_json::from_slice(&wrapped).unwrap();
        prop_assert_eq!(&parsed["data"], &serde_json::Value::String(text));
        prop_assert_eq!(&wrapped[wrapped.len() - 1 - data.len()..wrapped.len() - 1], data.as_bytes());
    }
}
