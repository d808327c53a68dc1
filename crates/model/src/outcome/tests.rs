use proptest::prelude::*;

use super::*;

const NOW_MS: i64 = 1_700_000_000_000;

fn answered(status: u16) -> Outcome {
    Outcome::Answered {
        status,
        retry_after_ms: None,
    }
}

#[test]
fn the_table_of_statuses_is_kept() {
    for (status, reason, throttles) in [
        (100, Reason::ClientError, false),
        (200, Reason::Ok, false),
        (204, Reason::Ok, false),
        (299, Reason::Ok, false),
        (301, Reason::Redirect, false),
        (400, Reason::ClientError, false),
        (404, Reason::ClientError, false),
        (410, Reason::EndpointGone, false),
        (429, Reason::RateLimited, true),
        (500, Reason::ServerError, false),
        (502, Reason::ServerError, true),
        (503, Reason::ServerError, true),
        (504, Reason::ServerError, true),
    ] {
        let outcome = answered(status);
        assert_eq!(outcome.reason(), reason, "{status}");
        assert_eq!(outcome.throttles(), throttles, "{status}");
    }
}

#[test]
fn every_reason_is_read_back() {
    for reason in Reason::ALL {
        assert_eq!(reason.as_str().parse(), Ok(*reason));
    }
    assert!("".parse::<Reason>().is_err());
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    for (header, wait) in [
        ("0", Some(0)),
        ("120", Some(120_000)),
        (" 120 ", Some(120_000)),
        ("86400", Some(RETRY_AFTER_MS_MAX)),
        ("86401", Some(RETRY_AFTER_MS_MAX)),
        ("9223372036854775808", Some(RETRY_AFTER_MS_MAX)),
        ("Tue, 14 Nov 2023 22:13:50 GMT", Some(30_000)),
        ("Tue, 14 Nov 2023 22:13:20 GMT", Some(0)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", Some(RETRY_AFTER_MS_MAX)),
        ("", None),
        ("-1", None),
        ("-5", None),
        ("-0", None),
        ("0.000001", None),
        ("5,5", None),
        ("120s", None),
        ("1 2", None),
        ("5\u{a0}5", None),
        ("Infinity", None),
        ("-inf", None),
        ("1e9", None),
        ("00000000000000000000000000000000120", Some(120_000)),
        ("9223372036854775", Some(RETRY_AFTER_MS_MAX)),
        ("9223372036854776", Some(RETRY_AFTER_MS_MAX)),
        (
            "340282366920938463463374607431768211456",
            Some(RETRY_AFTER_MS_MAX),
        ),
        ("Sat, 01 Jan 0000 00:00:00 GMT", Some(0)),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Tue, 14 Nov -2023 22:13:20 GMT", None),
        // The obsolete forms of RFC 9110, 5.6.7. Fifty years ahead is as far as two digits reach.
        ("Tuesday, 14-Nov-23 22:13:50 GMT", Some(30_000)),
        ("Sunday, 06-Nov-94 08:49:37 GMT", Some(0)),
        ("Tuesday, 14-Nov-73 22:13:50 GMT", Some(RETRY_AFTER_MS_MAX)),
        ("Wednesday, 14-Nov-74 22:13:50 GMT", Some(0)),
        ("Tue Nov 14 22:13:50 2023", Some(30_000)),
        ("Wed Nov  1 08:49:37 2023", Some(0)),
        ("Fri Dec  1 08:49:37 2023", Some(RETRY_AFTER_MS_MAX)),
        ("Someday, 14-Nov-23 22:13:50 GMT", None),
        ("Tuesday, 14-Nov-2023 22:13:50 GMT", None),
        ("Tue Nov 14 22:13:50 2023 PST", None),
        ("2023-11-14T22:13:50Z", None),
        ("+1", None),
        ("1.5", None),
        ("inf", None),
        ("NaN", None),
        ("1e300", None),
        ("0x10", None),
        ("١٢٠", None),
        ("soon", None),
        ("Tue, 14 Nov 2023", None),
        ("Tue, 99 Nov 2023 22:13:20 GMT", None),
        ("Tue, 14 Nov 2023 22:13:20 PST", None),
    ] {
        assert_eq!(retry_after(header, NOW_MS), wait, "{header:?}");
    }
    assert_eq!(
        retry_after(&"9".repeat(100_000), NOW_MS),
        Some(RETRY_AFTER_MS_MAX)
    );
}

proptest! {
    #[test]
    fn retry_after_is_always_in_range(header in "\\PC{0,60}", now_ms: i64) {
        if let Some(wait_ms) = retry_after(&header, now_ms) {
            prop_assert!((0..=RETRY_AFTER_MS_MAX).contains(&wait_ms));
        }
    }

    #[test]
    fn any_number_and_date_is_a_wait_in_range(
        seconds in "[0-9]{1,40}",
        date in "(Mon|Sun), [0-3][0-9] (Jan|Feb|Dec) -?[0-9]{4} [0-2][0-9]:[0-5][0-9]:[0-6][0-9] GMT",
        now_ms: i64,
    ) {
        prop_assert!((0..=RETRY_AFTER_MS_MAX).contains(&retry_after(&seconds, now_ms).unwrap()));
        if let Some(wait_ms) = retry_after(&date, now_ms) {
            prop_assert!((0..=RETRY_AFTER_MS_MAX).contains(&wait_ms));
        }
    }
}
