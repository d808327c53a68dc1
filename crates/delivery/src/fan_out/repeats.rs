//! The window in which a repeated event id is dropped.
//!
//! A producer that does not know whether its call succeeded repeats it with the same id. Ids of one
//! tenant and key share a partition, so the window of a partition sees the repeat; the same offset
//! read again is never a repeat. Ages are between times of the log. The window is forgotten when
//! the partition leaves, and rebuilt from the log before it starts elsewhere: producers repeat just
//! then (`rebuild.rs`).
//!
//! Ids are kept as hashes under keys that nobody outside this process knows: 128 bits, so that none
//! is taken for another.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use postrider_log::{Offset, Partition};
use postrider_model::event::Event;

/// Names and contents as hashes. Clones give the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Fingerprints(Arc<[RandomState; 2]>);

/// An event as the window knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    name: u128,
    content: u64,
}

impl Fingerprints {
    pub(super) fn of(&self, event: &Event) -> Fingerprint {
        let name = (event.tenant.as_str(), event.id.as_str());
        let halves = self
            .0
            .each_ref()
            .map(|keys| u128::from(keys.hash_one(name)));
        let content = (event.event_type.as_str(), &event.data, &event.ordering_key);
        Fingerprint {
            name: halves[0] << 64 | halves[1],
            content: self.0[0].hash_one(content),
        }
    }
}

/// How an event stands to what its partition had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Its id did not come before.
    No,
    /// It says the same again.
    Same,
    /// It says something else under the same id.
    Changed,
}

/// The ids of one partition.
#[derive(Debug)]
pub(super) struct Seen {
    age_ms_max: i64,
    ids_max: usize,
    first: BTreeMap<u128, (Offset, u64)>,
    order: VecDeque<(i64, u128)>,
}

impl Seen {
    pub(super) fn new(age_ms_max: i64, ids_max: usize) -> Self {
        Self {
            age_ms_max,
            ids_max,
            first: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether the event's id came before at another offset, not longer ago than the window is.
    pub(super) fn repeat(&mut self, event: Fingerprint, offset: Offset, at_ms: i64) -> Repeat {
        self.expire(at_ms.saturating_sub(self.age_ms_max), self.ids_max);
        match self.first.get(&event.name) {
            Some((first, _)) if *first == offset => Repeat::No,
            None => Repeat::No,
            Some((_, content)) if *content == event.content => Repeat::Same,
            Some(_) => Repeat::Changed,
        }
    }

    /// Remembers an id that did not come before.
    pub(super) fn remember(&mut self, event: Fingerprint, offset: Offset, at_ms: i64) {
        if self.first.contains_key(&event.name) {
            return;
        }
        self.expire(i64::MIN, self.ids_max.saturating_sub(1));
        self.first.insert(event.name, (offset, event.content));
        self.order.push_back((at_ms, event.name));
    }

    fn expire(&mut self, since_ms: i64, ids_max: usize) {
        while let Some((seen_at_ms, name)) = self.order.front()
            && (*seen_at_ms < since_ms || self.order.len() > ids_max)
        {
            self.first.remove(name);
            self.order.pop_front();
        }
    }
}

/// The ids of the partitions that are owned.
pub(super) type RepeatWindows = BTreeMap<Partition, Seen>;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postrider_model::fixtures;

    use super::*;

    fn event(id: &str, data: &'static str) -> Event {
        Event {
            data: Bytes::from_static(data.as_bytes()),
            ..fixtures::event(id)
        }
    }

    #[test]
    fn tells_a_repeat_from_the_same_offset_and_from_another_content() {
        let fingerprints = Fingerprints::default();
        let mut seen = Seen::new(1_000, 10);
        let first = fingerprints.of(&event("evt_1", "1"));
        assert_eq!(seen.repeat(first, 5, 100), Repeat::No);
        seen.remember(first, 5, 100);
        assert_eq!(seen.repeat(first, 5, 100), Repeat::No, "read again");
        assert_eq!(seen.repeat(first, 6, 100), Repeat::Same);
        let changed = fingerprints.of(&event("evt_1", "2"));
        assert_eq!(seen.repeat(changed, 6, 100), Repeat::Changed);
        let later = Event {
            occurred_at_ms: 2,
            accepted_at_ms: 2,
            ..event("evt_1", "1")
        };
        assert_eq!(seen.repeat(fingerprints.of(&later), 6, 100), Repeat::Same);
        let of_another = Event {
            tenant: "globex".parse().unwrap(),
            ..event("evt_1", "1")
        };
        assert_eq!(
            seen.repeat(fingerprints.of(&of_another), 6, 100),
            Repeat::No
        );
    }

    #[test]
    fn forgets_what_is_too_old_by_the_time_of_the_log_and_what_is_too_much() {
        let fingerprints = Fingerprints::default();
        let of = |id: &str| fingerprints.of(&event(id, ""));
        let mut seen = Seen::new(1_000, 2);
        for (offset, id) in (0..).zip(["evt_1", "evt_2", "evt_3"]) {
            seen.remember(of(id), offset, 100 * offset);
        }
        assert_eq!(seen.repeat(of("evt_1"), 9, 300), Repeat::No, "too many");
        assert_eq!(seen.repeat(of("evt_2"), 9, 1_100), Repeat::Same);
        assert_eq!(seen.repeat(of("evt_2"), 9, 1_101), Repeat::No, "too old");
        assert_eq!(seen.repeat(of("evt_3"), 9, 1_101), Repeat::Same);
        assert_eq!((seen.first.len(), seen.order.len()), (1, 1));
    }
}
