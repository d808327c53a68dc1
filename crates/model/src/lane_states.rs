//! The records of `endpoint-state`: how the states of a partition's lanes are written there, and
//! which of them count.
//!
//! The key says what a record is:
//!
//! | key | value | |
//! |---|---|---|
//! | `claim` | empty | its offset becomes a new state id |
//! | `lane/<endpoint id>/<state id>` | a [`LaneState`], or none | a lane's state under that id |
//! | `ready` | the state id, in digits | under it the states of all lanes are there |
//!
//! The owner of a partition claims an id, writes the states of all lanes under it, and says
//! `ready`. From then on its commits name the id, and only states under the id that the commit
//! names count. Where the commit names none (it was made by hand), those count that were written
//! completely last.
//!
//! A state that is not understood was written by a release that this one does not know, or was
//! damaged. Its key tells whose it is. Its lane counts as behind from the lowest offset at which
//! the commit allows a lane to be: nothing of it is skipped, and what the settled set does not
//! remember is attempted again.
//!
//! An offset may be given a second time, in a log that lost what it had there. A state says nothing
//! of records from there on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::commit_note::CommitNote;
use crate::delivery::{Cursor, LaneState};
use crate::ids::EndpointId;
use crate::wire::InvalidRecord;

const CLAIM: &[u8] = b"claim";
const READY: &[u8] = b"ready";
const LANE: &str = "lane/";

/// A record as it is appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRecord {
    /// Its key.
    pub key: Bytes,
    /// Its value; `None` removes what was there under the key.
    pub value: Option<Bytes>,
}

impl StateRecord {
    /// Its offset will be a new state id.
    #[must_use]
    pub fn claim() -> Self {
        Self {
            key: Bytes::from_static(CLAIM),
            value: Some(Bytes::new()),
        }
    }

    /// Says that the states of all lanes were written under this id.
    #[must_use]
    pub fn ready(state_id: i64) -> Self {
        Self {
            key: Bytes::from_static(READY),
            value: Some(state_id.to_string().into()),
        }
    }

    /// A lane's state.
    #[must_use]
    pub fn of(state: &LaneState) -> Self {
        Self {
            key: StateKey::new(&state.endpoint, state.state_id).encode(),
            value: Some(state.encode()),
        }
    }

    /// Removes the state that is under this key, a [`StateKey`].
    #[must_use]
    pub fn removal(key: Bytes) -> Self {
        Self { key, value: None }
    }
}

/// Under which key the state of a lane is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateKey {
    /// Whose lane it is.
    pub endpoint: EndpointId,
    /// The id that it was written under.
    pub state_id: i64,
}

impl StateKey {
    /// The key of a lane's state under an id.
    #[must_use]
    pub fn new(endpoint: &EndpointId, state_id: i64) -> Self {
        Self {
            endpoint: endpoint.clone(),
            state_id,
        }
    }

    /// As the key of a record.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        format!("{LANE}{}/{}", self.endpoint, self.state_id).into()
    }

    /// Reads it back; `None` if it is the key of something else.
    fn decode(key: &[u8]) -> Option<Self> {
        let of_lane = std::str::from_utf8(key).ok()?.strip_prefix(LANE)?;
        let (endpoint, state_id) = of_lane.rsplit_once('/')?;
        let decoded = Self {
            endpoint: EndpointId::try_new(endpoint).ok()?,
            state_id: state_id.parse().ok()?,
        };
        (decoded.encode() == key).then_some(decoded)
    }

    /// Reads a state that is under this key.
    fn state(&self, value: &[u8]) -> Result<LaneState, InvalidRecord> {
        let state = LaneState::decode(value)?;
        if (&state.endpoint, state.state_id) == (&self.endpoint, self.state_id) {
            return Ok(state);
        }
        let of = Self::new(&state.endpoint, state.state_id).encode();
        Err(InvalidRecord::malformed(
            "lane_state",
            format!("belongs under the key {of:?}"),
        ))
    }
}

/// What is kept of a lane's state.
pub trait KeptState: From<LaneState> + Clone {
    /// Forgets what it says of records from this offset on: the log has others there now.
    fn forget_from(&mut self, offset: i64);
}

impl KeptState for LaneState {
    fn forget_from(&mut self, offset: i64) {
        self.blocked.retain(|blocked| blocked.cursor < offset);
        if let Some(cursor) = &mut self.cursor {
            cursor.lowest_unsettled = cursor.lowest_unsettled.min(offset);
            cursor.settled.retain(|settled| *settled < offset);
        }
    }
}

/// The states of one partition, those that count and the others, as far as its records were read.
/// `S` is what is kept of each.
#[derive(Debug)]
pub struct LaneStates<S = LaneState> {
    states: BTreeMap<StateKey, Read<S>>,
    /// Under which id the states were written completely last.
    ready: Option<i64>,
    /// Whose states are kept; `None`: everybody's.
    only: Option<EndpointId>,
}

