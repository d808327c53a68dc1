//! The window in which a repeated event id is dropped.
//!
//! A producer that does not know whether its call succeeded repeats it with the same id. Ids of one tenant and key
//! share a partition, so the window of a partition sees the repeat; it is forgotten when the partition leaves, and
//! the same offset read again is never a repeat.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use postrider_log::Partition;
use postrider_model::event::{Event, EventPosition};
use postrider_model::ids::{EventId, TenantId};
use tokio::time::Instant;

type Name = (TenantId, EventId);

#[derive(Debug)]
pub(super) struct RepeatWindow {
    age_max: Duration,
    ids_max: usize,
    partitions: BTreeMap<Partition, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    first: BTreeMap<Name, EventPosition>,
    order: VecDeque<(Instant, Name)>,
}

impl RepeatWindow {
    pub(super) fn new(age_max: Duration, ids_max: usize) -> Self {
        Self {
            age_max,
            ids_max,
            partitions: BTreeMap::new(),
        }
    }

    /// Whether the event's id was seen before at another place.
    pub(super) fn has_seen(&mut self, event: &Event, position: EventPosition) -> bool {
        let Some(seen) = self.partitions.get_mut(&position.partition) else {
            return false;
        };
        seen.expire(self.age_max, self.ids_max);
        let name = (event.tenant.clone(), event.id.clone());
        seen.first
            .get(&name)
            .is_some_and(|first| *first != position)
    }

    /// Whether the event's id was seen before at another place; if not, it is from now on.
    pub(super) fn is_repeat(&mut self, event: &Event, position: EventPosition) -> bool {
        let seen = self.partitions.entry(position.partition).or_default();
        seen.expire(self.age_max, self.ids_max);
        let name = (event.tenant.clone(), event.id.clone());
        if let Some(first) = seen.first.get(&name) {
            return *first != position;
        }
        seen.first.insert(name.clone(), position);
        seen.order.push_back((Instant::now(), name));
        false
    }

    pub(super) fn forget(&mut self, partition: Partition) {
        self.partitions.remove(&partition);
    }
}

impl Seen {
    fn expire(&mut self, age_max: Duration, ids_max: usize) {
        while let Some((seen_at, _)) = self.order.front()
            && (seen_at.elapsed() > age_max || self.order.len() >= ids_max)
        {
            let (_, name) = self
                .order
                .pop_front()
                .expect("the front was just looked at");
            self.first.remove(&name);
        }
    }
}
