//! What was settled lately, so that a copy of a record is dropped.
//!
//! Fan-out, scheduler and redrive append and then commit: a crash between the two appends again. Per piece of work
//! this set keeps the highest settled attempt and whether it was the end; what is at or below it, or comes after the
//! end, is a copy. The set is rebuilt from `attempts` when a partition is assigned, from the position that the
//! commit's metadata names, so an entry stays at least until the commit has passed the record it settled.

use std::collections::BTreeMap;

use postrider_log::Offset;
use postrider_model::delivery::{Attempt, Settlement, WorkId};
use postrider_model::ids::EndpointId;

use super::order::Again;

/// Versions of metadata that are understood; the last is written.
const METADATA_VERSIONS: [&str; 2] = ["1", "2"];

/// The settlements of one partition.
#[derive(Debug)]
pub(super) struct SettledSet {
    by_work: BTreeMap<WorkId, Entry>,
    by_place: BTreeMap<Offset, WorkId>,
    next: Offset,
    /// Where `attempts` ended when the set was made, and when: a former owner may have written there since.
    made_at: (Offset, i64),
    age_ms_max: i64,
    entries_max: usize,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    attempt: u32,
    ended: bool,
    /// Interruptions in a row of the attempt after the settled one.
    interruptions: u32,
    /// When the next attempt is due.
    due_at_ms: Option<i64>,
    /// When the first attempt that is known of failed.
    failed_at_ms: Option<i64>,
    /// Offset of its record in `attempts`.
    place: Offset,
    at_ms: i64,
    /// Offset in `deliveries` of the record it settled; the entry stays until the commit has passed it.
    settles: Offset,
}

impl SettledSet {
    /// An empty set; `next` is where the next record of `attempts` is expected at the earliest.
    pub(super) fn new(next: Offset, now_ms: i64, age_ms_max: i64, entries_max: usize) -> Self {
        Self {
            by_work: BTreeMap::new(),
            by_place: BTreeMap::new(),
            next,
            made_at: (next, now_ms),
            age_ms_max,
            entries_max,
        }
    }

    /// Notes a record of `attempts` at its place: a settlement, or an interruption.
    pub(super) fn note(&mut self, attempt: &Attempt, place: Offset, at_ms: i64, settles: Offset) {
        self.next = self.next.max(place + 1);
        let work = &attempt.work;
        let entry = self.by_work.entry(work.clone()).or_insert_with(|| {
            self.by_place.insert(place, work.clone());
            Entry {
                place,
                ..Entry::default()
            }
        });
        entry.at_ms = at_ms;
        entry.settles = entry.settles.max(settles);
        let Some(settlement) = attempt.settlement else {
            entry.interruptions += 1;
            return;
        };
        if attempt.number <= entry.attempt && !settlement.is_end() {
            return;
        }
        entry.attempt = entry.attempt.max(attempt.number);
        entry.ended |= settlement.is_end();
        entry.interruptions = 0;
        if let Settlement::RetryScheduled { due_at_ms } = settlement {
            entry.due_at_ms = Some(due_at_ms);
            entry.failed_at_ms.get_or_insert(attempt.started_at_ms);
        }
        // The place is that of the record that says the most: whoever reads from there on knows as much.
        self.by_place.remove(&entry.place);
        self.by_place.insert(place, work.clone());
        entry.place = place;
    }

    /// Whether this step of the work was settled already.
    pub(super) fn is_copy(&self, work: &WorkId, attempt: u32) -> bool {
        self.by_work
            .get(work)
            .is_some_and(|entry| entry.ended || attempt <= entry.attempt)
    }

    /// Whether nothing more is to be done of the work.
    pub(super) fn has_ended(&self, work: &WorkId) -> bool {
        self.by_work.get(work).is_some_and(|entry| entry.ended)
    }

