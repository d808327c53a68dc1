//! What waits in a delay of the retry topic, and when it is due.
//!
//! A record leaves its delay in the order in which it came, no earlier than the delay after it
//! came, and is due no earlier than it leaves. So only the records that leave within the longest
//! horizon can be due within it: their due times are read and kept, up to a limit; of what is
//! beyond the limit, those count as due within a horizon that leave within it.

use std::collections::VecDeque;

use postrider_log::Offset;

/// Within which times it is told what is due, in seconds.
pub(crate) const HORIZONS_S: [i64; 3] = [60, 300, 3_600];
const HORIZON_MS_MAX: i64 = 3_600_000;

/// One partition of the retry topic.
#[derive(Debug, Default)]
pub(crate) struct Delay {
    waiting: VecDeque<Waiting>,
    /// Next offset to read.
    next: Offset,
    /// When the last record read leaves.
    last_leaves_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    offset: Offset,
    appended_ms: i64,
    due_ms: i64,
}

impl Delay {
    /// Forgets what the scheduler has committed.
    pub(crate) fn committed(&mut self, committed: Offset) {
        while self
            .waiting
            .front()
            .is_some_and(|waiting| waiting.offset < committed)
        {
            self.waiting.pop_front();
        }
        if self.next < committed {
            self.next = committed;
            self.last_leaves_ms = i64::MIN;
        }
    }

    /// Where to read on, if what is there may be due within the longest horizon.
    pub(crate) fn wants(&self, end: Offset, now_ms: i64) -> Option<Offset> {
        let within = self.last_leaves_ms <= now_ms.saturating_add(HORIZON_MS_MAX);
        (self.next < end && within).then_some(self.next)
    }

    /// Takes a record; one that is not understood has no due time and is passed over.
    pub(crate) fn take(
        &mut self,
        offset: Offset,
        appended_ms: i64,
        delay_ms: i64,
        due_ms: Option<i64>,
    ) {
        self.next = offset + 1;
        self.last_leaves_ms = appended_ms.saturating_add(delay_ms);
        self.waiting.extend(due_ms.map(|due_ms| Waiting {
            offset,
            appended_ms,
            due_ms,
        }));
    }

    /// Everything up to here was read.
    pub(crate) fn read_up_to(&mut self, next: Offset) {
        self.next = self.next.max(next);
    }

    /// Where reading stopped.
    pub(crate) fn next(&self) -> Offset {
        self.next
    }

    /// Due times kept.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many of those read are due within so many seconds.
    pub(crate) fn due_within(&self, seconds: i64, now_ms: i64) -> usize {
        let by_ms = now_ms.saturating_add(seconds * 1000);
        self.waiting
            .iter()
            .filter(|waiting| waiting.due_ms <= by_ms)
            .count()
    }

    /// When the first that is not committed was appended, and when it is due. Others may have been
    /// released already, as due times differ; this one has not.
    pub(crate) fn head(&self) -> Option<(i64, i64)> {
        self.waiting
            .front()
            .map(|waiting| (waiting.appended_ms, waiting.due_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000;
    const MINUTE: i64 = 60_000;

    fn delay(due_ms: &[i64]) -> Delay {
        let mut delay = Delay::default();
        for (offset, due_ms) in (0..).zip(due_ms) {
            delay.take(offset, NOW, 1_000, Some(NOW + due_ms));
        }
        delay
    }

    fn due(delay: &Delay, now_ms: i64) -> [usize; 3] {
        HORIZONS_S.map(|seconds| delay.due_within(seconds, now_ms))
    }

    #[test]
    fn tells_what_is_due_within_a_minute_five_and_sixty() {
        let delay = delay(&[
            -5_000,
            59_999,
            MINUTE,
            MINUTE + 1,
            5 * MINUTE,
            60 * MINUTE,
            60 * MINUTE + 1,
        ]);
        assert_eq!(due(&delay, NOW), [3, 5, 6]);
        assert_eq!(due(&delay, NOW + 1), [4, 5, 7]);
    }

    #[test]
    fn forgets_what_is_committed_and_keeps_the_rest() {
        let mut delay = delay(&[1_000, 2_000, 3_000]);
        delay.committed(2);
        assert_eq!(due(&delay, NOW), [1, 1, 1]);
        assert_eq!(delay.head(), Some((NOW, NOW + 3_000)));
        delay.committed(9);
        assert_eq!(
            (due(&delay, NOW), delay.head(), delay.next()),
            ([0, 0, 0], None, 9)
        );
    }

    #[test]
    fn reads_no_further_than_what_may_be_due_within_the_hour() {
        let mut delay = Delay::default();
        delay.committed(0);
        assert_eq!(delay.wants(9, NOW), Some(0));
        delay.take(
            0,
            NOW - 23 * 60 * MINUTE,
            24 * 60 * MINUTE,
            Some(NOW + 61 * MINUTE),
        );
        assert_eq!(
            delay.wants(9, NOW),
            Some(1),
            "the last may still have left within the hour"
        );
        delay.take(
            1,
            NOW - 22 * 60 * MINUTE,
            24 * 60 * MINUTE,
            Some(NOW + 121 * MINUTE),
        );
        assert_eq!(delay.wants(9, NOW), None);
        assert_eq!(delay.wants(9, NOW + 60 * MINUTE), Some(2));
        assert_eq!(due(&delay, NOW), [0, 0, 0]);
    }
}
