//! What lanes that are behind have written into `endpoint-state`.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use postrider_log::{Committed, Offset, Partition, Record};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::{Cursor, LaneState};
use postrider_model::ids::EndpointId;
use postrider_model::lane_states::StateKey;
use postrider_model::work::WorkId;

/// What was written.
#[derive(Debug, Default)]
pub(super) struct LaneStates {
    /// The latest record of each key.
    latest: BTreeMap<(Partition, Bytes), LaneState>,
    written_ms: BTreeMap<(Partition, Bytes), i64>,
    /// When the state ids were claimed.
    claimed_ms: BTreeMap<(Partition, Offset), i64>,
    /// Every record, as it is shown to people.
    history: Vec<(Partition, String)>,
}

impl LaneStates {
    /// Answers with how many keys it tells of that are held back.
    pub(super) fn read(&mut self, record: &Record) -> usize {
        let key = (record.partition, record.key.clone());
        let shown = String::from_utf8_lossy(&record.key);
        let cursor = record
            .value
            .as_ref()
            .and_then(|value| LaneState::decode(value).ok());
        let cursor = cursor.map(|state| (state.cursor, state.blocked));
        let line = format!("{} {shown}: {cursor:?}", record.offset);
        self.history.push((record.partition, line));
        match &record.value {
            Some(value) if record.key.starts_with(b"lane/") => {
                let state = LaneState::decode(value).expect("a lane's state");
                let blocked = state.blocked.len();
                self.written_ms.insert(key.clone(), record.timestamp_ms);
                self.latest.insert(key, state);
                return blocked;
            }
            Some(_) => {
                let claim = (record.partition, record.offset);
                self.claimed_ms.insert(claim, record.timestamp_ms);
            }
            None => {
                self.latest.remove(&key);
            }
        }
        0
    }

    /// Whether the cursor of the work's lane, under the state id that the commit names, says that
    /// this offset is still to be read. If not, why.
    pub(super) fn covers(
        &self,
        partition: Partition,
        committed: &Committed,
        (work, order_key): (&WorkId, Option<&str>),
        offset: Offset,
    ) -> Result<(), String> {
        let Some(state) = self.counting(partition, committed, &work.endpoint) else {
            return Err(format!("no record under {:?}", committed.metadata));
        };
        let mut blocked = state.blocked.iter();
        let blocked = blocked.find(|blocked| Some(blocked.ordering_key.as_str()) == order_key);
        match &state.cursor {
            Some(_) if blocked.is_some_and(|blocked| offset >= blocked.cursor) => Ok(()),
            Some(_) if blocked.is_some() => Err(format!("taken as settled by {blocked:?}")),
            Some(cursor) if !cursor.has_settled(offset) => Ok(()),
            Some(cursor) => Err(format!("taken as settled by {cursor:?}")),
            None => Err(format!("its lane is live: {state:?}")),
        }
    }

    /// The state that counts of an endpoint.
    pub(super) fn counting(
        &self,
        partition: Partition,
        committed: &Committed,
        endpoint: &EndpointId,
    ) -> Option<&LaneState> {
        let state_id = state_id(&committed.metadata)?;
        self.latest.get(&(partition, key(endpoint, state_id)))
    }

    /// When a state was written, if whoever owns the partition since a time knows it: by itself, or
    /// before.
    pub(super) fn known_since_ms(
        &self,
        partition: Partition,
        state: &LaneState,
        since_ms: i64,
    ) -> Option<i64> {
        let key = key(&state.endpoint, state.state_id);
        let written_ms = *self.written_ms.get(&(partition, key))?;
        let claimed_ms = *self.claimed_ms.get(&(partition, state.state_id))?;
        (written_ms < since_ms || claimed_ms >= since_ms).then_some(written_ms)
    }

    /// Whether keys of the endpoint are held back for longer than that by heads that asked for it.
    pub(super) fn holds_back(&self, endpoint: &EndpointId, patience_ends_at_ms: i64) -> bool {
        let states = self.latest.values();
        states
            .filter(|state| state.endpoint == *endpoint)
            .flat_map(|state| &state.blocked)
            .any(|blocked| blocked.due_at_ms > patience_ends_at_ms)
    }

    /// How far lanes are served, as whoever is assigned the partition with this commit is told.
    pub(super) fn cursors(
        &self,
        partition: Partition,
        committed: &Committed,
    ) -> BTreeMap<EndpointId, Cursor> {
        let counts = state_id(&committed.metadata);
        let of_partition = self.latest.range((partition, Bytes::new())..);
        let of_partition = of_partition.take_while(|((of, _), _)| *of == partition);
        let counting = of_partition.filter(|(_, state)| Some(state.state_id) == counts);
        counting
            .filter_map(|(_, state)| Some((state.endpoint.clone(), state.cursor.clone()?)))
            .collect()
    }

    /// Lanes whose states that count have a cursor.
    pub(super) fn behind(
        &self,
        committed: &[(Partition, Committed)],
        patience_ends_at_ms: i64,
    ) -> Vec<String> {
        let counts = |state: &LaneState, of: Partition| {
            let committed = committed.iter().find(|(partition, _)| *partition == of);
            let counts = committed.and_then(|(_, committed)| state_id(&committed.metadata));
            counts == Some(state.state_id)
        };
        let behind = self
            .latest
            .iter()
            .filter(|((partition, _), state)| state.cursor.is_some() && counts(state, *partition))
            .filter(|(_, state)| {
                let mut blocked = state.blocked.iter();
                blocked.all(|blocked| blocked.due_at_ms <= patience_ends_at_ms)
            });
        behind.map(|(_, state)| format!("{state:?}")).collect()
    }

    /// What was written for an endpoint, for people.
    pub(super) fn story(&self, partition: Partition, work: &WorkId) -> String {
        let lane = format!("lane/{}/", work.endpoint);
        let told = |(of, line): &&(Partition, String)| {
            *of == partition && (line.contains(&lane) || !line.contains("lane/"))
        };
        let lines: Vec<&str> = self
            .history
            .iter()
            .filter(told)
            .map(|(_, line)| line.as_str())
            .collect();
        lines.join("\n")
    }

    /// The states that count, for people.
    pub(super) fn show(&self, partition: Partition, committed: &Committed, shown: &mut String) {
        let counts = state_id(&committed.metadata);
        let states = self.latest.range((partition, Bytes::new())..);
        for ((_, key), state) in states.take_while(|((of, _), _)| *of == partition) {
            if Some(state.state_id) == counts {
                let key = String::from_utf8_lossy(key);
                writeln!(shown, "    {key}: {:?}", state.cursor).expect("memory");
            }
        }
    }
}

fn key(endpoint: &EndpointId, state_id: Offset) -> Bytes {
    StateKey::new(endpoint, state_id).encode()
}

fn state_id(metadata: &str) -> Option<Offset> {
    CommitNote::decode(metadata).state_id
}
