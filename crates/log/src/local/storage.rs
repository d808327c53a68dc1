//! Where the in-process broker keeps records and commits.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::producer::Fate;
use super::topic::Topic;
use crate::port::{Commit, CommitError, LogError, NewRecord, Offset, Partition, Record, TopicSpec};

/// Keeps records and commits. Nothing here blocks the caller.
pub(crate) trait Storage: Debug + Send + Sync + 'static {
    /// Creates a topic, or answers with the one of this name.
    fn create_topic(&self, spec: TopicSpec) -> BoxFuture<'static, Result<Arc<Topic>, LogError>>;

    /// Appends, in the order of calls. Once the record is durable, moves the topic's end, tells the
    /// fate, wakes the topic.
    fn append(&self, appending: Appending);

    /// Reads records from an offset that lies within the bounds, none beyond them.
    fn read(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Chunk, LogError>>;

    /// First offset appended at or after the time, else the end.
    fn offset_for_time(
        &self,
        topic: &Arc<Topic>,
        partition: Partition,
        timestamp_ms: i64,
    ) -> BoxFuture<'static, Result<Offset, LogError>>;

    /// Makes commits durable, all or none, and then calls back, on any thread.
    fn commit(&self, group: &str, topic: &Arc<Topic>, commits: Vec<Commit>, done: CommitDone);

    /// A producer was dropped: what it has under way is given up.
    fn abandon_producer(&self, _producer: u64) {}

    /// A client died: what its producers have under way is given up.
    fn abandon_client(&self, _client: u64) {}

    /// What a producer has to run for as long as it lives.
    fn background(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// An append on its way.
#[derive(Debug)]
pub(crate) struct Appending {
    pub(crate) origin: Origin,
    pub(crate) topic: Arc<Topic>,
    pub(crate) partition: Partition,
    pub(crate) record: NewRecord,
    pub(crate) timeout: Option<Duration>,
    /// How long it may wait for others that are written with it.
    pub(crate) linger: Duration,
    pub(crate) fate: Fate,
}

/// Who appends.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) client: Arc<super::Client>,
    pub(crate) producer: u64,
    /// What it is called.
    pub(crate) name: &'static str,
}

/// Records as read, and where to go on.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) records: Vec<Record>,
    pub(crate) next: Offset,
}

/// Called when the fate of a commit is known.
pub(crate) type CommitDone = Box<dyn FnOnce(CommitFate) + Send>;

/// What became of a commit, and what is told of it: the adversary tells less than it knows.
#[derive(Debug)]
pub(crate) struct CommitFate {
    pub(crate) landed: bool,
    pub(crate) told: Result<(), CommitError>,
}
