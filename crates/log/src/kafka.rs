//! The log on Apache Kafka. Nothing outside this module names the client library.
//!
//! Librdkafka does the work in threads of its own. What blocks on it runs beside the async threads:
//! one thread for each producer and group member, which serves the client's callbacks, and the
//! runtime's blocking threads for questions. A group member's thread never waits for the code that
//! uses the records; see [`group`].

mod admin;
mod clients;
mod cluster;
mod config;
mod context;
mod errors;
mod group;
mod producer;
mod query;
mod questions;
mod reader;
mod record;
mod statistics;
mod stopped;
mod watchdog;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use rdkafka::consumer::BaseConsumer;

use crate::port::{
    Bounds, Committed, Group, GroupOptions, Log, LogError, Offset, Partition, Producer,
    ProducerOptions, Reader, TopicDescription, TopicSpec,
};

pub use clients::{ClientKind, ClientState};
use clients::{Clients, Place};
pub use cluster::{Broker, Cluster, Requests};
pub use config::{BROKERS, KafkaOptions, is_secret};
use context::Context;
use errors::log_error;
use group::KafkaGroup;
use producer::KafkaProducer;
use questions::{Client, QUERY, Questions};
use reader::KafkaReader;
pub use statistics::{ClientStatistics, ClientTotals};

/// A log on Kafka.
#[derive(Debug)]
pub struct KafkaLog {
    options: KafkaOptions,
    clients: Arc<Clients>,
    questions: Arc<Questions>,
}

impl KafkaLog {
    /// Checks the options and makes a client. It does not wait for a broker: while none can be
    /// reached, questions are answered with [`LogError::Unavailable`].
    ///
    /// # Errors
    /// [`LogError::Permanent`] names a property that is missing, unknown or not allowed.
    pub fn connect(options: KafkaOptions) -> Result<Arc<Self>, LogError> {
        options.check()?;
        let clients = Clients::new(options.session());
        let questions = Questions::start(config::questions(&options), Arc::clone(&clients))?;
        Ok(Arc::new(Self {
            options,
            clients,
            questions,
        }))
    }

    /// How the clients are, by name.
    pub fn clients(&self) -> Vec<ClientState> {
        self.clients.states(Instant::now())
    }

    /// What the producers and groups have told of themselves, by name.
    pub fn statistics(&self) -> Vec<ClientStatistics> {
        self.clients.statistics()
    }

    /// What stands before the name of every topic and group.
    pub fn prefix(&self) -> &str {
        &self.options.prefix
    }

    /// What the brokers are, as one of them describes them.
    ///
    /// # Errors
    /// When none can be reached, or it refuses.
    pub async fn cluster(&self) -> Result<Cluster, LogError> {
        let (config, place) = (config::query(&self.options), self.asking_place());
        self.ask("", move |_, _| cluster::describe(config, place))
            .await
    }

    fn full(&self, name: &str) -> String {
        config::prefixed(&self.options, name)
    }

    /// For a client that is made for one question.
    fn asking_place(&self) -> Place {
        self.clients.place(ClientKind::Query, QUERY)
    }

    fn asking(&self) -> Context {
        Context::new(self.asking_place())
    }

