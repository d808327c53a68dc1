use proptest::prelude::*;

use super::*;
use crate::event::EventPosition;
use crate::ids::EndpointId;

const NOW_MS: i64 = 1_700_000_000_000;

fn work() -> WorkId {
    WorkId {
        position: EventPosition {
            partition: 3,
            offset: 42,
            appended_at_ms: 5,
        },
        endpoint: EndpointId::try_new("ep_1").unwrap(),
        run: 0,
    }
}

fn decide_at_first(outcome: &Outcome) -> Decision {
    decide(outcome, &work(), 1, &RetrySchedule::standard(), NOW_MS)
}

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
        (301, Reason::Redirect, false),
        (400, Reason::ClientError, false),
        (404, Reason::ClientError, false),
        (429, Reason::RateLimited, true),
        (500, Reason::ServerError, false),
        (502, Reason::ServerError, true),
        (503, Reason::ServerError, true),
        (504, Reason::ServerError, true),
    ] {
        let decision = decide_at_first(&answered(status));
        assert_eq!(
            (decision.reason, decision.throttles),
            (reason, throttles),
            "{status}"
        );
        assert!(!decision.settlement.is_end(), "{status}");
    }
}

#[test]
fn success_ends_the_delivery() {
    for status in [200, 204, 299] {
        let decision = decide_at_first(&answered(status));
        assert_eq!(decision.settlement, Settlement::Delivered);
        assert_eq!(decision.dead_letter_reason, None);
    }
}

#[test]
fn gone_disables_the_endpoint_and_ends_the_delivery() {
    let decision = decide_at_first(&answered(410));
    assert!(decision.disables_endpoint);
    assert_eq!(decision.settlement, Settlement::DeadLettered);
    assert_eq!(decision.dead_letter_reason, Some(Reason::EndpointGone));
}

#[test]
fn what_cannot_be_sent_is_not_tried_again() {
    let decision = decide_at_first(&Outcome::Unsendable(Reason::FormatMismatch));
    assert_eq!(decision.settlement, Settlement::DeadLettered);
    assert_eq!(decision.dead_letter_reason, Some(Reason::FormatMismatch));
}

#[test]
fn only_a_timeout_throttles_among_what_is_unanswered() {
    for reason in [
        Reason::Timeout,
        Reason::Connect,
        Reason::Tls,
        Reason::Dns,
        Reason::AddressForbidden,
    ] {
        let decision = decide_at_first(&Outcome::Unanswered(reason));
        assert_eq!(decision.throttles, reason == Reason::Timeout);
        assert!(matches!(
            decision.settlement,
            Settlement::RetryScheduled { .. }
        ));
    }
}

#[test]
fn the_last_attempt_exhausts_the_schedule() {
    let schedule = RetrySchedule::standard();
    let at = |attempt| decide(&answered(500), &work(), attempt, &schedule, NOW_MS);
    assert!(!at(9).settlement.is_end());
    assert_eq!(at(10).settlement, Settlement::DeadLettered);
    assert_eq!(at(10).reason, Reason::ServerError);
    assert_eq!(at(10).dead_letter_reason, Some(Reason::Exhausted));
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
    fn a_retry_is_never_before_schedule_or_retry_after(
        status in 400..=599_u16,
        attempt in 1..=9_u32,
        retry_after_ms in prop::option::of(any::<i64>()),
        now_ms in 0..=NOW_MS * 2,
    ) {
        prop_assume!(status != 410);
        let schedule = RetrySchedule::standard();
        let outcome = Outcome::Answered { status, retry_after_ms };
        let decision = decide(&outcome, &work(), attempt, &schedule, now_ms);
        let Settlement::RetryScheduled { due_at_ms } = decision.settlement else {
            return Err(TestCaseError::fail("not scheduled"));
        };
        let wait_ms = due_at_ms - now_ms;
        let scheduled_ms = schedule.delays_ms()[attempt as usize - 1];
        let floor_ms = retry_after_ms.unwrap_or(0).clamp(0, RETRY_AFTER_MS_MAX);
        prop_assert!(wait_ms >= scheduled_ms && wait_ms >= floor_ms);
        prop_assert!(wait_ms <= RETRY_AFTER_MS_MAX * 6 / 5);
    }

    #[test]
    fn every_status_is_decided_and_only_success_delivers(status: u16, attempt: u32, now_ms: i64) {
        let decision =
            decide(&answered(status), &work(), attempt, &RetrySchedule::standard(), now_ms);
        let is_success = (200..300).contains(&status);
        prop_assert_eq!(decision.settlement == Settlement::Delivered, is_success);
        prop_assert_eq!(decision.disables_endpoint, status == 410);
        let is_dead = decision.settlement == Settlement::DeadLettered;
        prop_assert_eq!(decision.dead_letter_reason.is_some(), is_dead);
    }

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

fn of_head(decision: Decision, when_blocked: WhenBlocked, now_ms: i64) -> Decision {
    let blocks = Blocks {
        when_blocked,
        since_ms: 0,
        wait_ms_max: 3_600_000,
    };
    decision.of_head(&answered(500), blocks, &RetrySchedule::standard(), now_ms)
}

#[test]
fn a_head_is_tried_a_last_time_at_the_end_of_its_hour() {
    let schedule = RetrySchedule::standard();
    let third = |now_ms| decide(&answered(500), &work(), 4, &schedule, now_ms);
    let last = of_head(third(2_100_000), WhenBlocked::DeadLetter, 2_100_000);
    assert_eq!(
        last.settlement,
        Settlement::RetryScheduled {
            due_at_ms: 3_600_000
        }
    );
    let ended = of_head(third(3_600_000), WhenBlocked::DeadLetter, 3_600_000);
    assert_eq!(ended.settlement, Settlement::DeadLettered);
    assert_eq!(ended.dead_letter_reason, Some(Reason::BlockedTooLong));
    assert_eq!(
        ended.reason,
        Reason::ServerError,
        "what the attempt ended with is still told"
    );
}

#[test]
fn a_head_that_waits_is_never_given_up() {
    let schedule = RetrySchedule::standard();
    let exhausted = decide(&answered(500), &work(), 1_000, &schedule, 0);
    assert_eq!(exhausted.settlement, Settlement::DeadLettered);
    let waits = of_head(exhausted, WhenBlocked::Wait, 0);
    assert_eq!(
        waits.settlement,
        Settlement::RetryScheduled {
            due_at_ms: 86_400_000
        }
    );
    let gone = decide(&answered(410), &work(), 1, &schedule, 0);
    assert_eq!(
        of_head(gone, WhenBlocked::Wait, 0),
        gone,
        "what cannot succeed is not tried again"
    );
}

#[test]
fn a_head_is_not_tried_before_the_endpoint_asked_for() {
    let asks = Outcome::Answered {
        status: 503,
        retry_after_ms: Some(7_200_000),
    };
    let blocks = Blocks {
        when_blocked: WhenBlocked::DeadLetter,
        since_ms: 0,
        wait_ms_max: 3_600_000,
    };
    let schedule = RetrySchedule::standard();
    let decision = decide(&asks, &work(), 1, &schedule, 0).of_head(&asks, blocks, &schedule, 0);
    assert_eq!(
        decision.settlement,
        Settlement::RetryScheduled {
            due_at_ms: 7_200_000
        }
    );
}
