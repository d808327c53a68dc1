//! A partition comes to this process.

use bytes::Bytes;
use postrider_log::{Assignment, Log, LogError};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::LaneState;

use super::carry::CarryContext;
use super::rebuild;
use super::settled::SettledSet;
use super::state::{self, Found, Written};
use crate::config::DeliverConfig;

/// What the former owner of a partition knew.
#[derive(Debug)]
pub(super) struct TakenOver {
    pub(super) settled: SettledSet,
    /// Under which id its lanes' states are from now on.
    pub(super) written: Written,
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
    let settled = rebuild::settled_set(log, config, assignment, &note, now_ms).await?;
    let mut found = state::find(log, assignment.partition, note.state_id).await?;
    // What was written of an offset that the log gives anew says nothing of the record that is there now.
    let anew_from = match committed {
        Some(committed) if note.past_is_void => committed.offset,
        _ => assignment.bounds.end,
    };
    for state in &mut found.states {
        state.forget_from(anew_from);
    }
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
    let written = state::write_all(&*context.producer, assignment.partition, &found.states).await;
    let states = found
        .states
        .into_iter()
        .map(|state| LaneState {
            state_id: written.id,
            ..state
        })
        .collect();
    Ok(TakenOver {
        settled,
        written,
        states,
        stale: found.stale,
    })
}
