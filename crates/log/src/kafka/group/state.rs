//! What a member's threads and its user share.

mod thread;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use super::commits::{Commits, Teller, tell};
use super::queue::{Queue, Waiting, Wanted};
use crate::port::{
    Commit, CommitError, Committed, Generation, GroupEvent, LogError, Offset, Partition,
};

/// Kafka's limit for what is written beside a committed offset.
const METADATA_BYTES_MAX: usize = 4096;

/// The state, and how each side wakes the other.
pub(super) struct Shared {
    state: Mutex<State>,
    /// For the user: an event came, or the member is closed.
    pub(super) changed: Notify,
    /// For the thread: records were taken, or the member is to close.
    room: Condvar,
    /// For the thread that commits: a commit came, or the member is to close.
    to_commit: Condvar,
}

pub(super) struct State {
    /// Full name.
    topic: String,
    pub(super) queue: Queue,
    owned: BTreeMap<Partition, Owned>,
    generation: Generation,
    commits: Commits,
    revoke: Option<Revoke>,
    revokes: u64,
    /// The last revoke that the user was told of, so that a late release does not end a newer one.
    revoke_told: u64,
    /// Why the member cannot go on.
    failure: Option<LogError>,
    closing: bool,
    closed: bool,
}

/// A partition between its assignment and the end of that.
#[derive(Debug)]
struct Owned {
    generation: Generation,
    phase: Phase,
    paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The broker is asked for what is committed.
    Asking,
    /// The assignment waits to be taken by the user.
    Queued,
    /// The user knows of it.
    Told,
    /// To be started by the thread.
    Starting { from: Offset },
    /// The client reads it. Nothing below `next` is handed over any more.
    Running { next: Offset },
}

#[derive(Debug)]
struct Revoke {
    number: u64,
    partitions: BTreeSet<Partition>,
    until: Instant,
    released: bool,
}

/// Partitions that were given up, and which of them the client reads.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) partitions: BTreeSet<Partition>,
    pub(super) running: Vec<Partition>,
}

impl Shared {
    pub(super) fn new(topic: String) -> Self {
        Self {
            state: Mutex::new(State {
                topic,
                queue: Queue::default(),
                owned: BTreeMap::new(),
                generation: 0,
                commits: Commits::default(),
                revoke: None,
                revokes: 0,
                revoke_told: 0,
                failure: None,
                closing: false,
                closed: false,
            }),
            changed: Notify::new(),
            room: Condvar::new(),
            to_commit: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for the next event. Cancel-safe.
    pub(super) async fn next_event(&self, wanted: Wanted) -> Result<GroupEvent, LogError> {
        loop {
            // A notification sent since the last check is kept, so none is missed.
            let notified = self.changed.notified();
            if let Some(event) = self.take_event(wanted, Instant::now()) {
                return event;
            }
            notified.await;
        }
    }

    /// The next event, if there is one.
    fn take_event(&self, wanted: Wanted, now: Instant) -> Option<Result<GroupEvent, LogError>> {
        let mut state = self.lock();
        if state.closing {
            return Some(Err(LogError::Permanent(
                "the member of the group was closed".into(),
            )));
        }
        let Some(event) = state.queue.pop(wanted) else {
            return state.failure.clone().map(Err);
        };
        state.note_told(&event);
        drop(state);
        self.room.notify_one();
        Some(Ok(event.into_event(now)))
    }

    pub(super) fn ask_to_close(&self) {
        self.lock().closing = true;
        self.room.notify_one();
        self.to_commit.notify_one();
    }

    pub(super) fn commit(&self, commits: Vec<Commit>, teller: Teller) {
        self.lock().commit(commits, teller);
        self.to_commit.notify_one();
    }

    /// Waits for the next commit to send; none when the member is to close.
    pub(super) fn next_commit(&self) -> Option<BTreeMap<Partition, Committed>> {
        let mut state = self.lock();
        while !state.closing {
            let now = Instant::now();
            if let Some(round) = state.commits.begin(now) {
                return Some(round);
            }
            if let Some(retry_at) = state.commits.retry_at() {
                self.to_commit.wait_until(&mut state, retry_at);
            } else {
                self.to_commit.wait(&mut state);
            }
        }
        None
    }

    /// Waits at most this long until no more than `bytes` wait to be taken.
    pub(super) fn wait_for_room(&self, bytes: usize, timeout: Duration) {
        let full = |state: &mut State| state.queue.bytes() > bytes && !state.closing;
        self.room.wait_while_for(&mut self.lock(), full, timeout);
    }
}

/// What the user does.
impl State {
    pub(super) fn start(&mut self, partition: Partition, from: Offset) {
        match self.owned.get_mut(&partition) {
            Some(owned) if owned.phase == Phase::Told => owned.phase = Phase::Starting { from },
            _ => tracing::debug!(partition, "start of a partition that is not waiting for it"),
        }
    }

    pub(super) fn set_paused(&mut self, partition: Partition, paused: bool) {
        if let Some(owned) = self.owned.get_mut(&partition)
            && !matches!(owned.phase, Phase::Asking | Phase::Queued)
        {
            owned.paused = paused;
        }
    }

    fn commit(&mut self, commits: Vec<Commit>, teller: Teller) {
        let current = commits.iter().all(|commit| {
            !self.is_released(commit.partition)
                && self
                    .owned
                    .get(&commit.partition)
                    .is_some_and(|owned| owned.generation == commit.generation)
        });
        if !current {
            return tell(teller, Err(CommitError::Fenced));
        }
        if self.closing {
            return tell(
                teller,
                Err(CommitError::Unknown("the member was closed".into())),
            );
        }
        // Kafka would refuse this partition only, and the client would not say so.
        if commits
            .iter()
            .any(|commit| commit.committed.metadata.len() > METADATA_BYTES_MAX)
        {
            let error = format!("the metadata exceed {METADATA_BYTES_MAX} bytes");
            return tell(teller, Err(CommitError::Unknown(error)));
        }
        self.commits.add(commits, teller);
    }

    pub(super) fn release(&mut self) {
        let told = self.revoke_told;
        if let Some(revoke) = self.revoke.as_mut().filter(|revoke| revoke.number == told) {
            revoke.released = true;
        }
    }

    fn is_released(&self, partition: Partition) -> bool {
        let released = self.revoke.as_ref().filter(|revoke| revoke.released);
        released.is_some_and(|revoke| revoke.partitions.contains(&partition))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    fn note_told(&mut self, event: &Waiting) {
        match event {
            Waiting::Assigned(assignments) => {
                for assignment in assignments {
                    if let Some(owned) = self.owned.get_mut(&assignment.partition)
                        && owned.generation == assignment.generation
                    {
                        owned.phase = Phase::Told;
                    }
                }
            }
            Waiting::Revoke { revoke, .. } => self.revoke_told = *revoke,
            Waiting::Records { .. } | Waiting::Truncated { .. } | Waiting::Lost(_) => {}
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        formatter
            .debug_struct("Shared")
            .field("topic", &state.topic)
            .field("owned", &state.owned)
            .field("revoke", &state.revoke)
            .field("queued_bytes", &state.queue.bytes())
            .finish_non_exhaustive()
    }
}
