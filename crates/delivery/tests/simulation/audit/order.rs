//! With an ordered endpoint, no event of an ordering key is attempted before the earlier ones have
//! settled.

use std::collections::BTreeMap;

use postrider_log::Offset;
use postrider_model::delivery::Attempt;
use postrider_model::event::EventPosition;
use postrider_model::ids::EndpointId;
use postrider_model::work::WorkId;

use super::{Audit, Retry};
use crate::simulation::chronicle::Sent;

/// Where the deliveries are that are not settled for good, by endpoint and ordering key.
///
/// The order is that of `deliveries`: an event that was published before its endpoint was created
/// may be matched by a second reading only, after later ones.
#[derive(Debug, Default)]
pub(super) struct Orders(BTreeMap<(EndpointId, String), BTreeMap<Offset, EventPosition>>);

impl Orders {
    /// A delivery is in the log for the first time.
    pub(super) fn expect(&mut self, work: &WorkId, key: &str, offset: Offset) {
        let of_key = (work.endpoint.clone(), key.to_owned());
        self.0
            .entry(of_key)
            .or_default()
            .insert(offset, work.position);
    }

    /// Nothing more is to be done of it.
    pub(super) fn ended(&mut self, work: &WorkId, key: &str) {
        if let Some(open) = self.0.get_mut(&(work.endpoint.clone(), key.to_owned())) {
            open.retain(|_, position| *position != work.position);
        }
    }

    /// The first one of the key that should have come before.
    fn earlier(&self, work: &WorkId, key: &str, offset: Offset) -> Option<EventPosition> {
        let open = self.0.get(&(work.endpoint.clone(), key.to_owned()))?;
        open.range(..offset).next().map(|(_, position)| *position)
    }
}

impl Audit {
    pub(super) fn is_ordered(&self, work: &WorkId) -> bool {
        self.works
            .get(work)
            .is_some_and(|work| work.order_key.is_some())
    }

    pub(super) fn check_order(&self, id: &WorkId, sent: &Sent) {
        if let Some(key) = &self.works[id].order_key {
            let earlier = self
                .orders
                .earlier(id, key, self.works[id].steps[&1].offset);
            let earlier = earlier.map(|position| WorkId {
                position,
                ..id.clone()
            });
            let story = earlier
                .as_ref()
                .map(|earlier| (earlier, self.works.get(earlier)));
            assert!(
                story.is_none(),
                "before {story:?} of its key {key:?}: {id:?}, {:?}, {sent:?}",
                self.works[id]
            );
        }
    }

    /// A failed attempt is made again from the same record, and only its attempt says when.
    pub(super) fn expect_again(&mut self, made: &Attempt, due_at_ms: i64) {
        let work = self.works.entry(made.work.clone()).or_default();
        let again = work.retries.entry(made.number + 1).or_insert(Retry {
            landed_ms: made.started_at_ms,
            due_at_ms,
            open: [].into(),
        });
        again.due_at_ms = again.due_at_ms.min(due_at_ms);
    }
}
