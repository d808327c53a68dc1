//! A member of a group, as the suite drives it.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_log::{
    Assignment, Commit, CommitError, Committed, Group, GroupEvent, Offset, Partition, Record,
};
use tokio::time::Instant;

/// A member, with what it was told.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) group: Box<dyn Group>,
    pub(crate) assigned: BTreeMap<Partition, Assignment>,
    pub(crate) records: Vec<Record>,
    patience: Duration,
}

impl Member {
    pub(crate) fn new(group: Box<dyn Group>, patience: Duration) -> Self {
        Self {
            group,
            assigned: BTreeMap::new(),
            records: Vec::new(),
            patience,
        }
    }

    /// The next event, taken into account: assignments and records are kept, what is lost is
    /// forgotten.
    pub(crate) async fn next(&mut self) -> GroupEvent {
        let next = tokio::time::timeout(self.patience, self.group.next()).await;
        let event = next
            .expect("an event comes in time")
            .expect("the group goes on");
        self.note(&event);
        event
    }

    /// As [`Member::next`], but nothing may come for this long.
    pub(crate) async fn quiet(&mut self, how_long: Duration) -> bool {
        match tokio::time::timeout(how_long, self.group.next()).await {
            Err(_) => true,
            Ok(event) => {
                self.note(&event.expect("the group goes on"));
                false
            }
        }
    }

    /// Goes on until the condition holds. Releases nothing.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + self.patience;
        while !condition(self) {
            let next = tokio::time::timeout_at(deadline, self.group.next()).await;
            let Ok(event) = next else {
                panic!("in time {what}, but stopped at {self:?}")
            };
            self.note(&event.expect("the group goes on"));
        }
    }

    pub(crate) async fn until_assigned(&mut self, partitions: usize) {
        self.until("all are assigned", |member| {
            member.assigned.len() == partitions
        })
        .await;
    }

    /// Starts where the group's commit says, else at the start of the log.
    pub(crate) fn start_all(&mut self) {
        for (partition, assignment) in &self.assigned {
            let committed = assignment
                .committed
                .as_ref()
                .map(|committed| committed.offset);
            self.group
                .start(*partition, committed.unwrap_or(assignment.bounds.start));
        }
    }

    pub(crate) async fn commit(
        &mut self,
        partition: Partition,
        offset: Offset,
        metadata: &str,
    ) -> Result<(), CommitError> {
        let commit = self.commit_of(partition, offset, metadata);
        self.commit_as(commit).await
    }

    pub(crate) async fn commit_as(&mut self, commit: Commit) -> Result<(), CommitError> {
        let ack = self.group.commit(vec![commit]);
        tokio::pin!(ack);
        let deadline = Instant::now() + self.patience;
        loop {
            // The polling goes on, as it does in production.
            tokio::select! {
                biased;
                told = &mut ack => return told,
                event = self.group.next() => {
                    let event = event.expect("the group goes on");
                    self.note(&event);
                }
                () = tokio::time::sleep_until(deadline) => panic!("the commit is answered in time"),
            }
        }
    }

    pub(crate) fn commit_of(&self, partition: Partition, offset: Offset, metadata: &str) -> Commit {
        let committed = Committed {
            offset,
            metadata: metadata.to_owned(),
        };
        Commit {
            partition,
            generation: self.assigned[&partition].generation,
            committed,
        }
    }

    fn note(&mut self, event: &GroupEvent) {
        match event {
            GroupEvent::Assigned(assignments) => {
                for assignment in assignments {
                    let before = self
                        .assigned
                        .insert(assignment.partition, assignment.clone());
                    assert_eq!(before, None, "assigned twice");
                }
            }
            GroupEvent::Records(records) => self.records.extend(records.iter().cloned()),
            GroupEvent::Lost(partitions) => {
                for partition in partitions {
                    assert!(
                        self.assigned.remove(partition).is_some(),
                        "lost what it did not have"
                    );
                }
            }
            GroupEvent::Truncated { .. }
            | GroupEvent::BeyondEnd { .. }
            | GroupEvent::Revoke { .. } => {}
        }
    }

    /// Releases what a `Revoke` named.
    pub(crate) fn release(&mut self, partitions: &[Partition]) {
        self.group.release();
        for partition in partitions {
            self.assigned.remove(partition);
        }
    }

    /// Waits for a `Revoke`.
    pub(crate) async fn revoked(&mut self) -> Vec<Partition> {
        let deadline = Instant::now() + self.patience;
        loop {
            assert!(Instant::now() < deadline, "no revoke came in time");
            if let GroupEvent::Revoke { partitions, .. } = self.next().await {
                return partitions;
            }
        }
    }
}
