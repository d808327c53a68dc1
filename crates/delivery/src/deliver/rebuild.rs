//! Rebuilds the settled set of a partition from `attempts`.

use postrider_log::{Assignment, Log, LogError, Stretch};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::Attempt;
use postrider_model::topics::ATTEMPTS;

use super::settled::SettledSet;
use crate::config::DeliverConfig;

/// Reads the partition's attempts to the present end from where the commit says. One that does not
/// say was made from outside: the group's founding, before which nothing was settled, or an
/// operator's decision, after which it is known as far back as the set remembers.
pub(super) async fn settled_set(
    log: &dyn Log,
    config: &DeliverConfig,
    assignment: &Assignment,
    note: &CommitNote,
    now_ms: i64,
) -> Result<SettledSet, LogError> {
    let partition = assignment.partition;
    let age_ms_max = i64::try_from(config.settled_age_ms).unwrap_or(i64::MAX);
    let bounds = log.bounds(ATTEMPTS, partition).await?;
    let committed = assignment.committed.as_ref();
    let from = match note.rebuild_from {
        Some(from) if from <= bounds.end => from,
        // The topic may also have been made again, with the attempts of days before.
        None if committed.is_none_or(|committed| committed.offset == 0) => {
            let lately = i64::try_from(config.settled_max).unwrap_or(i64::MAX);
            bounds.end.saturating_sub(lately)
        }
        _ => {
            log.offset_for_time(ATTEMPTS, partition, now_ms.saturating_sub(age_ms_max))
                .await?
        }
    };
    if let Some(noted) = note.rebuild_from.filter(|noted| *noted > bounds.end) {
        tracing::error!(
            partition,
            noted,
            end = bounds.end,
            "attempts was made again or lost records; what was settled in them may be attempted again"
        );
    }
    let mut set = SettledSet::new(bounds.end, now_ms, age_ms_max, config.settled_max);
    let mut reader = log.reader(ATTEMPTS).await?;
    let mut stretch = Stretch::new(partition, from.max(bounds.start)..bounds.end);
    while let Some(records) = stretch.read(&mut *reader).await? {
        for record in &records {
            let value = record.value.as_deref().unwrap_or_default();
            match Attempt::decode(value) {
                Ok(attempt) => {
                    // Older releases did not write which record it settled; none in the log by now
                    // is later than the end, unless it was settled in a log of which that was not
                    // the end.
                    let last = assignment.bounds.end - 1;
                    let settles = attempt
                        .delivery_offset
                        .map_or(last, |offset| offset.min(last));
                    set.note(&attempt, record.offset, record.timestamp_ms, settles);
                }
                Err(error) => {
                    tracing::warn!(partition, offset = record.offset, %error, "attempt not understood");
                }
            }
        }
    }
    Ok(set)
}