/// What was read under a key.
#[derive(Debug)]
enum Read<S> {
    Understood(S),
    NotUnderstood { written_at_ms: i64 },
}

impl<S> Default for LaneStates<S> {
    fn default() -> Self {
        Self {
            states: BTreeMap::new(),
            ready: None,
            only: None,
        }
    }
}

impl<S: KeptState> LaneStates<S> {
    /// The states of one endpoint only.
    #[must_use]
    pub fn only_of(endpoint: EndpointId) -> Self {
        Self {
            only: Some(endpoint),
            ..Self::default()
        }
    }

    /// Takes a record, in the order of the log.
    ///
    /// # Errors
    /// When it is not understood. If it is a state, that is noted.
    pub fn read(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        written_at_ms: i64,
    ) -> Result<(), InvalidRecord> {
        if key == CLAIM {
            return Ok(());
        }
        if key == READY {
            let id = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
            self.ready = id.or(self.ready);
            return id
                .map(drop)
                .ok_or_else(|| InvalidRecord::malformed("ready", "names no state id"));
        }
        let Some(key) = StateKey::decode(key) else {
            return Err(InvalidRecord::malformed("key", "is that of no state"));
        };
        if self.only.as_ref().is_some_and(|only| *only != key.endpoint) {
            return Ok(());
        }
        let Some(value) = value else {
            self.states.remove(&key);
            return Ok(());
        };
        let state = key.state(value);
        let (read, result) = match state {
            Ok(state) => (Read::Understood(state.into()), Ok(())),
            Err(error) => (Read::NotUnderstood { written_at_ms }, Err(error)),
        };
        self.states.insert(key, read);
        result
    }

    /// The states that count when this offset of `deliveries` is committed with this note, and
    /// `deliveries` ends there.
    pub fn counting(
        &self,
        committed: i64,
        note: &CommitNote,
        end: i64,
    ) -> impl Iterator<Item = S> + use<'_, S> {
        let counts = note.state_id.or(self.ready);
        let unsettled_from = lanes_unsettled_from(committed, note);
        let given_anew_from = if note.past_is_void { committed } else { end };
        let counting = self
            .states
            .iter()
            .filter(move |(key, _)| Some(key.state_id) == counts);
        counting.map(move |(key, read)| {
            let mut state = match read {
                Read::Understood(state) => state.clone(),
                Read::NotUnderstood { written_at_ms } => {
                    behind_from(key, unsettled_from, *written_at_ms).into()
                }
            };
            state.forget_from(given_anew_from);
            state
        })
    }

    /// The keys of all states that are there, whether or not they count.
    pub fn keys(&self) -> impl Iterator<Item = &StateKey> {
        self.states.keys()
    }
}

/// Below this offset no lane of the partition has an unsettled record, as far as the commit tells.
fn lanes_unsettled_from(committed: i64, note: &CommitNote) -> i64 {
    match (note.behind_from, note.state_written) {
        (Some(behind_from), _) => behind_from.min(committed),
        // No lane is behind, so each holds the commit.
        (None, Some(_)) => committed,
        // Older releases did not note where lanes are, and neither does who decides from outside.
        (None, None) => 0,
    }
}

