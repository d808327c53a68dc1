//! The log in memory: for tests and simulation, where it is also the adversary.
//!
//! One seed gives one history: no thread, no wall clock, no randomly ordered map. Records get their
//! time from the [`Clock`] given, deadlines run on tokio's clock, which tests pause. Each
//! [`MemoryProcess`] is the log as one process sees it and can be killed; [`Faults`] does
//! everything else that a real log and its network may do to a process within the promises of
//! [`crate::port`].

mod faults;
mod random;
mod state;
mod storage;

use std::sync::Arc;

use crate::clock::Clock;
use crate::local::{Broker, LocalLog, delegate_log};
use crate::port::Record;

pub use faults::{AppendFate, AppendPlan, AppendSite, CommitFault, CommitSite, Faults};
pub use random::SplitMix64;
use storage::MemoryStorage;

/// A log in memory. It is itself the port, as a process of its own that is never killed.
#[derive(Debug)]
pub struct MemoryLog {
    local: LocalLog,
    broker: Arc<Broker>,
    storage: Arc<MemoryStorage>,
}

impl MemoryLog {
    /// An empty log. The seed decides what the adversary leaves open.
    pub fn new(clock: Arc<dyn Clock>, seed: u64) -> Arc<Self> {
        let storage = MemoryStorage::new(clock, SplitMix64::new(seed));
        let broker = Broker::new(storage.clone(), Vec::new());
        Arc::new(Self {
            local: broker.client("main"),
            broker,
            storage,
        })
    }

    /// The log as one more process sees it. A name may be used again, by the next life of a
    /// process.
    pub fn process(&self, name: &str) -> Arc<MemoryProcess> {
        let local = self.broker.client(name);
        Arc::new(MemoryProcess {
            local,
            storage: Arc::clone(&self.storage),
        })
    }

    /// The adversary's handle.
    pub fn faults(self: &Arc<Self>) -> Faults {
        Faults(Arc::clone(self))
    }

    /// All records of a topic, by partition and offset: for auditors. Empty if there is no such
    /// topic.
    pub fn snapshot(&self, topic: &str) -> Vec<Record> {
        self.broker
            .topic(topic)
            .map_or_else(|_| Vec::new(), |topic| self.storage.snapshot(&topic))
    }

    /// Compacts a topic as thoroughly as a log may: of each key only the latest record stays.
    /// Tombstones stay.
    pub fn compact(&self, topic: &str) {
        if let Ok(topic) = self.broker.topic(topic) {
            self.storage.compact(&topic);
        }
    }
}

/// A [`MemoryLog`] as one process sees it.
#[derive(Debug)]
pub struct MemoryProcess {
    local: LocalLog,
    storage: Arc<MemoryStorage>,
}

impl MemoryProcess {
    /// Ends the process as kill -9 would. Whether appends under way land is decided by the seed (of
    /// each producer and partition, the first so many); its members stay in their groups until the
    /// session times out; whatever is called later answers with an error and has no effect.
    pub fn kill(&self) {
        self.local
            .broker
            .kill(&self.local.client, self.storage.session_timeout());
    }

    /// Whether it was killed.
    pub fn killed(&self) -> bool {
        self.local.client.killed()
    }

    fn client_id(&self) -> u64 {
        self.local.client.id
    }
}

delegate_log!(MemoryLog);
delegate_log!(MemoryProcess);
