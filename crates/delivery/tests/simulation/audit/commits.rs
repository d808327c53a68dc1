//! Nothing that a commit has passed is unsettled, unless a lane's durable cursor covers it.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use postrider_log::{Committed, Log, Offset, Partition};
use postrider_model::topics::{
    DELIVERIES, EVENTS, GROUP_DELIVER, GROUP_FAN_OUT, GROUP_SCHEDULER, RETRY,
};
use postrider_model::work::WorkId;

use super::Audit;
use super::topics::place;

impl Audit {
    /// Checks what the groups have committed against the topics as they are in this moment.
    pub(crate) fn check_commits(&mut self) {
        self.catch_up();
        for (partition, committed) in self.committed(GROUP_FAN_OUT, EVENTS) {
            let passed = split_below(&mut self.open_events, partition, committed.offset);
            for position in passed.into_values() {
                assert!(
                    !self.unrouted.contains(&position),
                    "committed past an event without a route: {position:?}"
                );
            }
        }
        for (partition, committed) in self.committed(GROUP_SCHEDULER, RETRY) {
            let passed = split_below(&mut self.open_retries, partition, committed.offset);
            for (offset, (id, attempt)) in passed {
                self.check_retry_moved(partition, offset, &id, attempt);
            }
        }
        for (partition, committed) in self.committed(GROUP_DELIVER, DELIVERIES) {
            self.check_settled_below(partition, &committed);
        }
    }

    pub(crate) fn committed(&self, group: &str, topic: &str) -> Vec<(Partition, Committed)> {
        let committed = self.log.committed(group, topic).now_or_never();
        let committed = committed.expect("at once").expect("commits");
        let named = (0..).zip(committed);
        named
            .filter_map(|(partition, committed)| Some((partition, committed?)))
            .collect()
    }

    /// A retry that was passed is in `deliveries`, or once more in `retry`.
    fn check_retry_moved(
        &mut self,
        partition: Partition,
        offset: Offset,
        id: &WorkId,
        attempt: u32,
    ) {
        let Some(work) = self.works.get_mut(id) else {
            return;
        };
        let Some(retry) = work.retries.get_mut(&attempt) else {
            return;
        };
        retry.open.remove(&(partition, offset));
        let place = place(RETRY, partition, offset);
        assert!(
            work.steps.contains_key(&attempt) || !retry.open.is_empty(),
            "committed past {place}, which is nowhere else: {id:?}, attempt {attempt}"
        );
    }

    /// What is settled is forgotten; what a cursor covers stays to be checked again.
    fn check_settled_below(&mut self, partition: Partition, committed: &Committed) {
        let passed = split_below(&mut self.open_deliveries, partition, committed.offset);
        for (offset, (id, attempt)) in passed {
            if self.works[&id].is_settled(attempt) {
                continue;
            }
            let covered = {
                let key = self.works[&id].order_key.as_deref();
                self.lanes.covers(partition, committed, (&id, key), offset)
            };
            let place = place(DELIVERIES, partition, offset);
            if let Err(why) = covered {
                let story = self.lanes.story(partition, &id);
                panic!(
                    "committed {committed:?} past {place}, unsettled, {why}: {id:?}, attempt {attempt}\n{story}"
                );
            }
            self.counts.covered += 1;
            let open = self.open_deliveries.entry(partition).or_default();
            open.insert(offset, (id, attempt));
        }
    }
}

/// Takes out what is below an offset.
fn split_below<T>(
    open: &mut BTreeMap<Partition, BTreeMap<Offset, T>>,
    partition: Partition,
    below: Offset,
) -> BTreeMap<Offset, T> {
    let open = open.entry(partition).or_default();
    let above = open.split_off(&below);
    std::mem::replace(open, above)
}
