//! The thread that commits for a member.

use std::collections::BTreeMap;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::commits::Outcome;
use super::context::Client;
use super::state::Shared;
use crate::kafka::errors::{commit_error, commit_is_early};
use crate::port::{CommitError, Committed, Partition};

/// Sends commits, one after the other, until the member closes.
pub(super) fn run(shared: &Shared, client: &Client, topic: &str) {
    while let Some(round) = shared.next_commit() {
        // An answer may take as long as a session, while the coordinator is away.
        if client.assignment_lost() {
            // The client would commit, without a generation, and the broker might take it.
            shared
                .lock()
                .commit_done(Outcome::Failed(CommitError::Fenced));
            continue;
        }
        let outcome = match client.commit(&list(topic, &round), CommitMode::Sync) {
            Ok(()) => Outcome::Committed,
            Err(error) if commit_is_early(&error) => Outcome::Early(commit_error(&error)),
            Err(error) => Outcome::Failed(commit_error(&error)),
        };
        shared.lock().commit_done(outcome);
    }
}

fn list(topic: &str, round: &BTreeMap<Partition, Committed>) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(round.len());
    for (partition, Committed { offset, metadata }) in round {
        let mut element = list.add_partition(topic, *partition);
        if let Err(error) = element.set_offset(KafkaOffset::Offset(*offset)) {
            tracing::error!(partition, offset, %error, "a commit names an impossible offset");
        }
        if !metadata.is_empty() {
            element.set_metadata(metadata);
        }
    }
    list
}
