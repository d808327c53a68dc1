//! What lanes that are behind have written into `endpoint-state`.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use postrider_log::{Committed, Offset, Partition, Record};
use postrider_model::delivery::{LaneState, WorkId};

/// What was written.
#[derive(Debug, Default)]
pub(super) struct LaneStates {
    /// The latest record of each key.
    latest: BTreeMap<(Partition, Bytes), LaneState>,
    /// Every record, as it is shown to people.
    history: Vec<(Partition, String)>,
}

impl LaneStates {
    pub(super) fn read(&mut self, record: &Record) {
        let key = (record.partition, record.key.clone());
        let shown = String::from_utf8_lossy(&record.key);
        let cursor = record
            .value
            .as_ref()
            .and_then(|value| LaneState::decode(value).ok());
        let cursor = cursor.map(|state| state.cursor);
        let line = format!("{} {shown}: {cursor:?}", record.offset);
        self.history.push((record.partition, line));
        match &record.value {
            Some(value) if record.key.starts_with(b"lane/") => {
                let state = LaneState::decode(value).expect("a lane's state");
                self.latest.insert(key, state);
            }
            Some(_) => {}
            None => {
                self.latest.remove(&key);
            }
        }
    }

    /// Whether the cursor of the work's lane, under the state id that the commit names, says that this offset is still
    /// to be read. If not, why.
    pub(super) fn covers(
        &self,
        partition: Partition,
        committed: &Committed,
        work: &WorkId,
        offset: Offset,
    ) -> Result<(), String> {
        let Some(state_id) = state_id(&committed.metadata) else {
            return Err(format!("no state in {:?}", committed.metadata));
        };
        let key = Bytes::from(format!("lane/{}/{state_id}", work.endpoint));
        let Some(state) = self.latest.get(&(partition, key)) else {
            return Err(format!("no record under state {state_id}"));
        };
        match &state.cursor {
            Some(cursor) if !cursor.has_settled(offset) => Ok(()),
            Some(cursor) => Err(format!("taken as settled by {cursor:?}")),
            None => Err(format!("its lane is live under state {state_id}")),
        }
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
            let key = String::from_utf8_lossy(key);
            if key.rsplit('/').next() == counts {
                writeln!(shown, "    {key}: {:?}", state.cursor).expect("memory");
            }
        }
    }
}

fn state_id(metadata: &str) -> Option<&str> {
    let words = metadata.split(' ');
    words
        .filter_map(|word| word.strip_prefix("state="))
        .next_back()
}
