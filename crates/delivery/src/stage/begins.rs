//! Where the reading of a partition begins that was assigned.

use std::time::Duration;

use postrider_log::{Assignment, Log, LogError, Offset, Partition};
use postrider_model::commit_note::{CommitNote, Mark};

use crate::standing::{Standing, TopicPast, examine};

/// How long the record below an offset is waited for.
const READ_WAIT: Duration = Duration::from_secs(1);

/// Where reading of a partition begins, and a record before it that the log has, if one is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begins {
    pub(crate) from: Offset,
    pub(crate) last: Option<Mark>,
}

/// Looks where reading of an assigned partition begins; if nobody can say, why.
///
/// # Errors
/// When the log cannot say.
pub(crate) async fn begins(
    log: &dyn Log,
    topic: &str,
    assignment: &Assignment,
    past: &TopicPast,
) -> Result<Result<Begins, Standing>, LogError> {
    let (partition, bounds) = (assignment.partition, assignment.bounds);
    let committed = assignment.committed.as_ref();
    let from = match examine(log, topic, partition, committed, bounds, past).await? {
        Standing::At(from) => from,
        unknown => return Ok(Err(unknown)),
    };
    let noted = committed.and_then(|committed| CommitNote::decode(&committed.metadata).last);
    let last = match noted {
        Some(last) => Some(last),
        // Older releases noted nothing, and neither does who decides from outside.
        None if from > bounds.start => mark_below(log, topic, partition, from).await?,
        None => None,
    };
    Ok(Ok(Begins { from, last }))
}

/// The record right below an offset, if the log has one there.
async fn mark_below(
    log: &dyn Log,
    topic: &str,
    partition: Partition,
    offset: Offset,
) -> Result<Option<Mark>, LogError> {
    let below = offset - 1;
    let mut reader = log.reader(topic).await?;
    let batch = reader.read(partition, below, 1, READ_WAIT).await?;
    let there = batch
        .records
        .first()
        .filter(|record| record.offset == below);
    Ok(there.map(|record| Mark {
        offset: record.offset,
        appended_at_ms: record.timestamp_ms,
    }))
}
