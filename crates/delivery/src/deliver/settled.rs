//! What was settled lately, so that a copy of a record is dropped.
//!
//! Fan-out, scheduler and redrive append and then commit: a crash between the two appends again. Per piece of work
//! this set keeps the highest settled attempt and whether it was the end; what is at or below it, or comes after the
//! end, is a copy. The set is rebuilt from `attempts` when a partition is assigned, from the position that the
//! commit's metadata names, so an entry stays at least until the commit has passed the record it settled.

use std::collections::{BTreeMap, btree_map};

use postrider_log::Offset;
use postrider_model::delivery::{Attempt, WorkId};

const METADATA_VERSION: &str = "1";

/// The settlements of one partition.
#[derive(Debug)]
pub(super) struct SettledSet {
    by_work: BTreeMap<WorkId, Entry>,
    by_place: BTreeMap<Offset, WorkId>,
    next: Offset,
    age_ms_max: i64,
    entries_max: usize,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    attempt: u32,
    ended: bool,
    /// Interruptions in a row of the attempt after the settled one.
    interruptions: u32,
    /// Offset of its record in `attempts`.
    place: Offset,
    at_ms: i64,
    /// Offset in `deliveries` of the record it settled; the entry stays until the commit has passed it.
    settles: Offset,
}

impl SettledSet {
    /// An empty set; `next` is where the next record of `attempts` is expected at the earliest.
    pub(super) fn new(next: Offset, age_ms_max: i64, entries_max: usize) -> Self {
        Self {
            by_work: BTreeMap::new(),
            by_place: BTreeMap::new(),
            next,
            age_ms_max,
            entries_max,
        }
    }

    /// Notes a record of `attempts` at its place: a settlement, or an interruption.
    pub(super) fn note(&mut self, attempt: &Attempt, place: Offset, at_ms: i64, settles: Offset) {
        self.next = self.next.max(place + 1);
        let entry = match self.by_work.entry(attempt.work.clone()) {
            btree_map::Entry::Occupied(known) => {
                self.by_place.remove(&known.get().place);
                known.into_mut()
            }
            btree_map::Entry::Vacant(new) => new.insert(Entry::default()),
        };
        match attempt.settlement {
            None => entry.interruptions += 1,
            Some(settlement) if attempt.number > entry.attempt || settlement.is_end() => {
                entry.attempt = entry.attempt.max(attempt.number);
                entry.ended |= settlement.is_end();
                entry.interruptions = 0;
            }
            Some(_) => {}
        }
        entry.place = place;
        entry.at_ms = at_ms;
        entry.settles = entry.settles.max(settles);
        self.by_place.insert(place, attempt.work.clone());
    }

    /// Whether this step of the work was settled already.
    pub(super) fn is_copy(&self, work: &WorkId, attempt: u32) -> bool {
        self.by_work
            .get(work)
            .is_some_and(|entry| entry.ended || attempt <= entry.attempt)
    }

    /// How often the attempt after the settled one was interrupted, in a row.
    pub(super) fn interruptions(&self, work: &WorkId) -> u32 {
        self.by_work
            .get(work)
            .map_or(0, |entry| entry.interruptions)
    }

    /// Where the next record of `attempts` is expected at the earliest.
    pub(super) fn next(&self) -> Offset {
        self.next
    }

    /// Drops what is old or too much, but nothing at or past `committed`, and answers with the place of the oldest
    /// entry that is left.
    pub(super) fn expire(&mut self, now_ms: i64, committed: Offset) -> Offset {
        while let Some((&place, work)) = self.by_place.first_key_value() {
            let Some(entry) = self.by_work.get(work) else {
                break;
            };
            let too_old = now_ms - entry.at_ms > self.age_ms_max;
            let too_many = self.by_place.len() > self.entries_max;
            if entry.settles >= committed || !(too_old || too_many) {
                break;
            }
            if let Some(work) = self.by_place.remove(&place) {
                self.by_work.remove(&work);
            }
        }
        self.by_place
            .first_key_value()
            .map_or(self.next, |(place, _)| *place)
    }
}

/// What a commit remembers: from where in `attempts` the set is rebuilt.
pub(super) fn metadata(rebuild_from: Offset) -> String {
    format!("{METADATA_VERSION} attempts={rebuild_from}")
}

/// Reads it back. Metadata of other software, of another version or cut short says nothing.
pub(super) fn rebuild_from(metadata: &str) -> Option<Offset> {
    let (version, rest) = metadata.split_once(' ')?;
    let offset = rest.strip_prefix("attempts=")?.parse().ok()?;
    (version == METADATA_VERSION && offset >= 0).then_some(offset)
}
