//! Reads without a group.
//!
//! The reader has a client of its own that is assigned one partition at a time. Reading on where
//! the last read ended costs nothing; anything else assigns anew. Each assignment begins with a
//! question for the bounds, which gives two facts: where the log starts, and an end before which
//! everything will have been seen once the client says that it reached the end of the partition.
//! The second carries `next` over gaps at the very end, which no record shows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset as KafkaOffset};

use super::clients::{ClientKind, Clients};
use super::context::Context;
use super::errors::log_error;
use super::query;
use super::questions::Questions;
use super::record::record;
use super::stopped;
use crate::port::{Batch, LogError, Offset, Partition, Reader, Record};

/// A read is cut into waits of this length, so that a reader that is dropped is soon at rest.
const SLICE: Duration = Duration::from_millis(200);
/// Without a record or word of the end for so long, the log counts as not available.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct KafkaReader {
    state: Arc<Mutex<State>>,
}

impl KafkaReader {
    /// Makes the client. Blocks. `topic` has the prefix, `name` has not.
    pub(super) fn create(
        config: ClientConfig,
        clients: Arc<Clients>,
        questions: Arc<Questions>,
        name: String,
        topic: String,
    ) -> Result<Self, LogError> {
        let mut state = State {
            config,
            clients,
            questions,
            name,
            client: None,
            topic,
            assigned: None,
            place: None,
        };
        state.connect()?;
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
        })
    }

    /// Runs a piece of work on the client beside the async threads. If the caller gives up
    /// meanwhile, the next piece waits for this one.
    async fn with_state<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let state = Arc::clone(&self.state);
        query::blocking(move || {
            let mut state = state.lock();
            let done = work(&mut state);
            if let (Err(LogError::Unavailable(_)), Some(client)) = (&done, &state.client) {
                client.context().place.asks();
            }
            state.look_after_client()?;
            done
        })
        .await
    }
}

#[async_trait]
impl Reader for KafkaReader {
    async fn read(
        &mut self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Batch, LogError> {
        let began = Instant::now();
        let mut from = self
            .with_state(move |state| state.go_to(partition, from))
            .await?;
        loop {
            let left = wait.saturating_sub(began.elapsed());
            let asked = from;
            match self
                .with_state(move |state| state.take(asked, bytes_max, left.min(SLICE)))
                .await?
            {
                Taken::Batch(batch) => return Ok(batch),
                Taken::Truncated { start } => from = start,
                // Records that are there must be given even without a wait, and gaps at the end
                // must be passed.
                Taken::AtEnd { checked } if !checked || left.is_zero() => {
                    let at_end = self.with_state(move |state| state.check_end(asked)).await?;
                    if let Some(batch) = at_end.filter(|_| left.is_zero()) {
                        return Ok(batch);
                    }
                }
                Taken::AtEnd { .. } => {}
                Taken::Nothing if began.elapsed() > wait.saturating_add(SILENCE_MAX) => {
                    return Err(LogError::Unavailable(
                        "kafka gave no records in time".into(),
                    ));
                }
                Taken::Nothing => {}
            }
        }
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        let state = Arc::clone(&self.state);
        close_beside(move || {
            let mut state = state.lock();
            drop(state.client.take());
        });
    }
}

/// Closing a client takes a while and, if a broker is away, longer.
fn close_beside(close: impl FnOnce() + Send + 'static) {
    let closing = thread::Builder::new()
        .name("kafka-close".into())
        .spawn(close);
    if let Err(error) = closing {
        tracing::error!(%error, "no thread to close a kafka reader");
    }
}

struct State {
    config: ClientConfig,
    clients: Arc<Clients>,
    questions: Arc<Questions>,
    /// Of the topic, without prefix.
    name: String,
    /// Taken out when dropped.
    client: Option<BaseConsumer<Context>>,
    topic: String,
    /// What the client was given last, until it is known to have let go of it.
    assigned: Option<Partition>,
    place: Option<Place>,
}

/// Where the client reads.
#[derive(Debug)]
struct Place {
    partition: Partition,
    /// Where the next read goes on.
    next: Offset,
    /// The end as known when the client was assigned: when it reports the end, all before this has
    /// been given.
    end_at_assign: Offset,
    /// The end as known by now.
    end: Offset,
    /// Whether the client reported the end and nothing came since.
    at_end: bool,
    /// Whether `next` is known to be the end, rather than the offset after the last record.
    checked: bool,
    /// Read, but not given yet.
    ahead: VecDeque<Record>,
}

/// What one slice of a read came to.
enum Taken {
    Batch(Batch),
    /// The end of the partition, and no record yet. `checked` if no gap can be there.
    AtEnd {
        checked: bool,
    },
    /// Neither a record nor the end.
    Nothing,
    /// Retention overtook the reader.
    Truncated {
        start: Offset,
    },
}

impl State {
    fn client(&self) -> Result<&BaseConsumer<Context>, LogError> {
        self.client
            .as_ref()
            .ok_or_else(|| LogError::Permanent("the reader is closed".into()))
    }