    /// How the work goes on after the last attempt, if it failed: where order matters, nothing else says so at once.
    pub(super) fn again(&self, work: &WorkId) -> Option<Again> {
        let entry = self.by_work.get(work).filter(|entry| !entry.ended)?;
        let (due_at_ms, failed_at_ms) = entry.due_at_ms.zip(entry.failed_at_ms)?;
        Some(Again {
            attempt: entry.attempt + 1,
            due_at_ms,
            failed_at_ms,
        })
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

    /// Drops what is old or too much, but nothing that only this set knows: `reflected` tells whether the commit or a
    /// durable cursor says that a record of an endpoint is settled. Answers with the place of the oldest entry left, or
    /// of what this set may not have seen while that is young.
    pub(super) fn expire(
        &mut self,
        now_ms: i64,
        reflected: impl Fn(&EndpointId, Offset) -> bool,
    ) -> Offset {
        while let Some((&place, work)) = self.by_place.first_key_value() {
            let Some(entry) = self.by_work.get(work) else {
                break;
            };
            let too_old = now_ms - entry.at_ms > self.age_ms_max;
            let too_many = self.by_place.len() > self.entries_max;
            if !(too_old || too_many) || !reflected(&work.endpoint, entry.settles) {
                break;
            }
            if let Some(work) = self.by_place.remove(&place) {
                self.by_work.remove(&work);
            }
        }
        let oldest = self.by_place.first_key_value();
        let oldest = oldest.map_or(self.next, |(place, _)| *place);
        let (made_at, made_ms) = self.made_at;
        if now_ms - made_ms > self.age_ms_max || self.by_place.len() > self.entries_max {
            return oldest;
        }
        oldest.min(made_at)
    }
}

/// What a commit remembers beside its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CommitNote {
    /// From where in `attempts` the settled set is rebuilt.
    pub(super) rebuild_from: Option<Offset>,
    /// Under which id the states of the partition's lanes count.
    pub(super) state_id: Option<i64>,
}

impl CommitNote {
    /// As metadata of the commit.
    pub(super) fn encode(self, owner: &str) -> String {
        let mut text = METADATA_VERSIONS[1].to_owned();
        let numbers = [("attempts", self.rebuild_from), ("state", self.state_id)];
        for (name, number) in numbers {
            if let Some(number) = number {
                text.push_str(&format!(" {name}={number}"));
            }
        }
        if !owner.is_empty() {
            text.push_str(&format!(" owner={owner}"));
        }
        text
    }

    /// Reads it back. Metadata of other software, of another version or cut short says nothing.
    pub(super) fn decode(metadata: &str) -> Self {
        let mut words = metadata.split(' ');
        if !words
            .next()
            .is_some_and(|version| METADATA_VERSIONS.contains(&version))
        {
            return Self::default();
        }
        let mut note = Self::default();
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let number = value.parse().ok().filter(|number| *number >= 0);
            match name {
                "attempts" => note.rebuild_from = number,
                "state" => note.state_id = number,
                _ => {}
            }
        }
        note
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postrider_model::delivery::{Attempt, AttemptOutcome, Settlement, WorkId};
    use postrider_model::event::EventPosition;
    use postrider_model::filter::EventTypeName;
    use postrider_model::ids::{EndpointId, EventId, TenantId};
    use postrider_model::outcome::Reason;

    use super::{CommitNote, SettledSet};

    const RETRY: Option<Settlement> = Some(Settlement::RetryScheduled { due_at_ms: 1 });

    fn work(offset: i64) -> WorkId {
        let endpoint = EndpointId::try_new("ep_a").unwrap();
        WorkId {
            position: EventPosition {
                partition: 0,
                offset,
            },
            endpoint,
            run: 0,
        }
    }

    fn attempt(offset: i64, number: u32, settlement: Option<Settlement>) -> Attempt {
        Attempt {
            event_id: EventId::try_new("evt_a").unwrap(),
            tenant: TenantId::try_new("acme").unwrap(),
            event_type: EventTypeName::try_new("a").unwrap(),
            work: work(offset),
            number,
            started_at_ms: 0,
            duration_ms: 0,
            outcome: AttemptOutcome::Failed,
            reason: Reason::ServerError,
            status: None,
            detail: String::new(),
            response_excerpt: Bytes::new(),
            settlement,
            accepted_at_ms: 0,
            traceparent: String::new(),
            delivery_offset: None,
        }
    }

    #[test]
    fn knows_copies_from_steps() {
        let mut set = SettledSet::new(0, 0, 1_000, 10);
        assert!(!set.is_copy(&work(1), 1));
        set.note(&attempt(1, 1, RETRY), 0, 0, 0);
        assert!(set.is_copy(&work(1), 1));
        assert!(!set.is_copy(&work(1), 2));
        set.note(&attempt(1, 2, Some(Settlement::Delivered)), 1, 0, 5);
        assert!(set.is_copy(&work(1), 3), "nothing comes after the end");
        assert!(!set.is_copy(&work(2), 1));
    }

