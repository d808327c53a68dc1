//! The log in one directory, for one process: SQLite below the in-process broker.
//!
//! One thread writes ([`writer`]): once something is due, it puts all that waits into one
//! transaction, and tells the fates after COMMIT returned. With `synchronous=FULL` in WAL mode that
//! is after the fsync. What was appended last is read from memory ([`tail`]), anything else by
//! connections of their own, and only when there is something to read. A lock on the directory
//! keeps a second process out.

mod compaction;
mod database;
mod headers;
mod reads;
mod standing;
mod storage;
mod tail;
mod writer;

use std::path::Path;
use std::sync::Arc;

use crate::clock::Clock;
use crate::local::topic::Topic;
use crate::local::{Broker, LocalLog, delegate_log};
use crate::port::{LogError, Offset, Partition};
use storage::EmbeddedStorage;
use tail::Tail;

/// What is kept in memory of all partitions together: a part of a second at full load.
const TAIL_BYTES_MAX: usize = 16 << 20;

/// A log in one directory.
#[derive(Debug)]
pub struct EmbeddedLog {
    local: LocalLog,
    broker: Arc<Broker>,
    storage: Arc<EmbeddedStorage>,
    clock: Arc<dyn Clock>,
}

/// What [`EmbeddedLog::maintain`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Maintained {
    /// Records past their topic's retention.
    pub expired: u64,
    /// Records with a later one of their key, and old tombstones.
    pub compacted: u64,
}

impl EmbeddedLog {
    /// Opens the log in a directory, which is created if need be. Blocks for as long as the disk
    /// takes.
    ///
    /// Fails with [`LogError::Permanent`] if another process has it open.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Self>, LogError> {
        Self::open_with_tail(dir, clock, TAIL_BYTES_MAX)
    }

    /// The same, with so many bytes of what was appended last in memory.
    pub fn open_with_tail(
        dir: &Path,
        clock: Arc<dyn Clock>,
        tail_bytes_max: usize,
    ) -> Result<Arc<Self>, LogError> {
        let tail = Tail::new(tail_bytes_max);
        let (storage, kept) = EmbeddedStorage::open(dir, Arc::clone(&clock), tail)?;
        let broker = Broker::new(storage.clone(), kept.topics);
        for commit in kept.commits {
            let topics = broker.topics();
            if let Some(topic) = topics.iter().find(|topic| topic.id == commit.topic_id) {
                broker.restore_commit(commit.group, topic, commit.partition, commit.committed);
            }
        }
        Ok(Arc::new(Self {
            local: broker.client("embedded"),
            broker,
            storage,
            clock,
        }))
    }

    /// Removes what retention and compaction say, in small transactions between which appends go
    /// on. To be called from time to time; one call at a time.
    pub async fn maintain(&self) -> Result<Maintained, LogError> {
        let mut maintained = Maintained::default();
        let now_ms = self.clock.now_ms();
        for topic in self.broker.topics() {
            for partition in 0..topic.spec.partitions {
                match topic.spec.retention {
                    Some(retention) => {
                        let kept_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
                        let kept_from = now_ms.saturating_sub(kept_ms);
                        maintained.expired += self.expire(&topic, partition, kept_from).await?;
                    }
                    None => {
                        maintained.compacted +=
                            self.storage.compact(&topic, partition, now_ms).await?;
                    }
                }
            }
        }
        Ok(maintained)
    }

    /// Why the log cannot be written at present, if it cannot: since a write failed, or while one
    /// does not return. It can be again when a [`EmbeddedLog::probe`] succeeded.
    pub fn trouble(&self) -> Option<String> {
        self.storage.trouble()
    }

    /// Writes a mebibyte that nobody reads, and removes it, to see whether the log can be written.
    pub async fn probe(&self) -> Result<(), LogError> {
        self.storage.probe().await
    }

    /// Removes the records of a partition before an offset.
    pub async fn truncate(
        &self,
        topic: &str,
        partition: Partition,
        to: Offset,
    ) -> Result<(), LogError> {
        let topic = self.broker.topic(topic)?;
        topic.check(partition)?;
        self.storage.truncate(&topic, partition, to).await.map(drop)
    }

    async fn expire(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        kept_from_ms: i64,
    ) -> Result<u64, LogError> {
        let first_kept = self
            .storage
            .first_at(topic, partition, kept_from_ms)
            .await?;
        self.storage.truncate(topic, partition, first_kept).await
    }
}

delegate_log!(EmbeddedLog);
