//! Partitions that were assigned and are being prepared: what must be known before their first record is looked up,
//! beside everything else that the stage does. A partition that leaves meanwhile just drops its preparation.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use postrider_log::{Assignment, Partition};

use super::StageError;

/// What a stage needs to know of a partition, as it is looked up.
pub(crate) type Preparation<P> = BoxFuture<'static, Result<P, StageError>>;

pub(super) struct Preparing<P> {
    partitions: BTreeMap<Partition, (Assignment, Preparation<P>)>,
    at_once_max: usize,
}

impl<P> Preparing<P> {
    pub(super) fn new(at_once_max: usize) -> Self {
        Self {
            partitions: BTreeMap::new(),
            at_once_max,
        }
    }

    /// Prepares for an assignment. That of an earlier one of the partition ends.
    pub(super) fn add(&mut self, assignment: Assignment, preparation: Preparation<P>) {
        self.partitions
            .insert(assignment.partition, (assignment, preparation));
    }

    pub(super) fn forget(&mut self, partition: Partition) {
        self.partitions.remove(&partition);
    }

    pub(super) fn clear(&mut self) {
        self.partitions.clear();
    }

    /// Waits until a partition is prepared; for ever while there is none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<(Assignment, P), StageError> {
        poll_fn(|context| self.poll(context)).await
    }

    /// One that was not polled yet has not begun, so these are all that is under way.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(Assignment, P), StageError>> {
        let under_way = self.partitions.values_mut().take(self.at_once_max);
        for (assignment, preparation) in under_way {
            if let Poll::Ready(prepared) = preparation.poll_unpin(context) {
                let assignment = assignment.clone();
                self.partitions.remove(&assignment.partition);
                return Poll::Ready(prepared.map(|prepared| (assignment, prepared)));
            }
        }
        Poll::Pending
    }
}
