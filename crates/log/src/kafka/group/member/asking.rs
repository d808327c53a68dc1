//! What the group committed, asked beside the member's thread.

use std::collections::BTreeMap;
use std::thread;

use super::ASK_PAUSE;
use crate::kafka::group::context::Client;
use crate::kafka::group::state::Shared;
use crate::kafka::query;
use crate::kafka::questions::Questions;
use crate::port::{Assignment, Generation, LogError, Partition};

/// Asks what the group has committed and tells the user, until it is known or no longer wanted.
pub(super) fn ask_committed(
    shared: &Shared,
    client: &Client,
    questions: &Questions,
    generations: &BTreeMap<Partition, Generation>,
) {
    while shared.lock().asks(generations) {
        let topic = shared.lock().topic().to_owned();
        match assignments(client, questions, &topic, generations) {
            Ok(assignments) => {
                shared.lock().tell_assigned(assignments);
                shared.changed.notify_one();
                return;
            }
            Err(LogError::Unavailable(reason)) => {
                tracing::warn!(topic, reason, "committed offsets are not known yet");
                thread::sleep(ASK_PAUSE);
            }
            Err(error) => {
                shared.lock().fail(error);
                shared.changed.notify_one();
                return;
            }
        }
    }
}

fn assignments(
    client: &Client,
    questions: &Questions,
    topic: &str,
    generations: &BTreeMap<Partition, Generation>,
) -> Result<Vec<Assignment>, LogError> {
    let partitions: Vec<Partition> = generations.keys().copied().collect();
    let mut committed = query::committed(client, topic, &partitions)?;
    let bounds = questions.bounds(topic, &partitions)?;
    let known = generations.iter().filter_map(|(&partition, &generation)| {
        let bounds = *bounds.get(&partition)?;
        Some(Assignment {
            partition,
            generation,
            committed: committed.remove(&partition),
            bounds,
        })
    });
    Ok(known.collect())
}
