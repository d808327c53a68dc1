//! No request leaves that its sender could know not to make, none early, none out of turn.

use std::collections::BTreeMap;

use postrider_log::{Offset, Partition};
use postrider_model::delivery::Cursor;
use postrider_model::ids::EndpointId;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER};
use postrider_model::work::WorkId;

use super::{Audit, Settled, Work};
use crate::simulation::chronicle::{Sent, Tenure};

impl Audit {
    /// A request leaves in this moment.
    pub(crate) fn check_request(&mut self, sent: &Sent) {
        self.catch_up();
        let Some(id) = self.work_of(sent) else {
            panic!("no such delivery is in the log: {sent:?}")
        };
        if !self.rules.honest {
            return;
        }
        let Some(tenure) = sent.tenure else {
            panic!("its partition was never assigned: {sent:?}")
        };
        self.check_knowledge(&id, sent, tenure);
        self.check_time(&id, sent);
        self.check_probe(&id, sent);
        self.check_wishes(sent);
        self.check_order(&id, sent);
        if sent.attempt == 1 && self.works[&id].order_key.is_none() {
            self.check_turn(&id, sent);
        }
        let work = self.works.get_mut(&id).expect("it was found");
        work.requested.insert(sent.attempt, tenure.number);
        work.asked
            .insert((sent.attempt, tenure.number, sent.begun_wall_ms));
    }

    pub(super) fn work_of(&self, sent: &Sent) -> Option<WorkId> {
        let shown = (sent.event_id.clone(), sent.endpoint.clone());
        let mut works = self.shown.get(&shown)?.iter();
        let asks = |id: &&WorkId| self.works[*id].asks_for(sent.attempt);
        works.find(asks).cloned()
    }

    /// What was settled before the partition was assigned, and what this assignment did, is known.
    fn check_knowledge(&self, id: &WorkId, sent: &Sent, tenure: Tenure) {
        let work = &self.works[id];
        let may_be_forgotten_copy =
            !self.rules.remembers_all && work.steps.values().any(|step| step.copies > 1);
        for settled in &work.settlements {
            let covers = settled.number >= sent.attempt || settled.is_end;
            let knows = settled.place < tenure.known_to;
            assert!(
                !covers
                    || !knows
                    || may_be_forgotten_copy
                    || self.may_be_forgotten(id, settled, sent.partition, tenure),
                "repeats what was settled before: {settled:?}, {sent:?}"
            );
        }
        let repeats = work.requested.get(&sent.attempt) == Some(&tenure.number);
        assert!(
            !repeats || may_be_forgotten_copy,
            "made twice under one assignment: {sent:?}"
        );
    }

    /// A settlement may be forgotten once the commit has passed the record it settled, unless a
    /// cursor says that this record is to be read again; and so may what a former owner wrote
    /// behind the present one's back.
    fn may_be_forgotten(
        &self,
        id: &WorkId,
        settled: &Settled,
        partition: Partition,
        tenure: Tenure,
    ) -> bool {
        if self.rules.remembers_all {
            return false;
        }
        let Some(offset) = settled.delivery_offset.filter(|_| !settled.is_late) else {
            return true;
        };
        let passed =
            |cursors: Option<&BTreeMap<EndpointId, Cursor>>, from: Option<Offset>| match cursors
                .and_then(|cursors| cursors.get(&id.endpoint))
            {
                Some(cursor) => cursor.has_settled(offset),
                None => from.is_none_or(|from| offset < from),
            };
        let mut committed = self.committed(GROUP_DELIVER, DELIVERIES).into_iter();
        let now = committed.find(|(of, _)| *of == partition);
        passed(self.cursors.get(&tenure.number), tenure.from)
            || now.is_some_and(|(_, now)| {
                let cursors = self.lanes.cursors(partition, &now);
                passed(Some(&cursors), Some(now.offset))
            })
    }

    fn check_time(&self, id: &WorkId, sent: &Sent) {
        if sent.attempt > 1 && !self.rules.clock_is_set {
            let due_at_ms = due_at_ms(&self.works[id], sent.attempt);
            assert!(
                due_at_ms.is_some_and(|due_at_ms| sent.wall_ms >= due_at_ms),
                "made before {due_at_ms:?}: {sent:?}"
            );
        }
        let lease_ms = i64::try_from(self.rules.lease.as_millis()).expect("short");
        assert!(
            sent.foreign_ms <= lease_ms,
            "its partition is another's: {sent:?}"
        );
    }

    /// First attempts of an endpoint are made in the order of the log, as far as several under way
    /// at once allow.
    fn check_turn(&mut self, id: &WorkId, sent: &Sent) {
        let offset = self.works[id].steps[&1].offset;
        let Some(unserved) = self.unserved.get_mut(&sent.endpoint) else {
            return;
        };
        if unserved.remove(&offset) {
            let passed_over = unserved.range(..offset).count();
            assert!(
                passed_over < self.rules.lane_in_flight_max,
                "before {passed_over} earlier ones of its endpoint: {sent:?}"
            );
        }
    }

    /// How late a retry leaves.
    pub(crate) fn lateness_ms(&self, sent: &Sent) -> Option<i64> {
        let work = &self.works[&self.work_of(sent)?];
        due_at_ms(work, sent.attempt).map(|due_at_ms| sent.wall_ms - due_at_ms)
    }
}

fn due_at_ms(work: &Work, attempt: u32) -> Option<i64> {
    work.retries.get(&attempt).map(|retry| retry.due_at_ms)
}
