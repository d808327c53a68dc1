//! What follows from what was seen of a delivery: the one place where a retry is decided.
//!
//! [`judge`] is the table of the design: what was seen and the facts in, a [`Verdict`] out. Whoever
//! had the delivery in hand carries it out: writes the retry or the dead letter, disables the
//! endpoint, records the attempt. Where a record does not fit its topic,
//! [`Decision::where_it_does_not_fit`] says what follows instead.

use crate::delivery::{AttemptOutcome, Settlement};
use crate::endpoint::WhenBlocked;
use crate::outcome::{Outcome, Reason};
use crate::retry::RetrySchedule;
use crate::work::WorkId;

/// So many interruptions in a row count as a timeout: a delivery that takes workers down does not
/// live for ever.
pub const INTERRUPTIONS_MAX: u32 = 3;

/// A delivery that is tried for ever is not tried more often, even where the schedule has no
/// delays.
const WAIT_MS_MIN: i64 = 60_000;

/// What was seen of a delivery when its turn had come.
#[derive(Debug, Clone, Copy)]
pub enum Observed<'a> {
    /// Its endpoint does not exist, in a view of the registry that is at least as new as the
    /// delivery.
    EndpointDeleted,
    /// What had gathered for the endpoint was discarded when it was enabled.
    BacklogDiscarded,
    /// It waited for so long that retention would take it soon.
    Expired,
    /// We cut the attempt short, so many times in a row by now.
    Interrupted {
        /// This time included.
        in_a_row: u32,
    },
    /// An attempt ended.
    Attempted {
        /// With this.
        outcome: &'a Outcome,
        /// When it began.
        started_at_ms: i64,
        /// How long it took.
        duration_ms: u32,
    },
}

/// What else a verdict depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The delivery's work.
    pub work: &'a WorkId,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// The endpoint's schedule.
    pub schedule: &'a RetrySchedule,
    /// When the attempt ended.
    pub now_ms: i64,
    /// Whether ages tell anything: not while clocks disagree.
    pub ages_tell: bool,
    /// How it holds back others, if it is the head of an ordering key.
    pub head: Option<Head>,
    /// Our own network was down when the attempt began.
    pub network_is_down: bool,
    /// Since when nothing succeeded at the endpoint.
    pub failing_since_ms: Option<i64>,
    /// An endpoint at which nothing succeeded for so long is disabled.
    pub disable_failing_after_ms: i64,
}

/// How a delivery holds back the others of its ordering key.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// What the endpoint wants to become of it in the end.
    pub when_blocked: WhenBlocked,
    /// When it failed first, if that was before this attempt.
    pub failed_at_ms: Option<i64>,
    /// How long it may hold them back where it is dead-lettered in the end.
    pub blocked_ms_max: i64,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: no attempt is spent, and the delivery returns to its lane.
    NotSpent,
    /// The interruption is recorded and settles nothing.
    Interrupted,
    /// The delivery is settled.
    Settled(Decision),
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// How the attempt ended, if there was one.
    pub attempt: AttemptOutcome,
    /// Why.
    pub reason: Reason,
    /// What becomes of the delivery.
    pub settlement: Settlement,
    /// Why it becomes a dead letter, if it does; that may differ from why the attempt failed.
    pub dead_letter_reason: Option<Reason>,
    /// Why the endpoint is disabled before the delivery is settled, if it is.
    pub disables: Option<Reason>,
    /// What the attempt says about the endpoint.
    pub seen: Seen,
}

/// What an attempt says about an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It took the delivery.
    Succeeded {
        /// How long that took.
        latency_ms: u32,
    },
    /// It did not.
    Failed {
        /// It is overwhelmed: it is called less.
        throttles: bool,
        /// How long it asked to be left alone.
        hold_ms: Option<i64>,
    },
    /// Nothing: it was not asked, or the answer was cut off.
    Nothing,
}

/// Decides what follows from what was seen.
pub fn judge(observed: Observed<'_>, facts: &Facts<'_>) -> Verdict {
    let (outcome, started_at_ms, duration_ms) = match observed {
        Observed::EndpointDeleted => return dropped(Reason::EndpointDeleted),
        Observed::BacklogDiscarded => return dropped(Reason::BacklogDiscarded),
        Observed::Expired => return expired(),
        Observed::Interrupted { in_a_row } if in_a_row < INTERRUPTIONS_MAX => {
            return Verdict::Interrupted;
        }
        Observed::Interrupted { .. } => (&Outcome::Unanswered(Reason::Timeout), facts.now_ms, 0),
        Observed::Attempted {
            outcome,
            started_at_ms,
            duration_ms,
        } => (outcome, started_at_ms, duration_ms),
    };
    if facts.network_is_down && outcome.is_unreachable() {
        return Verdict::NotSpent;
    }
    let (settlement, dead_letter_reason) = settlement(outcome, started_at_ms, facts);
    let succeeded = settlement == Settlement::Delivered;
    Verdict::Settled(Decision {
        attempt: if succeeded {
            AttemptOutcome::Succeeded
        } else {
            AttemptOutcome::Failed
        },
        reason: outcome.reason(),
        settlement,
        dead_letter_reason,
        disables: disables(outcome.reason(), settlement, dead_letter_reason, facts),
        seen: if succeeded {
            Seen::Succeeded {
                latency_ms: duration_ms,
            }
        } else {
            seen_of_failure(outcome)
        },
    })
}

