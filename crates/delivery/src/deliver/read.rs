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

/// What the log is read again by.
#[derive(Debug, Default)]
pub(super) struct ReadsAgain {
    /// None before the first read and after one that failed.
    reader: Option<Box<dyn Reader>>,
    /// What was read last, until something else is read or the partition leaves. A lane often has
    /// room for a part of it only, and soon wants the rest.
    last: Option<(PartitionNumber, Batch)>,
}

/// What was read, and from where it was to be read.
#[derive(Debug)]
pub(super) struct ReadBatch {
    again: ReadAgain,
    batch: Result<Batch, LogError>,
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
            let (log, mut reads) = (self.log.clone(), std::mem::take(&mut self.reads_again));
            let bytes_max = self.context.config.catch_up_read_bytes_max;
            self.spawn_always(partition, async move {
                let batch = reads.read(&*log, partition, again, bytes_max).await;
                TaskResult::Read(reads, ReadBatch { again, batch })
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
        if batch.from > read.again.from
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
        // What was read for a few heads of ordering keys does not take the place of what others go
        // on in.
        if !read.again.few || self.reads_again.last.is_none() {
            self.reads_again.last = Some((partition, batch));
        }
        self.context.metrics.duplicates_dropped.inc_by(duplicates);
        for endpoint in grown {
            self.line_up((partition, endpoint), now);
        }
    }
}

impl ReadsAgain {
    /// The partition has left.
    pub(super) fn forget(&mut self, partition: PartitionNumber) {
        self.last.take_if(|(of, _)| *of == partition);
    }

    /// What is in the log from there on; without asking it, if that was read last.
    async fn read(
        &mut self,
        log: &dyn Log,
        partition: PartitionNumber,
        again: ReadAgain,
        bytes_max: usize,
    ) -> Result<Batch, LogError> {
        if let Some(rest) = self.rest_of_last(partition, again.from) {
            return Ok(rest);
        }
        let bytes_max = match again.few {
            true => bytes_max.min(FEW_BYTES_MAX),
            false => bytes_max,
        };
        if !again.few {
            self.last = None;
        }
        // One that failed is given up.
        let made = match self.reader.take() {
            Some(reader) => Ok(reader),
            None => log.reader(DELIVERIES).await,
        };
        let read = match made {
            Ok(mut reader) => {
                let read = reader.read(partition, again.from, bytes_max, READ_WAIT);
                read.await.inspect(|_| self.reader = Some(reader))
            }
            Err(error) => Err(error),
        };
        if read.is_err() {
            sleep(READ_BACKOFF).await;
        }
        read
    }

    /// What was read last, from this offset on, if that is in it.
    fn rest_of_last(&mut self, partition: PartitionNumber, from: Offset) -> Option<Batch> {
        let has_it = |(of, batch): &mut (PartitionNumber, Batch)| {
            *of == partition && (batch.from..batch.next).contains(&from)
        };
        let (_, mut batch) = self.last.take_if(has_it)?;
        let before = batch.records.partition_point(|record| record.offset < from);
        batch.records.drain(..before);
        Some(Batch { from, ..batch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::fixtures::{delivery, record_of};

    #[test]
    fn what_was_read_is_given_from_where_a_lane_goes_on_and_nothing_else() {
        let batch = || Batch {
            from: 10,
            records: [10, 12, 15]
                .map(|offset| record_of(offset, &delivery(offset)))
                .to_vec(),
            next: 20,
            end: 30,
        };
        let rest = |partition, from| {
            let mut reads = ReadsAgain {
                reader: None,
                last: Some((0, batch())),
            };
            let Some(rest) = reads.rest_of_last(partition, from) else {
                assert!(reads.last.is_some(), "others may still want it");
                return None;
            };
            assert_eq!((rest.from, rest.next, rest.end), (from, 20, 30));
            let records = rest.records.iter();
            Some(records.map(|record| record.offset).collect::<Vec<_>>())
        };
        assert_eq!(rest(1, 10), None);
        assert_eq!(rest(0, 9), None);
        assert_eq!(rest(0, 10), Some(vec![10, 12, 15]));
        assert_eq!(rest(0, 11), Some(vec![12, 15]));
        assert_eq!(rest(0, 15), Some(vec![15]));
        assert_eq!(rest(0, 16), Some(vec![]), "that nothing more is there");
        assert_eq!(rest(0, 20), None);
    }
}
