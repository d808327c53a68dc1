//! Whether a client has died, judged from what was seen of it.
//!
//! Librdkafka repairs connections by itself, but not always: an answer without brokers makes a
//! client forget them all for good (librdkafka#5301), and it says nothing. Each sign that something
//! is wrong is measured in time that the client was attended to, so that neither a process that was
//! frozen nor a busy machine makes a client look dead. A client is replaced only for what lasted
//! while another client was answered: when no broker can be reached, a new one is of no use, and
//! the old one goes on by itself.

use std::time::{Duration, Instant};

use crate::Backoff;

/// What may count between two looks at a client.
const STEP_MAX: Duration = Duration::from_secs(10);
/// Longer than any call to a client takes.
const UNATTENDED: Duration = Duration::from_secs(60);
/// The client never gets out of this by itself.
const NO_BROKERS_PATIENCE: Duration = Duration::from_secs(5);
/// Five times what the client takes between two attempts to connect.
const DISCONNECTED_PATIENCE: Duration = Duration::from_secs(10);
/// What a busy broker may take to answer, however short a session is.
const SILENCE_MIN: Duration = Duration::from_secs(30);
/// What a rebalance may take while another member does not join: librdkafka's
/// `max.poll.interval.ms`.
const REBALANCE_MAX: Duration = Duration::from_secs(300);
/// Between two replacements that come one upon the other.
pub(super) const REPLACEMENTS: Backoff = Backoff {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(20),
};

/// What may be wrong with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It knows no broker any more.
    NoBrokers,
    /// It lost every connection, and was asked for something since.
    Disconnected,
    /// It waits for an answer and gets none.
    Silent,
    /// It has not found the coordinator of its group.
    NoCoordinator,
    /// It has not joined its group.
    NotJoined,
}

impl Sign {
    const ALL: [Self; 5] = [
        Self::NoBrokers,
        Self::Disconnected,
        Self::Silent,
        Self::NoCoordinator,
        Self::NotJoined,
    ];

    /// For logs.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NoBrokers => "it knows no broker any more",
            Self::Disconnected => "it connects to no broker any more",
            Self::Silent => "no broker answers it",
            Self::NoCoordinator => "it finds no coordinator of its group",
            Self::NotJoined => "it does not get into its group",
        }
    }

    fn patience(self, session: Duration) -> Duration {
        let silence = session.max(SILENCE_MIN);
        match self {
            Self::NoBrokers => NO_BROKERS_PATIENCE,
            Self::Disconnected => DISCONNECTED_PATIENCE,
            Self::Silent | Self::NoCoordinator => silence,
            Self::NotJoined => silence + REBALANCE_MAX,
        }
    }
}

/// How a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is wrong.
    Well,
    /// A sign of trouble, but not for long.
    Waits,
    /// It is of no use at present.
    Ill,
    /// It is of no use although brokers answer others.
    Dead(Sign),
}

/// How long a sign has lasted: in all, and while brokers answered others.
#[derive(Debug, Clone, Copy, Default)]
struct Lasted {
    all: Duration,
    answered: Duration,
}

/// What was seen of one client.
#[derive(Debug)]
pub(super) struct Watch {
    session: Duration,
    looked_at: Instant,
    signs: [Option<Lasted>; Sign::ALL.len()],
}

impl Watch {
    /// Of a new client, which has heard nothing yet.
    pub(super) fn new(session: Duration, now: Instant) -> Self {
        let mut watch = Self {
            session,
            looked_at: now,
            signs: Default::default(),
        };
        watch.note(Sign::Silent, true);
        watch
    }

