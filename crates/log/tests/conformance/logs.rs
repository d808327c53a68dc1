//! The logs of this machine, as subjects.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use postrider_log::memory::MemoryLog;
use postrider_log::{Log, Offset, Partition, SystemClock};

use crate::subject::{Control, Subject};

/// What a local log fetches at once.
const FETCH_BYTES_MAX: usize = 1 << 20;

impl Subject {
    /// Reopens the log, for what survives that. False if this log does not.
    pub(crate) async fn reopen(&mut self) -> bool {
        // The control holds the only other reference: a log that is in use cannot be opened again.
        self.log = MemoryLog::new(Arc::new(SystemClock), 0);
        match self.control.reopen().await {
            Some(log) => {
                self.log = log;
                true
            }
            None => false,
        }
    }
}

pub(crate) async fn memory(_test: &str) -> Option<Subject> {
    let log = MemoryLog::new(Arc::new(SystemClock), 1);
    Some(Subject {
        log: log.clone(),
        prefix: String::new(),
        patience: Duration::from_secs(10),
        fetch_bytes_max: FETCH_BYTES_MAX,
        control: Box::new(Memory(log)),
    })
}

#[derive(Debug)]
struct Memory(Arc<MemoryLog>);

#[async_trait]
impl Control for Memory {
    async fn reopen(&mut self) -> Option<Arc<dyn Log>> {
        None
    }

    async fn truncate(&self, topic: &str, partition: Partition, to: Offset) -> bool {
        self.0.faults().truncate(topic, partition, to);
        true
    }

    async fn gap(&self, topic: &str, partition: Partition) -> bool {
        self.0.faults().gap(topic, partition, 2);
        true
    }

    async fn compact(&self, topic: &str) -> bool {
        self.0.compact(topic);
        true
    }
}
