//! A broker inside the process: what [`crate::memory`] and [`crate::embedded`] have in common.
//!
//! It shares partitions among the members of a group ([`group`], [`share`], [`balance`]), bounds
//! producers ([`producer`]) and lets consumers wait ([`reader`]); where records and commits are
//! kept is a [`storage::Storage`].
//!
//! Nothing runs on its own: deadlines pass inside the calls of whoever waits for them, and waiting
//! is on a topic's [`Topic::changed`]. Maps are ordered, so that one seed gives one history.

mod balance;
pub(crate) mod group;
pub(crate) mod producer;
mod reader;
mod share;
pub(crate) mod storage;
pub(crate) mod topic;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::port::{
    Bounds, Committed, Group, GroupOptions, Log, LogError, Offset, Partition, Producer,
    ProducerOptions, Reader, TopicDescription, TopicSpec,
};
use group::LocalGroup;
use producer::LocalProducer;
use reader::LocalReader;
pub(crate) use share::GroupState;
use share::MemberId;
use storage::Storage;
use topic::Topic;

/// One user of the broker: a process, as far as the log can tell.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) name: String,
    killed: AtomicBool,
}

impl Client {
    pub(crate) fn killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    fn check(&self) -> Result<(), LogError> {
        if self.killed() {
            return Err(LogError::Permanent(format!(
                "process {} was killed",
                self.name
            )));
        }
        Ok(())
    }
}

/// A group of one topic.
pub(crate) type GroupKey = (String, String);

/// The broker: topics, groups and the storage below.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) storage: Arc<dyn Storage>,
    topics: Mutex<BTreeMap<String, Arc<Topic>>>,
    groups: Mutex<BTreeMap<GroupKey, GroupState>>,
    /// Counts clients, producers and members alike.
    identities: AtomicU64,
}

impl Broker {
    pub(crate) fn new(storage: Arc<dyn Storage>, topics: Vec<Arc<Topic>>) -> Arc<Self> {
        let topics = topics
            .into_iter()
            .map(|topic| (topic.spec.name.clone(), topic))
            .collect();
        Arc::new(Self {
            storage,
            topics: Mutex::new(topics),
            groups: Mutex::default(),
            identities: AtomicU64::new(0),
        })
    }

    /// Puts in place what the storage remembers of a group.
    pub(crate) fn restore_commit(
        &self,
        group: String,
        topic: &Topic,
        partition: Partition,
        committed: Committed,
    ) {
        self.groups
            .lock()
            .entry((group, topic.spec.name.clone()))
            .or_insert_with(|| GroupState::new(topic.spec.partitions))
            .restore(partition, committed);
    }

    pub(crate) fn client(self: &Arc<Self>, name: &str) -> LocalLog {
        let client = Client {
            id: self.identity(),
            name: name.to_owned(),
            killed: AtomicBool::new(false),
        };
        LocalLog {
            broker: Arc::clone(self),
            client: Arc::new(client),
        }
    }

    /// Ends a client as kill -9 would: nothing it does later has an effect, and the members it has
    /// in groups go when their session times out.
    pub(crate) fn kill(&self, client: &Client, session_timeout: Duration) {
        client.killed.store(true, Ordering::Release);
        self.storage.abandon_client(client.id);
        let expires = Instant::now() + session_timeout;
        for group in self.groups.lock().values_mut() {
            group.expire_client(client.id, expires);
        }
        for topic in self.topics.lock().values() {
            topic.changed.notify_waiters();
        }
    }

    pub(crate) fn topic(&self, name: &str) -> Result<Arc<Topic>, LogError> {
        let found = self.topics.lock().get(name).cloned();
        found.ok_or_else(|| LogError::NoSuchTopic(name.to_owned()))
    }

    pub(crate) fn topics(&self) -> Vec<Arc<Topic>> {
        self.topics.lock().values().cloned().collect()
    }

    fn identity(&self) -> u64 {
        self.identities.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Changes a group after what was due has happened, and wakes the topic's consumers if they
    /// have to be told of anything.
    fn change_group<R>(
        &self,
        key: &GroupKey,
        topic: &Topic,
        change: impl FnOnce(&mut GroupState) -> R,
    ) -> R {
        let mut groups = self.groups.lock();
        let group = groups
            .entry(key.clone())
            .or_insert_with(|| GroupState::new(topic.spec.partitions));
        let now = Instant::now();
        let was_due = group.settle(now);
        let result = change(group);
        let changed = group.settle(now) || was_due;
        drop(groups);
        if changed {
            topic.changed.notify_waiters();
        }
        result
    }

    /// Changes every group of this name, whatever its topic: for the adversary.
    pub(crate) fn disturb(&self, group: &str, mut change: impl FnMut(&mut GroupState)) {
        let keys: Vec<GroupKey> = self
            .groups
            .lock()
            .keys()
            .filter(|(name, _)| name == group)
            .cloned()
            .collect();
        for key in keys {
            if let Ok(topic) = self.topic(&key.1) {
                self.change_group(&key, &topic, &mut change);
            }
        }
    }
}

/// The log as one client sees it.
#[derive(Debug, Clone)]
pub(crate) struct LocalLog {
    pub(crate) broker: Arc<Broker>,
    pub(crate) client: Arc<Client>,
}

impl LocalLog {
    fn topic_partition(&self, topic: &str, partition: Partition) -> Result<Arc<Topic>, LogError> {
        self.client.check()?;
        let topic = self.broker.topic(topic)?;
        topic.check(partition)?;
        Ok(topic)
    }
}

#[async_trait]
impl Log for LocalLog {
    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        self.client.check()?;
        let mut names = Vec::new();
        for spec in topics {
            if self.broker.topic(&spec.name).is_ok() {
                continue;
            }
            if spec.partitions < 1 {
                return Err(LogError::Permanent(format!(
                    "topic {} needs a partition",
                    spec.name
                )));
            }
            let created = self.broker.storage.create_topic(spec.clone()).await?;
            // Somebody else may have been faster: theirs stays, and the storage answered with the
            // same one.
            if let Entry::Vacant(place) = self.broker.topics.lock().entry(spec.name.clone()) {
                place.insert(created);
                names.push(spec.name.clone());
            }
        }
        Ok(names)
    }