    /// Whether anybody looked at it lately. Nobody looks at a reader between two reads.
    pub(super) fn is_attended(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.looked_at) < UNATTENDED
    }

    /// Notes whether a sign is seen at present.
    pub(super) fn note(&mut self, sign: Sign, seen: bool) {
        let lasted = &mut self.signs[sign as usize];
        *lasted = seen.then(|| lasted.unwrap_or_default());
    }

    /// Looks at the client. `answered` says whether brokers answer others.
    pub(super) fn look(&mut self, answered: bool, now: Instant) -> Verdict {
        let step = now.saturating_duration_since(self.looked_at).min(STEP_MAX);
        self.looked_at = now;
        for lasted in self.signs.iter_mut().flatten() {
            lasted.all += step;
            lasted.answered += if answered { step } else { Duration::ZERO };
        }
        let session = self.session;
        let seen = || {
            let signs = Sign::ALL.into_iter().zip(&self.signs);
            signs.filter_map(|(sign, lasted)| Some((sign, (*lasted)?)))
        };
        let dead = seen().find(|(sign, lasted)| lasted.answered >= sign.patience(session));
        if let Some((sign, _)) = dead.filter(|_| answered) {
            Verdict::Dead(sign)
        } else if seen().any(|(sign, lasted)| lasted.all >= sign.patience(session)) {
            Verdict::Ill
        } else if seen().next().is_some() {
            Verdict::Waits
        } else {
            Verdict::Well
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(45);

    /// Looks every second for so long, and tells the last verdict.
    fn watched(watch: &mut Watch, now: &mut Instant, answered: bool, seconds: u32) -> Verdict {
        let mut verdict = Verdict::Well;
        for _ in 0..seconds {
            *now += Duration::from_secs(1);
            verdict = watch.look(answered, *now);
        }
        verdict
    }

    fn healthy() -> (Watch, Instant) {
        let now = Instant::now();
        let mut watch = Watch::new(SESSION, now);
        watch.note(Sign::Silent, false);
        (watch, now)
    }

    #[test]
    fn a_client_that_hears_or_has_asked_nothing_is_well_for_ever() {
        let (mut watch, mut now) = healthy();
        assert_eq!(watched(&mut watch, &mut now, true, 100_000), Verdict::Well);
    }

    #[test]
    fn each_sign_has_its_time_and_what_is_over_in_time_is_forgotten() {
        for (sign, seconds) in [
            (Sign::NoBrokers, 5),
            (Sign::Disconnected, 10),
            (Sign::Silent, 45),
            (Sign::NoCoordinator, 45),
            (Sign::NotJoined, 345),
        ] {
            let (mut watch, mut now) = healthy();
            for _ in 0..10 {
                watch.note(sign, true);
                let last = watched(&mut watch, &mut now, true, seconds - 1);
                assert_eq!(last, Verdict::Waits, "{sign:?}");
                watch.note(sign, false);
                assert_eq!(watched(&mut watch, &mut now, true, 1), Verdict::Well);
            }
            watch.note(sign, true);
            let last = watched(&mut watch, &mut now, true, seconds);
            assert_eq!(last, Verdict::Dead(sign));
        }
    }

    #[test]
    fn a_short_session_makes_nobody_impatient_with_a_busy_broker() {
        let mut now = Instant::now();
        let mut watch = Watch::new(Duration::from_secs(6), now);
        assert_eq!(watched(&mut watch, &mut now, true, 29), Verdict::Waits);
        let last = watched(&mut watch, &mut now, true, 1);
        assert_eq!(last, Verdict::Dead(Sign::Silent));
    }

    #[test]
    fn nobody_is_replaced_for_the_time_in_which_no_broker_answers_anybody() {
        let mut now = Instant::now();
        let mut watch = Watch::new(SESSION, now);
        assert_eq!(watched(&mut watch, &mut now, false, 44), Verdict::Waits);
        assert_eq!(watched(&mut watch, &mut now, false, 3600), Verdict::Ill);
        // Brokers are back; the client has as long as any to notice.
        assert_eq!(watched(&mut watch, &mut now, true, 44), Verdict::Ill);
        assert_eq!(
            watched(&mut watch, &mut now, true, 1),
            Verdict::Dead(Sign::Silent)
        );
        assert_eq!(watched(&mut watch, &mut now, false, 1), Verdict::Ill);
    }

    #[test]
    fn a_process_that_was_frozen_or_starved_has_not_watched() {
        let (mut watch, now) = healthy();
        watch.note(Sign::Silent, true);
        let thawed = now + Duration::from_secs(600);
        assert_eq!(watch.look(true, thawed), Verdict::Waits);
        watch.note(Sign::Silent, false);
        assert_eq!(watch.look(true, thawed), Verdict::Well);
    }
}
