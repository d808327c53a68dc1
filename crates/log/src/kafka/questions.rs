//! The client for questions. It asks without end whether brokers answer, and is replaced when it
//! dies.
//!
//! Where a partition begins and ends is asked of this client also by those that read it: a broker
//! answers what comes by one connection in its order, so a question behind a fetch would wait until
//! something comes to be fetched.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::clients::{ClientKind, Clients};
use super::context::Context;
use super::errors::log_error;
use super::query;
use crate::port::{Bounds, LogError, Offset, Partition};

/// How often the client is served: its log lines, and what it tells of itself.
const SERVE: Duration = Duration::from_millis(500);
/// Between two questions whether brokers answer.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// The name of clients that ask.
pub(super) const QUERY: &str = "query";

pub(super) type Client = BaseConsumer<Context>;

/// Has a client that can be asked. It has no group.
pub(super) struct Questions {
    config: ClientConfig,
    clients: Arc<Clients>,
    client: Mutex<Arc<Client>>,
}

impl Questions {
    /// Makes the client and the thread that serves it.
    pub(super) fn start(
        config: ClientConfig,
        clients: Arc<Clients>,
    ) -> Result<Arc<Self>, LogError> {
        let client = Mutex::new(create(&config, &clients)?);
        let questions = Arc::new(Self {
            config,
            clients,
            client,
        });
        let served = Arc::downgrade(&questions);
        thread::Builder::new()
            .name("kafka-query".into())
            .spawn(move || serve(&served))
            .map_err(|error| LogError::Permanent(format!("no thread for kafka: {error}")))?;
        Ok(questions)
    }

    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.lock())
    }

    /// The bounds of partitions of a topic. Blocks. `topic` has the prefix.
    pub(super) fn bounds(
        &self,
        topic: &str,
        partitions: &[Partition],
    ) -> Result<BTreeMap<Partition, Bounds>, LogError> {
        self.ask(|client| query::bounds(client, topic, partitions))
    }

    /// Where a partition ends. Blocks. `topic` has the prefix.
    pub(super) fn end(&self, topic: &str, partition: Partition) -> Result<Offset, LogError> {
        self.ask(|client| query::end(client, topic, partition))
    }

    /// Asks the present client, and notes whether brokers answer it. Blocks.
    pub(super) fn ask<T>(
        &self,
        question: impl FnOnce(&Client) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        let client = self.client();
        let answer = question(&client);
        match &answer {
            Ok(_) => client.context().place.heard(),
            Err(LogError::Unavailable(reason)) => client.context().place.unreachable(reason),
            Err(_) => {}
        }
        answer
    }

    fn replace(&self) {
        match create(&self.config, &self.clients) {
            // Whoever asks the old one at present lets go of it.
            Ok(fresh) => *self.client.lock() = fresh,
            Err(error) => tracing::error!(%error, "creating a kafka client failed"),
        }
    }
}

impl std::fmt::Debug for Questions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Questions")
    }
}

fn create(config: &ClientConfig, clients: &Arc<Clients>) -> Result<Arc<Client>, LogError> {
    let context = Context::new(clients.place(ClientKind::Query, QUERY));
    let client = config.create_with_context(context);
    client.map(Arc::new).map_err(|error| log_error("", &error))
}

/// Serves the client until the log is dropped.
fn serve(served: &Weak<Questions>) {
    let mut probe_at = Instant::now();
    while let Some(questions) = served.upgrade() {
        let client = questions.client();
        // Without a group there are no messages: this serves log lines, errors and statistics only.
        if let Some(Err(error)) = client.poll(SERVE) {
            tracing::debug!(%error, "kafka client reports an error");
        }
        if Instant::now() >= probe_at {
            let answered = query::brokers_answer(&client);
            questions.clients.answered(answered);
            let place = &client.context().place;
            if answered {
                place.heard();
            } else {
                place.unreachable("none answered a question in time");
            }
            probe_at = Instant::now() + PROBE_INTERVAL;
        }
        if client.context().place.is_dead() {
            questions.replace();
            probe_at = Instant::now();
        }
    }
}