    #[test]
    fn an_earlier_record_that_lands_late_takes_nothing_back() {
        let mut set = SettledSet::new(0, 0, 1_000, 10);
        set.note(&attempt(1, 2, RETRY), 0, 0, 0);
        set.note(&attempt(1, 1, RETRY), 1, 0, 0);
        assert!(set.is_copy(&work(1), 2));
    }

    #[test]
    fn counts_interruptions_in_a_row() {
        let mut set = SettledSet::new(0, 0, 1_000, 10);
        set.note(&attempt(1, 1, None), 0, 0, 0);
        set.note(&attempt(1, 1, None), 1, 0, 0);
        assert_eq!(set.interruptions(&work(1)), 2);
        assert!(!set.is_copy(&work(1), 1), "an interruption settles nothing");
        set.note(&attempt(1, 1, RETRY), 2, 0, 0);
        assert_eq!(set.interruptions(&work(1)), 0);
    }

    #[test]
    fn records_that_say_less_do_not_move_where_it_is_rebuilt_from() {
        let mut set = SettledSet::new(5, 0, 1_000, 10);
        set.note(&attempt(1, 2, RETRY), 5, 0, 0);
        set.note(&attempt(1, 3, None), 8, 0, 0);
        set.note(&attempt(1, 1, RETRY), 9, 0, 0);
        assert_eq!(
            set.expire(0, |_, _| false),
            5,
            "only the record at 5 says that attempt 2 is settled"
        );
    }

    #[test]
    fn keeps_what_the_commit_has_not_passed_however_old() {
        let mut set = SettledSet::new(0, 0, 1_000, 1);
        set.note(&attempt(1, 1, RETRY), 10, 0, 7);
        set.note(&attempt(2, 1, RETRY), 11, 0, 8);
        assert_eq!(
            set.expire(1_000_000, |_, settles| settles < 7),
            10,
            "offset 7 is not committed"
        );
        assert!(set.is_copy(&work(1), 1));
        assert_eq!(set.expire(1_000_000, |_, settles| settles < 8), 11);
        assert_eq!(
            set.expire(1_000_000, |_, settles| settles < 9),
            12,
            "empty: the next record's place"
        );
        assert!(!set.is_copy(&work(1), 1));
    }

    #[test]
    fn what_a_former_owner_may_have_written_meanwhile_is_read_by_the_next() {
        let mut set = SettledSet::new(3, 0, 1_000, 10);
        set.note(&attempt(1, 1, RETRY), 4, 10, 0);
        assert_eq!(
            set.expire(1_000, |_, _| true),
            3,
            "nobody has read offset 3"
        );
        assert_eq!(
            set.expire(1_001, |_, _| true),
            4,
            "it is as old as what is forgotten"
        );
    }

    #[test]
    fn the_record_at_place_0_stays_when_others_come() {
        let mut set = SettledSet::new(0, 0, 1_000, 10);
        set.note(&attempt(1, 1, RETRY), 0, 0, 0);
        set.note(&attempt(2, 1, RETRY), 1, 0, 1);
        assert_eq!(set.expire(0, |_, _| false), 0);
    }

    #[test]
    fn metadata_of_every_release_are_read() {
        let note = |state_id| CommitNote {
            rebuild_from: Some(42),
            state_id,
        };
        let written = "2 attempts=42 state=7 owner=10.0.0.5:9464";
        assert_eq!(note(Some(7)).encode("10.0.0.5:9464"), written);
        for (written, note) in [("1 attempts=42", note(None)), (written, note(Some(7)))] {
            assert_eq!(CommitNote::decode(written), note, "{written}");
        }
    }

    #[test]
    fn metadata_of_others_says_nothing() {
        for foreign in [
            "",
            "1",
            "2",
            "2 attempts=",
            "2 attempts=x",
            "3 attempts=4",
            "2 attempts=-4",
            "2 attempt",
            "NAME",
        ] {
            assert_eq!(
                CommitNote::decode(foreign),
                CommitNote::default(),
                "{foreign:?}"
            );
        }
    }
}
