//! The lanes of a partition, and which of them may want records from the log: whoever changes one
//! that reads again marks it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Deref, DerefMut};

use postrider_model::ids::EndpointId;

use super::lane::Lane;
use super::limits::LaneLimits;
use super::step::Now;

#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<EndpointId, Lane>,
    /// Lanes that read again, and were changed, or waited for long enough, since it was found that
    /// they want nothing.
    marked: BTreeSet<EndpointId>,
}

/// A lane that is being changed.
#[derive(Debug)]
pub(super) struct LaneMut<'a> {
    lane: &'a mut Lane,
    marked: &'a mut BTreeSet<EndpointId>,
}

impl Deref for LaneMut<'_> {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        self.lane
    }
}

impl DerefMut for LaneMut<'_> {
    fn deref_mut(&mut self) -> &mut Lane {
        self.lane
    }
}

impl Drop for LaneMut<'_> {
    fn drop(&mut self) {
        if self.lane.reads_again() && !self.marked.contains(self.lane.endpoint()) {
            self.marked.insert(self.lane.endpoint().clone());
        }
    }
}

impl Lanes {
    pub(super) fn get(&self, endpoint: &EndpointId) -> Option<&Lane> {
        self.lanes.get(endpoint)
    }

    pub(super) fn get_by_name(&self, endpoint: &str) -> Option<&Lane> {
        self.lanes.get(endpoint)
    }

    pub(super) fn get_mut(&mut self, endpoint: &EndpointId) -> Option<LaneMut<'_>> {
        Some(LaneMut {
            lane: self.lanes.get_mut(endpoint)?,
            marked: &mut self.marked,
        })
    }

    /// The endpoint's lane, made if there is none.
    pub(super) fn of(
        &mut self,
        endpoint: &EndpointId,
        limits: &LaneLimits,
        now: Now,
    ) -> LaneMut<'_> {
        let entry = self.lanes.entry(endpoint.clone());
        LaneMut {
            lane: entry.or_insert_with(|| Lane::new(endpoint.clone(), limits, now)),
            marked: &mut self.marked,
        }
    }

    pub(super) fn insert(&mut self, lane: Lane) {
        self.marked.insert(lane.endpoint().clone());
        self.lanes.insert(lane.endpoint().clone(), lane);
    }

    pub(super) fn remove(&mut self, endpoint: &EndpointId) {
        self.marked.remove(endpoint);
        self.lanes.remove(endpoint);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.values()
    }

    /// All of them, for what does not concern what they read.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.lanes.values_mut()
    }

    // ---- those that may want records ----

    pub(super) fn mark(&mut self, endpoint: &EndpointId) {
        // It is marked when it is let go.
        drop(self.get_mut(endpoint));
    }

    pub(super) fn mark_all(&mut self) {
        let reading = self.lanes.values().filter(|lane| lane.reads_again());
        self.marked
            .extend(reading.map(|lane| lane.endpoint().clone()));
    }

    /// The next that is marked after this one, from the beginning where there is none.
    pub(super) fn next_marked(&self, after: Option<&EndpointId>) -> Option<&EndpointId> {
        let first = || self.marked.first();
        let Some(after) = after else {
            return first();
        };
        let later = (Bound::Excluded(after), Bound::Unbounded);
        self.marked
            .range::<EndpointId, _>(later)
            .next()
            .or_else(first)
    }

    /// Nothing is to be read for it until it changes, or time has passed.
    pub(super) fn unmark(&mut self, endpoint: &EndpointId) {
        self.marked.remove(endpoint);
    }
}
