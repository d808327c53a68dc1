use proptest::prelude::*;

use super::*;
use crate::event::EventPosition;
use crate::ids::EndpointId;
use crate::outcome::RETRY_AFTER_MS_MAX;

const NOW_MS: i64 = 1_700_000_000_000;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const BEGAN_MS: i64 = NOW_MS - 7;

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

/// Of the first attempt at an endpoint without order that never failed.
fn facts<'a>(work: &'a WorkId, schedule: &'a RetrySchedule) -> Facts<'a> {
    Facts {
        work,
        attempt: 1,
        schedule,
        now_ms: NOW_MS,
        ages_tell: true,
        head: None,
        network_is_down: false,
        failing_since_ms: None,
        disable_failing_after_ms: 5 * DAY_MS,
    }
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered {
        status,
        retry_after_ms: None,
    }
}

fn asks_to_wait(status: u16, retry_after_ms: i64) -> Outcome {
    Outcome::Answered {
        status,
        retry_after_ms: Some(retry_after_ms),
    }
}

fn attempted(outcome: &Outcome) -> Observed<'_> {
    Observed::Attempted {
        outcome,
        started_at_ms: BEGAN_MS,
        duration_ms: 7,
    }
}

/// What follows, in a line: the attempt, its reason, what becomes of the delivery (a retry's wait
/// as `s` for what the schedule says), whether the endpoint is disabled, what is said about the
/// endpoint.
fn told(verdict: Verdict, scheduled_ms: Option<i64>) -> String {
    let decision = match verdict {
        Verdict::NotSpent => return "not spent".to_owned(),
        Verdict::Interrupted => return "interrupted".to_owned(),
        Verdict::Settled(decision) => decision,
    };
    let settlement = match (decision.settlement, decision.dead_letter_reason) {
        (Settlement::Delivered, None) => "delivered".to_owned(),
        (Settlement::Dropped, None) => "dropped".to_owned(),
        (Settlement::DeadLettered, Some(reason)) => format!("dead {reason}"),
        (Settlement::RetryScheduled { due_at_ms }, None) => match due_at_ms - NOW_MS {
            wait_ms if Some(wait_ms) == scheduled_ms => "retry by schedule".to_owned(),
            wait_ms => format!("retry in {wait_ms}"),
        },
        other => panic!("{other:?}"),
    };
    let disables = decision
        .disables
        .map_or(String::new(), |reason| format!(", disables {reason}"));
    let seen = match decision.seen {
        Seen::Nothing => "nothing seen".to_owned(),
        Seen::Succeeded { latency_ms } => format!("took it in {latency_ms}"),
        Seen::Failed { throttles, hold_ms } => {
            let throttles = if throttles { " throttles" } else { "" };
            format!(
                "failed{throttles}{}",
                hold_ms.map_or(String::new(), |ms| format!(" {ms}"))
            )
        }
    };
    let reason = decision.reason;
    format!(
        "{:?} {reason}: {settlement}{disables}; {seen}",
        decision.attempt
    )
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is one table")]
fn the_table_is_kept() {
    let (work, schedule) = (work(), RetrySchedule::standard());
    let plain = facts(&work, &schedule);
    let last = Facts {
        attempt: 10,
        ..plain
    };
    let down = Facts {
        network_is_down: true,
        ..plain
    };
    let failing = Facts {
        failing_since_ms: Some(NOW_MS - 5 * DAY_MS),
        ..plain
    };
    let doubtful = Facts {
        ages_tell: false,
        ..failing
    };
    let head = |when_blocked, blocked_for_ms| Facts {
        attempt: 4,
        head: Some(Head {
            when_blocked,
            failed_at_ms: Some(NOW_MS - blocked_for_ms),
            blocked_ms_max: HOUR_MS,
        }),
        ..plain
    };
    let (gives_up, waits) = (WhenBlocked::DeadLetter, WhenBlocked::Wait);
    let (ok, gone, error, busy) = (answered(204), answered(410), answered(500), answered(503));
    let (held, asks_day) = (asks_to_wait(429, 9_000_000), asks_to_wait(503, 2 * DAY_MS));
    let unanswered = Outcome::Unanswered;
    let (timeout, connect, dns) = (
        unanswered(Reason::Timeout),
        unanswered(Reason::Connect),
        unanswered(Reason::Dns),
    );
    let (tls, forbidden) = (
        unanswered(Reason::Tls),
        unanswered(Reason::AddressForbidden),
    );
    let mismatch = Outcome::Unsendable(Reason::FormatMismatch);
    let interrupted = |in_a_row| Observed::Interrupted { in_a_row };
    #[rustfmt::skip]
    let rows = [
        // What is known before an attempt.
        (Observed::EndpointDeleted, plain, "None endpoint_deleted: dropped; nothing seen"),
        (Observed::BacklogDiscarded, plain, "None backlog_discarded: dropped; nothing seen"),
        (Observed::Expired, plain, "None expired: dead expired; nothing seen"),
        (Observed::Expired, failing, "None expired: dead expired; nothing seen"),
        // What we cut short.
        (interrupted(1), plain, "interrupted"),
        (interrupted(2), down, "interrupted"),
        (interrupted(3), plain, "Failed timeout: retry by schedule; failed throttles"),
        (interrupted(4), last, "Failed timeout: dead exhausted; failed throttles"),
        // Answers.
        (attempted(&ok), plain, "Succeeded ok: delivered; took it in 7"),
        (attempted(&ok), failing, "Succeeded ok: delivered; took it in 7"),
        (attempted(&error), plain, "Failed server_error: retry by schedule; failed"),
        (attempted(&busy), plain, "Failed server_error: retry by schedule; failed throttles"),
        (attempted(&held), plain, "Failed rate_limited: retry in 9000000; failed throttles 9000000"),
        (attempted(&asks_day), plain, "Failed server_error: retry in 86400000; failed throttles 172800000"),
        (attempted(&error), last, "Failed server_error: dead exhausted; failed"),
        (attempted(&gone), plain, "Failed endpoint_gone: dead endpoint_gone, disables endpoint_gone; failed"),
        // No answer.
        (attempted(&timeout), plain, "Failed timeout: retry by schedule; failed throttles"),
        (attempted(&connect), plain, "Failed connect: retry by schedule; failed"),
        (attempted(&dns), plain, "Failed dns: retry by schedule; failed"),
        (attempted(&tls), plain, "Failed tls: retry by schedule; failed"),
        (attempted(&forbidden), plain, "Failed address_forbidden: retry by schedule; failed"),
        (attempted(&mismatch), plain, "Failed format_mismatch: dead format_mismatch; nothing seen"),
        (attempted(&mismatch), failing, "Failed format_mismatch: dead format_mismatch; nothing seen"),
        // Our own network is down.
        (attempted(&connect), down, "not spent"),
        (attempted(&dns), down, "not spent"),
        (attempted(&timeout), down, "Failed timeout: retry by schedule; failed throttles"),
        (attempted(&ok), down, "Succeeded ok: delivered; took it in 7"),
        // Nothing has succeeded for days.
        (attempted(&error), failing, "Failed server_error: retry by schedule, disables endpoint_failing; failed"),
        (attempted(&error), Facts { attempt: 10, ..failing }, "Failed server_error: dead exhausted, disables endpoint_failing; failed"),
        (attempted(&error), doubtful, "Failed server_error: retry by schedule; failed"),
        // The head of an ordering key.
        (attempted(&ok), head(gives_up, 0), "Succeeded ok: delivered; took it in 7"),
        (attempted(&error), head(gives_up, HOUR_MS - 50_000), "Failed server_error: retry in 50000; failed"),
        (attempted(&error), head(gives_up, HOUR_MS), "Failed server_error: dead blocked_too_long; failed"),
        (attempted(&error), Facts { ages_tell: false, ..head(gives_up, HOUR_MS) }, "Failed server_error: retry by schedule; failed"),
        (attempted(&error), Facts { attempt: 10, ..head(gives_up, 0) }, "Failed server_error: dead exhausted; failed"),
        (attempted(&held), head(gives_up, 0), "Failed rate_limited: retry in 9000000; failed throttles 9000000"),
        (attempted(&error), head(waits, 5 * HOUR_MS), "Failed server_error: retry by schedule; failed"),
        (attempted(&error), Facts { attempt: 1_000, ..head(waits, DAY_MS) }, "Failed server_error: retry in 86400000; failed"),
        (attempted(&gone), head(waits, 0), "Failed endpoint_gone: dead endpoint_gone, disables endpoint_gone; failed"),
        (attempted(&mismatch), head(waits, 0), "Failed format_mismatch: dead format_mismatch; nothing seen"),
        (interrupted(2), head(waits, 0), "interrupted"),
    ];
    for (observed, facts, expected) in rows {
        let scheduled_ms = schedule.delay_after(&work, facts.attempt);
        let verdict = judge(observed, &facts);
        assert_eq!(
            told(verdict, scheduled_ms),
            expected,
            "{observed:?} {facts:?}"
        );
    }
}

#[test]
fn a_head_that_fails_first_holds_back_from_when_the_attempt_began() {
    let (work, schedule) = (work(), RetrySchedule::try_new(vec![2 * HOUR_MS]).unwrap());
    let head = Head {
        when_blocked: WhenBlocked::DeadLetter,
        failed_at_ms: None,
        blocked_ms_max: HOUR_MS,
    };
    let facts = Facts {
        head: Some(head),
        ..facts(&work, &schedule)
    };
    let verdict = judge(attempted(&answered(500)), &facts);
    assert!(told(verdict, None).contains(&format!("retry in {}", HOUR_MS - 7)));
}

#[test]
fn what_does_not_fit_becomes_a_dead_letter_and_else_is_dropped() {
    let (work, schedule) = (work(), RetrySchedule::standard());
    let verdict = judge(attempted(&answered(500)), &facts(&work, &schedule));
    let Verdict::Settled(retry) = verdict else {
        panic!("{verdict:?}");
    };
    let letter = retry.where_it_does_not_fit();
    assert_eq!(letter.settlement, Settlement::DeadLettered);
    assert_eq!(letter.dead_letter_reason, Some(Reason::TooLarge));
    assert_eq!(letter.reason, Reason::ServerError, "the attempt's own");
    let nothing = letter.where_it_does_not_fit();
    assert_eq!(nothing.settlement, Settlement::Dropped);
    assert_eq!(nothing.dead_letter_reason, None);
    assert_eq!(nothing.where_it_does_not_fit(), nothing);
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
        let (work, schedule) = (work(), RetrySchedule::standard());
        let outcome = Outcome::Answered { status, retry_after_ms };
        let facts = Facts { attempt, now_ms, ..facts(&work, &schedule) };
        let Verdict::Settled(Decision { settlement: Settlement::RetryScheduled { due_at_ms }, .. }) =
            judge(attempted(&outcome), &facts)
        else {
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
        let (work, schedule) = (work(), RetrySchedule::standard());
        let facts = Facts { attempt, now_ms, ..facts(&work, &schedule) };
        let Verdict::Settled(decision) = judge(attempted(&answered(status)), &facts) else {
            return Err(TestCaseError::fail("not settled"));
        };
        let is_success = (200..300).contains(&status);
        prop_assert_eq!(decision.settlement == Settlement::Delivered, is_success);
        prop_assert_eq!(decision.disables.is_some(), status == 410);
        let is_dead = decision.settlement == Settlement::DeadLettered;
        prop_assert_eq!(decision.dead_letter_reason.is_some(), is_dead);
    }
}