    /// Makes the client, in place of the one before it.
    fn connect(&mut self) -> Result<(), LogError> {
        let context = Context::new(self.clients.place(ClientKind::Reader, &self.name));
        let fresh = self.config.create_with_context(context);
        let fresh = fresh.map_err(|error| log_error(&self.topic, &error))?;
        self.assigned = None;
        if let Some(former) = self.client.replace(fresh) {
            close_beside(move || drop(former));
        }
        Ok(())
    }

    /// A dead client gives nothing more. With another one the reader begins anew where it was.
    fn look_after_client(&mut self) -> Result<(), LogError> {
        match &self.client {
            Some(client) if client.context().place.is_dead() => {}
            _ => return Ok(()),
        }
        self.connect()?;
        self.place = None;
        Err(LogError::Unavailable("the reader's client is dead".into()))
    }

    /// Gets ready to read from an offset and says where reading begins.
    fn go_to(&mut self, partition: Partition, from: Offset) -> Result<Offset, LogError> {
        match &self.place {
            Some(place) if place.partition == partition && place.next == from => Ok(from),
            _ => self.assign(partition, from),
        }
    }

    fn assign(&mut self, partition: Partition, from: Offset) -> Result<Offset, LogError> {
        self.place = None;
        let bounds = self
            .questions
            .bounds(&self.topic, &[partition])?
            .remove(&partition)
            .ok_or_else(|| LogError::NoSuchTopic(self.topic.clone()))?;
        self.let_go()?;
        let next = from.max(bounds.start);
        // An offset past the end does not exist for Kafka yet; reading it begins at the end and
        // skips.
        let assigned = next.min(bounds.end);
        self.assigned = Some(partition);
        self.client()?
            .assign(&query::list(
                &self.topic,
                [(partition, KafkaOffset::Offset(assigned))],
            ))
            .map_err(|error| log_error(&self.topic, &error))?;
        self.place = Some(Place {
            partition,
            next,
            end_at_assign: bounds.end,
            end: bounds.end,
            at_end: next >= bounds.end,
            checked: true,
            ahead: VecDeque::new(),
        });
        Ok(next)
    }

    fn brokers_answer(&self) -> bool {
        let client = self.client.as_ref();
        client.is_some_and(|client| client.context().place.brokers_answer())
    }

    fn let_go(&mut self) -> Result<(), LogError> {
        let Some(partition) = self.assigned else {
            return Ok(());
        };
        let client = self.client()?;
        client
            .unassign()
            .map_err(|error| log_error(&self.topic, &error))?;
        stopped::wait(client, &self.topic, &[partition])?;
        self.assigned = None;
        Ok(())
    }

