//! Reading topics to answer a request: bounded in bytes and time, and able to go on where it was
//! cut.
//!
//! [`Forward`] reads ranges one after the other in the order of the log, for looking something up
//! and for redriving. [`Backward`] reads partitions side by side from their ends in growing
//! windows, for lists with the newest first.

mod backward;
mod forward;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use parking_lot::{Mutex, MutexGuard};
use postrider_log::{Batch, Committed, Log, LogError, Offset, Partition, Reader, Record};
use postrider_model::ids::TenantId;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

pub(crate) use self::backward::{Backward, Found};
pub(crate) use self::forward::{Forward, Search, Step, place_of};
use crate::config::IngestConfig;
use crate::problem::Problem;
use crate::shares::{Share, Shares};

/// What is one tenant's may be read by this part of the requests that read.
const SHARES: usize = 2;
/// Bytes of one batch.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// How long one read may wait for records that must be there already.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// What is still to be read of a partition: from an offset up to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    from = "(Partition, Offset, Offset)",
    into = "(Partition, Offset, Offset)"
)]
pub(crate) struct Range {
    pub(crate) partition: Partition,
    pub(crate) from: Offset,
    pub(crate) end: Offset,
}

impl From<(Partition, Offset, Offset)> for Range {
    fn from((partition, from, end): (Partition, Offset, Offset)) -> Self {
        Self {
            partition,
            from: from.max(0),
            end,
        }
    }
}

impl From<Range> for (Partition, Offset, Offset) {
    fn from(range: Range) -> Self {
        (range.partition, range.from, range.end)
    }
}

/// The readers of the API: kept for the next request, and bounded in number.
#[derive(Debug)]
pub(crate) struct Readers {
    log: Arc<dyn Log>,
    permits: Arc<Shares>,
    idle: Mutex<BTreeMap<&'static str, Vec<Box<dyn Reader>>>>,
    bytes_max: usize,
    timeout: Duration,
}

/// What one request may still read. While it lives, it counts as a request that reads.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_left: usize,
    deadline: Instant,
    _permit: Share,
}

impl Budget {
    /// Whether the answer has to be cut here. What has not begun to be read may begin nevertheless,
    /// as long as there is time, so that each request gets on.
    fn is_spent(&self, began: bool) -> bool {
        (began && self.bytes_left == 0) || self.left().is_zero()
    }

    /// The rest of the request's time.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl Readers {
    pub(crate) fn new(log: Arc<dyn Log>, config: &IngestConfig) -> Self {
        let permits = config.reads_in_flight_max;
        Self {
            log,
            permits: Shares::new(permits, permits / SHARES),
            idle: Mutex::default(),
            bytes_max: config.read_bytes_max,
            timeout: config.read_timeout(),
        }
    }

    /// Admits a request that reads what is a tenant's, or without one the operator's.
    pub(crate) fn admit(&self, tenant: Option<&TenantId>) -> Result<Budget, Problem> {
        let permit = self.permits.take(tenant);
        let permit = permit.ok_or(Problem::Busy { again_after_s: 1 })?;
        let deadline = Instant::now() + self.timeout;
        Ok(Budget {
            bytes_left: self.bytes_max,
            deadline,
            _permit: permit,
        })
    }

