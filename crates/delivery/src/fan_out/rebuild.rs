//! Rebuilds the window of repeated ids of a partition from `events`.

use std::collections::BTreeSet;
use std::time::Duration;

use postrider_log::{
    Assignment, Log, LogError, Offset, Partition, Reader, Record, Stretch, partition_for,
};
use postrider_model::delivery::{DeadLetter, DeadLetterContent};
use postrider_model::event::Event;
use postrider_model::outcome::Reason;
use postrider_model::topics::{DEAD_LETTERS, EVENTS};
use postrider_registry::Registry;

use super::decode;
use super::repeats::{Fingerprints, Seen};
use crate::config::FanOutConfig;
use crate::dead_letter;

/// Clocks of different machines may differ by this much.
const SKEW_MS_MAX: i64 = 60_000;

/// Reads the events before `from` that the window covers, no more than it has ids. The age is
/// counted back from the last event before `from`, by the times of the log: no other clock matters.
pub(super) async fn seen(
    log: &dyn Log,
    registry: &Registry,
    config: &FanOutConfig,
    fingerprints: &Fingerprints,
    assignment: &Assignment,
    from: Offset,
) -> Result<Seen, LogError> {
    let (partition, start) = (assignment.partition, assignment.bounds.start);
    let mut seen = Seen::new(config.repeat_window_ms(), config.repeat_window_ids_max);
    if from <= start {
        return Ok(seen);
    }
    let mut reader = log.reader(EVENTS).await?;
    let last_ms = last_append_ms(&mut *reader, partition, start, from).await?;
    let Some(last_ms) = last_ms else {
        return Ok(seen);
    };
    let since_ms = last_ms.saturating_sub(config.repeat_window_ms());
    let since = log.offset_for_time(EVENTS, partition, since_ms).await?;
    let ids_max = i64::try_from(config.repeat_window_ids_max).unwrap_or(i64::MAX);
    let begin = start.max(since).max(from.saturating_sub(ids_max));
    let mut stretch = Stretch::new(partition, begin..from);
    let (mut events, mut any_doubtful) = (Vec::new(), false);
    while let Some(records) = stretch.read(&mut *reader).await? {
        for record in records.iter().filter(|record| record.offset < from) {
            if let Ok(event) = decode(record) {
                any_doubtful |= is_doubtful(registry, &event, record);
                let fingerprint = fingerprints.of(&event);
                events.push((fingerprint, record.offset, record.timestamp_ms));
            }
        }
    }
    let refused = match any_doubtful {
        true => refused(log, partition, since_ms).await?,
        false => BTreeSet::new(),
    };
    for (event, offset, at_ms) in events {
        if !refused.contains(&offset) {
            seen.remember(event, offset, at_ms);
        }
    }
    Ok(seen)
}

/// Whether the event may have been refused when it came. Its dead letter tells.
fn is_doubtful(registry: &Registry, event: &Event, record: &Record) -> bool {
    let tenant = registry.tenant(&event.tenant);
    let surely_there = tenant.is_some_and(|tenant| {
        tenant.value.created_at_ms.saturating_add(SKEW_MS_MAX) < record.timestamp_ms
    });
    !surely_there || event.event_type.is_reserved()
}

/// The events of a partition that were refused since a time.
async fn refused(
    log: &dyn Log,
    events: Partition,
    since_ms: i64,
) -> Result<BTreeSet<Offset>, LogError> {
    let partitions = log.key_partitions(DEAD_LETTERS).await?;
    let partition = partition_for(&dead_letter::key_of_record(EVENTS, events), partitions);
    let since = log
        .offset_for_time(DEAD_LETTERS, partition, since_ms)
        .await?;
    let end = log.bounds(DEAD_LETTERS, partition).await?.end;
    let mut reader = log.reader(DEAD_LETTERS).await?;
    let mut stretch = Stretch::new(partition, since..end);
    let mut refused = BTreeSet::new();
    while let Some(records) = stretch.read(&mut *reader).await? {
        let letters = records.iter().filter_map(|record| {
            let value = record.value.as_deref()?;
            DeadLetter::decode(value).ok()
        });
        for letter in letters {
            if let DeadLetterContent::Raw(raw) = &letter.content
                && (raw.topic.as_str(), raw.partition) == (EVENTS, events)
                && matches!(letter.reason, Reason::UnknownTenant | Reason::ReservedType)
            {
                refused.insert(raw.offset);
            }
        }
    }
    Ok(refused)
}

/// When the last record before an offset beyond the start was appended. Markers of transactions may
/// be in between, so it is looked for further and further back.
async fn last_append_ms(
    reader: &mut dyn Reader,
    partition: Partition,
    start: Offset,
    before: Offset,
) -> Result<Option<i64>, LogError> {
    let mut back = 1;
    loop {
        let at = before.saturating_sub(back).max(start);
        let batch = reader.read(partition, at, 1, Duration::ZERO).await?;
        let first = batch.records.first();
        if let Some(record) = first.filter(|record| record.offset < before) {
            return Ok(Some(record.timestamp_ms));
        }
        if at == start {
            return Ok(None);
        }
        back *= 2;
    }
}