    /// Waits for a first record at most this long and takes what is there.
    fn take(&mut self, from: Offset, bytes_max: usize, wait: Duration) -> Result<Taken, LogError> {
        let Self {
            client: Some(client),
            questions,
            topic,
            place: Some(place),
            ..
        } = self
        else {
            return Err(LogError::Permanent("the reader has no place".into()));
        };
        // Even without a wait the first fetch must have its chance.
        let mut wait = if place.at_end {
            wait
        } else {
            wait.max(Duration::from_millis(50))
        };
        let mut heard = false;
        let mut bytes: usize = place.ahead.iter().map(Record::size_bytes).sum();
        while bytes < bytes_max {
            if !place.ahead.is_empty() {
                wait = Duration::ZERO;
            }
            match client.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    heard = true;
                    place.at_end = false;
                    if message.partition() == place.partition && message.offset() >= place.next {
                        let record = record(&message);
                        bytes += record.size_bytes();
                        place.ahead.push_back(record);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == place.partition => {
                    heard = true;
                    (place.at_end, place.checked) = (true, false);
                    break;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => return self.recover(&error),
            }
        }
        if heard {
            client.context().place.heard();
        }
        if !place.ahead.is_empty() {
            return Ok(Taken::Batch(batch(
                questions, topic, place, from, bytes_max,
            )?));
        }
        if !place.at_end {
            client.context().place.asks();
            return Ok(Taken::Nothing);
        }
        if place.next < place.end_at_assign {
            // Only a gap was left. Going past it is worth an answer.
            (place.next, place.checked) = (place.end_at_assign, true);
            return Ok(Taken::Batch(Batch {
                from,
                records: Vec::new(),
                next: place.next,
                end: place.end,
            }));
        }
        Ok(Taken::AtEnd {
            checked: place.checked,
        })
    }

    /// At the end as far as the client knows: asks for the end. If it is where we are, that is the
    /// answer. If not, there are new records or a gap, and a new assignment will tell.
    fn check_end(&mut self, from: Offset) -> Result<Option<Batch>, LogError> {
        let Some(place) = &mut self.place else {
            return Err(LogError::Permanent("the reader has no place".into()));
        };
        let (partition, next) = (place.partition, place.next);
        let end = self.questions.end(&self.topic, partition)?;
        place.end = end;
        if end <= next {
            place.checked = true;
            return Ok(Some(Batch {
                from,
                records: Vec::new(),
                next,
                end,
            }));
        }
        self.assign(partition, next)?;
        Ok(None)
    }

    /// What to do about an error: begin anew where the log starts now, wait, or give up.
    fn recover(&mut self, error: &KafkaError) -> Result<Taken, LogError> {
        let told = log_error(&self.topic, error);
        match (error.rdkafka_error_code(), &self.place) {
            (
                Some(
                    RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::LogTruncation,
                ),
                Some(place),
            ) => {
                let (partition, next) = (place.partition, place.next);
                Ok(Taken::Truncated {
                    start: self.assign(partition, next)?,
                })
            }
            // The client reports each lost connection and repairs it; only when all are lost is
            // there nothing to wait for. Of a client that nobody used for a while that may be old.
            (Some(code), _)
                if matches!(told, LogError::Unavailable(_))
                    && (code != RDKafkaErrorCode::AllBrokersDown || self.brokers_answer()) =>
            {
                Ok(Taken::Nothing)
            }
            _ => {
                // The end is not repeated; whether a broker answers again shows when it is asked
                // for.
                if let Some(place) = &mut self.place {
                    place.checked = false;
                }
                Err(told)
            }
        }
    }
}

/// Takes what was read, at most `bytes_max` but at least one record.
fn batch(
    questions: &Questions,
    topic: &str,
    place: &mut Place,
    from: Offset,
    bytes_max: usize,
) -> Result<Batch, LogError> {
    let mut records = Vec::new();
    let mut bytes = 0;
    while let Some(record) = place.ahead.front() {
        bytes += record.size_bytes();
        if bytes > bytes_max && !records.is_empty() {
            break;
        }
        records.extend(place.ahead.pop_front());
    }
    if let Some(last) = records.last() {
        place.next = last.offset + 1;
    }
    if place.ahead.is_empty() && place.at_end {
        place.end = place.end.max(place.next);
    } else if place.next >= place.end {
        // The end that was known is reached, which says nothing about the present one. The client
        // tells of the end only when a fetch has waited there.
        place.end = questions.end(topic, place.partition)?;
        if place.end <= place.next {
            (place.at_end, place.checked) = (true, true);
        }
    }
    Ok(Batch {
        from,
        records,
        next: place.next,
        end: place.end.max(place.next),
    })
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("State")
            .field("topic", &self.topic)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}
