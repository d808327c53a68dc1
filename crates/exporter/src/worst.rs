//! Who has the most of something lately, with bounded memory.

use std::collections::{BTreeMap, VecDeque};

/// How far back it is counted, in slices.
const SLICES: i64 = 5;
const SLICE_MS: i64 = 60_000;
/// Keys counted in a slice, at most. Whoever has more than one in so many of a slice's counts is
/// among them for certain.
const KEYS_MAX: usize = 1_000;

/// Counts of the last five minutes by key. Where there are more keys than are kept, a count may be
/// too low by what the dropped ones had, never too high; those with the most stay.
#[derive(Debug)]
pub(crate) struct Lately<K> {
    /// By number of the slice, the newest last.
    slices: VecDeque<(i64, BTreeMap<K, u64>)>,
}

impl<K> Default for Lately<K> {
    fn default() -> Self {
        Self {
            slices: VecDeque::new(),
        }
    }
}

impl<K: Ord + Clone> Lately<K> {
    /// Counts one that happened then. What is older than the last five minutes is left out.
    pub(crate) fn add(&mut self, key: K, at_ms: i64, now_ms: i64) {
        let slice = at_ms.min(now_ms).div_euclid(SLICE_MS);
        if slice <= now_ms.div_euclid(SLICE_MS) - SLICES {
            return;
        }
        let place = self.slices.partition_point(|(number, _)| *number < slice);
        if self
            .slices
            .get(place)
            .is_none_or(|(number, _)| *number != slice)
        {
            self.slices.insert(place, (slice, BTreeMap::new()));
        }
        count(&mut self.slices[place].1, key);
    }

    /// Those with the most, the most first.
    pub(crate) fn most(&mut self, now_ms: i64, at_most: usize) -> Vec<(K, u64)> {
        let oldest = now_ms.div_euclid(SLICE_MS) - SLICES + 1;
        while self
            .slices
            .front()
            .is_some_and(|(number, _)| *number < oldest)
        {
            self.slices.pop_front();
        }
        let mut sums: BTreeMap<&K, u64> = BTreeMap::new();
        for (key, count) in self.slices.iter().flat_map(|(_, counts)| counts) {
            *sums.entry(key).or_default() += count;
        }
        most(
            sums.into_iter().map(|(key, sum)| (key.clone(), sum)),
            at_most,
        )
    }
}

/// The entries with the highest values, the highest first; of equal ones, the first.
pub(crate) fn most<K, V: Ord + Copy>(
    entries: impl Iterator<Item = (K, V)>,
    at_most: usize,
) -> Vec<(K, V)> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|(_, value)| std::cmp::Reverse(*value));
    entries.truncate(at_most);
    entries
}

/// Without room for a new key, every key loses one: what has the most survives (Misra and Gries).
fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    if let Some(known) = counts.get_mut(&key) {
        *known += 1;
    } else if counts.len() < KEYS_MAX {
        counts.insert(key, 1);
    } else {
        counts.retain(|_, count| {
            *count -= 1;
            *count > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000 * SLICE_MS + 1;

    #[test]
    fn shows_no_more_than_asked_for_and_the_worst_first() {
        let mut lately = Lately::default();
        for key in 0..50_u32 {
            for _ in 0..key {
                lately.add(key, NOW, NOW);
            }
        }
        let keys: Vec<_> = lately.most(NOW, 3).into_iter().collect();
        assert_eq!(keys, [(49, 49), (48, 48), (47, 47)]);
    }

    #[test]
    fn forgets_what_is_older_than_five_minutes() {
        let mut lately = Lately::default();
        lately.add("old", NOW - SLICES * SLICE_MS, NOW);
        lately.add("new", NOW - (SLICES - 1) * SLICE_MS, NOW);
        lately.add("ahead", NOW + 10 * SLICE_MS, NOW);
        assert_eq!(lately.most(NOW, 9), [("ahead", 1), ("new", 1)]);
        assert_eq!(lately.most(NOW + SLICE_MS, 9), [("ahead", 1)]);
        assert_eq!(lately.most(NOW + SLICES * SLICE_MS, 9), []);
    }

    #[test]
    fn the_worst_is_found_among_more_keys_than_are_kept() {
        let mut lately = Lately::default();
        for number in 0..20_000_u32 {
            lately.add(number + 1, NOW, NOW);
            if number % 10 == 0 {
                lately.add(0, NOW, NOW);
            }
        }
        let (worst, count) = lately.most(NOW, 1)[0];
        assert_eq!(worst, 0);
        assert!((1..=2_000).contains(&count), "{count}");
        assert!(
            lately
                .slices
                .iter()
                .all(|(_, counts)| counts.len() <= KEYS_MAX)
        );
    }
}
