//! Reading from the end, newest first.

use std::collections::VecDeque;

use postrider_log::{Offset, Record};

use super::{Budget, Range, Topic};
use crate::problem::Problem;

/// Small, because it is read of every partition, whatever it holds.
const WINDOW_OFFSETS_FIRST: i64 = 16;
const WINDOW_OFFSETS_MIN: i64 = 8;
const WINDOW_OFFSETS_MAX: i64 = 1 << 16;
/// A window with fewer bytes than this may grow.
const WINDOW_BYTES_SMALL: usize = 512 * 1024;
/// A window with more bytes than this shrinks.
const WINDOW_BYTES_LARGE: usize = 4 * 1024 * 1024;

/// Reads partitions side by side from their ends, and gives what was selected, newest first by the
/// time of the log.
#[derive(Debug)]
pub(crate) struct Backward<'a, T, F> {
    topic: Topic<'a>,
    lanes: Vec<Lane<T>>,
    select: F,
    /// How much selected is held of one partition.
    held_max: usize,
}

/// One partition: what is selected already, newest first, and what is left to read below it.
#[derive(Debug)]
struct Lane<T> {
    rest: Range,
    window: i64,
    held: VecDeque<Held<T>>,
    began: bool,
}

#[derive(Debug)]
struct Held<T> {
    offset: Offset,
    appended_at_ms: i64,
    item: T,
}

/// What reading on gave.
#[derive(Debug)]
pub(crate) enum Found<T> {
    /// The next older one.
    Item(T),
    /// There are no more.
    Done,
    /// The budget is spent; the rest is [`Backward::rest`].
    Cut,
}

impl<'a, T, F: Fn(&Record) -> Option<T>> Backward<'a, T, F> {
    pub(crate) fn new(topic: Topic<'a>, ranges: Vec<Range>, held_max: usize, select: F) -> Self {
        let lane = |rest| Lane {
            rest,
            window: WINDOW_OFFSETS_FIRST,
            held: VecDeque::new(),
            began: false,
        };
        let lanes = ranges.into_iter().map(lane).collect();
        Self {
            topic,
            lanes,
            select,
            held_max: held_max.max(1),
        }
    }

    /// The next older one that is selected. Ties in time go to the lower partition.
    pub(crate) async fn next(&mut self, budget: &mut Budget) -> Result<Found<T>, Problem> {
        for lane in &mut self.lanes {
            while lane.held.is_empty() && lane.rest.from < lane.rest.end {
                let may_read = !budget.is_spent(lane.began);
                if !may_read
                    || !lane
                        .fill(&mut self.topic, budget, &self.select, self.held_max)
                        .await?
                {
                    return Ok(Found::Cut);
                }
            }
        }
        let newest = self
            .lanes
            .iter_mut()
            .rev()
            .max_by_key(|lane| lane.held.front().map(|held| held.appended_at_ms));
        Ok(newest
            .and_then(|lane| lane.held.pop_front())
            .map_or(Found::Done, |held| Found::Item(held.item)))
    }

    /// What was not given yet; empty when everything was.
    pub(crate) fn rest(&self) -> Vec<Range> {
        let rest = self.lanes.iter().map(|lane| Range {
            end: lane
                .held
                .front()
                .map_or(lane.rest.end, |held| held.offset + 1),
            ..lane.rest
        });
        rest.filter(|range| range.from < range.end).collect()
    }
}

impl<T> Lane<T> {
    /// Reads the window below what was read. False: the time is over, and nothing of the window
    /// counts.
    async fn fill(
        &mut self,
        topic: &mut Topic<'_>,
        budget: &mut Budget,
        select: impl Fn(&Record) -> Option<T>,
        held_max: usize,
    ) -> Result<bool, Problem> {
        let end = self.rest.end;
        let begin = self.rest.from.max(end - self.window);
        let mut next = begin;
        let mut bytes = 0;
        let mut let_go = false;
        let mut held = VecDeque::new();
        while next < end {
            let Some(batch) = topic.read(self.rest.partition, next, budget).await? else {
                return Ok(false);
            };
            next = next.max(batch.next);
            for record in batch.records.iter().filter(|record| record.offset < end) {
                bytes += record.size_bytes();
                let Some(item) = select(record) else { continue };
                let (offset, appended_at_ms) = (record.offset, record.timestamp_ms);
                held.push_front(Held {
                    offset,
                    appended_at_ms,
                    item,
                });
                if held.len() > held_max {
                    held.pop_back();
                    let_go = true;
                }
            }
        }
        // What was let go is read again, from below the oldest that is held.
        self.rest.end = match held.back() {
            Some(oldest) if let_go => oldest.offset,
            _ => begin,
        };
        self.held = held;
        self.began = true;
        self.window = match bytes {
            _ if let_go => self.window / 2,
            0..WINDOW_BYTES_SMALL => self.window * 4,
            WINDOW_BYTES_LARGE.. => self.window / 4,
            _ => self.window,
        }
        .clamp(WINDOW_OFFSETS_MIN, WINDOW_OFFSETS_MAX);
        Ok(true)
    }
}
