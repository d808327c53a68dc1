//! Members of groups.
//!
//! Each member has a thread that polls the client, and a [`state`] shared with the code that uses
//! the group. The thread never waits for that code: what it cannot hand over it keeps, pauses its
//! partitions, and keeps polling, so that rebalances and the answers to commits are served.
//!
//! **Rebalances** come as signals that the thread answers when it is ready. New partitions are
//! taken over at once, but given to the client only when they are started, at the offset that
//! [`Group::start`] names: so nothing is ever paused before its first record, and the client never
//! chooses an offset. A revoke is answered when everything is released and committed, or its
//! deadline is over; until then the broker gives the partitions to nobody else. (Meanwhile the
//! client itself stops fetching the member's other partitions.)
//!
//! **Commits** are checked against the present generations when they are asked for, and sent by a
//! thread of their own, as the client tells the fate of a commit only to who waits for it. One is
//! under way at a time; what is asked for meanwhile is merged into the next. The client sends a
//! commit under whatever generation it has by then, and gets a new one only after the revoked
//! partitions are given back to it: so that waits for the commit, however late it is.

mod commits;
mod committer;
mod context;
mod member;
mod queue;
mod state;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::ClientConfig;

use super::clients::Place;
use super::questions::Questions;
use crate::port::{
    Commit, CommitAck, Group, GroupEvent, GroupOptions, LogError, Offset, Partition,
};
use queue::Wanted;
use state::Shared;

/// How long leaving a group may take before it goes on unattended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct KafkaGroup {
    shared: Arc<Shared>,
}

impl KafkaGroup {
    /// Begins to join. Blocks shortly. `topic` has the prefix.
    pub(super) fn join(
        config: &ClientConfig,
        topic: String,
        options: &GroupOptions,
        place: Place,
        questions: Arc<Questions>,
    ) -> Result<Self, LogError> {
        Ok(Self {
            shared: member::start(config, topic, options, place, questions)?,
        })
    }
}

#[async_trait]
impl Group for KafkaGroup {
    async fn next(&mut self) -> Result<GroupEvent, LogError> {
        self.shared.next_event(Wanted::Any).await
    }

    async fn next_rebalance(&mut self) -> Result<GroupEvent, LogError> {
        self.shared.next_event(Wanted::Rebalance).await
    }

    fn start(&mut self, partition: Partition, from: Offset) {
        self.shared.lock().start(partition, from);
    }

    fn pause(&mut self, partition: Partition) {
        self.shared.lock().set_paused(partition, true);
    }

    fn resume(&mut self, partition: Partition) {
        self.shared.lock().set_paused(partition, false);
    }

    fn commit(&mut self, commits: Vec<Commit>) -> CommitAck {
        let (teller, ack) = CommitAck::pending();
        self.shared.commit(commits, teller);
        ack
    }

    fn release(&mut self) {
        self.shared.lock().release();
    }

    async fn close(&mut self) {
        self.shared.ask_to_close();
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, async {
            loop {
                let notified = self.shared.changed.notified();
                if self.shared.lock().is_closed() {
                    return;
                }
                notified.await;
            }
        });
        if closed.await.is_err() {
            tracing::warn!("leaving a kafka group takes long and goes on unattended");
        }
    }
}

impl Drop for KafkaGroup {
    fn drop(&mut self) {
        self.shared.ask_to_close();
    }
}
