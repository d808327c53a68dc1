//! What `endpoint-state` says of the lanes: which are behind, since when and from where, and which
//! breakers are open.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_log::{Bounds, Committed, Log, LogError, Offset, Reader, Record};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::{Behind, LaneState};
use postrider_model::endpoint::Endpoint;
use postrider_model::ids::EndpointId;
use postrider_model::lane_states::{KeptState, LaneStates};
use postrider_model::topics::ENDPOINT_STATE;
use postrider_registry::{Gate, Registry};

const READ_WAIT: Duration = Duration::from_secs(1);

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
    pub(crate) behind: Option<Behind>,
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
        Self {
            behind: state.behind(),
            endpoint: state.endpoint,
            failing_since_ms: state.failing_since_ms,
            breaker_open: state.breaker_openings > 0,
        }
    }
}

impl KeptState for Lane {
    fn forget_from(&mut self, offset: Offset) {
        if let Some(behind) = &mut self.behind {
            behind.from = behind.from.min(offset);
        }
    }
}

/// The lanes of every partition.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    partitions: Vec<States>,
    reader: Option<Box<dyn Reader>>,
}

/// The states of one partition.
#[derive(Debug, Default)]
struct States {
    next: Offset,
    lanes: LaneStates<Lane>,
    /// What `deliver` has committed, and what it noted.
    committed: Offset,
    note: CommitNote,
    /// Where `deliveries` ends.
    end: Offset,
}

impl Lanes {
    /// Reads on to the end. `committed` is what `deliver` has committed, by partition, and
    /// `deliveries` what it reads.
    pub(crate) async fn follow(
        &mut self,
        log: &dyn Log,
        committed: &[Option<Committed>],
        deliveries: &[Bounds],
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
                for record in &batch.records {
                    states.read(record);
                }
                states.next = batch.next;
            }
        }
        self.reader = Some(reader);
        let commits = committed.iter().zip(deliveries);
        for (states, (committed, deliveries)) in self.partitions.iter_mut().zip(commits) {
            let metadata = committed
                .as_ref()
                .map_or("", |committed| &committed.metadata);
            states.note = CommitNote::decode(metadata);
            states.committed = committed.as_ref().map_or(0, |committed| committed.offset);
            states.end = deliveries.end;
        }
        Ok(())
    }

    /// The lanes that count, with their partition.
    pub(crate) fn all(&self) -> impl Iterator<Item = (usize, Lane)> {
        let partitions = self.partitions.iter().enumerate();
        partitions.flat_map(|(number, states)| states.counting().map(move |lane| (number, lane)))
    }

    /// The endpoints that are behind in a partition.
    pub(crate) fn behind(&self, partition: usize) -> BTreeSet<EndpointId> {
        let states = self.partitions.get(partition).into_iter();
        let behind = states
            .flat_map(States::counting)
            .filter(|lane| lane.behind.is_some());
        behind.map(|lane| lane.endpoint).collect()
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

    fn read(&mut self, record: &Record) {
        let value = record.value.as_deref();
        let read = self.lanes.read(&record.key, value, record.timestamp_ms);
        // Who owns the partition complains about what nobody understands.
        drop(read);
    }

    fn counting(&self) -> impl Iterator<Item = Lane> {
        self.lanes.counting(self.committed, &self.note, self.end)
    }
}
