//! What `endpoint-state` says of the lanes: which are behind, since when and from where, and which breakers are open.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use postrider_log::{Bounds, Committed, Log, LogError, Offset, Reader, Record};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::LaneState;
use postrider_model::endpoint::Endpoint;
use postrider_model::ids::EndpointId;
use postrider_model::topics::ENDPOINT_STATE;
use postrider_registry::{Gate, Registry};

const READ_WAIT: Duration = Duration::from_secs(1);
/// The key under which an owner writes that all lanes are written under an id.
const READY: &[u8] = b"ready";

/// Why a lane is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Paused,
    Disabled,
    Failing,
    Slow,
}

impl Cause {
    pub(crate) const ALL: [(Self, &'static str); 4] = [
        (Self::Paused, "paused"),
        (Self::Disabled, "disabled"),
        (Self::Failing, "failing"),
        (Self::Slow, "slow"),
    ];

    /// As registry and state say it.
    pub(crate) fn of(lane: &Lane, endpoint: &Endpoint, registry: &Registry) -> Self {
        match registry.gate(endpoint) {
            Gate::Disabled => Self::Disabled,
            Gate::PausedEndpoint | Gate::PausedTenant | Gate::PausedInstallation => Self::Paused,
            Gate::Open if lane.is_failing() => Self::Failing,
            Gate::Open => Self::Slow,
        }
    }
}

/// What is kept of a lane's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lane {
    pub(crate) endpoint: EndpointId,
    state_id: i64,
    /// If it is behind: its lowest unsettled offset, that of a blocked ordering key included, and since when.
    pub(crate) behind: Option<(Offset, i64)>,
    pub(crate) failing_since_ms: Option<i64>,
    pub(crate) breaker_open: bool,
}

impl Lane {
    fn is_failing(&self) -> bool {
        self.breaker_open || self.failing_since_ms.is_some()
    }
}

impl From<LaneState> for Lane {
    fn from(state: LaneState) -> Self {
        let blocked = state.blocked.iter().map(|key| key.cursor).min();
        let behind = state.cursor.map(|cursor| {
            let lowest = cursor.lowest_unsettled;
            (
                blocked.map_or(lowest, |blocked| blocked.min(lowest)),
                cursor.behind_since_ms,
            )
        });
        Self {
            endpoint: state.endpoint,
            state_id: state.state_id,
            behind,
            failing_since_ms: state.failing_since_ms,
            breaker_open: state.breaker_openings > 0,
        }
    }
}

/// The lanes of every partition.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    partitions: Vec<States>,
    reader: Option<Box<dyn Reader>>,
}

/// The states of one partition, those that count and those that did or will.
#[derive(Debug, Default)]
pub(crate) struct States {
    next: Offset,
    by_key: BTreeMap<Bytes, Lane>,
    ready: Option<i64>,
    /// The id that counts.
    named: Option<i64>,
}

impl Lanes {
    /// Reads on to the end. `committed` is what `deliver` has committed, by partition.
    pub(crate) async fn follow(
        &mut self,
        log: &dyn Log,
        committed: &[Option<Committed>],
        bytes_max: usize,
    ) -> Result<(), LogError> {
        let bounds = log.all_bounds(ENDPOINT_STATE).await?;
        self.partitions.resize_with(bounds.len(), States::default);
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => log.reader(ENDPOINT_STATE).await?,
        };
        for (number, (states, bounds)) in (0..).zip(self.partitions.iter_mut().zip(bounds)) {
            states.restart_beyond(bounds);
            while states.next < bounds.end {
                let batch = reader
                    .read(number, states.next, bytes_max, READ_WAIT)
                    .await?;
                if batch.next <= states.next {
                    break;
                }
                for record in batch.records {
                    states.note(record);
                }
                states.next = batch.next;
            }
        }
        self.reader = Some(reader);
        for (states, committed) in self.partitions.iter_mut().zip(committed) {
            states.named = committed
                .as_ref()
                .and_then(|committed| CommitNote::decode(&committed.metadata).state_id);
        }
        Ok(())
    }

    /// The lanes that count, with their partition.
    pub(crate) fn all(&self) -> impl Iterator<Item = (usize, &Lane)> {
        let partitions = self.partitions.iter().enumerate();
        partitions.flat_map(|(number, states)| states.counting().map(move |lane| (number, lane)))
    }

    /// The endpoints that are behind in a partition.
    pub(crate) fn behind(&self, partition: usize) -> BTreeSet<EndpointId> {
        let states = self.partitions.get(partition).into_iter();
        let behind = states
            .flat_map(States::counting)
            .filter(|lane| lane.behind.is_some());
        behind.map(|lane| lane.endpoint.clone()).collect()
    }
}

impl States {
    /// A topic that ends before where we are was made anew.
    fn restart_beyond(&mut self, bounds: Bounds) {
        if self.next > bounds.end {
            *self = Self::default();
        }
        self.next = self.next.max(bounds.start);
    }

    fn note(&mut self, record: Record) {
        let value = record.value.as_deref();
        if record.key.as_ref() == READY {
            let id = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
            self.ready = id.or(self.ready);
            return;
        }
        match value.map(LaneState::decode) {
            Some(Ok(state)) => {
                self.by_key.insert(record.key, state.into());
            }
            // Markers have no state; who owns the partition complains about what nobody understands.
            None | Some(Err(_)) => {
                self.by_key.remove(&record.key);
            }
        }
    }

    fn counting(&self) -> impl Iterator<Item = &Lane> {
        let counts = self.named.or(self.ready);
        self.by_key
            .values()
            .filter(move |lane| Some(lane.state_id) == counts)
    }
}

#[cfg(test)]
mod tests {
    use postrider_model::delivery::Cursor;

    use super::*;

    fn record(key: &str, value: Option<Bytes>) -> Record {
        Record {
            partition: 0,
            offset: 0,
            timestamp_ms: 0,
            key: key.to_owned().into(),
            value,
            headers: Vec::new(),
        }
    }

    fn state(name: &str, state_id: i64, behind_from: Option<i64>) -> Record {
        let state = LaneState {
            blocked: Vec::new(),
            endpoint: name.parse().unwrap(),
            state_id,
            cursor: behind_from.map(|lowest_unsettled| Cursor {
                lowest_unsettled,
                settled: BTreeSet::new(),
                behind_since_ms: 5,
            }),
            failing_since_ms: None,
            breaker_openings: 0,
            breaker_open_until_ms: 0,
        };
        record(&format!("lane/{name}/{state_id}"), Some(state.encode()))
    }

    fn counting(states: &States) -> Vec<(&str, Option<i64>)> {
        let lanes = states.counting();
        lanes
            .map(|lane| (lane.endpoint.as_str(), lane.behind.map(|(from, _)| from)))
            .collect()
    }

    #[test]
    fn only_the_states_that_the_commit_names_count() {
        let mut states = States::default();
        states.note(record("claim", Some(Bytes::new())));
        states.note(state("ep_a", 1, Some(10)));
        states.note(state("ep_a", 2, None));
        states.note(state("ep_b", 2, Some(30)));
        states.note(record("ready", Some("1".into())));
        assert_eq!(
            counting(&states),
            [("ep_a", Some(10))],
            "without a name, those written completely"
        );
        states.named = Some(2);
        assert_eq!(counting(&states), [("ep_a", None), ("ep_b", Some(30))]);
        states.note(record("lane/ep_b/2", None));
        assert_eq!(counting(&states), [("ep_a", None)]);
    }
}
