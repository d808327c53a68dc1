//! A partition comes to this process.

use bytes::Bytes;
use postrider_log::{Assignment, Log, LogError};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::LaneState;

use super::attempt::DeliverContext;
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
    let offset = committed.map_or(0, |committed| committed.offset);
    let end = assignment.bounds.end;
    let found = state::find(log, assignment.partition, offset, &note, end).await?;
    Ok((settled, found))
}

/// Learns what the former owner knew, and writes its lanes' states under an id of our own, before
/// anything is read.
pub(super) async fn take_over<S>(
    log: &dyn Log,
    context: &DeliverContext<S>,
    assignment: &Assignment,
) -> Result<TakenOver, LogError> {
    let now_ms = context.clock.now_ms();
    let (settled, found) = left_behind(log, &context.config, assignment, now_ms).await?;
    let written = state::write_all(
        &*context.producers.prompt,
        assignment.partition,
        &found.states,
    )
    .await;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postrider_log::memory::MemoryLog;
    use postrider_log::{
        Bounds, Committed, Log, NewRecord, ProducerOptions, SystemClock, Target, TopicSpec,
    };
    use postrider_model::delivery::{BlockedKey, Cursor};
    use postrider_model::topics::{ATTEMPTS, ENDPOINT_STATE};

    use super::*;

    fn behind() -> LaneState {
        let blocked = |ordering_key: &str, cursor| BlockedKey {
            ordering_key: ordering_key.to_owned(),
            cursor,
            attempt: 2,
            due_at_ms: 0,
            failed_at_ms: None,
        };
        LaneState {
            endpoint: "ep_a".parse().unwrap(),
            state_id: 0,
            cursor: Some(Cursor {
                lowest_unsettled: 50,
                settled: [52, 60, 70].into(),
                behind_since_ms: 1,
            }),
            failing_since_ms: Some(1),
            breaker_openings: 1,
            breaker_open_until_ms: 1,
            blocked: vec![blocked("a", 3), blocked("b", 20)],
        }
    }

    /// Where the lane goes on, what it counts as settled there, and which keys are blocked.
    async fn goes_on(metadata: &str, offset: i64, end: i64) -> (i64, Vec<i64>, usize) {
        let state = left(metadata, offset, end, None).await;
        assert!(
            state.failing_since_ms.is_some(),
            "of the endpoint, not of the log"
        );
        let cursor = state.cursor.expect("it is behind");
        let settled = cursor.settled.into_iter().collect();
        (cursor.lowest_unsettled, settled, state.blocked.len())
    }

    /// The state that a former owner left, and perhaps a record that somebody wrote over it.
    async fn left(metadata: &str, offset: i64, end: i64, over: Option<&[u8]>) -> LaneState {
        let log = MemoryLog::new(std::sync::Arc::new(SystemClock), 1);
        let spec = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            retention: None,
            message_bytes_max: 10_000,
            settings: Vec::new(),
        };
        let topics = [spec(ATTEMPTS), spec(ENDPOINT_STATE)];
        log.create_topics(&topics).await.unwrap();
        let options = ProducerOptions {
            name: "test",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 100_000,
        };
        let producer = log.producer(options).await.unwrap();
        let written = state::write_all(&*producer, 0, &[behind()]).await;
        if let Some(value) = over {
            let record = NewRecord {
                key: state::key(&behind().endpoint, written.id),
                value: Some(Bytes::copy_from_slice(value)),
                headers: Vec::new(),
            };
            let append = producer.append(ENDPOINT_STATE, Target::Partition(0), record);
            append.await.unwrap();
        }
        let assignment = Assignment {
            partition: 0,
            generation: 1,
            committed: Some(Committed {
                offset,
                metadata: metadata.to_owned(),
            }),
            bounds: Bounds { start: 0, end },
        };
        let config = DeliverConfig::default();
        let (_, found) = left_behind(&*log, &config, &assignment, 0).await.unwrap();
        assert_eq!(
            found.stale.len(),
            1,
            "it is removed when it no longer counts"
        );
        found.states.into_iter().next().expect("the lane")
    }

    #[tokio::test]
    async fn a_cursor_says_nothing_of_offsets_that_are_given_again() {
        assert_eq!(goes_on("", 80, 100).await, (50, vec![52, 60, 70], 2));
        assert_eq!(goes_on("2 past=void", 0, 100).await, (0, vec![], 0));
        assert_eq!(goes_on("2 past=void", 65, 100).await, (50, vec![52, 60], 2));
        assert_eq!(goes_on("2 past=void", 10, 100).await, (10, vec![], 1));
        assert_eq!(goes_on("", 0, 0).await, (0, vec![], 0), "there is nothing");
    }

    #[tokio::test]
    async fn a_lane_whose_state_is_not_understood_goes_on_where_a_lane_may_be_behind() {
        let goes_on = async |metadata| {
            let state = left(metadata, 80, 100, Some(b"\xff")).await;
            let cursor = state.cursor.expect("it is behind");
            assert!(cursor.settled.is_empty() && state.blocked.is_empty());
            cursor.lowest_unsettled
        };
        assert_eq!(goes_on("2 state=0 written=2 behind=3").await, 3);
        assert_eq!(
            goes_on("2 state=0 written=2").await,
            80,
            "all held the commit"
        );
        assert_eq!(
            goes_on("2 state=0").await,
            0,
            "an older release says nothing"
        );
        assert_eq!(goes_on("").await, 0);
    }
}