    async fn describe_topics(
        &self,
        topics: &[&str],
    ) -> Result<Vec<Option<TopicDescription>>, LogError> {
        self.client.check()?;
        let known = self.broker.topics.lock();
        Ok(topics
            .iter()
            .map(|name| known.get(*name).map(|topic| topic.describe()))
            .collect())
    }

    async fn partition_count(&self, topic: &str) -> Result<i32, LogError> {
        self.client.check()?;
        Ok(self.broker.topic(topic)?.spec.partitions)
    }

    async fn bounds(&self, topic: &str, partition: Partition) -> Result<Bounds, LogError> {
        Ok(self.topic_partition(topic, partition)?.bounds(partition))
    }

    async fn offset_for_time(
        &self,
        topic: &str,
        partition: Partition,
        timestamp_ms: i64,
    ) -> Result<Offset, LogError> {
        let topic = self.topic_partition(topic, partition)?;
        self.broker
            .storage
            .offset_for_time(&topic, partition, timestamp_ms)
            .await
    }

    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<Option<Committed>>, LogError> {
        self.client.check()?;
        let partitions = self.broker.topic(topic)?.spec.partitions;
        let groups = self.broker.groups.lock();
        let key = (group.to_owned(), topic.to_owned());
        Ok(groups.get(&key).map_or_else(
            || (0..partitions).map(|_| None).collect(),
            GroupState::committed,
        ))
    }

    async fn set_committed(
        &self,
        group: &str,
        topic: &str,
        commits: &[(Partition, Committed)],
    ) -> Result<(), LogError> {
        self.client.check()?;
        let topic = self.broker.topic(topic)?;
        for (partition, _) in commits {
            topic.check(*partition)?;
        }
        group::commit_from_outside(self, group, &topic, commits).await
    }

    async fn producer(&self, options: ProducerOptions) -> Result<Box<dyn Producer>, LogError> {
        self.client.check()?;
        Ok(Box::new(LocalProducer::new(
            self,
            self.broker.identity(),
            &options,
        )))
    }

    async fn reader(&self, topic: &str) -> Result<Box<dyn Reader>, LogError> {
        self.client.check()?;
        Ok(Box::new(LocalReader::new(self, self.broker.topic(topic)?)))
    }

    async fn group(&self, options: GroupOptions) -> Result<Box<dyn Group>, LogError> {
        self.client.check()?;
        let topic = self.broker.topic(&options.topic)?;
        let member = MemberId(self.broker.identity());
        Ok(Box::new(LocalGroup::join(self, topic, member, options)))
    }
}

/// Implements the port for a type whose field `local` is a [`LocalLog`].
macro_rules! delegate_log {
    ($wrapper:ty) => {
        #[async_trait::async_trait]
        impl $crate::Log for $wrapper {
            async fn create_topics(
                &self,
                topics: &[$crate::TopicSpec],
            ) -> Result<Vec<String>, $crate::LogError> {
                self.local.create_topics(topics).await
            }
            async fn describe_topics(
                &self,
                topics: &[&str],
            ) -> Result<Vec<Option<$crate::TopicDescription>>, $crate::LogError> {
                self.local.describe_topics(topics).await
            }
            async fn partition_count(&self, topic: &str) -> Result<i32, $crate::LogError> {
                self.local.partition_count(topic).await
            }
            async fn bounds(
                &self,
                topic: &str,
                partition: $crate::Partition,
            ) -> Result<$crate::Bounds, $crate::LogError> {
                self.local.bounds(topic, partition).await
            }
            async fn offset_for_time(
                &self,
                topic: &str,
                partition: $crate::Partition,
                timestamp_ms: i64,
            ) -> Result<$crate::Offset, $crate::LogError> {
                self.local
                    .offset_for_time(topic, partition, timestamp_ms)
                    .await
            }
            async fn committed(
                &self,
                group: &str,
                topic: &str,
            ) -> Result<Vec<Option<$crate::Committed>>, $crate::LogError> {
                self.local.committed(group, topic).await
            }
            async fn set_committed(
                &self,
                group: &str,
                topic: &str,
                commits: &[($crate::Partition, $crate::Committed)],
            ) -> Result<(), $crate::LogError> {
                self.local.set_committed(group, topic, commits).await
            }
            async fn producer(
                &self,
                options: $crate::ProducerOptions,
            ) -> Result<Box<dyn $crate::Producer>, $crate::LogError> {
                self.local.producer(options).await
            }
            async fn reader(
                &self,
                topic: &str,
            ) -> Result<Box<dyn $crate::Reader>, $crate::LogError> {
                self.local.reader(topic).await
            }
            async fn group(
                &self,
                options: $crate::GroupOptions,
            ) -> Result<Box<dyn $crate::Group>, $crate::LogError> {
                self.local.group(options).await
            }
        }
    };
}
pub(crate) use delegate_log;
