//! Reading a stretch of a partition once.

use std::ops::Range;
use std::time::Duration;

use crate::port::{LogError, Offset, Partition, Reader, Record};

const READ_BYTES_MAX: usize = 4 * 1024 * 1024;
const READ_WAIT: Duration = Duration::from_secs(1);

/// What is left to read of a stretch of a partition.
#[derive(Debug)]
pub struct Stretch {
    partition: Partition,
    left: Range<Offset>,
}

impl Stretch {
    /// Of a partition, from one offset to before another.
    pub fn new(partition: Partition, offsets: Range<Offset>) -> Self {
        Self {
            partition,
            left: offsets,
        }
    }

    /// The next records, at most 4 MiB; none once the end was reached. The last may be beyond the
    /// end, if by then there were more. To go on after an error is safe.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn read(&mut self, reader: &mut dyn Reader) -> Result<Option<Vec<Record>>, LogError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let batch = reader
            .read(self.partition, self.left.start, READ_BYTES_MAX, READ_WAIT)
            .await?;
        let is_stuck = batch.records.is_empty() && batch.next <= self.left.start;
        if is_stuck && batch.end < self.left.end {
            return Err(LogError::Unavailable(format!(
                "partition {} ends at {} by now, before {}",
                self.partition, batch.end, self.left.end
            )));
        }
        self.left.start = batch.next;
        Ok(Some(batch.records))
    }
}
