//! What was appended last, in memory: whoever reads at the end of the log needs no file.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

use crate::local::storage::Chunk;
use crate::port::{Offset, Record};

/// The last records of each partition, without gaps.
#[derive(Debug)]
pub(super) struct Tail {
    /// What all partitions together may take.
    bytes_max: usize,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// By slot.
    records: BTreeMap<i64, VecDeque<Record>>,
    /// The slot of each record, in the order in which they were appended.
    order: VecDeque<i64>,
    bytes: usize,
}

impl Tail {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            last: Mutex::default(),
        }
    }

    /// Takes what was appended, each with its slot, and lets go what was appended longest ago.
    pub(super) fn extend(&self, appended: impl Iterator<Item = (i64, Record)>) {
        let mut last = self.last.lock();
        for (slot, record) in appended {
            last.bytes += record.size_bytes();
            last.order.push_back(slot);
            last.records.entry(slot).or_default().push_back(record);
        }
        while last.bytes > self.bytes_max
            && let Some(slot) = last.order.pop_front()
        {
            let oldest = last.records.get_mut(&slot).and_then(VecDeque::pop_front);
            last.bytes -= oldest.map_or(0, |record| record.size_bytes());
        }
    }

    /// Whether the record at this offset, or one before it, is here.
    pub(super) fn reaches(&self, slot: i64, offset: Offset) -> bool {
        let last = self.last.lock();
        let oldest = last.records.get(&slot).and_then(VecDeque::front);
        oldest.is_some_and(|oldest| oldest.offset <= offset)
    }

    /// For when records of it were deleted, or when what is appended next may not follow on it.
    pub(super) fn clear(&self) {
        let forgotten = std::mem::take(&mut *self.last.lock());
        drop(forgotten);
    }

    /// Records from an offset to the one before an end: at most so many bytes, but at least one
    /// record. None if the first of them is not here.
    pub(super) fn read(
        &self,
        slot: i64,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Option<Chunk> {
        let last = self.last.lock();
        let records = last.records.get(&slot)?;
        let from = usize::try_from(from - records.front()?.offset).ok()?;
        let mut bytes = 0;
        let fits = |record: &&Record| {
            let first = bytes == 0;
            bytes += record.size_bytes();
            record.offset < end && (first || bytes <= bytes_max)
        };
        let records = records.range(from.min(records.len())..).take_while(fits);
        let records: Vec<Record> = records.cloned().collect();
        let next = records.last()?.offset + 1;
        Some(Chunk { records, next })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(offset: Offset) -> Record {
        Record {
            partition: 0,
            offset,
            timestamp_ms: 0,
            key: Bytes::new(),
            value: Some(Bytes::from(vec![0; 100])),
            headers: Vec::new(),
        }
    }

    fn appended(
        slot: i64,
        offsets: std::ops::Range<Offset>,
    ) -> impl Iterator<Item = (i64, Record)> {
        offsets.map(move |offset| (slot, record(offset)))
    }

    fn offsets(chunk: Option<Chunk>) -> Option<(Vec<Offset>, Offset)> {
        let offsets = |chunk: &Chunk| chunk.records.iter().map(|record| record.offset).collect();
        chunk.map(|chunk| (offsets(&chunk), chunk.next))
    }

    #[test]
    fn reads_what_it_has_and_says_what_it_has_not() {
        let tail = Tail::new(10_000);
        tail.extend(appended(1, 5..8).chain(appended(2, 0..1)));
        let read = |slot, from, bytes_max| offsets(tail.read(slot, from, 100, bytes_max));
        assert_eq!(read(1, 5, 10_000), Some((vec![5, 6, 7], 8)));
        assert_eq!(read(1, 6, 10_000), Some((vec![6, 7], 8)));
        assert_eq!(read(1, 6, 1), Some((vec![6], 7)), "one record at least");
        let two = 2 * record(0).size_bytes();
        assert_eq!(read(1, 5, two), Some((vec![5, 6], 7)));
        assert_eq!(
            read(1, 4, 10_000),
            None,
            "the file has it, and all before it"
        );
        assert_eq!(read(1, 8, 10_000), None);
        assert_eq!(read(3, 0, 10_000), None);
        let to = |end| offsets(tail.read(1, 5, end, 10_000));
        assert_eq!(to(7), Some((vec![5, 6], 7)), "the rest is shown to nobody");
        assert_eq!(to(5), None);
        tail.clear();
        assert_eq!(offsets(tail.read(1, 5, 100, 10_000)), None);
    }

    #[test]
    fn knows_what_a_deletion_would_cut() {
        let tail = Tail::new(10_000);
        tail.extend(appended(1, 5..8));
        assert!(!tail.reaches(1, 4) && !tail.reaches(2, 9));
        assert!(tail.reaches(1, 5) && tail.reaches(1, 9));
    }

    #[test]
    fn lets_go_what_was_appended_longest_ago() {
        let tail = Tail::new(3 * record(0).size_bytes());
        tail.extend(appended(1, 0..2));
        tail.extend(appended(2, 0..2));
        let read = |slot, from| offsets(tail.read(slot, from, 100, 10_000));
        assert_eq!(read(1, 0), None);
        assert_eq!(read(1, 1), Some((vec![1], 2)));
        assert_eq!(read(2, 0), Some((vec![0, 1], 2)));
        tail.extend(appended(2, 2..7));
        assert_eq!(read(1, 1), None);
        assert_eq!(read(2, 4), Some((vec![4, 5, 6], 7)));
        assert_eq!(tail.last.lock().order.len(), 3);
    }
}