    /// Opens a topic, for a request that was admitted: so there are no more readers than such
    /// requests.
    pub(crate) async fn topic(&self, name: &'static str, _: &Budget) -> Result<Topic<'_>, Problem> {
        let partitions = self.within(self.log.partition_count(name)).await?;
        let key_partitions = self.key_partitions(name).await?;
        let idle = self.idle().get_mut(name).and_then(Vec::pop);
        let reader = match idle {
            Some(reader) => reader,
            None => self.within(self.log.reader(name)).await?,
        };
        Ok(Topic {
            readers: self,
            name,
            partitions,
            key_partitions,
            reader: Some(reader),
        })
    }

    /// Over how many of a topic's partitions keys are spread.
    pub(crate) async fn key_partitions(&self, topic: &str) -> Result<i32, Problem> {
        self.within(self.log.key_partitions(topic)).await
    }

    /// What a group has committed, for every partition of the topic.
    pub(crate) async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<Option<Committed>>, Problem> {
        self.within(self.log.committed(group, topic)).await
    }

    /// The offset that the partition's next record gets.
    pub(crate) async fn end(&self, topic: &str, partition: Partition) -> Result<Offset, Problem> {
        let bounds = self.within(self.log.bounds(topic, partition)).await?;
        Ok(bounds.end)
    }

    async fn range(
        &self,
        topic: &str,
        partition: Partition,
        since_ms: Option<i64>,
        until_ms: Option<i64>,
    ) -> Result<Range, Problem> {
        let bounds = self.within(self.log.bounds(topic, partition)).await?;
        let mut range = Range {
            partition,
            from: bounds.start,
            end: bounds.end,
        };
        if let Some(since_ms) = since_ms {
            let since = self.log.offset_for_time(topic, partition, since_ms);
            range.from = range.from.max(self.within(since).await?);
        }
        if let Some(until_ms) = until_ms {
            let until = self.log.offset_for_time(topic, partition, until_ms);
            range.end = range.end.min(self.within(until).await?);
        }
        Ok(range)
    }

    /// Bounds how long one call to the log may take.
    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, LogError>>,
    ) -> Result<T, Problem> {
        let late = |_| Err(LogError::Unavailable("no answer in time".into()));
        timeout(self.timeout, call)
            .await
            .unwrap_or_else(late)
            .map_err(Problem::from)
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<&'static str, Vec<Box<dyn Reader>>>> {
        self.idle.lock()
    }
}

/// A topic that is being read.
#[derive(Debug)]
pub(crate) struct Topic<'a> {
    readers: &'a Readers,
    name: &'static str,
    pub(crate) partitions: i32,
    /// Over how many of them keys are spread.
    pub(crate) key_partitions: i32,
    /// Taken while a read is under way: one that failed or was left in the middle does not come
    /// back.
    reader: Option<Box<dyn Reader>>,
}

impl Drop for Topic<'_> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.readers
                .idle()
                .entry(self.name)
                .or_default()
                .push(reader);
        }
    }
}

impl Topic<'_> {
    /// Ranges that a cursor named, which may be anybody's.
    pub(crate) fn checked(&self, ranges: Vec<Range>) -> Result<Vec<Range>, Problem> {
        let partitions: BTreeSet<_> = ranges.iter().map(|range| range.partition).collect();
        let exist = partitions
            .iter()
            .all(|partition| (0..self.partitions).contains(partition));
        if exist && partitions.len() == ranges.len() {
            Ok(ranges)
        } else {
            Err(Problem::field(
                "cursor",
                "must be a `next_cursor` of the same list",
            ))
        }
    }

    /// What was appended to these partitions from one time on and before another: `None` for no
    /// bound.
    pub(crate) async fn ranges(
        &mut self,
        partitions: impl IntoIterator<Item = Partition>,
        since_ms: Option<i64>,
        until_ms: Option<i64>,
    ) -> Result<Vec<Range>, Problem> {
        let (readers, name) = (self.readers, self.name);
        let ranges = partitions
            .into_iter()
            .map(|partition| readers.range(name, partition, since_ms, until_ms));
        try_join_all(ranges).await
    }

    /// Reads a batch on the budget. `None`: the time is over.
    async fn read(
        &mut self,
        partition: Partition,
        from: Offset,
        budget: &mut Budget,
    ) -> Result<Option<Batch>, Problem> {
        if budget.left().is_zero() {
            return Ok(None);
        }
        let Some(mut reader) = self.reader.take() else {
            return Ok(None);
        };
        let wait = budget.left().min(WAIT_MAX);
        let read = timeout(
            budget.left(),
            reader.read(partition, from, BATCH_BYTES_MAX, wait),
        )
        .await;
        let Ok(batch) = read else { return Ok(None) };
        let batch = batch?;
        self.reader = Some(reader);
        let bytes: usize = batch.records.iter().map(Record::size_bytes).sum();
        budget.bytes_left = budget.bytes_left.saturating_sub(bytes);
        Ok(Some(batch))
    }
}
