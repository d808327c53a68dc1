//! The oldest delivery of a partition that could be attempted now: where `deliver` has committed,
//! or behind what cannot.

use std::collections::BTreeSet;

use postrider_log::{Offset, Record};
use postrider_model::delivery::Delivery;
use postrider_model::ids::EndpointId;

/// Where the search in one partition is.
#[derive(Debug, Default)]
pub(crate) struct Search {
    committed: Offset,
    /// Next offset to look at; everything before cannot be attempted or is settled.
    next: Offset,
    found: Option<Found>,
    /// The first record that is not committed, and when it was appended.
    oldest: Option<(Offset, i64)>,
    /// What the search rests on: where the registry was, and which endpoints were behind.
    registry_position: u64,
    behind: BTreeSet<EndpointId>,
    /// Offsets that are settled although not committed.
    settled: BTreeSet<Offset>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    offset: Offset,
    appended_ms: i64,
}

impl Search {
    /// Begins a search, or goes on with the one before if nothing it rests on has changed.
    pub(crate) fn begin(
        &mut self,
        committed: Offset,
        registry_position: u64,
        behind: BTreeSet<EndpointId>,
    ) {
        self.settled = self.settled.split_off(&committed);
        let changed = (self.registry_position, &self.behind) != (registry_position, &behind);
        if changed || committed < self.committed {
            (self.next, self.found, self.oldest) = (committed, None, None);
        }
        (self.committed, self.registry_position, self.behind) =
            (committed, registry_position, behind);
        self.oldest = self.oldest.filter(|(at, _)| *at == committed);
        self.found = self.found.filter(|found| found.offset >= committed);
        self.next = self.next.max(committed);
        if self.oldest.is_none() {
            // The first record tells how old what waits is, so it is looked at again.
            (self.next, self.found) = (committed, None);
        }
    }

    /// Notes that a record is settled. Beyond `at_most` the highest are forgotten: the search comes
    /// to the low ones first.
    pub(crate) fn settled(&mut self, offset: Offset, at_most: usize) {
        if offset >= self.committed {
            self.settled.insert(offset);
            if self.settled.len() > at_most {
                self.settled.pop_last();
            }
        }
    }

    /// Where to look next, if nothing was found yet.
    pub(crate) fn wants(&mut self, end: Offset) -> Option<Offset> {
        self.found = self
            .found
            .filter(|found| !self.settled.contains(&found.offset));
        let ends = self.found.is_some() || self.next >= end;
        (!ends).then_some(self.next)
    }

    /// Looks at a record; true when it is the one. `callable` tells whether the registry allows an
    /// endpoint to be called.
    pub(crate) fn look(&mut self, record: &Record, callable: impl Fn(&EndpointId) -> bool) -> bool {
        if self.oldest.is_none() {
            self.oldest = Some((self.committed, record.timestamp_ms));
        }
        if self.found.is_none() && self.is_ready(record, callable) {
            self.found = Some(Found {
                offset: record.offset,
                appended_ms: record.timestamp_ms,
            });
            self.next = record.offset;
        } else if self.found.is_none() {
            self.next = record.offset + 1;
        }
        self.found.is_some()
    }

    fn is_ready(&self, record: &Record, callable: impl Fn(&EndpointId) -> bool) -> bool {
        let key = std::str::from_utf8(&record.key).ok();
        let Some(endpoint) = key.and_then(|key| EndpointId::try_new(key).ok()) else {
            return false;
        };
        if self.settled.contains(&record.offset)
            || self.behind.contains(&endpoint)
            || !callable(&endpoint)
        {
            return false;
        }
        let value = record.value.as_ref();
        value.is_some_and(|value| {
            Delivery::decode(value).is_ok_and(|delivery| delivery.attempt <= 1)
        })
    }

    /// Everything up to here was looked at.
    pub(crate) fn looked_up_to(&mut self, next: Offset) {
        if self.found.is_none() {
            self.next = self.next.max(next);
        }
    }

    /// Age of the oldest delivery that could be attempted, 0 if there is none.
    pub(crate) fn ready_age_ms(&self, now_ms: i64) -> i64 {
        self.found
            .map_or(0, |found| now_ms.saturating_sub(found.appended_ms).max(0))
    }

    /// Age of the oldest record that is not committed, 0 if there is none before the end.
    pub(crate) fn lag_ms(&self, end: Offset, now_ms: i64) -> i64 {
        let oldest = self.oldest.filter(|_| self.committed < end);
        oldest.map_or(0, |(_, appended_ms)| {
            now_ms.saturating_sub(appended_ms).max(0)
        })
    }
}

#[cfg(test)]
mod tests;
