//! What waits to be taken by [`Group::next`](crate::Group::next).

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use crate::port::{Assignment, GroupEvent, Offset, Partition, Record};

/// Records are gathered into events of about this size.
const EVENT_BYTES: usize = 256 << 10;

/// Which events are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Any,
    /// Only what happens to the member's partitions. That it overtakes records is harmless: those
    /// of a partition that was given up are forgotten, and before it is started again there are
    /// none.
    Rebalance,
}

/// An event as it waits.
#[derive(Debug)]
pub(super) enum Waiting {
    Assigned(Vec<Assignment>),
    Records {
        records: Vec<Record>,
        bytes: usize,
    },
    Truncated {
        partition: Partition,
        from: Offset,
        to: Offset,
    },
    Revoke {
        revoke: u64,
        partitions: Vec<Partition>,
        until: Instant,
    },
    Lost(Vec<Partition>),
}

impl Waiting {
    fn is_rebalance(&self) -> bool {
        matches!(
            self,
            Self::Assigned(_) | Self::Revoke { .. } | Self::Lost(_)
        )
    }

    pub(super) fn into_event(self, now: Instant) -> GroupEvent {
        match self {
            Self::Assigned(assignments) => GroupEvent::Assigned(assignments),
            Self::Records { records, .. } => GroupEvent::Records(records),
            Self::Truncated {
                partition,
                from,
                to,
            } if to < from => GroupEvent::BeyondEnd {
                partition,
                position: from,
                end: to,
            },
            Self::Truncated {
                partition,
                from,
                to,
            } => GroupEvent::Truncated {
                partition,
                from,
                to,
            },
            Self::Revoke {
                partitions, until, ..
            } => GroupEvent::Revoke {
                partitions,
                deadline: until.saturating_duration_since(now),
            },
            Self::Lost(partitions) => GroupEvent::Lost(partitions),
        }
    }
}

/// The events, with a count of the bytes in them.
#[derive(Debug, Default)]
pub(super) struct Queue {
    events: VecDeque<Waiting>,
    bytes: usize,
}

impl Queue {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn push(&mut self, event: Waiting) {
        self.events.push_back(event);
    }

    pub(super) fn push_record(&mut self, record: Record) {
        let size = record.size_bytes();
        self.bytes += size;
        if let Some(Waiting::Records { records, bytes }) = self.events.back_mut()
            && *bytes < EVENT_BYTES
        {
            records.push(record);
            *bytes += size;
            return;
        }
        self.events.push_back(Waiting::Records {
            records: vec![record],
            bytes: size,
        });
    }

    pub(super) fn pop(&mut self, wanted: Wanted) -> Option<Waiting> {
        let next = match wanted {
            Wanted::Any => 0,
            Wanted::Rebalance => self.events.iter().position(Waiting::is_rebalance)?,
        };
        let event = self.events.remove(next)?;
        if let Waiting::Records { bytes, .. } = event {
            self.bytes -= bytes;
        }
        Some(event)
    }

    /// Forgets the records of partitions that are given up; nobody may work on them any more.
    pub(super) fn forget(&mut self, partitions: &BTreeSet<Partition>) {
        for event in &mut self.events {
            if let Waiting::Records { records, bytes } = event {
                records.retain(|record| !partitions.contains(&record.partition));
                let left = records.iter().map(Record::size_bytes).sum();
                self.bytes -= *bytes - left;
                *bytes = left;
            }
        }
        self.events.retain(
            |event| !matches!(event, Waiting::Records { records, .. } if records.is_empty()),
        );
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(partition: Partition, offset: Offset) -> Record {
        Record {
            partition,
            offset,
            timestamp_ms: 0,
            key: Bytes::new(),
            value: Some(Bytes::from(vec![0; 1000])),
            headers: Vec::new(),
        }
    }

    #[test]
    fn counts_bytes_down_to_zero() {
        let mut queue = Queue::default();
        for offset in 0..1000 {
            queue.push_record(record(i32::try_from(offset % 3).unwrap(), offset));
        }
        assert!(queue.len() > 1, "a large backlog is cut into events");
        queue.forget(&BTreeSet::from([1]));
        let mut offsets = Vec::new();
        while let Some(Waiting::Records { records, .. }) = queue.pop(Wanted::Any) {
            assert!(records.iter().all(|record| record.partition != 1));
            offsets.extend(records.iter().map(|record| record.offset));
        }
        assert_eq!(queue.bytes(), 0);
        assert_eq!(
            offsets,
            (0..1000)
                .filter(|offset| offset % 3 != 1)
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn forgetting_everything_leaves_nothing() {
        let mut queue = Queue::default();
        queue.push_record(record(0, 0));
        queue.forget(&BTreeSet::from([0]));
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }
}
