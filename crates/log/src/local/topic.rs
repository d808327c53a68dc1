//! A topic of the in-process broker: its settings, and the bounds of its partitions.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Notify;

use crate::port::{Bounds, LogError, Offset, Partition, TopicDescription, TopicSpec};

/// A topic. The storage moves its bounds; consumers wait for [`Topic::changed`].
#[derive(Debug)]
pub(crate) struct Topic {
    /// Names the topic to the storage.
    pub(crate) id: i64,
    pub(crate) spec: TopicSpec,
    /// Told when records, bounds or a group of this topic changed.
    pub(crate) changed: Notify,
    partitions: Vec<PartitionBounds>,
}

#[derive(Debug, Default)]
struct PartitionBounds {
    start: AtomicI64,
    end: AtomicI64,
}

impl Topic {
    pub(crate) fn new(id: i64, spec: TopicSpec) -> Self {
        let partitions = (0..spec.partitions)
            .map(|_| PartitionBounds::default())
            .collect();
        Self {
            id,
            spec,
            changed: Notify::new(),
            partitions,
        }
    }

    pub(crate) fn check(&self, partition: Partition) -> Result<(), LogError> {
        if (0..self.spec.partitions).contains(&partition) {
            return Ok(());
        }
        Err(LogError::Permanent(format!(
            "topic {} has no partition {partition}",
            self.spec.name
        )))
    }

    pub(crate) fn bounds(&self, partition: Partition) -> Bounds {
        let bounds = self.partition(partition);
        // The start is read first: it never passes an end that is read later.
        let start = bounds.start.load(Ordering::Acquire);
        Bounds {
            start,
            end: bounds.end.load(Ordering::Acquire),
        }
    }

    /// Records up to here can be read from now on. The caller then tells [`Topic::changed`].
    pub(crate) fn set_end(&self, partition: Partition, end: Offset) {
        self.partition(partition).end.store(end, Ordering::Release);
    }

    /// Records before this are gone, or about to go.
    pub(crate) fn set_start(&self, partition: Partition, start: Offset) {
        self.partition(partition)
            .start
            .fetch_max(start, Ordering::AcqRel);
    }

    /// The log has lost everything from `end` on; where it began beyond that, it begins anew.
    pub(crate) fn end_at(&self, partition: Partition, end: Offset) {
        let bounds = self.partition(partition);
        bounds.start.fetch_min(end, Ordering::AcqRel);
        bounds.end.store(end, Ordering::Release);
    }

    pub(crate) fn describe(&self) -> TopicDescription {
        let mut settings = vec![match self.spec.retention {
            Some(retention) => ("retention.ms".to_owned(), retention.as_millis().to_string()),
            None => ("cleanup.policy".to_owned(), "compact".to_owned()),
        }];
        settings.push((
            "max.message.bytes".to_owned(),
            self.spec.message_bytes_max.to_string(),
        ));
        settings.extend(self.spec.settings.iter().cloned());
        TopicDescription {
            name: self.spec.name.clone(),
            partitions: self.spec.partitions,
            replication: 1,
            settings,
        }
    }

    fn partition(&self, partition: Partition) -> &PartitionBounds {
        let index = usize::try_from(partition).expect("partitions are checked at the port");
        &self.partitions[index]
    }
}
