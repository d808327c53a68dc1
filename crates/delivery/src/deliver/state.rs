//! The states of a partition's lanes in `endpoint-state`: how they are written and found again.
//!
//! Only the states under one id count, the one that the commit of the group names. So a former
//! owner that still writes, and an append of unknown fate that lands late, change nothing: the next
//! owner writes all states again under an id of its own before it commits anything. The id is the
//! offset of a record appended for that purpose, so no two are equal.
//! [`postrider_model::lane_states`] has the records and the rule.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use postrider_log::{
    Log, LogError, NewRecord, Offset, Partition, Position, Producer, Stretch, Target,
};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::LaneState;
use postrider_model::ids::EndpointId;
use postrider_model::lane_states::{LaneStates, StateKey, StateRecord};
use postrider_model::topics::ENDPOINT_STATE;
use tokio::time::sleep;

use crate::durable::append_durably;

const BACKOFF: Duration = Duration::from_millis(200);

/// Some append of a batch was not acknowledged; it may still land.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotWritten;

/// What the topic has of a partition.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The states that count.
    pub(super) states: Vec<LaneState>,
    /// Keys of all that are there, to be removed when nobody can need them any more.
    pub(super) stale: Vec<Bytes>,
}

/// Finds the states that count when this offset of `deliveries` is committed with this note, and
/// `deliveries` ends there.
pub(super) async fn find(
    log: &dyn Log,
    partition: Partition,
    committed: Offset,
    note: &CommitNote,
    end: Offset,
) -> Result<Found, LogError> {
    let bounds = log.bounds(ENDPOINT_STATE, partition).await?;
    let mut reader = log.reader(ENDPOINT_STATE).await?;
    let mut stretch = Stretch::new(partition, bounds.start..bounds.end);
    let mut states = LaneStates::<LaneState>::default();
    while let Some(records) = stretch.read(&mut *reader).await? {
        for record in records {
            let value = record.value.as_deref();
            if let Err(error) = states.read(&record.key, value, record.timestamp_ms) {
                let offset = record.offset;
                tracing::error!(partition, offset, %error, "lane state not understood");
            }
        }
    }
    Ok(Found {
        states: states.counting(committed, note, end).collect(),
        stale: states.keys().map(StateKey::encode).collect(),
    })
}

/// States that are in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// The id that they are written under.
    pub(super) id: i64,
    /// Offsets of the first and the last record.
    pub(super) first: Offset,
    pub(super) last: Offset,
}

/// Writes all states under a new id. Goes on until that has succeeded.
pub(super) async fn write_all(
    producer: &dyn Producer,
    partition: Partition,
    states: &[LaneState],
) -> Written {
    loop {
        let state_id = append_marker(producer, partition, StateRecord::claim()).await;
        let writes = states.iter().map(|state| {
            let state = LaneState {
                state_id,
                ..state.clone()
            };
            (state.endpoint.clone(), Some(state))
        });
        if write(producer, partition, state_id, writes.collect())
            .await
            .is_ok()
        {
            let last = append_marker(producer, partition, StateRecord::ready(state_id)).await;
            return Written {
                id: state_id,
                first: state_id,
                last,
            };
        }
        tracing::warn!(
            partition,
            "lane states not acknowledged, writing them under another id"
        );
        sleep(BACKOFF).await;
    }
}

async fn append_marker(
    producer: &dyn Producer,
    partition: Partition,
    marker: StateRecord,
) -> Offset {
    let target = Target::Partition(partition);
    let appended = append_durably(producer, ENDPOINT_STATE, target, new_record(marker)).await;
    appended
        .expect("a marker of a few bytes fits into every topic")
        .offset
}

fn new_record(StateRecord { key, value }: StateRecord) -> NewRecord {
    NewRecord {
        key,
        value,
        headers: Vec::new(),
    }
}

/// Writes states; `None` is a tombstone.
pub(super) async fn write(
    producer: &dyn Producer,
    partition: Partition,
    state_id: i64,
    states: Vec<(EndpointId, Option<LaneState>)>,
) -> Result<Written, NotWritten> {
    let appends: Vec<_> = states
        .into_iter()
        .map(|(endpoint, state)| {
            let record = match state {
                Some(state) => StateRecord::of(&state),
                None => StateRecord::removal(key(&endpoint, state_id)),
            };
            producer.append(
                ENDPOINT_STATE,
                Target::Partition(partition),
                new_record(record),
            )
        })
        .collect();
    let mut written = Written {
        id: state_id,
        first: Offset::MAX,
        last: state_id,
    };
    for fate in join_all(appends).await {
        match fate {
            Ok(Position { offset, .. }) => {
                written.first = written.first.min(offset);
                written.last = written.last.max(offset);
            }
            Err(error) => {
                tracing::warn!(partition, %error, "lane state not acknowledged");
                return Err(NotWritten);
            }
        }
    }
    Ok(written)
}

/// Removes states that no longer count. One that stays is removed by a later owner.
pub(super) async fn remove(producer: &dyn Producer, partition: Partition, keys: Vec<Bytes>) {
    let appends: Vec<_> = keys
        .into_iter()
        .map(|key| {
            let record = new_record(StateRecord::removal(key));
            producer.append(ENDPOINT_STATE, Target::Partition(partition), record)
        })
        .collect();
    let failed = join_all(appends)
        .await
        .into_iter()
        .filter(Result::is_err)
        .count();
    if failed > 0 {
        tracing::debug!(
            partition,
            failed,
            "states of a former owner not removed yet"
        );
    }
}

/// The key of a lane's state under an id.
pub(super) fn key(endpoint: &EndpointId, state_id: i64) -> Bytes {
    StateKey::new(endpoint, state_id).encode()
}
