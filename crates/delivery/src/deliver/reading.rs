//! What does not fit into memory is read again from the log.

use std::time::Duration;

use postrider_log::{Batch, Log, LogError, Offset, Partition as PartitionNumber, Reader};
use postrider_model::topics::DELIVERIES;
use tokio::time::sleep;

use super::{Deliver, Finished};
use crate::sender::Sender;

const READ_WAIT: Duration = Duration::from_secs(1);
const READ_BACKOFF: Duration = Duration::from_secs(1);
/// A record that is read for itself, and what comes right after it.
const SINGLE_READ_BYTES_MAX: usize = 64 * 1024;

impl<S: Sender> Deliver<S> {
    /// Reads on for a lane that is behind and has room; one read at a time, the partitions in turn.
    pub(super) fn start_read(&mut self) {
        if self.partitions.values().any(|owned| owned.reading) {
            return;
        }
        let (now, memory) = (self.now(), self.memory());
        let later = self
            .partitions
            .range(self.read_turn + 1..)
            .map(|(number, _)| *number);
        let all: Vec<_> = later
            .chain(
                self.partitions
                    .range(..=self.read_turn)
                    .map(|(number, _)| *number),
            )
            .collect();
        for partition in all {
            let Some(owned) = self.partitions.get_mut(&partition) else {
                continue;
            };
            let Some((from, single)) = owned.next_read(&self.limits, memory, now) else {
                continue;
            };
            owned.reading = true;
            self.read_turn = partition;
            let (generation, log, reader) =
                (owned.generation, self.log.clone(), self.reader.take());
            let bytes_max = match self.context.config.catch_up_read_bytes_max {
                bytes_max if single => bytes_max.min(SINGLE_READ_BYTES_MAX),
                bytes_max => bytes_max,
            };
            self.tasks.spawn(async move {
                let (reader, batch) = read(&*log, reader, partition, from, bytes_max).await;
                Finished::Read {
                    partition,
                    generation,
                    from,
                    reader,
                    batch,
                }
            });
            return;
        }
    }

    pub(super) fn finish_read(
        &mut self,
        partition: PartitionNumber,
        from: Offset,
        batch: Result<Batch, LogError>,
    ) {
        let (now, memory) = (self.now(), self.memory());
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return;
        };
        owned.reading = false;
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                tracing::warn!(partition, %error, "deliveries cannot be read again, repeating it");
                return;
            }
        };
        if batch.from > from
            && let Some(lost_from) = owned.truncated(batch.from, now)
        {
            tracing::error!(
                partition,
                from = lost_from,
                to = batch.from,
                "retention took deliveries of lanes that are behind"
            );
            let records = u64::try_from(batch.from - lost_from).unwrap_or_default();
            self.context
                .metrics
                .records_lost
                .with_label_values(&[DELIVERIES])
                .inc_by(records);
        }
        let (grown, copies) = owned.feed(
            batch.from,
            &batch.records,
            batch.next,
            &self.limits,
            memory,
            now,
        );
        self.context.metrics.copies_dropped.inc_by(copies);
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
    from: Offset,
    bytes_max: usize,
) -> (Option<Box<dyn Reader>>, Result<Batch, LogError>) {
    let made = match reader {
        Some(reader) => Ok(reader),
        None => log.reader(DELIVERIES).await,
    };
    let failed = match made {
        Ok(mut reader) => match reader.read(partition, from, bytes_max, READ_WAIT).await {
            Ok(batch) => return (Some(reader), Ok(batch)),
            Err(error) => error,
        },
        Err(error) => error,
    };
    sleep(READ_BACKOFF).await;
    (None, Err(failed))
}
