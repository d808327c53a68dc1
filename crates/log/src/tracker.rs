//! How far a partition is done, when its records are finished in any order.

use std::collections::BTreeSet;

use crate::port::Offset;

/// Knows the records of one partition that are begun and not resolved, and so what may be
/// committed.
///
/// Records are begun in the order of the log, with gaps. Only unresolved offsets are kept, so
/// memory is bounded by what is in the works, however far the partition has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetTracker {
    unresolved: BTreeSet<Offset>,
    /// After the highest offset seen: everything below is known, so an offset below it is a
    /// repetition.
    next: Offset,
}

impl OffsetTracker {
    /// Begins where the partition is read from.
    pub fn new(from: Offset) -> Self {
        Self {
            unresolved: BTreeSet::new(),
            next: from,
        }
    }

    /// A record is taken up. False if its offset was seen before, resolved or not: then nothing
    /// changes.
    pub fn begin(&mut self, offset: Offset) -> bool {
        if offset < self.next {
            return false;
        }
        self.next = offset + 1;
        self.unresolved.insert(offset)
    }

    /// A record is done for good. False if it was not open; then nothing changes.
    pub fn resolve(&mut self, offset: Offset) -> bool {
        self.unresolved.remove(&offset)
    }

    /// The log goes on at `next`: there is nothing, or nothing any more, between the highest offset
    /// seen and it.
    pub fn skip_to(&mut self, next: Offset) {
        self.next = self.next.max(next);
    }

    /// The offset to commit: the lowest unresolved, else the one after the highest seen.
    pub fn committable(&self) -> Offset {
        self.lowest_unresolved().unwrap_or(self.next)
    }

    /// The lowest offset that is not resolved.
    pub fn lowest_unresolved(&self) -> Option<Offset> {
        self.unresolved.first().copied()
    }

    /// How many are not resolved.
    pub fn unresolved(&self) -> usize {
        self.unresolved.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::OffsetTracker;

    #[derive(Debug, Clone)]
    enum Step {
        /// The next record comes, after a gap of this many offsets.
        Fetch(i64),
        /// A record that came before comes again.
        FetchAgain(prop::sample::Index),
        Resolve(prop::sample::Index),
        /// An offset that was never there, or is long gone.
        ResolveStale(i64),
        SkipTo(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_i64..4).prop_map(Step::Fetch),
            1 => any::<prop::sample::Index>().prop_map(Step::FetchAgain),
            4 => any::<prop::sample::Index>().prop_map(Step::Resolve),
            1 => (-5_i64..200).prop_map(Step::ResolveStale),
            1 => (0_i64..200).prop_map(Step::SkipTo),
        ]
    }

    /// Everything ever seen, with whether it is resolved: the definition, without any cleverness.
    #[derive(Default)]
    struct Model {
        seen: BTreeMap<i64, bool>,
        position: i64,
    }

    impl Model {
        fn lowest(&self) -> Option<i64> {
            self.seen
                .iter()
                .find(|(_, resolved)| !**resolved)
                .map(|(offset, _)| *offset)
        }

        fn pick(&self, index: prop::sample::Index) -> Option<i64> {
            (!self.seen.is_empty())
                .then(|| *self.seen.keys().nth(index.index(self.seen.len())).unwrap())
        }
    }

    fn apply(step: &Step, tracker: &mut OffsetTracker, model: &mut Model) {
        match *step {
            Step::Fetch(gap) => {
                let offset = model.position + gap;
                assert!(tracker.begin(offset));
                model.seen.insert(offset, false);
                model.position = offset + 1;
            }
            Step::FetchAgain(index) => {
                if let Some(offset) = model.pick(index) {
                    assert!(!tracker.begin(offset));
                }
            }
            Step::Resolve(index) => {
                if let Some(offset) = model.pick(index) {
                    let was_open = !model.seen.insert(offset, true).unwrap();
                    assert_eq!(tracker.resolve(offset), was_open);
                }
            }
            Step::ResolveStale(offset) => {
                if !model.seen.contains_key(&offset) {
                    assert!(!tracker.resolve(offset));
                }
            }
            Step::SkipTo(next) => {
                tracker.skip_to(next);
                model.position = model.position.max(next);
            }
        }
    }

    proptest! {
        #[test]
        fn commits_exactly_up_to_the_lowest_unresolved(steps in prop::collection::vec(step(), 0..200)) {
            let mut tracker = OffsetTracker::new(0);
            let mut model = Model::default();
            let mut committed = 0;
            for step in &steps {
                apply(step, &mut tracker, &mut model);
                prop_assert_eq!(tracker.lowest_unresolved(), model.lowest());
                prop_assert_eq!(tracker.committable(), model.lowest().unwrap_or(model.position));
                prop_assert_eq!(tracker.unresolved(), model.seen.values().filter(|resolved| !**resolved).count());
                prop_assert!(tracker.committable() >= committed, "a commit never goes back");
                committed = tracker.committable();
            }
        }
    }

    #[test]
    fn keeps_nothing_of_what_is_resolved() {
        let mut tracker = OffsetTracker::new(0);
        for offset in 0..100_000 {
            tracker.begin(offset);
            tracker.resolve(offset);
        }
        assert_eq!(
            (tracker.unresolved.len(), tracker.committable()),
            (0, 100_000)
        );
    }

    #[test]
    fn a_repeated_record_does_not_reopen_a_resolved_one() {
        let mut tracker = OffsetTracker::new(5);
        tracker.begin(5);
        tracker.resolve(5);
        assert!(!tracker.begin(5));
        assert_eq!(tracker.committable(), 6);
    }
}