fn dropped(reason: Reason) -> Verdict {
    Verdict::Settled(Decision::unattempted(reason, Settlement::Dropped))
}

fn expired() -> Verdict {
    Verdict::Settled(Decision {
        dead_letter_reason: Some(Reason::Expired),
        ..Decision::unattempted(Reason::Expired, Settlement::DeadLettered)
    })
}

impl Decision {
    fn unattempted(reason: Reason, settlement: Settlement) -> Self {
        Self {
            attempt: AttemptOutcome::None,
            reason,
            settlement,
            dead_letter_reason: None,
            disables: None,
            seen: Seen::Nothing,
        }
    }

    /// The decision where what it leads to does not fit its topic: a dead letter instead of a
    /// retry, nothing instead of a dead letter.
    #[must_use]
    pub fn where_it_does_not_fit(self) -> Self {
        let (settlement, dead_letter_reason) = match self.settlement {
            Settlement::RetryScheduled { .. } => (Settlement::DeadLettered, Some(Reason::TooLarge)),
            Settlement::DeadLettered => (Settlement::Dropped, None),
            Settlement::Delivered | Settlement::Dropped => return self,
        };
        Self {
            settlement,
            dead_letter_reason,
            ..self
        }
    }
}

/// What becomes of the delivery, and why it becomes a dead letter if it does.
fn settlement(
    outcome: &Outcome,
    started_at_ms: i64,
    facts: &Facts<'_>,
) -> (Settlement, Option<Reason>) {
    match (outcome, outcome.reason()) {
        (_, Reason::Ok) => (Settlement::Delivered, None),
        (_, reason @ Reason::EndpointGone) | (Outcome::Unsendable(_), reason) => {
            (Settlement::DeadLettered, Some(reason))
        }
        _ => match facts.head {
            None => retried(outcome, facts),
            Some(head) => retried_head(outcome, head, started_at_ms, facts),
        },
    }
}

/// By the schedule, and not before the endpoint asked for.
fn retried(outcome: &Outcome, facts: &Facts<'_>) -> (Settlement, Option<Reason>) {
    let delay_ms = facts.schedule.delay_after(facts.work, facts.attempt);
    let Some(delay_ms) = delay_ms else {
        return (Settlement::DeadLettered, Some(Reason::Exhausted));
    };
    let due_at_ms = facts
        .now_ms
        .saturating_add(delay_ms.max(outcome.asked_wait_ms()));
    (Settlement::RetryScheduled { due_at_ms }, None)
}

/// A delivery that holds back others is tried for so long, and a last time at the end of it; or for
/// ever, with the longest delay of the schedule.
fn retried_head(
    outcome: &Outcome,
    head: Head,
    started_at_ms: i64,
    facts: &Facts<'_>,
) -> (Settlement, Option<Reason>) {
    let now_ms = facts.now_ms;
    match (head.when_blocked, retried(outcome, facts)) {
        (WhenBlocked::Wait, (Settlement::DeadLettered, _)) => {
            let delays_ms = facts.schedule.delays_ms().iter();
            let longest_ms = delays_ms.max().copied().unwrap_or(0);
            let due_at_ms = now_ms.saturating_add(longest_ms.max(WAIT_MS_MIN));
            (Settlement::RetryScheduled { due_at_ms }, None)
        }
        (WhenBlocked::DeadLetter, (Settlement::RetryScheduled { due_at_ms }, _)) => {
            let failed_at_ms = head.failed_at_ms.unwrap_or(started_at_ms);
            let ends_ms = match facts.ages_tell {
                true => failed_at_ms.saturating_add(head.blocked_ms_max),
                false => i64::MAX,
            };
            if now_ms >= ends_ms {
                return (Settlement::DeadLettered, Some(Reason::BlockedTooLong));
            }
            let not_before_ms = now_ms.saturating_add(outcome.asked_wait_ms());
            let due_at_ms = due_at_ms.min(ends_ms.max(not_before_ms));
            (Settlement::RetryScheduled { due_at_ms }, None)
        }
        (_, by_schedule) => by_schedule,
    }
}

/// Why the endpoint is disabled: it says that it is gone, or nothing has succeeded for days.
fn disables(
    reason: Reason,
    settlement: Settlement,
    dead_letter_reason: Option<Reason>,
    facts: &Facts<'_>,
) -> Option<Reason> {
    if reason == Reason::EndpointGone {
        return Some(reason);
    }
    let fails = matches!(settlement, Settlement::RetryScheduled { .. })
        || dead_letter_reason == Some(Reason::Exhausted);
    let fails_for_long = facts.failing_since_ms.is_some_and(|since_ms| {
        facts.now_ms.saturating_sub(since_ms) >= facts.disable_failing_after_ms
    });
    (fails && fails_for_long && facts.ages_tell).then_some(Reason::EndpointFailing)
}

fn seen_of_failure(outcome: &Outcome) -> Seen {
    let throttles = outcome.throttles();
    match outcome {
        Outcome::Unsendable(_) => Seen::Nothing,
        Outcome::Unanswered(_) => Seen::Failed {
            throttles,
            hold_ms: None,
        },
        Outcome::Answered { retry_after_ms, .. } => Seen::Failed {
            throttles,
            hold_ms: retry_after_ms.filter(|_| throttles),
        },
    }
}

#[cfg(test)]
mod tests;
