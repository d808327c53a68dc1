//! Appends.
//!
//! One thread serves the delivery reports. It also replaces the client when that has become
//! useless: an idempotent producer that can no longer tell which of its records are in the log
//! refuses everything from then on; or it may have died (see [`super::watchdog`]). What was under
//! way then is of unknown fate, and what comes later goes through a new client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders, Timestamp};
use rdkafka::producer::{
    BaseProducer, BaseRecord, NoCustomPartitioner, Producer as _, ProducerContext, PurgeConfig,
};
use rdkafka::util::Timeout;
use tokio::sync::oneshot;

use super::clients::{ClientKind, Clients};
use super::config::KafkaOptions;
use super::context::{Context, Hears};
use super::errors::{append_error, log_error};
use crate::partitioner::partition_for;
use crate::port::{
    Append, AppendError, LogError, NewRecord, Partition, Position, Producer, ProducerOptions,
    Target,
};

/// How long one poll may take. The client counts what is left in whole milliseconds, and asks
/// without waiting, again and again, while it is less than one: the microseconds here pass while it
/// wakes up, so that nothing is left.
const POLL: Duration = Duration::from_micros(1_000_050);
const FLUSH_POLL: Duration = Duration::from_millis(100);
/// Between attempts to create a client in place of one that failed.
const REPLACE_PAUSE: Duration = Duration::from_secs(1);
/// How long the remains of a failed client may take to be told.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

type Client = BaseProducer<Context<Arc<Queue>>>;
type Teller = oneshot::Sender<Result<Position, AppendError>>;

/// An append under way, kept by the client until it tells the fate.
struct Pending {
    teller: Teller,
    bytes: usize,
}

/// Appends whose fate is not told yet, of all clients of a producer.
#[derive(Debug, Default)]
struct Queue {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

impl Queue {
    /// Takes room for an append, if there is any.
    fn take(&self, bytes: usize, bytes_max: usize) -> bool {
        let taken = self
            .bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |queued| {
                queued.checked_add(bytes).filter(|sum| *sum <= bytes_max)
            });
        if taken.is_ok() {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
        taken.is_ok()
    }

    /// Tells the fate of an append. Its room is free before anybody knows.
    fn tell(&self, pending: Pending, fate: Result<Position, AppendError>) {
        self.bytes.fetch_sub(pending.bytes, Ordering::AcqRel);
        // Nobody needs to wait for an append.
        drop(pending.teller.send(fate));
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
pub(super) struct KafkaProducer {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    prefix: String,
    /// Over how many partitions keys are spread, where that is not the brokers' to say.
    partitions: BTreeMap<String, Partition>,
    config: ClientConfig,
    clients: Arc<Clients>,
    /// The present client, none when closing. Held only to take a clone.
    client: Mutex<Option<Arc<Client>>>,
    queue: Arc<Queue>,
    queue_bytes_max: usize,
    closing: AtomicBool,
}

impl KafkaProducer {
    pub(super) fn start(
        options: &ProducerOptions,
        log: &KafkaOptions,
        config: ClientConfig,
        clients: Arc<Clients>,
    ) -> Result<Self, LogError> {
        let name = options.name;
        let queue = Arc::new(Queue::default());
        let client = create(name, &config, &clients, &queue)?;
        let shared = Arc::new(Shared {
            name,
            prefix: log.prefix.clone(),
            partitions: log.partitions.clone(),
            config,
            clients,
            client: Mutex::new(Some(Arc::new(client))),
            queue,
            queue_bytes_max: options.queue_bytes_max,
            closing: AtomicBool::new(false),
        });
        let polled = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("kafka-{name}"))
            .spawn(move || polled.serve())
            .map_err(|error| LogError::Permanent(format!("no thread for a producer: {error}")))?;
        Ok(Self { shared })
    }
}

#[async_trait]
impl Producer for KafkaProducer {
    fn append(&self, topic: &str, target: Target, record: NewRecord) -> Append {
        let (teller, append) = Append::pending();
        let bytes = size_bytes(&record);
        if !self.shared.queue.take(bytes, self.shared.queue_bytes_max) {
            return Append::ready(Err(AppendError::QueueFull));
        }
        self.shared
            .send(topic, target, &record, Pending { teller, bytes });
        append
    }

