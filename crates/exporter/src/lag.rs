//! When the record at an offset was appended, by looking at it: once for each offset that is asked
//! for again.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_log::{Bounds, Committed, Log, LogError, Offset, Partition, Reader};

const READ_WAIT: Duration = Duration::from_millis(500);

/// Looks at records of one topic.
#[derive(Debug)]
pub(crate) struct Times {
    topic: &'static str,
    reader: Option<Box<dyn Reader>>,
    /// What was asked for lately. What is not asked for again is forgotten.
    known: BTreeMap<(Partition, Offset), i64>,
    asked: BTreeMap<(Partition, Offset), i64>,
}

impl Times {
    pub(crate) fn new(topic: &'static str) -> Self {
        Self {
            topic,
            reader: None,
            known: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    /// When the first record at or after the offset was appended; `None` if there is none.
    pub(crate) async fn appended_ms(
        &mut self,
        log: &dyn Log,
        partition: Partition,
        offset: Offset,
    ) -> Result<Option<i64>, LogError> {
        let place = (partition, offset);
        let known = self.known.get(&place).or(self.asked.get(&place)).copied();
        if let Some(appended_ms) = known {
            self.asked.insert(place, appended_ms);
            return Ok(known);
        }
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => log.reader(self.topic).await?,
        };
        let batch = reader.read(partition, offset, 1, READ_WAIT).await?;
        self.reader = Some(reader);
        let first = batch.records.first().map(|record| record.timestamp_ms);
        self.asked
            .extend(first.map(|appended_ms| (place, appended_ms)));
        Ok(first)
    }

    /// Ends a round of questions.
    pub(crate) fn forget_unasked(&mut self) {
        self.known = std::mem::take(&mut self.asked);
    }
}

/// Where a group is in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where it goes on: at its commit, or later where retention took records.
    pub(crate) at: Offset,
    pub(crate) end: Offset,
    /// Offsets that retention took before they were committed.
    pub(crate) lost: Offset,
}

impl Place {
    /// Without a commit the group has everything before it.
    pub(crate) fn of(committed: Option<&Committed>, bounds: Bounds) -> Self {
        let committed = committed.map_or(bounds.start, |committed| committed.offset);
        Self {
            at: committed.clamp(bounds.start, bounds.end),
            end: bounds.end,
            lost: (bounds.start - committed).max(0),
        }
    }

    /// Offsets that are not committed.
    pub(crate) fn lag(self) -> Offset {
        self.end - self.at
    }
}

/// Where a group is in every partition of its topic.
pub(crate) fn places(committed: &[Option<Committed>], bounds: &[Bounds]) -> Vec<Place> {
    let committed = committed
        .iter()
        .map(Option::as_ref)
        .chain(std::iter::repeat(None));
    bounds
        .iter()
        .zip(committed)
        .map(|(bounds, committed)| Place::of(committed, *bounds))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_retention_took_is_lost_and_no_lag() {
        let bounds = Bounds { start: 10, end: 30 };
        let place = |offset| {
            let committed = Committed {
                offset,
                metadata: String::new(),
            };
            let place = Place::of(Some(&committed), bounds);
            (place.at, place.lag(), place.lost)
        };
        assert_eq!(place(4), (10, 20, 6));
        assert_eq!(place(25), (25, 5, 0));
        assert_eq!(place(99), (30, 0, 0));
        assert_eq!(Place::of(None, bounds).lag(), 20);
    }
}
