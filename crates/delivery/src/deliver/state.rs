//! The states of a partition's lanes in `endpoint-state`: how they are written and found again.
//!
//! Only the states under one id count, the one that the commit of the group names. So a former owner that still writes, and
//! an append of unknown fate that lands late, change nothing: the next owner writes all states again under an id of its
//! own before it commits anything. The id is the offset of a record appended for that purpose, so no two are equal.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use postrider_log::{
    Log, LogError, NewRecord, Offset, Partition, Position, Producer, Record, Stretch, Target,
};
use postrider_model::delivery::LaneState;
use postrider_model::ids::EndpointId;
use postrider_model::topics::ENDPOINT_STATE;
use tokio::time::sleep;

use crate::durable::append_durably;

const CLAIM: &[u8] = b"claim";
const READY: &[u8] = b"ready";
const LANE: &str = "lane/";
const BACKOFF: Duration = Duration::from_millis(200);

/// Some append of a batch was not acknowledged; it may still land.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotWritten;

/// What the topic has of a partition.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The states that count.
    pub(super) states: Vec<LaneState>,
    /// Keys of the others, to be removed when nobody can need them any more.
    pub(super) stale: Vec<Bytes>,
}

/// Finds the states under the id that the commit names. Where the commit names none although there are states (it was
/// made by hand), those count that were written completely last.
pub(super) async fn find(
    log: &dyn Log,
    partition: Partition,
    named: Option<i64>,
) -> Result<Found, LogError> {
    let bounds = log.bounds(ENDPOINT_STATE, partition).await?;
    let mut reader = log.reader(ENDPOINT_STATE).await?;
    let mut stretch = Stretch::new(partition, bounds.start..bounds.end);
    let (mut by_key, mut ready) = (BTreeMap::new(), None);
    while let Some(records) = stretch.read(&mut *reader).await? {
        for record in records {
            note(record, &mut by_key, &mut ready);
        }
    }
    let counts = named.or(ready);
    let mut found = Found::default();
    for (key, state) in by_key {
        if Some(state.state_id) == counts {
            found.states.push(state.clone());
        }
        found.stale.push(key);
    }
    Ok(found)
}

fn note(record: Record, by_key: &mut BTreeMap<Bytes, LaneState>, ready: &mut Option<i64>) {
    let value = record.value.as_deref();
    if record.key.as_ref() == READY {
        let id = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        *ready = id.or(*ready);
        return;
    }
    match value.map(LaneState::decode) {
        None => {
            by_key.remove(&record.key);
        }
        Some(Ok(state)) => {
            by_key.insert(record.key, state);
        }
        Some(Err(_)) if record.key.as_ref() == CLAIM => {}
        Some(Err(error)) => {
            let (partition, offset) = (record.partition, record.offset);
            tracing::error!(partition, offset, %error, "lane state not understood");
        }
    }
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
        let state_id = claim(producer, partition).await;
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
            let last = append_marker(producer, partition, READY, state_id.to_string()).await;
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

async fn claim(producer: &dyn Producer, partition: Partition) -> Offset {
    append_marker(producer, partition, CLAIM, String::new()).await
}

async fn append_marker(
    producer: &dyn Producer,
    partition: Partition,
    key: &'static [u8],
    value: String,
) -> Offset {
    let record = NewRecord {
        key: Bytes::from_static(key),
        value: Some(value.into()),
        headers: Vec::new(),
    };
    let appended = append_durably(
        producer,
        ENDPOINT_STATE,
        Target::Partition(partition),
        record,
    )
    .await;
    appended
        .expect("a marker of a few bytes fits into every topic")
        .offset
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
            let record = NewRecord {
                key: key(&endpoint, state_id),
                value: state.map(|state| state.encode()),
                headers: Vec::new(),
            };
            producer.append(ENDPOINT_STATE, Target::Partition(partition), record)
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
            let record = NewRecord {
                key,
                value: None,
                headers: Vec::new(),
            };
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
    format!("{LANE}{endpoint}/{state_id}").into()
}