    async fn flush(&self, timeout: Duration) {
        let shared = Arc::clone(&self.shared);
        let flushed = tokio::task::spawn_blocking(move || shared.flush(timeout)).await;
        if let Err(error) = flushed {
            tracing::error!(%error, "flushing a producer ended early");
        }
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        // The thread lets go of the client, which takes a moment that must not be spent here.
        self.shared.closing.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn send(&self, topic: &str, target: Target, record: &NewRecord, pending: Pending) {
        let Some(client) = self.client() else {
            return self.queue.tell(pending, Err(AppendError::QueueFull));
        };
        let partition = match target {
            Target::Partition(partition) => Some(partition),
            Target::Key => self
                .partitions
                .get(topic)
                .map(|count| partition_for(&record.key, *count)),
        };
        let topic = format!("{}{topic}", self.prefix);
        let mut message =
            BaseRecord::<[u8], [u8], Box<Pending>>::with_opaque_to(&topic, Box::new(pending))
                .key(record.key.as_ref());
        if let Some(partition) = partition {
            message = message.partition(partition);
        }
        if let Some(value) = &record.value {
            message = message.payload(value.as_ref());
        }
        if !record.headers.is_empty() {
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
            for (name, value) in &record.headers {
                headers = headers.insert(Header {
                    key: name,
                    value: Some(value.as_ref()),
                });
            }
            message = message.headers(headers);
        }
        if let Err((error, message)) = client.send(message) {
            self.queue
                .tell(*message.delivery_opaque, Err(append_error(&error)));
        }
    }

    fn client(&self) -> Option<Arc<Client>> {
        self.client.lock().clone()
    }

    fn swap(&self, client: Option<Arc<Client>>) -> Option<Arc<Client>> {
        std::mem::replace(&mut *self.client.lock(), client)
    }

    fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.queue.count.load(Ordering::Acquire) > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            // A flush sends without lingering. That it timed out shows in what is pending.
            let Some(client) = self.client() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            drop(client.flush(Timeout::After(left.min(FLUSH_POLL))));
        }
    }

    /// The thread's life.
    fn serve(&self) {
        while !self.closing.load(Ordering::Relaxed) {
            let Some(client) = self.client() else { break };
            client.poll(POLL);
            let failed = client.client().fatal_error();
            if let Some((code, reason)) = &failed {
                tracing::error!(producer = self.name, %code, reason, "kafka producer failed and is replaced");
            }
            if failed.is_some() || client.context().place.is_dead() {
                drop(client);
                self.replace();
            }
        }
        self.discard(self.swap(None));
    }

    /// Tells every fate of the present client before anything goes through the next one, so that no
    /// append passes one that failed; until then the queue has no room. The next one is there
    /// before, so that the producer stays missed until that has heard a broker.
    fn replace(&self) {
        let fresh = loop {
            match create(self.name, &self.config, &self.clients, &self.queue) {
                Ok(client) => break Arc::new(client),
                Err(error) => tracing::error!(%error, "creating a kafka producer failed"),
            }
            if self.closing.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(REPLACE_PAUSE);
        };
        self.discard(self.swap(None));
        self.swap(Some(fresh));
    }

    /// Gives up what a client has not finished, and the client. Letting go of it takes up to half a
    /// second, so this waits until no append holds it any more, lest one of them pays for that.
    fn discard(&self, client: Option<Arc<Client>>) {
        let Some(client) = client else { return };
        while Arc::strong_count(&client) > 1 {
            thread::sleep(Duration::from_millis(1));
        }
        client.purge(PurgeConfig::default().queue().inflight());
        if client.flush(Timeout::After(DISCARD_TIMEOUT)).is_err() {
            tracing::warn!(
                producer = self.name,
                "kafka producer did not tell every fate in time"
            );
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("name", &self.name)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

fn create(
    name: &'static str,
    config: &ClientConfig,
    clients: &Arc<Clients>,
    queue: &Arc<Queue>,
) -> Result<Client, LogError> {
    let context = Context {
        place: clients.place(ClientKind::Producer, name),
        own: Arc::clone(queue),
    };
    config
        .create_with_context(context)
        .map_err(|error| log_error("", &error))
}

fn size_bytes(record: &NewRecord) -> usize {
    let headers = record.headers.iter();
    let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
    record.key.len() + record.value.as_ref().map_or(0, Bytes::len) + headers
}

impl Hears for Arc<Queue> {
    fn waits(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }
}

impl ProducerContext<NoCustomPartitioner> for Context<Arc<Queue>> {
    type DeliveryOpaque = Box<Pending>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Box<Pending>) {
        let fate = match result {
            Ok(message) => Ok(Position {
                partition: message.partition(),
                offset: message.offset(),
                timestamp_ms: match message.timestamp() {
                    Timestamp::LogAppendTime(timestamp_ms) => Some(timestamp_ms),
                    Timestamp::CreateTime(_) | Timestamp::NotAvailable => None,
                },
            }),
            Err((error, _)) => Err(append_error(error)),
        };
        self.own.tell(*pending, fate);
    }
}
