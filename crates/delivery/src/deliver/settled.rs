//! What was settled lately, so that a duplicate of a record is dropped.
//!
//! Fan-out, scheduler and redrive append and then commit: a crash between the two appends again.
//! Per piece of work this set keeps the highest settled attempt and whether it was the end; what is
//! at or below it, or comes after the end, is a duplicate. The set is rebuilt from `attempts` when
//! a partition is assigned, from the position that the commit's metadata names, so an entry stays
//! at least until the commit has passed the record it settled.

use std::collections::BTreeMap;

use postrider_log::Offset;
use postrider_model::delivery::{Attempt, Delivery, Settlement};
use postrider_model::ids::EndpointId;
use postrider_model::work::WorkId;

use super::lane::NextAttempt;

/// The settlements of one partition.
#[derive(Debug)]
pub(super) struct SettledSet {
    by_work: BTreeMap<WorkId, Entry>,
    by_place: BTreeMap<Offset, WorkId>,
    next: Offset,
    /// Where `attempts` ended when the set was made, and when: a former owner may have written
    /// there since.
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
    /// When the event was accepted.
    accepted_at_ms: i64,
    /// Offset in `deliveries` of the record it settled; the entry stays until the commit has passed
    /// it.
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
        entry.accepted_at_ms = attempt.accepted_at_ms;
        entry.settles = entry.settles.max(settles);
        let Some(settlement) = attempt.settlement else {
            entry.interruptions += 1;
            return;
        };
        // After the end nothing says more, though a former owner that knew nothing of it may have
        // gone on.
        if !settlement.is_end() && (entry.ended || attempt.number <= entry.attempt) {
            return;
        }
        entry.attempt = entry.attempt.max(attempt.number);
        entry.ended |= settlement.is_end();
        entry.interruptions = 0;
        if let Settlement::RetryScheduled { due_at_ms } = settlement {
            entry.due_at_ms = Some(due_at_ms);
            entry.failed_at_ms.get_or_insert(attempt.started_at_ms);
        }
        // The place is that of the record that says the most: whoever reads from there on knows as
        // much.
        self.by_place.remove(&entry.place);
        self.by_place.insert(place, work.clone());
        entry.place = place;
    }

    /// The delivery's work as its settlements name it: an older release wrote them, and perhaps
    /// another copy of the record, without the time of the event's position.
    pub(super) fn work_of(&self, delivery: &Delivery) -> WorkId {
        let mut work = delivery.work_id();
        work.position = work.position.without_time();
        let is_untimed = self
            .by_work
            .get(&work)
            .is_some_and(|entry| entry.accepted_at_ms == delivery.event.accepted_at_ms);
        if !is_untimed {
            work.position = delivery.position;
        }
        work
    }

    /// Notes a record that we wrote ourselves. If its place was given before the set was made, the
    /// topic was made again or lost its end: places that are known name other records or none, and
    /// what was settled in them may be attempted again.
    pub(super) fn note_own(
        &mut self,
        attempt: &Attempt,
        place: Offset,
        at_ms: i64,
        settles: Offset,
    ) {
        if place < self.made_at.0 {
            tracing::error!(
                place,
                known = self.made_at.0,
                "attempts was made again or lost records; what was settled in them may be attempted again"
            );
            self.by_work.clear();
            self.by_place.clear();
            (self.next, self.made_at) = (place, (place, at_ms));
        }
        self.note(attempt, place, at_ms, settles);
    }

    /// Whether this step of the work was settled already.
    pub(super) fn is_duplicate(&self, work: &WorkId, attempt: u32) -> bool {
        self.by_work
            .get(work)
            .is_some_and(|entry| entry.ended || attempt <= entry.attempt)
    }

    /// Whether nothing more is to be done of the work.
    pub(super) fn has_ended(&self, work: &WorkId) -> bool {
        self.by_work.get(work).is_some_and(|entry| entry.ended)
    }

    /// The next attempt of the work, if the last one failed: where order matters, nothing else says
    /// so at once.
    pub(super) fn next_attempt(&self, work: &WorkId) -> Option<NextAttempt> {
        let entry = self.by_work.get(work).filter(|entry| !entry.ended)?;
        let (due_at_ms, failed_at_ms) = entry.due_at_ms.zip(entry.failed_at_ms)?;
        Some(NextAttempt {
            number: entry.attempt + 1,
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

    /// Drops what is old or too much, but nothing that only this set knows: `reflected` tells
    /// whether the commit or a durable cursor says that a record of an endpoint is settled. Answers
    /// with the place of the oldest entry left, or of what this set may not have seen while that is
    /// young.
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postrider_model::delivery::{Attempt, AttemptOutcome, Settlement};
    use postrider_model::event::EventPosition;
    use postrider_model::filter::EventTypeName;
    use postrider_model::ids::{EndpointId, EventId, TenantId};
    use postrider_model::outcome::Reason;
    use postrider_model::work::WorkId;

    use super::SettledSet;

    const RETRY: Option<Settlement> = Some(Settlement::RetryScheduled { due_at_ms: 1 });

    fn work(offset: i64) -> WorkId {
        let endpoint = EndpointId::try_new("ep_a").unwrap();
        WorkId {
            position: EventPosition {
                partition: 0,
                offset,
                appended_at_ms: 5,
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
        assert!(!set.is_duplicate(&work(1), 1));
        set.note(&attempt(1, 1, RETRY), 0, 0, 0);
        assert!(set.is_duplicate(&work(1), 1));
        assert!(!set.is_duplicate(&work(1), 2));
        set.note(&attempt(1, 2, Some(Settlement::Delivered)), 1, 0, 5);
        assert!(set.is_duplicate(&work(1), 3), "nothing comes after the end");
        assert!(!set.is_duplicate(&work(2), 1));
    }

    #[test]
    fn a_topic_made_again_is_rebuilt_from_where_it_is_now() {
        let mut set = SettledSet::new(100, 0, 1_000, 10);
        set.note_own(&attempt(1, 1, RETRY), 104, 0, 0);
        set.note_own(&attempt(2, 1, RETRY), 3, 0, 1);
        set.note_own(&attempt(3, 1, RETRY), 4, 0, 2);
        assert!(set.is_duplicate(&work(2), 1) && set.is_duplicate(&work(3), 1));
        assert!(!set.is_duplicate(&work(1), 1), "its record is gone");
        assert_eq!(set.expire(0, |_, _| false), 3);
    }

    #[test]
    fn an_earlier_record_that_lands_late_takes_nothing_back() {
        let mut set = SettledSet::new(0, 0, 1_000, 10);
        set.note(&attempt(1, 2, RETRY), 0, 0, 0);
        set.note(&attempt(1, 1, RETRY), 1, 0, 0);
        assert!(set.is_duplicate(&work(1), 2));
    }

    #[test]
    fn counts_interruptions_in_a_row() {
        let mut set = SettledSet::new(0, 0, 1_000, 10);
        set.note(&attempt(1, 1, None), 0, 0, 0);
        set.note(&attempt(1, 1, None), 1, 0, 0);
        assert_eq!(set.interruptions(&work(1)), 2);
        assert!(
            !set.is_duplicate(&work(1), 1),
            "an interruption settles nothing"
        );
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
        assert!(set.is_duplicate(&work(1), 1));
        assert_eq!(set.expire(1_000_000, |_, settles| settles < 8), 11);
        assert_eq!(
            set.expire(1_000_000, |_, settles| settles < 9),
            12,
            "empty: the next record's place"
        );
        assert!(!set.is_duplicate(&work(1), 1));
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
    fn an_end_stays_known_though_somebody_who_did_not_know_it_went_on() {
        let mut set = SettledSet::new(0, 0, 1_000, 10);
        set.note(&attempt(1, 1, Some(Settlement::Delivered)), 0, 0, 0);
        set.note(&attempt(1, 2, RETRY), 5, 0, 3);
        assert_eq!(
            set.expire(0, |_, _| false),
            0,
            "from 5 on nothing says that the work has ended"
        );
    }

    #[test]
    fn the_record_at_place_0_stays_when_others_come() {
        let mut set = SettledSet::new(0, 0, 1_000, 10);
        set.note(&attempt(1, 1, RETRY), 0, 0, 0);
        set.note(&attempt(2, 1, RETRY), 1, 0, 1);
        assert_eq!(set.expire(0, |_, _| false), 0);
    }
}
