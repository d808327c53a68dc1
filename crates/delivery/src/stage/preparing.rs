//! Partitions that were assigned and are being prepared: what must be known before their first
//! record is looked up, beside everything else that the stage does. A partition that leaves
//! meanwhile just drops its preparation.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use postrider_log::{Assignment, Partition};

use super::StageError;

/// What a stage needs to know of a partition, as it is looked up.
pub(crate) type Preparation<P> = BoxFuture<'static, Result<P, StageError>>;

pub(super) struct Preparing<P> {
    /// In the order in which they are begun.
    partitions: VecDeque<(Assignment, Preparation<P>)>,
    at_once_max: usize,
}

impl<P> Preparing<P> {
    pub(super) fn new(at_once_max: usize) -> Self {
        Self {
            partitions: VecDeque::new(),
            at_once_max,
        }
    }

    /// Prepares for an assignment. That of an earlier one of the partition ends.
    pub(super) fn add(&mut self, assignment: Assignment, preparation: Preparation<P>) {
        self.forget(assignment.partition);
        self.partitions.push_back((assignment, preparation));
    }

    pub(super) fn forget(&mut self, partition: Partition) {
        self.partitions
            .retain(|(assignment, _)| assignment.partition != partition);
    }

    pub(super) fn clear(&mut self) {
        self.partitions.clear();
    }

    /// Waits until a partition is prepared, or cannot be; for ever while there is none.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> (Assignment, Result<P, StageError>) {
        poll_fn(|context| self.poll(context)).await
    }

    /// One that was not polled yet has not begun, so these are all that is under way.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(Assignment, Result<P, StageError>)> {
        let mut under_way = (0..).zip(self.partitions.iter_mut().take(self.at_once_max));
        let ready =
            under_way.find_map(
                |(index, (_, preparation))| match preparation.poll_unpin(context) {
                    Poll::Ready(prepared) => Some((index, prepared)),
                    Poll::Pending => None,
                },
            );
        let Some((index, prepared)) = ready else {
            return Poll::Pending;
        };
        let removed = self.partitions.remove(index);
        let (assignment, _) = removed.expect("it was just polled");
        Poll::Ready((assignment, prepared))
    }
}
