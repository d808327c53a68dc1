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
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
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
            kept: Mutex::default(),
        }
    }

    /// Takes what was appended, each with its slot, and lets go what was appended longest ago.
    pub(super) fn extend(&self, appended: impl Iterator<Item = (i64, Record)>) {
        let mut kept = self.kept.lock();
        for (slot, record) in appended {
            kept.bytes += record.size_bytes();
            kept.order.push_back(slot);
            kept.records.entry(slot).or_default().push_back(record);
        }
        while kept.bytes > self.bytes_max
            && let Some(slot) = kept.order.pop_front()
        {
            let oldest = kept.records.get_mut(&slot).and_then(VecDeque::pop_front);
            kept.bytes -= oldest.map_or(0, |record| record.size_bytes());
        }
    }

    /// For when records were deleted, or when what is appended next may not follow on what is kept.
    pub(super) fn clear(&self) {
        *self.kept.lock() = Kept::default();
    }

    /// Records from an offset: at most so many bytes, but at least one record. None if not all of
    /// them are here.
    pub(super) fn read(&self, slot: i64, from: Offset, bytes_max: usize) -> Option<Chunk> {
        let kept = self.kept.lock();
        let records = kept.records.get(&slot)?;
        let skipped = usize::try_from(from - records.front()?.offset).ok()?;
        let mut bytes = 0;
        let fits = |record: &&Record| {
            let first = bytes == 0;
            bytes += record.size_bytes();
            first || bytes <= bytes_max
        };
        let from = skipped.min(records.len());
        let records: Vec<Record> = records.range(from..).take_while(fits).cloned().collect();
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
        let read = |slot, from, bytes_max| offsets(tail.read(slot, from, bytes_max));
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
        tail.clear();
        assert_eq!(offsets(tail.read(1, 5, 10_000)), None);
    }

    #[test]
    fn lets_go_what_was_appended_longest_ago() {
        let tail = Tail::new(3 * record(0).size_bytes());
        tail.extend(appended(1, 0..2));
        tail.extend(appended(2, 0..2));
        let read = |slot, from| offsets(tail.read(slot, from, 10_000));
        assert_eq!(read(1, 0), None);
        assert_eq!(read(1, 1), Some((vec![1], 2)));
        assert_eq!(read(2, 0), Some((vec![0, 1], 2)));
        tail.extend(appended(2, 2..7));
        assert_eq!(read(1, 1), None);
        assert_eq!(read(2, 4), Some((vec![4, 5, 6], 7)));
        assert_eq!(tail.kept.lock().order.len(), 3);
    }
}
