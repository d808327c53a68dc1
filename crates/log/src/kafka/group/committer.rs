//! The thread that commits for a member.

use rdkafka::consumer::{CommitMode, Consumer};

use super::commits::Outcome;
use super::context::Client;
use super::state::Shared;
use crate::kafka::errors::{commit_error, commit_is_early};
use crate::kafka::query::commit_list;
use crate::port::CommitError;

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
        let outcome = match client.commit(&commit_list(topic, &round), CommitMode::Sync) {
            Ok(()) => Outcome::Committed,
            Err(error) if commit_is_early(&error) => Outcome::Early(commit_error(&error)),
            Err(error) => Outcome::Failed(commit_error(&error)),
        };
        shared.lock().commit_done(outcome);
    }
}
