//! The storage of the embedded log: a queue to the writer, and connections that read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::compaction::{self, Ages};
use super::database::{Database, Kept, check_spec, slot};
use super::reads::{self, Place, Readers};
use super::tail::Tail;
use super::writer::{self, Job, Queue, Reply};
use crate::clock::Clock;
use crate::local::storage::{Appending, Chunk, CommitDone, Storage};
use crate::local::topic::Topic;
use crate::port::{Commit, LogError, Offset, Partition, TopicSpec};

/// Records that one transaction deletes, at most: appends wait for it.
const DELETED_AT_ONCE_MAX: u32 = 1_000;

/// Records and commits in a file.
#[derive(Debug)]
pub(super) struct EmbeddedStorage {
    queue: Arc<Queue>,
    tail: Arc<Tail>,
    readers: Arc<Readers>,
    writer: Mutex<Option<JoinHandle<()>>>,
    topic_count: Mutex<usize>,
    /// The end up to which a partition is compacted as far as can be.
    compacted: Mutex<BTreeMap<i64, Offset>>,
}

impl EmbeddedStorage {
    pub(super) fn open(
        dir: &Path,
        clock: Arc<dyn Clock>,
        tail: Tail,
    ) -> Result<(Arc<Self>, Kept), LogError> {
        let mut database = Database::open(dir)?;
        let kept = database
            .kept()
            .map_err(|error| LogError::Permanent(error.to_string()))?;
        let (queue, tail) = (Arc::new(Queue::default()), Arc::new(tail));
        let for_writer = (Arc::clone(&queue), Arc::clone(&tail));
        let writer = thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || {
                let (queue, tail) = for_writer;
                writer::run(database, clock.as_ref(), &queue, &tail);
            })
            .map_err(|error| LogError::Unavailable(error.to_string()))?;
        let storage = Arc::new(Self {
            queue,
            tail,
            readers: Readers::new(dir.to_owned()),
            writer: Mutex::new(Some(writer)),
            topic_count: Mutex::new(kept.topics.len()),
            compacted: Mutex::default(),
        });
        Ok((storage, kept))
    }

    /// First offset appended at or after the time, else the end.
    pub(super) fn first_at(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        timestamp_ms: i64,
    ) -> impl Future<Output = Result<Offset, LogError>> + Send + 'static {
        let place = place(topic, partition);
        let readers = Arc::clone(&self.readers);
        readers.read(move |connection| reads::first_at(connection, place, timestamp_ms))
    }

    /// Removes the records before an offset, in small transactions; answers with how many.
    pub(super) async fn truncate(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        to: Offset,
    ) -> Result<u64, LogError> {
        let Place { slot, bounds, .. } = place(topic, partition);
        let before = to.clamp(bounds.start, bounds.end);
        // What a crash left over of an earlier removal is before the start too.
        let any = Arc::clone(&self.readers)
            .read(move |connection| reads::any_before(connection, slot, before));
        if before == bounds.start && !any.await? {
            return Ok(0);
        }
        // Readers must know before records disappear under them.
        topic.set_start(partition, before);
        topic.changed.notify_waiters();
        let mut removed = 0;
        loop {
            let topic = Arc::clone(topic);
            let records_max = DELETED_AT_ONCE_MAX;
            let deleted = self
                .ask(|reply| Job::DeleteBefore {
                    topic,
                    partition,
                    before,
                    records_max,
                    reply,
                })
                .await?;
            removed += deleted as u64;
            if deleted < DELETED_AT_ONCE_MAX as usize {
                return Ok(removed);
            }
        }
    }

    /// Compacts a partition; answers with how many records went.
    pub(super) async fn compact(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        now_ms: i64,
    ) -> Result<u64, LogError> {
        let place = place(topic, partition);
        if self.compacted.lock().get(&place.slot) == Some(&place.bounds.end) {
            return Ok(0);
        }
        let ages = Ages::of(&topic.spec, now_ms);
        let mut removed = 0;
        loop {
            let readers = Arc::clone(&self.readers);
            let mut found = readers
                .read(move |connection| compaction::find(connection, place, ages))
                .await?;
            if found.row_ids.is_empty() {
                if !found.more_later {
                    self.compacted.lock().insert(place.slot, place.bounds.end);
                }
                return Ok(removed);
            }
            found.row_ids.sort_unstable();
            for row_ids in found.row_ids.chunks(DELETED_AT_ONCE_MAX as usize) {
                let row_ids = row_ids.to_vec();
                removed += self.ask(|reply| Job::Delete { row_ids, reply }).await? as u64;
            }
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.queue.standing.trouble()
    }

    pub(super) async fn probe(&self) -> Result<(), LogError> {
        self.ask(|reply| Job::Probe { reply }).await?;
        self.ask(|reply| Job::ProbeEnd { reply }).await.map(drop)
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, LogError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(job(reply));
        answer
            .await
            .unwrap_or_else(|_| Err(LogError::Unavailable("the log is closed".into())))
    }
}

fn place(topic: &Topic, partition: Partition) -> Place {
    Place {
        slot: slot(topic.id, partition),
        partition,
        bounds: topic.bounds(partition),
    }
}

impl Storage for EmbeddedStorage {
    fn create_topic(&self, spec: TopicSpec) -> BoxFuture<'static, Result<Arc<Topic>, LogError>> {
        let mut count = self.topic_count.lock();
        if let Err(error) = check_spec(&spec, *count) {
            return std::future::ready(Err(error)).boxed();
        }
        *count += 1;
        drop(count);
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job::CreateTopic {
            spec: spec.clone(),
            reply,
        });
        let created = async move {
            let closed = |_| Err(LogError::Unavailable("the log is closed".into()));
            let id = answer.await.unwrap_or_else(closed)?;
            Ok(Arc::new(Topic::new(id, spec)))
        };
        created.boxed()
    }

    fn append(&self, appending: Appending) {
        self.queue.push(Job::Append(appending));
    }

    fn read(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Chunk, LogError>> {
        let place = place(topic, partition);
        let end = place.bounds.end;
        if let Some(chunk) = self.tail.read(place.slot, from, end, bytes_max) {
            return std::future::ready(Ok(chunk)).boxed();
        }
        let readers = Arc::clone(&self.readers);
        readers
            .read(move |connection| reads::records(connection, place, from, bytes_max))
            .boxed()
    }

    fn offset_for_time(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        timestamp_ms: i64,
    ) -> BoxFuture<'static, Result<Offset, LogError>> {
        self.first_at(topic, partition, timestamp_ms).boxed()
    }

    fn commit(&self, group: &str, topic: &Arc<Topic>, commits: Vec<Commit>, done: CommitDone) {
        let (group, topic) = (group.to_owned(), Arc::clone(topic));
        self.queue.push(Job::Commit {
            group,
            topic,
            commits,
            done,
        });
    }
}

impl Drop for EmbeddedStorage {
    fn drop(&mut self) {
        self.queue.close();
        let Some(writer) = self.writer.lock().take() else {
            return;
        };
        // The last reference may be the writer's own, in what it was to call back.
        if writer.thread().id() != thread::current().id() {
            // A writer that panicked has said so; the log is closed either way.
            writer.join().ok();
        }
    }
}
