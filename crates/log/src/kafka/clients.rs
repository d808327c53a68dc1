//! The clients of one log: what each told, how each is, and what became of those before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rdkafka::Statistics;

use super::statistics::{ClientStatistics, ClientTotals};
use super::watchdog::{REPLACEMENTS, Sign, Verdict, Watch};
use crate::port::LogError;

/// Replacements that are farther apart are not of one trouble.
const APART: Duration = Duration::from_secs(60);

/// What a client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientKind {
    /// It asks about topics and offsets.
    Query,
    /// It appends.
    Producer,
    /// It reads without a group.
    Reader,
    /// It is a member of a group.
    Member,
}

/// How the clients of one name are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientState {
    /// Name of the producer, group, or topic that is read, without prefix.
    pub client: String,
    /// What they are for.
    pub kind: ClientKind,
    /// Whether each of them reaches a broker, as far as is known without asking; none if none is in
    /// use at present.
    pub connected: Option<bool>,
    /// Whether none of them was found dead whose successor has not yet heard a broker.
    pub alive: bool,
    /// How many were replaced because they were dead.
    pub replaced_total: u64,
    /// For how long one of them has been dead although brokers answer others.
    pub dead_for: Duration,
}

/// What all clients of one log have in common.
#[derive(Debug)]
pub(super) struct Clients {
    session: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    next_id: u64,
    live: BTreeMap<u64, Live>,
    names: BTreeMap<String, Named>,
    /// Whether brokers answer the client that asks them again and again.
    answered: bool,
    /// What a client said last since brokers were reached: a refused password or certificate, an
    /// unknown host.
    trouble: Option<String>,
}

/// A client that exists.
#[derive(Debug)]
struct Live {
    name: String,
    connected: bool,
    ill: bool,
    watch: Watch,
    statistics: Option<ClientStatistics>,
}

/// What is known of all clients of a name.
#[derive(Debug)]
struct Named {
    kind: ClientKind,
    /// Of clients that are gone.
    totals: Option<ClientTotals>,
    replaced_total: u64,
    replaced_in_a_row: u32,
    replaced_at: Option<Instant>,
    /// Whether one was replaced and its successor is not known to be well.
    missed: bool,
    dead_since: Option<Instant>,
}

/// A client's place among them, for as long as it lives.
#[derive(Debug)]
pub(super) struct Place {
    clients: Arc<Clients>,
    id: u64,
    name: String,
    kind: ClientKind,
}

impl Clients {
    /// No clients yet, whose members of groups are missed after this time.
    pub(super) fn new(session: Duration) -> Arc<Self> {
        Arc::new(Self {
            session,
            known: Mutex::default(),
        })
    }

    /// A place for a new client.
    pub(super) fn place(self: &Arc<Self>, kind: ClientKind, name: &str) -> Place {
        self.place_at(kind, name, Instant::now())
    }

    fn place_at(self: &Arc<Self>, kind: ClientKind, name: &str, now: Instant) -> Place {
        let mut known = self.lock();
        known.next_id += 1;
        let id = known.next_id;
        let live = Live {
            name: name.to_owned(),
            connected: true,
            ill: false,
            watch: Watch::new(self.session, now),
            statistics: None,
        };
        known.live.insert(id, live);
        known.names.entry(name.to_owned()).or_insert(Named {
            kind,
            totals: None,
            replaced_total: 0,
            replaced_in_a_row: 0,
            replaced_at: None,
            missed: false,
            dead_since: None,
        });
        Place {
            clients: Arc::clone(self),
            id,
            name: name.to_owned(),
            kind,
        }
    }

    /// Notes whether brokers answer.
    pub(super) fn answered(&self, answered: bool) {
        self.lock().answered = answered;
    }

    /// What the clients told of themselves, by name.
    pub(super) fn statistics(&self) -> Vec<ClientStatistics> {
        let known = self.lock();
        let mut by_name: BTreeMap<&str, ClientStatistics> = BTreeMap::new();
        for (name, named) in &known.names {
            if let Some(totals) = &named.totals {
                by_name.entry(name).or_default().totals.add(totals);
            }
        }
        for live in known.live.values() {
            if let Some(told) = &live.statistics {
                by_name.entry(&live.name).or_default().add(told);
            }
        }
        let named = by_name.into_iter();
        named
            .map(|(name, sum)| ClientStatistics {
                client: name.to_owned(),
                ..sum
            })
            .collect()
    }

