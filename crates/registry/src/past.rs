//! Whether the topic is still the one that was read.
//!
//! A topic that was made again, or lost its tail in a failure, gives offsets a second time. A
//! reader that only asks for what comes after its position would not see it: everything there is
//! ignored until the end has passed that position. So some of what was read is remembered, where
//! the identity was and the last record of each read, and looked at again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use postrider_log::{Batch, LogError, Offset, Reader, Record};
use tokio::time::{Instant, sleep};

use crate::record::is_identity;
use crate::registry::{PARTITION, Shared, TOPIC};

/// An end before what was read counts only if it stays: right after it was elected, a leader of
/// Kafka may not know yet how much is replicated, and name an end too low.
const ENDS_BEFORE_FOR: Duration = Duration::from_secs(10);
const ENDS_BEFORE_POLL: Duration = Duration::from_millis(500);

/// Reads that are remembered before somebody must look.
const READS_MAX: usize = 256;

/// What was read where.
#[derive(Debug, Default)]
pub(crate) struct Past {
    next: Offset,
    identity: Option<(Offset, Mark)>,
    /// The last record of each read since it was looked at, and of the one before.
    last: BTreeMap<Offset, Mark>,
}

/// By what a record is known again.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    timestamp_ms: i64,
    key: Bytes,
}

impl Mark {
    fn of(record: &Record) -> Self {
        Self {
            timestamp_ms: record.timestamp_ms,
            key: record.key.clone(),
        }
    }
}

impl Past {
    /// Remembers what a batch, the next one, shows of the past. Whether the identity is in it.
    pub(crate) fn note(&mut self, batch: &Batch) -> bool {
        self.next = self.next.max(batch.next);
        let is_identity = |record: &&Record| is_identity(&record.key) && record.value.is_some();
        let identity = batch.records.iter().rfind(is_identity);
        if let Some(identity) = identity {
            self.identity = Some((identity.offset, Mark::of(identity)));
        }
        if let Some(last) = batch.records.last() {
            self.last.insert(last.offset, Mark::of(last));
        }
        identity.is_some()
    }

    /// Whether no more can be remembered until somebody has looked.
    pub(crate) fn is_full(&self) -> bool {
        self.last.len() >= READS_MAX
    }

    /// How the log contradicts what was read from it, if it does.
    pub(crate) async fn contradiction(
        &mut self,
        shared: &Shared,
        reader: &mut dyn Reader,
    ) -> Result<Option<String>, LogError> {
        if let Some(end) = self.ends_before(shared).await? {
            let next = self.next;
            return Ok(Some(format!(
                "the topic ends at {end}, but was read up to {next}"
            )));
        }
        let mut differs = None;
        if let Some((offset, mark)) = &self.identity {
            let batch = reader.read(PARTITION, *offset, 1, Duration::ZERO).await?;
            let there = batch.records.first();
            // One that compaction has taken says nothing.
            differs = there
                .filter(|there| there.offset == *offset && Mark::of(there) != *mark)
                .map(|there| there.offset);
        }
        if differs.is_none() {
            differs = self.changed(shared, reader).await?;
        }
        if let Some(newest) = self.last.pop_last() {
            self.last = [newest].into();
        }
        Ok(differs.map(|offset| {
            format!("the record at {offset} is another than the one that was read there")
        }))
    }

    /// The first of the last records that is another now.
    async fn changed(
        &self,
        shared: &Shared,
        reader: &mut dyn Reader,
    ) -> Result<Option<Offset>, LogError> {
        let Some(((from, _), (to, _))) =
            self.last.first_key_value().zip(self.last.last_key_value())
        else {
            return Ok(None);
        };
        let mut from = *from;
        let bytes_max = shared.options.read_bytes_max;
        loop {
            let batch = reader
                .read(PARTITION, from, bytes_max, Duration::ZERO)
                .await?;
            let is_another = |record: &&Record| {
                let mark = self.last.get(&record.offset);
                mark.is_some_and(|mark| Mark::of(record) != *mark)
            };
            if let Some(another) = batch.records.iter().find(is_another) {
                return Ok(Some(another.offset));
            }
            if batch.next > *to || batch.next >= batch.end {
                return Ok(None);
            }
            from = batch.next;
        }
    }

    /// The end of the log, if it is and stays before what was read.
    async fn ends_before(&self, shared: &Shared) -> Result<Option<Offset>, LogError> {
        let since = Instant::now();
        loop {
            let end = shared.log.bounds(TOPIC, PARTITION).await?.end;
            if end >= self.next {
                return Ok(None);
            }
            if since.elapsed() >= ENDS_BEFORE_FOR {
                return Ok(Some(end));
            }
            sleep(ENDS_BEFORE_POLL).await;
        }
    }
}
