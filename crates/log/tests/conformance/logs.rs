//! The logs of this machine, as subjects.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use postrider_log::embedded::EmbeddedLog;
use postrider_log::memory::MemoryLog;
use postrider_log::{Log, NewRecord, Offset, Partition, ProducerOptions, SystemClock, Target};
use tempfile::TempDir;

use crate::subject::{Control, Subject, record};

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

/// A log in a directory of its own, which goes with it.
pub(crate) async fn embedded(_test: &str) -> Option<Subject> {
    embedded_with_tail(16 << 20)
}

/// The same, read from its file alone.
pub(crate) async fn embedded_file(_test: &str) -> Option<Subject> {
    embedded_with_tail(0)
}

fn embedded_with_tail(tail_bytes_max: usize) -> Option<Subject> {
    let dir = tempfile::tempdir().expect("a directory is made");
    let log = open(&dir, tail_bytes_max);
    Some(Subject {
        log: log.clone(),
        prefix: String::new(),
        patience: Duration::from_secs(20),
        fetch_bytes_max: FETCH_BYTES_MAX,
        control: Box::new(Embedded {
            log: Some(log),
            dir,
            tail_bytes_max,
        }),
    })
}

fn open(dir: &TempDir, tail_bytes_max: usize) -> Arc<EmbeddedLog> {
    EmbeddedLog::open_with_tail(dir.path(), Arc::new(SystemClock), tail_bytes_max)
        .expect("the log is opened")
}

#[derive(Debug)]
struct Embedded {
    /// None only while it is reopened.
    log: Option<Arc<EmbeddedLog>>,
    dir: TempDir,
    tail_bytes_max: usize,
}

impl Embedded {
    fn log(&self) -> &Arc<EmbeddedLog> {
        self.log.as_ref().expect("it is open")
    }
}

#[async_trait]
impl Control for Embedded {
    async fn reopen(&mut self) -> Option<Arc<dyn Log>> {
        let closed = self.log.take();
        assert_eq!(
            closed.as_ref().map(Arc::strong_count),
            Some(1),
            "nobody else has the log"
        );
        drop(closed);
        let log = open(&self.dir, self.tail_bytes_max);
        self.log = Some(log.clone());
        Some(log)
    }

    async fn truncate(&self, topic: &str, partition: Partition, to: Offset) -> bool {
        self.log()
            .truncate(topic, partition, to)
            .await
            .expect("the log is truncated");
        true
    }

    async fn gap(&self, topic: &str, partition: Partition) -> bool {
        let options = ProducerOptions {
            name: "gap",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 10_000,
        };
        let producer = self
            .log()
            .producer(options)
            .await
            .expect("a producer is made");
        for version in ["0", "1", "2"] {
            let record: NewRecord = record("gap", version);
            let append = producer.append(topic, Target::Partition(partition), record);
            append.await.expect("the append is acknowledged");
        }
        self.compact(topic).await
    }

    async fn compact(&self, _topic: &str) -> bool {
        self.log().maintain().await.expect("the log is compacted");
        true
    }
}
