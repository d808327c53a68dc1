//! Counts the records of a topic, each once, across restarts.
//!
//! The sums travel in the metadata of the commit, so offset and sums are one fact. They are shown
//! only when the commit is acknowledged: what Prometheus has seen is always in the log, and a
//! restart goes on from at least there. A commit of unknown fate changes nothing: if it landed, the
//! next start knows more than was shown, which is the same as a restart after showing it.

use std::time::Duration;

use postrider_log::{Bounds, Committed, Log, LogError, Offset, Partition, Reader, Record};
use tokio::time::Instant;

use crate::counts::Counts;

/// The group that the commits are made for; nobody joins it.
pub(crate) const GROUP: &str = "exporter";
const READ_WAIT: Duration = Duration::from_secs(1);
/// How often a commit is made without news, so that the brokers do not let it expire.
const COMMIT_IDLE: Duration = Duration::from_secs(60);

/// One topic whose records are counted.
#[derive(Debug)]
pub(crate) struct Counting {
    topic: &'static str,
    reader: Option<Box<dyn Reader>>,
    partitions: Vec<Counted>,
    /// The sums as last committed; `None` before the first time.
    committed: Option<Counts>,
    committed_at: Option<Instant>,
}

/// How far a partition is counted.
#[derive(Debug, Default)]
struct Counted {
    /// Next offset to read.
    next: Offset,
    /// Below it everything is in the counts; it is read again only to be looked at.
    counted: Offset,
    counts: Counts,
    end: Offset,
    /// When the last record counted was appended.
    last_ms: Option<i64>,
}

/// How far behind a partition is with counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uncounted {
    pub(crate) records: Offset,
    /// When the last record counted was appended, if there are others.
    pub(crate) since_ms: Option<i64>,
}

impl Counting {
    /// Goes on from the commits. `look_from` names an earlier offset for partitions whose records
    /// are to be looked at again.
    pub(crate) async fn open(
        log: &dyn Log,
        topic: &'static str,
        look_from: impl Fn(Partition) -> Option<Offset>,
    ) -> Result<Self, LogError> {
        let committed = log.committed(GROUP, topic).await?;
        let bounds = log.all_bounds(topic).await?;
        let known = committed.iter().any(Option::is_some);
        let mut partitions = Vec::new();
        for (number, (committed, bounds)) in (0..).zip(committed.into_iter().zip(bounds)) {
            let mut counted = Counted::at(topic, number, committed, bounds);
            if let Some(from) = look_from(number) {
                counted.next = counted.next.min(from.max(bounds.start));
            }
            partitions.push(counted);
        }
        let sums = sum(&partitions);
        Ok(Self {
            topic,
            reader: None,
            partitions,
            committed: known.then_some(sums),
            committed_at: None,
        })
    }

    /// Reads on until the end, or until the deadline. `look` sees every record, and whether it is
    /// counted for the first time.
    pub(crate) async fn count(
        &mut self,
        log: &dyn Log,
        bytes_max: usize,
        deadline: Instant,
        mut look: impl FnMut(&Record, bool, &mut Counts),
    ) -> Result<(), LogError> {
        let bounds = log.all_bounds(self.topic).await?;
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => log.reader(self.topic).await?,
        };
        self.partitions.resize_with(bounds.len(), Counted::default);
        for (counted, bounds) in self.partitions.iter_mut().zip(&bounds) {
            counted.end = bounds.end;
        }
        // In turns, so that no partition is left behind while others are read to their end.
        let mut reads_on = true;
        while reads_on && Instant::now() < deadline {
            reads_on = false;
            for (number, counted) in (0..).zip(&mut self.partitions) {
                if counted.next < counted.end {
                    reads_on |= counted
                        .read(&mut *reader, number, bytes_max, &mut look)
                        .await?;
                }
            }
        }
        self.reader = Some(reader);
        Ok(())
    }

    /// Commits what was counted. From then on it may be shown.
    pub(crate) async fn commit(&mut self, log: &dyn Log) -> Result<(), LogError> {
        let sums = sum(&self.partitions);
        let idle = self
            .committed_at
            .is_some_and(|at| at.elapsed() < COMMIT_IDLE);
        if idle && self.committed.as_ref() == Some(&sums) {
            return Ok(());
        }
        let commits = self.partitions.iter().map(|counted| Committed {
            offset: counted.counted,
            metadata: counted.counts.encode(),
        });
        let commits: Vec<_> = (0..).zip(commits).collect();
        log.set_committed(GROUP, self.topic, &commits).await?;
        // The first time, what is kept from before the exporter was there is counted, which is no
        // increase: it is shown when it is complete.
        if self.committed.is_some() || self.is_caught_up() {
            self.committed = Some(sums);
        }
        self.committed_at = Some(Instant::now());
        Ok(())
    }

    /// What may be shown: what is committed.
    pub(crate) fn committed(&self) -> Option<&Counts> {
        self.committed.as_ref()
    }

    /// How far behind each partition is.
    pub(crate) fn uncounted(&self) -> impl Iterator<Item = Uncounted> {
        self.partitions.iter().map(|counted| {
            let records = (counted.end - counted.counted).max(0);
            Uncounted {
                records,
                since_ms: counted.last_ms.filter(|_| records > 0),
            }
        })
    }

    fn is_caught_up(&self) -> bool {
        self.partitions
            .iter()
            .all(|counted| counted.counted >= counted.end)
    }
}

impl Counted {
    fn at(topic: &str, partition: Partition, committed: Option<Committed>, bounds: Bounds) -> Self {
        let counts = committed
            .as_ref()
            .map(|committed| Counts::decode(&committed.metadata));
        if counts == Some(None) {
            tracing::warn!(
                topic,
                partition,
                "the commit has no counts, they begin at 0"
            );
        }
        let offset = match committed.map(|committed| committed.offset) {
            Some(offset) if offset > bounds.end => {
                tracing::error!(
                    topic,
                    partition,
                    offset,
                    end = bounds.end,
                    "the log lost records that were counted"
                );
                bounds.end
            }
            Some(offset) if offset < bounds.start => {
                tracing::error!(
                    topic,
                    partition,
                    offset,
                    start = bounds.start,
                    "retention took records before they were counted"
                );
                bounds.start
            }
            Some(offset) => offset,
            None => bounds.start,
        };
        Self {
            next: offset,
            counted: offset,
            counts: counts.flatten().unwrap_or_default(),
            end: bounds.end,
            last_ms: None,
        }
    }

    async fn read(
        &mut self,
        reader: &mut dyn Reader,
        partition: Partition,
        bytes_max: usize,
        look: &mut impl FnMut(&Record, bool, &mut Counts),
    ) -> Result<bool, LogError> {
        let batch = reader
            .read(partition, self.next, bytes_max, READ_WAIT)
            .await?;
        for record in &batch.records {
            let is_new = record.offset >= self.counted;
            look(record, is_new, &mut self.counts);
            self.last_ms = Some(record.timestamp_ms);
        }
        let moved = batch.next > self.next;
        self.next = batch.next.max(self.next);
        self.counted = self.counted.max(self.next);
        Ok(moved && self.next < self.end)
    }
}

fn sum(partitions: &[Counted]) -> Counts {
    let mut sums = Counts::default();
    for counted in partitions {
        sums.add_all(&counted.counts);
    }
    sums
}