    /// How the clients are, by name.
    pub(super) fn states(&self, now: Instant) -> Vec<ClientState> {
        let known = self.lock();
        let names = known.names.iter();
        names
            .map(|(name, named)| {
                let own = |live: &&Live| live.name == *name && live.watch.is_attended(now);
                let live = || known.live.values().filter(own);
                // Nobody needs a reader for ever; whoever had one that died may make no other.
                let missed =
                    named.missed && (named.kind != ClientKind::Reader || live().next().is_some());
                let alive = !missed && !live().any(|live| live.ill);
                let dead_since = named.dead_since.filter(|_| !alive);
                ClientState {
                    client: name.clone(),
                    kind: named.kind,
                    connected: live()
                        .map(|live| live.connected)
                        .reduce(|all, one| all && one),
                    alive,
                    replaced_total: named.replaced_total,
                    dead_for: dead_since
                        .map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
                }
            })
            .collect()
    }

    /// Adds to an error that names no cause what the clients know of it.
    pub(super) fn explain(&self, error: LogError) -> LogError {
        match (error, &self.lock().trouble) {
            (LogError::Unavailable(text), Some(trouble)) => {
                LogError::Unavailable(format!("{text}: {trouble}"))
            }
            (error, _) => error,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}

impl Place {
    /// Name of the client, for logs and metrics.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Notes that a broker answered.
    pub(super) fn heard(&self) {
        self.with(|live, trouble| {
            live.connected = true;
            live.watch.note(Sign::Silent, false);
            live.watch.note(Sign::Disconnected, false);
            *trouble = None;
        });
    }

    /// Notes that it waits for an answer from now on, or goes on to.
    pub(super) fn asks(&self) {
        self.with(|live, _| live.watch.note(Sign::Silent, true));
    }

    /// Notes that no broker can be reached, and says so once for each outage. A reader that nobody
    /// used meanwhile tells of an outage when it is over.
    pub(super) fn unreachable(&self, reason: &str) {
        let is_old = self.kind == ClientKind::Reader && self.brokers_answer();
        if self.lost_all() && !is_old {
            tracing::warn!(client = self.name, reason, "no kafka broker answers");
        }
    }

    /// Notes that its last connection was lost; whether that was not known.
    fn lost_all(&self) -> bool {
        self.with(|live, _| {
            // The others connect when they have a reason, and tell of it.
            if self.kind == ClientKind::Reader {
                live.watch.note(Sign::Disconnected, true);
            }
            std::mem::replace(&mut live.connected, false)
        })
        .unwrap_or(false)
    }

    /// Whether brokers answer the client that asks them again and again.
    pub(super) fn brokers_answer(&self) -> bool {
        self.clients.lock().answered
    }

    /// Notes what went wrong, as the client says it.
    pub(super) fn trouble(&self, reason: &str) {
        self.with(|_, trouble| *trouble = Some(reason.to_owned()));
    }

    /// Notes what it tells of itself. `waits` says whether it waits for an answer.
    pub(super) fn told(&self, told: &Statistics, waits: bool) {
        let statistics = ClientStatistics::of(&self.name, told);
        let knows = |source: &str| matches!(source, "configured" | "learned");
        let no_brokers = !told.brokers.values().any(|broker| knows(&broker.source));
        self.with(|live, trouble| {
            let before = live.statistics.as_ref();
            let heard = statistics.totals.received_bytes
                > before.map_or(0, |before| before.totals.received_bytes);
            let ever = statistics.totals.received_bytes > 0;
            live.watch.note(Sign::Silent, !heard && (waits || !ever));
            live.watch.note(Sign::NoBrokers, no_brokers);
            if let Some(group) = &told.cgrp {
                live.watch.note(Sign::NoCoordinator, group.state != "up");
                let joins = matches!(
                    group.join_state.as_str(),
                    "wait-join" | "wait-metadata" | "wait-sync"
                );
                live.watch.note(Sign::NotJoined, joins);
            }
            if no_brokers {
                live.connected = false;
            } else if heard && statistics.brokers_connected > 0 {
                live.connected = true;
                *trouble = None;
            }
            live.statistics = Some(statistics);
        });
    }

    /// Whether the client is dead and has to be replaced; says so, and counts it.
    pub(super) fn is_dead(&self) -> bool {
        self.judge(Instant::now()).is_some()
    }

    fn judge(&self, now: Instant) -> Option<Sign> {
        let mut guard = self.clients.lock();
        let known = &mut *guard;
        // Who asks the brokers again and again learns in this way whether they answer.
        let answered = known.answered || self.kind == ClientKind::Query;
        let (live, named) = (
            known.live.get_mut(&self.id)?,
            known.names.get_mut(&self.name)?,
        );
        if !live.watch.is_attended(now) {
            // What was meanwhile nobody knows.
            (named.missed, named.dead_since) = (false, None);
        }
        let verdict = live.watch.look(answered, now);
        live.ill = matches!(verdict, Verdict::Ill | Verdict::Dead(_));
        if verdict == Verdict::Well {
            named.missed = false;
        }
        let ill = named.missed
            || known
                .live
                .values()
                .any(|one| one.name == self.name && one.ill);
        if ill && known.answered {
            named.dead_since.get_or_insert(now);
        } else {
            named.dead_since = None;
        }
        let since_last = named
            .replaced_at
            .map(|at| now.saturating_duration_since(at));
        if !ill && since_last.is_some_and(|since| since > APART) {
            named.replaced_in_a_row = 0;
        }
        let Verdict::Dead(sign) = verdict else {
            return None;
        };
        if since_last.is_some_and(|since| since < REPLACEMENTS.pause(named.replaced_in_a_row)) {
            return None;
        }
        named.replaced_at = Some(now);
        named.replaced_total += 1;
        named.replaced_in_a_row = named.replaced_in_a_row.saturating_add(1);
        named.missed = true;
        tracing::warn!(
            client = self.name,
            kind = ?self.kind,
            reason = sign.reason(),
            in_a_row = named.replaced_in_a_row,
            "a kafka client is dead and is replaced"
        );
        Some(sign)
    }

    fn with<T>(&self, note: impl FnOnce(&mut Live, &mut Option<String>) -> T) -> Option<T> {
        let mut guard = self.clients.lock();
        let known = &mut *guard;
        let live = known.live.get_mut(&self.id)?;
        Some(note(live, &mut known.trouble))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guard = self.clients.lock();
        let known = &mut *guard;
        let (Some(gone), Some(named)) =
            (known.live.remove(&self.id), known.names.get_mut(&self.name))
        else {
            return;
        };
        if let Some(last) = gone.statistics {
            named.totals.get_or_insert_default().add(&last.totals);
        }
        // Only a member is sure to have a successor.
        if matches!(self.kind, ClientKind::Reader | ClientKind::Producer)
            && !known.live.values().any(|one| one.name == self.name)
        {
            (named.missed, named.dead_since) = (false, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(45);

    /// A place whose clock is looked at once a second.
    struct Watched {
        clients: Arc<Clients>,
        now: Instant,
    }

    impl Watched {
        fn new() -> Self {
            let clients = Clients::new(SESSION);
            clients.answered(true);
            let now = Instant::now();
            Self { clients, now }
        }

        fn place(&self, kind: ClientKind, name: &str) -> Place {
            self.clients.place_at(kind, name, self.now)
        }

        fn judge(&mut self, place: &Place, seconds: u32) -> usize {
            let mut dead = 0;
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                dead += usize::from(place.judge(self.now).is_some());
            }
            dead
        }

        fn state(&self) -> ClientState {
            self.clients.states(self.now).remove(0)
        }
    }

    fn told(bytes: i64, sources: &[(&str, &str)]) -> Statistics {
        let broker = |(source, state): &(&str, &str)| rdkafka::statistics::Broker {
            source: (*source).to_owned(),
            state: (*state).to_owned(),
            ..Default::default()
        };
        Statistics {
            rx_bytes: bytes,
            brokers: sources
                .iter()
                .map(|one| (one.0.to_owned(), broker(one)))
                .collect(),
            ..Statistics::default()
        }
    }

    #[test]
    fn totals_go_on_when_a_client_is_replaced_and_what_it_held_is_gone() {
        let clients = Clients::new(SESSION);
        let told = |bytes, queued| Statistics {
            tx_bytes: bytes,
            msg_cnt: queued,
            ..Statistics::default()
        };
        let place = || clients.place(ClientKind::Producer, "deliver");
        let (first, other) = (place(), place());
        first.told(&told(10, 1), false);
        first.told(&told(20, 2), false);
        other.told(&told(5, 3), false);
        let read = clients.statistics();
        assert_eq!(
            (read[0].totals.sent_bytes, read[0].producer_queue_records),
            (25, 5)
        );
        drop(first);
        let read = clients.statistics();
        assert_eq!(
            (read[0].totals.sent_bytes, read[0].producer_queue_records),
            (25, 3)
        );
        assert_eq!((read.len(), read[0].client.as_str()), (1, "deliver"));
    }

    #[test]
    fn a_client_that_forgot_every_broker_is_missed_until_its_successor_has_heard_one() {
        let mut watched = Watched::new();
        let up = [("learned", "UP"), ("logical", "UP")];
        let forgot = [("internal", "UP"), ("logical", "UP")];
        let place = watched.place(ClientKind::Member, "fan-out");
        place.told(&told(10, &up), true);
        assert_eq!(watched.judge(&place, 100), 0);
        assert!(watched.state().alive);
        // Its coordinator goes on to answer.
        place.told(&told(20, &forgot), true);
        assert_eq!(watched.judge(&place, 7), 1);
        let dead = watched.state();
        assert!(!dead.alive && dead.replaced_total == 1, "{dead:?}");
        drop(place);
        assert!(!watched.state().alive, "nobody is there");
        let place = watched.place(ClientKind::Member, "fan-out");
        assert_eq!(watched.judge(&place, 20), 0);
        assert!(!watched.state().alive, "it has heard nothing yet");
        assert!(watched.state().dead_for >= Duration::from_secs(20));
        place.told(&told(10, &up), true);
        assert_eq!(watched.judge(&place, 1), 0);
        let well = watched.state();
        assert!(well.alive && well.dead_for.is_zero(), "{well:?}");
    }

    #[test]
    fn an_idle_producer_is_well_and_one_that_waits_in_vain_is_dead() {
        let mut watched = Watched::new();
        let place = watched.place(ClientKind::Producer, "ingest");
        let idle = told(10, &[("learned", "INIT")]);
        place.told(&idle, false);
        for _ in 0..100 {
            place.told(&idle, false);
            assert_eq!(watched.judge(&place, 5), 0);
        }
        assert!(watched.state().alive);
        place.told(&idle, true);
        assert_eq!(watched.judge(&place, 44), 0);
        assert_eq!(watched.judge(&place, 2), 1);
    }

    #[test]
    fn while_no_broker_answers_nobody_is_replaced_but_who_asks_them() {
        let mut watched = Watched::new();
        watched.clients.answered(false);
        let member = watched.place(ClientKind::Member, "fan-out");
        assert_eq!(watched.judge(&member, 3600), 0);
        let state = watched.state();
        assert!(!state.alive && state.dead_for.is_zero(), "{state:?}");
        let mut replaced = 0;
        for _ in 0..60 {
            let query = watched.place(ClientKind::Query, "query");
            replaced += watched.judge(&query, 60).min(1);
        }
        assert_eq!(replaced, 60);
        let states = watched.clients.states(watched.now);
        assert!(states.iter().all(|state| state.dead_for.is_zero()));
    }

    #[test]
    fn a_producer_is_missed_while_its_successor_is_there_and_not_when_nobody_has_one() {
        let mut watched = Watched::new();
        let place = watched.place(ClientKind::Producer, "registry");
        let idle = told(10, &[("learned", "INIT")]);
        place.told(&idle, false);
        place.told(&idle, true);
        assert_eq!(watched.judge(&place, 46), 1);
        let successor = watched.place(ClientKind::Producer, "registry");
        drop(place);
        assert!(!watched.state().alive, "it has heard nothing yet");
        drop(successor);
        assert!(watched.state().alive);
    }

    #[test]
    fn a_reader_that_nobody_has_any_more_is_not_missed() {
        let mut watched = Watched::new();
        let place = watched.place(ClientKind::Reader, "registry");
        place.heard();
        assert!(place.lost_all() && !place.lost_all());
        assert_eq!(watched.judge(&place, 11), 1);
        assert!(!watched.state().alive);
        drop(place);
        assert!(watched.state().alive);
    }
}
