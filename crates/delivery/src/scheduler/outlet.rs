//! The pace at which retries return to one partition of `deliveries`.
//!
//! What failed together is due together. Let out at once, it would stand before everything else in
//! its partition, and arrive at a receiver that just came back as one wall. So only so many leave
//! in a second, the endpoints in turn. A short line waits here; whoever finds it full gets a later
//! time, booked one after the other, and comes again. An endpoint may have as many in line as there
//! are places free: a flood never takes the last ones, so who has few is let in whoever else waits.

use std::collections::BTreeMap;

use bytes::Bytes;
use postrider_model::flow::bucket::TokenBucket;
use postrider_model::flow::line::FairLine;

/// Lines are at least this long, however slow they move; and no longer while memory is full.
const LINE_MIN: usize = 16;
/// Of a hundred that may leave, so many are booked ahead; the others are for those that become due
/// meanwhile.
const BOOKED_PERCENT: i64 = 80;

/// The way out into one partition. Times are milliseconds on a clock that never goes back.
#[derive(Debug)]
pub(super) struct Outlet<T> {
    bucket: TokenBucket,
    line: FairLine<Bytes, T>,
    in_line: BTreeMap<Bytes, usize>,
    length: usize,
    length_max: usize,
    /// Between two that are booked.
    interval_us: i64,
    booked_until_us: i64,
}

/// It does not fit in line and is to come again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Postponed<T> {
    pub(super) item: T,
    pub(super) wait_ms: i64,
}

impl<T> Outlet<T> {
    pub(super) fn new(per_second: u32, now_ms: i64) -> Self {
        let per_second = per_second.max(1);
        Self {
            // A twentieth of a second's worth at once.
            bucket: TokenBucket::new(f64::from(per_second), per_second / 20, now_ms),
            line: FairLine::default(),
            in_line: BTreeMap::new(),
            length: 0,
            length_max: usize::try_from(per_second)
                .unwrap_or(usize::MAX)
                .max(LINE_MIN),
            interval_us: 1_000_000 * 100 / BOOKED_PERCENT / i64::from(per_second),
            booked_until_us: i64::MIN,
        }
    }

    /// Puts one in line for its endpoint, or gives it back with a later time: `is_full` says that
    /// memory is.
    pub(super) fn offer(
        &mut self,
        endpoint: &Bytes,
        item: T,
        is_full: bool,
        now_ms: i64,
    ) -> Result<(), Postponed<T>> {
        let length_max = if is_full { LINE_MIN } else { self.length_max };
        let free = length_max.saturating_sub(self.length);
        let own = self.in_line.get(endpoint).copied().unwrap_or(0);
        if own >= free {
            let wait_ms = self.book(now_ms);
            return Err(Postponed { item, wait_ms });
        }
        self.enter(endpoint.clone(), item);
        Ok(())
    }

    /// Who may leave now.
    pub(super) fn next(&mut self, now_ms: i64) -> Option<T> {
        if self.line.is_empty() || self.bucket.take(now_ms).is_err() {
            return None;
        }
        let (endpoint, item) = self.line.pop()?;
        self.length -= 1;
        if let Some(own) = self.in_line.get_mut(&endpoint) {
            *own -= 1;
            if *own == 0 {
                self.in_line.remove(&endpoint);
            }
        }
        Some(item)
    }

    /// When somebody may leave; `None` if nobody waits.
    pub(super) fn next_at_ms(&self, now_ms: i64) -> Option<i64> {
        if self.line.is_empty() {
            return None;
        }
        let next = self.bucket.clone().take(now_ms);
        Some(next.err().unwrap_or(now_ms))
    }

    /// Takes those out of line of which this is true.
    pub(super) fn take_out(&mut self, chosen: impl Fn(&T) -> bool) -> Vec<T> {
        let mut line = std::mem::take(&mut self.line);
        self.in_line.clear();
        self.length = 0;
        let mut taken = Vec::new();
        while let Some((endpoint, item)) = line.pop() {
            if chosen(&item) {
                taken.push(item);
            } else {
                self.enter(endpoint, item);
            }
        }
        taken
    }

    fn enter(&mut self, endpoint: Bytes, item: T) {
        *self.in_line.entry(endpoint.clone()).or_default() += 1;
        self.length += 1;
        self.line.push(endpoint, item);
    }

    /// The next free time after the line has gone. Rounded up, so that it is not sooner.
    fn book(&mut self, now_ms: i64) -> i64 {
        let now_us = now_ms.saturating_mul(1_000);
        let length = i64::try_from(self.length).unwrap_or(i64::MAX);
        let line_us = length.saturating_mul(self.interval_us);
        self.booked_until_us = self
            .booked_until_us
            .max(now_us.saturating_add(line_us))
            .saturating_add(self.interval_us.max(1));
        let wait_us = self.booked_until_us.saturating_sub(now_us);
        wait_us / 1_000 + 1
    }
}

#[cfg(test)]
mod tests;
