//! The producer of the in-process broker: checks, bounds, and hands on to the storage.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use super::storage::{Appending, Origin};
use super::{Broker, LocalLog};
use crate::partitioner::partition_for;
use crate::port::{Append, AppendError, NewRecord, Position, Producer, ProducerOptions, Target};

/// Appends through the storage.
#[derive(Debug)]
pub(crate) struct LocalProducer {
    broker: Arc<Broker>,
    origin: Origin,
    append_timeout: Option<Duration>,
    linger: Duration,
    budget: Arc<Budget>,
    /// Runs what the storage wants run; ends with the producer.
    _background: JoinSet<()>,
}

impl LocalProducer {
    pub(super) fn new(log: &LocalLog, producer: u64, options: &ProducerOptions) -> Self {
        let mut background = JoinSet::new();
        if let Some(work) = log.broker.storage.background() {
            background.spawn(work);
        }
        Self {
            broker: Arc::clone(&log.broker),
            origin: Origin {
                client: Arc::clone(&log.client),
                producer,
                name: options.name,
            },
            append_timeout: options.append_timeout,
            linger: options.linger,
            budget: Arc::new(Budget::new(options.queue_bytes_max)),
            _background: background,
        }
    }

    fn begin(&self, topic: &str, target: Target, record: NewRecord) -> Result<Append, AppendError> {
        self.origin
            .client
            .check()
            .map_err(|killed| AppendError::Unknown(killed.to_string()))?;
        let topic = self
            .broker
            .topic(topic)
            .map_err(|error| AppendError::Failed(error.to_string()))?;
        let partition = match target {
            Target::Key => partition_for(&record.key, topic.spec.partitions),
            Target::Partition(partition) => {
                topic
                    .check(partition)
                    .map_err(|error| AppendError::Failed(error.to_string()))?;
                partition
            }
        };
        let size = payload_bytes(&record);
        if size > topic.spec.message_bytes_max as usize {
            return Err(AppendError::TooLarge);
        }
        let (fate, append) = self.budget.admit(size)?;
        self.broker.storage.append(Appending {
            origin: self.origin.clone(),
            topic,
            partition,
            record,
            timeout: self.append_timeout,
            linger: self.linger,
            fate,
        });
        Ok(append)
    }
}

#[async_trait]
impl Producer for LocalProducer {
    fn append(&self, topic: &str, target: Target, record: NewRecord) -> Append {
        self.begin(topic, target, record)
            .unwrap_or_else(|error| Append::ready(Err(error)))
    }

    async fn flush(&self, timeout: Duration) {
        // Running out of time is an answer too: the caller asked for at most this long.
        tokio::time::timeout(timeout, self.budget.drained())
            .await
            .unwrap_or_default();
    }
}

impl Drop for LocalProducer {
    fn drop(&mut self) {
        self.broker.storage.abandon_producer(self.origin.producer);
    }
}

/// What a record takes of the topic's limit and of the queue.
pub(crate) fn payload_bytes(record: &NewRecord) -> usize {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    record.key.len() + record.value.as_ref().map_or(0, bytes::Bytes::len) + headers
}

/// Bytes that are under way, and how many may be.
#[derive(Debug)]
struct Budget {
    bytes_max: usize,
    bytes: AtomicUsize,
    records: AtomicUsize,
    all_told: Notify,
}

impl Budget {
    fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: AtomicUsize::new(0),
            records: AtomicUsize::new(0),
            all_told: Notify::new(),
        }
    }

    fn admit(self: &Arc<Self>, bytes: usize) -> Result<(Fate, Append), AppendError> {
        self.bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max)
            })
            .map_err(|_| AppendError::QueueFull)?;
        self.records.fetch_add(1, Ordering::AcqRel);
        let (sender, append) = Append::pending();
        Ok((
            Fate {
                sender: Some(sender),
                bytes,
                budget: Arc::clone(self),
            },
            append,
        ))
    }

    async fn drained(&self) {
        loop {
            let all_told = self.all_told.notified();
            if self.records.load(Ordering::Acquire) == 0 {
                return;
            }
            all_told.await;
        }
    }
}

/// The fate of an append, to be told once. Dropping it tells unknown.
#[derive(Debug)]
pub(crate) struct Fate {
    sender: Option<oneshot::Sender<Result<Position, AppendError>>>,
    bytes: usize,
    budget: Arc<Budget>,
}

impl Fate {
    /// Frees the append's room before the caller hears of it, so that it finds room for what it
    /// appends next; and counts it as told only afterwards, so that a flush does not end before.
    pub(crate) fn tell(mut self, fate: Result<Position, AppendError>) {
        self.free();
        // A caller that is not interested has dropped its end.
        self.sender.take().map(|sender| sender.send(fate).ok());
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn free(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.budget.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl Drop for Fate {
    fn drop(&mut self) {
        self.free();
        drop(self.sender.take());
        if self.budget.records.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.budget.all_told.notify_waiters();
        }
    }
}

/// A fate outside any producer, for tests of a storage.
#[cfg(test)]
pub(crate) fn lone_fate(bytes: usize) -> (Origin, Fate, Append) {
    let client = super::Client {
        id: 0,
        name: "test".into(),
        killed: false.into(),
    };
    let (fate, append) = Arc::new(Budget::new(bytes))
        .admit(bytes)
        .expect("there is room");
    (
        Origin {
            client: Arc::new(client),
            producer: 0,
            name: "test",
        },
        fate,
        append,
    )
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Wake, Waker};

    use super::*;

    /// Sees, the moment a caller hears of its fate, what room there is and how many fates are still
    /// to be told.
    struct Seen {
        budget: Arc<Budget>,
        bytes_and_records: parking_lot::Mutex<Option<(usize, usize)>>,
    }

    impl Wake for Seen {
        fn wake(self: Arc<Self>) {
            let bytes = self.budget.bytes.load(Ordering::Acquire);
            let records = self.budget.records.load(Ordering::Acquire);
            *self.bytes_and_records.lock() = Some((bytes, records));
        }
    }

    fn seen_when_heard(end: impl FnOnce(Fate)) -> Option<(usize, usize)> {
        let budget = Arc::new(Budget::new(10));
        let (fate, append) = budget.admit(10).unwrap();
        let seen = Arc::new(Seen {
            budget,
            bytes_and_records: parking_lot::Mutex::default(),
        });
        let waker = Waker::from(Arc::clone(&seen));
        let mut append = pin!(append);
        let pending = append.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(pending.is_pending());
        end(fate);
        assert_eq!(seen.budget.records.load(Ordering::Acquire), 0);
        *seen.bytes_and_records.lock()
    }

    #[test]
    fn a_caller_hears_when_there_is_room_and_before_a_flush_ends() {
        let told = seen_when_heard(|fate| fate.tell(Err(AppendError::QueueFull)));
        assert_eq!(told, Some((0, 1)));
        assert_eq!(seen_when_heard(drop), Some((0, 1)), "nor if it is dropped");
    }
}
