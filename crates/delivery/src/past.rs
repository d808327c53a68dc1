//! Whether a log is still the one that was read.
//!
//! An offset names a record only as long as the log keeps its past. A topic that is deleted and
//! created again, an unclean election, a tail lost in a power cut: then the same offsets are given
//! to other records, and a group that goes on at its commit skips what is new below it. So a commit
//! names records that were read (`commit_note.rs`), and here is looked whether the log still has
//! them: before a partition begins, every few seconds while it is owned, and by
//! `postrider recover`. All three ask the same question and so give the same answer.
//!
//! Two records are named, since one that was read after the change proves nothing. `last` is the
//! last one below the committed offset. `verified` was read before it, and was found in the log
//! after `last` had been read: by that chain every commit reaches back into one past. If both are
//! there, so is everything between them.

use std::time::Duration;

use postrider_log::{Log, LogError, Partition};
use postrider_model::commit_note::Mark;

/// How long the record at an offset is waited for.
const READ_WAIT: Duration = Duration::from_secs(1);

/// A record was read that the log has no more, and retention did not take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction {
    /// What was read.
    pub read: Mark,
    /// When the log got the record that is at that offset now; `None`: there is none.
    pub present_appended_at_ms: Option<i64>,
}

/// Looks for records that were read, and names the first that is not there.
///
/// # Errors
/// When the log cannot say.
pub(crate) async fn contradiction(
    log: &dyn Log,
    topic: &str,
    partition: Partition,
    marks: impl IntoIterator<Item = Mark>,
) -> Result<Option<Contradiction>, LogError> {
    for mark in marks {
        // The log's times do not fall, so what took the place of a record is later, and so is
        // everything after it. This question reads no record and nearly always does.
        let after = mark.appended_at_ms.saturating_add(1);
        let later = log.offset_for_time(topic, partition, after).await?;
        if later <= mark.offset
            && let Some(contradiction) = look(log, topic, partition, mark).await?
        {
            return Ok(Some(contradiction));
        }
    }
    Ok(None)
}

async fn look(
    log: &dyn Log,
    topic: &str,
    partition: Partition,
    read: Mark,
) -> Result<Option<Contradiction>, LogError> {
    let mut reader = log.reader(topic).await?;
    let batch = reader.read(partition, read.offset, 1, READ_WAIT).await?;
    if batch.from > read.offset {
        // Retention took it: what is left was there with it.
        return Ok(None);
    }
    let present = batch.records.first();
    if present.is_none() && batch.next <= read.offset && batch.end > read.offset {
        return Err(LogError::Unavailable(format!(
            "offset {} of partition {partition} was not read in time",
            read.offset
        )));
    }
    let present = present.filter(|record| record.offset == read.offset);
    let present_appended_at_ms = present.map(|record| record.timestamp_ms);
    let is_it = present_appended_at_ms == Some(read.appended_at_ms);
    Ok((!is_it).then_some(Contradiction {
        read,
        present_appended_at_ms,
    }))
}
