//! One read of the log for lanes that catch up.

use std::time::Duration;

use postrider_log::{Batch, Log, LogError, Offset, Partition, Reader};
use postrider_model::topics::DELIVERIES;
use tokio::time::sleep;

use super::partition::ReadAgain;

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

/// Reads, with a reader made when there is none yet. One that failed is given up.
pub(super) async fn read(
    log: &dyn Log,
    reader: Option<Box<dyn Reader>>,
    partition: Partition,
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