/// The state of a lane of which nothing else is known.
fn behind_from(key: &StateKey, lowest_unsettled: i64, behind_since_ms: i64) -> LaneState {
    LaneState {
        endpoint: key.endpoint.clone(),
        state_id: key.state_id,
        cursor: Some(Cursor {
            lowest_unsettled,
            settled: BTreeSet::new(),
            behind_since_ms,
        }),
        failing_since_ms: None,
        breaker_openings: 0,
        breaker_open_until_ms: 0,
        blocked: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `deliveries`.
    const END: i64 = 100;

    fn state(endpoint: &str, state_id: i64, lowest_unsettled: Option<i64>) -> LaneState {
        LaneState {
            endpoint: endpoint.parse().unwrap(),
            state_id,
            cursor: lowest_unsettled.map(|lowest_unsettled| Cursor {
                lowest_unsettled,
                settled: BTreeSet::new(),
                behind_since_ms: 5,
            }),
            failing_since_ms: None,
            breaker_openings: 0,
            breaker_open_until_ms: 0,
            blocked: Vec::new(),
        }
    }

    fn read(states: &mut LaneStates, record: &StateRecord) -> Result<(), InvalidRecord> {
        states.read(&record.key, record.value.as_deref(), 7)
    }

    fn read_all(states: &mut LaneStates, records: impl IntoIterator<Item = StateRecord>) {
        for record in records {
            read(states, &record).unwrap();
        }
    }

    /// Whose states count, and from where on each is behind.
    fn counting(
        states: &LaneStates,
        committed: i64,
        note: &CommitNote,
    ) -> Vec<(String, Option<i64>)> {
        let counting = states.counting(committed, note, END);
        let shown = counting.map(|state| (state.endpoint.to_string(), state.lowest_unsettled()));
        shown.collect()
    }

    fn named(state_id: i64) -> CommitNote {
        CommitNote {
            state_id: Some(state_id),
            ..CommitNote::default()
        }
    }

    #[test]
    fn only_the_states_that_the_commit_names_count() {
        let mut states = LaneStates::default();
        let records = [
            StateRecord::claim(),
            StateRecord::of(&state("ep_a", 1, Some(10))),
            StateRecord::ready(1),
            StateRecord::claim(),
            StateRecord::of(&state("ep_a", 2, None)),
            StateRecord::of(&state("ep_b", 2, Some(30))),
        ];
        read_all(&mut states, records);
        let (a, b) = ("ep_a".to_owned(), "ep_b".to_owned());
        assert_eq!(
            counting(&states, 40, &CommitNote::default()),
            [(a.clone(), Some(10))],
            "where the commit names none, those that were written completely last"
        );
        let under_two = [(a.clone(), None), (b.clone(), Some(30))];
        assert_eq!(counting(&states, 40, &named(2)), under_two);
        assert_eq!(counting(&states, 40, &named(3)), []);
        let of_b = StateKey::new(&b.parse().unwrap(), 2);
        read_all(&mut states, [StateRecord::removal(of_b.encode())]);
        assert_eq!(counting(&states, 40, &named(2)), [(a, None)]);
        assert_eq!(states.keys().count(), 2, "of both ids");
    }

    #[test]
    fn one_endpoint_is_read_without_the_others() {
        let mut states = LaneStates::only_of("ep_b".parse().unwrap());
        let of = |endpoint| StateRecord::of(&state(endpoint, 1, Some(10)));
        read_all(&mut states, [of("ep_a"), of("ep_b"), StateRecord::ready(1)]);
        let counting = counting(&states, 40, &CommitNote::default());
        assert_eq!(counting, [("ep_b".to_owned(), Some(10))]);
    }

    #[test]
    fn a_lane_whose_state_is_not_understood_skips_nothing() {
        let mut states = LaneStates::default();
        read_all(&mut states, [StateRecord::of(&state("ep_a", 2, Some(30)))]);
        let damaged = StateRecord {
            value: Some(Bytes::from_static(b"\xff")),
            ..StateRecord::of(&state("ep_a", 2, None))
        };
        assert!(read(&mut states, &damaged).is_err());
        let of_another = StateRecord {
            value: StateRecord::of(&state("ep_a", 1, None)).value,
            ..StateRecord::of(&state("ep_b", 2, None))
        };
        assert!(read(&mut states, &of_another).is_err());
        for (behind_from, state_written, from) in [
            (Some(20), Some(9), 20),
            (Some(50), Some(9), 40),
            (None, Some(9), 40),
            (None, None, 0),
        ] {
            let note = CommitNote {
                behind_from,
                state_written,
                ..named(2)
            };
            let expected = ["ep_a", "ep_b"].map(|endpoint| (endpoint.to_owned(), Some(from)));
            assert_eq!(counting(&states, 40, &note), expected, "{note:?}");
        }
        let state = states.counting(40, &named(2), END).next().unwrap();
        assert_eq!(state.behind().unwrap().since_ms, 7);
    }

    #[test]
    fn a_state_says_nothing_of_offsets_that_are_given_again() {
        let mut states = LaneStates::default();
        let records = [
            StateRecord::of(&state("ep_a", 1, Some(30))),
            StateRecord::ready(1),
        ];
        read_all(&mut states, records);
        let void = CommitNote::void_past();
        for (committed, note, end, from) in [
            (40, &named(1), 100, 30),
            (40, &named(1), 20, 20),
            (10, &void, 100, 10),
            (40, &void, 100, 30),
        ] {
            let state = states.counting(committed, note, end).next().unwrap();
            assert_eq!(state.lowest_unsettled(), Some(from), "{committed} {note:?}");
        }
    }

    #[test]
    fn what_is_no_record_of_the_topic_changes_nothing() {
        let mut states = LaneStates::default();
        let records = [
            StateRecord::of(&state("ep_a", 1, Some(10))),
            StateRecord::ready(1),
        ];
        read_all(&mut states, records);
        for key in [
            "",
            "later",
            "ready",
            "lane/",
            "lane/ep_a",
            "lane/ep_a/",
            "lane/ep_a/x",
            "lane/ep_a/01",
            "lane//1",
            "lane/a/1",
        ] {
            let refused = states.read(key.as_bytes(), Some(b"x"), 7);
            assert!(refused.is_err(), "{key}");
        }
        let counting = counting(&states, 40, &CommitNote::default());
        assert_eq!(counting, [("ep_a".to_owned(), Some(10))]);
    }
}
