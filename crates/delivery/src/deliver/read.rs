//! Reads the log again, for lanes that catch up.

use std::time::Duration;

use postrider_log::{Batch, Log, LogError, Offset, Partition as PartitionNumber, Reader};
use postrider_model::topics::DELIVERIES;
use tokio::time::sleep;

use super::partition::{Partition, ReadAgain};
use super::{Deliver, TaskResult};
use crate::sender::Sender;

const READ_WAIT: Duration = Duration::from_secs(1);
const READ_BACKOFF: Duration = Duration::from_secs(1);
/// Where only a record or a few are wanted.
const FEW_BYTES_MAX: usize = 64 * 1024;

/// What was read, and from where it was to be read.
#[derive(Debug)]
pub(super) struct ReadBatch {
    pub(super) from: Offset,
    pub(super) batch: Result<Batch, LogError>,
}

impl<S: Sender> Deliver<S> {
    /// Reads on for a lane that has room; one read at a time, the partitions in turn.
    pub(super) fn start_read(&mut self) {
        let (now, memory) = (self.now(), self.memory());
        if memory < self.memory_was {
            let owned = self.partitions.values_mut();
            owned.for_each(Partition::read_for_all);
        }
        self.memory_was = memory;
        if self.partitions.values().any(Partition::is_reading) {
            return;
        }
        let numbers = self.partitions.keys().copied();
        let (before, after): (Vec<_>, Vec<_>) =
            numbers.partition(|number| *number <= self.read_last);
        for partition in after.into_iter().chain(before) {
            let Some(owned) = self.partitions.get_mut(&partition) else {
                continue;
            };
            let Some(again) = owned.next_read(&self.limits, memory, now) else {
                continue;
            };
            self.read_last = partition;
            let (log, reader) = (self.log.clone(), self.reader.take());
            let bytes_max = self.context.config.catch_up_read_bytes_max;
            self.spawn_always(partition, async move {
                let (reader, batch) = read(&*log, reader, partition, again, bytes_max).await;
                TaskResult::Read(reader, batch)
            });
            return;
        }
    }

    pub(super) fn read_ended(&mut self, partition: PartitionNumber, read: ReadBatch) {
        let (now, memory) = (self.now(), self.memory());
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return;
        };
        owned.read_ended();
        let batch = match read.batch {
            Ok(batch) => batch,
            Err(error) => {
                tracing::warn!(partition, %error, "deliveries cannot be read again, repeating it");
                return;
            }
        };
        if batch.from > read.from
            && let Some(lost_from) = owned.truncated(batch.from, now)
        {
            tracing::error!(
                partition,
                from = lost_from,
                to = batch.from,
                "retention took deliveries of lanes that are behind"
            );
            let records = u64::try_from(batch.from - lost_from).unwrap_or_default();
            let lost = &self.context.metrics.records_lost;
            lost.with_label_values(&[DELIVERIES]).inc_by(records);
        }
        let (from, to) = (batch.from, batch.next);
        let (grown, duplicates) = owned.feed(from, &batch.records, to, &self.limits, memory, now);
        self.context.metrics.duplicates_dropped.inc_by(duplicates);
        for endpoint in grown {
            self.line_up((partition, endpoint), now);
        }
    }
}

/// Reads, with a reader made when there is none yet. One that failed is given up.
async fn read(
    log: &dyn Log,
    reader: Option<Box<dyn Reader>>,
    partition: PartitionNumber,
    again: ReadAgain,
    bytes_max: usize,
) -> (Option<Box<dyn Reader>>, ReadBatch) {
    let ReadAgain { from, few } = again;
    let bytes_max = if few {
        bytes_max.min(FEW_BYTES_MAX)
    } else {
        bytes_max
    };
    let made = match reader {
        Some(reader) => Ok(reader),
        None => log.reader(DELIVERIES).await,
    };
    let failed = match made {
        Ok(mut reader) => match reader.read(partition, from, bytes_max, READ_WAIT).await {
            Ok(batch) => {
                let batch = Ok(batch);
                return (Some(reader), ReadBatch { from, batch });
            }
            Err(error) => error,
        },
        Err(error) => error,
    };
    sleep(READ_BACKOFF).await;
    let batch = Err(failed);
    (None, ReadBatch { from, batch })
}
