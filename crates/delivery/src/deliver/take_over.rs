//! A partition comes to this process.

use bytes::Bytes;
use postrider_log::{Assignment, Log, LogError};
use postrider_model::delivery::LaneState;

use super::carry::CarryContext;
use super::rebuild;
use super::settled::{CommitNote, SettledSet};
use super::state::{self, Found};
use crate::config::DeliverConfig;

/// What the former owner of a partition knew.
#[derive(Debug)]
pub(super) struct TakenOver {
    pub(super) settled: SettledSet,
    /// The id that its lanes' states have from now on.
    pub(super) state_id: i64,
    pub(super) states: Vec<LaneState>,
    /// Keys of states that no longer count, to be removed when a commit has named the new id.
    pub(super) stale: Vec<Bytes>,
}

/// What the former owner has settled, and the states of its lanes, as the commit says.
pub(super) async fn left_behind(
    log: &dyn Log,
    config: &DeliverConfig,
    assignment: &Assignment,
    now_ms: i64,
) -> Result<(SettledSet, Found), LogError> {
    let committed = assignment.committed.as_ref();
    let metadata = committed.map_or("", |committed| committed.metadata.as_str());
    let note = CommitNote::decode(metadata);
    let settled = rebuild::settled_set(log, config, assignment, note, now_ms).await?;
    let found = state::find(log, assignment.partition, note.state_id).await?;
    Ok((settled, found))
}

/// Learns what the former owner knew, and writes its lanes' states under an id of our own, before anything is read.
pub(super) async fn take_over<S>(
    log: &dyn Log,
    context: &CarryContext<S>,
    assignment: &Assignment,
) -> Result<TakenOver, LogError> {
    let now_ms = context.clock.now_ms();
    let (settled, found) = left_behind(log, &context.config, assignment, now_ms).await?;
    let state_id = state::write_all(&*context.producer, assignment.partition, &found.states).await;
    let states = found
        .states
        .into_iter()
        .map(|state| LaneState { state_id, ..state })
        .collect();
    Ok(TakenOver {
        settled,
        state_id,
        states,
        stale: found.stale,
    })
}
