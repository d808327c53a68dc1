//! The reader of the in-process broker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::LocalLog;
use super::topic::Topic;
use crate::port::{Batch, LogError, Offset, Partition, Reader};

/// Reads any partition of a topic from any offset.
#[derive(Debug)]
pub(crate) struct LocalReader {
    log: LocalLog,
    topic: Arc<Topic>,
}

impl LocalReader {
    pub(super) fn new(log: &LocalLog, topic: Arc<Topic>) -> Self {
        Self {
            log: log.clone(),
            topic,
        }
    }
}

#[async_trait]
impl Reader for LocalReader {
    async fn read(
        &mut self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Batch, LogError> {
        self.topic.check(partition)?;
        // Data that is always there must not keep other tasks of the runtime from running.
        tokio::task::coop::consume_budget().await;
        let deadline = Instant::now() + wait;
        let mut from = from;
        let mut position = from;
        loop {
            self.log.client.check()?;
            let changed = self.topic.changed.notified();
            let bounds = self.topic.bounds(partition);
            if position < bounds.start {
                from = bounds.start;
                position = bounds.start;
            }
            if position < bounds.end {
                let chunk = self
                    .log
                    .broker
                    .storage
                    .read(&self.topic, partition, position, bytes_max)
                    .await?;
                if self.topic.bounds(partition).start > position {
                    continue;
                }
                position = chunk.next;
                if !chunk.records.is_empty() {
                    let end = bounds.end.max(position);
                    return Ok(Batch {
                        from,
                        records: chunk.records,
                        next: position,
                        end,
                    });
                }
                continue;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let end = self.topic.bounds(partition).end;
                return Ok(Batch {
                    from,
                    records: Vec::new(),
                    next: position,
                    end,
                });
            }
        }
    }
}
