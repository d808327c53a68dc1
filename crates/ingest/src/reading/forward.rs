//! Reading in the order of the log.

use std::collections::VecDeque;

use postrider_log::{Offset, Record};

use super::{Budget, Range, Topic};
use crate::problem::Problem;

/// Reads ranges one after the other.
#[derive(Debug)]
pub(crate) struct Forward<'a> {
    topic: Topic<'a>,
    ranges: VecDeque<Range>,
    began: bool,
}

/// What a step of reading gave.
#[derive(Debug)]
pub(crate) enum Step {
    /// Records in order, at least one.
    Records(Vec<Record>),
    /// Everything was read.
    Done,
    /// The budget is spent; the rest is [`Forward::rest`].
    Cut,
}

/// What a search gave.
#[derive(Debug)]
pub(crate) enum Search<T> {
    /// The first that fits, and where it is.
    Found(T, Range),
    /// There is none.
    Absent,
    /// The budget is spent; what is left to search.
    Cut(Vec<Range>),
}

impl<'a> Forward<'a> {
    pub(crate) fn new(topic: Topic<'a>, ranges: Vec<Range>) -> Self {
        Self {
            topic,
            ranges: ranges.into(),
            began: false,
        }
    }

    /// Reads on.
    pub(crate) async fn next(&mut self, budget: &mut Budget) -> Result<Step, Problem> {
        while let Some(range) = self.ranges.front_mut() {
            if range.from >= range.end {
                self.ranges.pop_front();
                continue;
            }
            if budget.is_spent(self.began) {
                return Ok(Step::Cut);
            }
            let Some(batch) = self.topic.read(range.partition, range.from, budget).await? else {
                return Ok(Step::Cut);
            };
            self.began = true;
            range.from = range.from.max(batch.next);
            let end = range.end;
            let records: Vec<_> = batch
                .records
                .into_iter()
                .filter(|record| record.offset < end)
                .collect();
            if !records.is_empty() {
                return Ok(Step::Records(records));
            }
        }
        Ok(Step::Done)
    }

    /// Goes back to a record of the last step, which then counts as not read.
    pub(crate) fn back_to(&mut self, record: &Record) {
        if let Some(range) = self.ranges.front_mut()
            && range.partition == record.partition
        {
            range.from = record.offset;
        }
    }

    /// What is left to read.
    pub(crate) fn rest(self) -> Vec<Range> {
        self.ranges.into()
    }

    /// The first record that something can be made of.
    pub(crate) async fn find<T>(
        mut self,
        budget: &mut Budget,
        fits: impl Fn(&Record) -> Option<T>,
    ) -> Result<Search<T>, Problem> {
        loop {
            match self.next(budget).await? {
                Step::Done => return Ok(Search::Absent),
                Step::Cut => return Ok(Search::Cut(self.rest())),
                Step::Records(records) => {
                    let found = records
                        .iter()
                        .find_map(|record| Some((fits(record)?, record)));
                    if let Some((found, record)) = found {
                        return Ok(Search::Found(
                            found,
                            place_of(record.partition, record.offset),
                        ));
                    }
                }
            }
        }
    }
}

/// The range that holds one record.
pub(crate) fn place_of(partition: i32, offset: Offset) -> Range {
    Range {
        partition,
        from: offset,
        end: offset + 1,
    }
}