    /// Asks with a topic's full name. Errors speak of the name without prefix.
    async fn ask<T: Send + 'static>(
        &self,
        topic: &str,
        question: impl FnOnce(&Client, &str) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let questions = Arc::clone(&self.questions);
        let full = self.full(topic);
        let answer = query::blocking(move || questions.ask(|client| question(client, &full)));
        let explained = |error| self.clients.explain(without_prefix(topic, error));
        answer.await.map_err(explained)
    }

    async fn partitions(&self, topic: &str) -> Result<Vec<Partition>, LogError> {
        let name = topic.to_owned();
        let found = self.ask(topic, move |client, full| {
            query::partitions(client, full)?.ok_or(LogError::NoSuchTopic(name))
        });
        Ok(found
            .await?
            .into_iter()
            .map(|(partition, _)| partition)
            .collect())
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        let (config, context) = (config::query(&self.options), self.asking());
        let (prefix, replication) = (self.options.prefix.clone(), self.options.replication);
        let topics = topics.to_vec();
        self.ask("", move |client, _| {
            admin::create(&config, context, client, &prefix, replication, &topics)
        })
        .await
    }

    async fn describe_topics(
        &self,
        topics: &[&str],
    ) -> Result<Vec<Option<TopicDescription>>, LogError> {
        let (config, context) = (config::query(&self.options), self.asking());
        let prefix = self.options.prefix.clone();
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        self.ask("", move |client, _| {
            admin::describe(&config, context, client, &prefix, &topics)
        })
        .await
    }

    async fn partition_count(&self, topic: &str) -> Result<i32, LogError> {
        Ok(i32::try_from(self.partitions(topic).await?.len()).unwrap_or(i32::MAX))
    }

    async fn key_partitions(&self, topic: &str) -> Result<i32, LogError> {
        match self.options.partitions.get(topic) {
            Some(partitions) => Ok(*partitions),
            None => self.partition_count(topic).await,
        }
    }

    async fn bounds(&self, topic: &str, partition: Partition) -> Result<Bounds, LogError> {
        let name = topic.to_owned();
        self.ask(topic, move |client, full| {
            query::bounds(client, full, &[partition])?
                .remove(&partition)
                .ok_or(LogError::NoSuchTopic(name))
        })
        .await
    }

    async fn all_bounds(&self, topic: &str) -> Result<Vec<Bounds>, LogError> {
        let partitions = self.partitions(topic).await?;
        self.ask(topic, move |client, full| {
            let bounds = query::bounds(client, full, &partitions)?;
            Ok(bounds.into_values().collect())
        })
        .await
    }

    async fn offset_for_time(
        &self,
        topic: &str,
        partition: Partition,
        timestamp_ms: i64,
    ) -> Result<Offset, LogError> {
        let found = self.ask(topic, move |client, full| {
            query::offset_for_time(client, full, partition, timestamp_ms)
        });
        match found.await? {
            Some(offset) => Ok(offset),
            None => Ok(self.bounds(topic, partition).await?.end),
        }
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<Option<Committed>>, LogError> {
        let partitions = self.partitions(topic).await?;
        let config = config::committed_query(&self.options, group);
        let context = self.asking();
        self.ask(topic, move |_, full| {
            let client: BaseConsumer<Context> = config
                .create_with_context(context)
                .map_err(|error| log_error(full, &error))?;
            let mut committed = query::committed(&client, full, &partitions)?;
            Ok(partitions
                .iter()
                .map(|partition| committed.remove(partition))
                .collect())
        })
        .await
    }

    async fn set_committed(
        &self,
        group: &str,
        topic: &str,
        commits: &[(Partition, Committed)],
    ) -> Result<(), LogError> {
        let config = config::outside_commit(&self.options, group);
        let context = self.asking();
        let (group, commits) = (group.to_owned(), commits.iter().cloned().collect());
        self.ask(topic, move |_, full| {
            let client: BaseConsumer<Context> = config
                .create_with_context(context)
                .map_err(|error| log_error(full, &error))?;
            query::set_committed(&client, &group, full, &commits)
        })
        .await
    }

    async fn producer(&self, options: ProducerOptions) -> Result<Box<dyn Producer>, LogError> {
        let config = config::producer(&self.options, &options);
        let (log, clients) = (self.options.clone(), Arc::clone(&self.clients));
        let producer =
            query::blocking(move || KafkaProducer::start(&options, &log, config, clients));
        Ok(Box::new(producer.await?))
    }

    async fn reader(&self, topic: &str) -> Result<Box<dyn Reader>, LogError> {
        // A reader of nothing would only show itself at the first read.
        self.partitions(topic).await?;
        let (config, clients) = (config::reader(&self.options), Arc::clone(&self.clients));
        let (name, full) = (topic.to_owned(), self.full(topic));
        let questions = Arc::clone(&self.questions);
        let reader =
            query::blocking(move || KafkaReader::create(config, clients, questions, name, full));
        Ok(Box::new(reader.await?))
    }

    async fn group(&self, options: GroupOptions) -> Result<Box<dyn Group>, LogError> {
        self.partitions(&options.topic).await?;
        let config = config::group(&self.options, &options);
        let topic = self.full(&options.topic);
        let place = self.clients.place(ClientKind::Member, &options.group);
        let questions = Arc::clone(&self.questions);
        let group =
            query::blocking(move || KafkaGroup::join(&config, topic, &options, place, questions));
        Ok(Box::new(group.await?))
    }
}

fn without_prefix(topic: &str, error: LogError) -> LogError {
    match error {
        LogError::NoSuchTopic(_) => LogError::NoSuchTopic(topic.to_owned()),
        LogError::Unavailable(_) | LogError::GroupHasMembers(_) | LogError::Permanent(_) => error,
    }
}
