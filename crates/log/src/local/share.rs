//! How the members of a group share the partitions of a topic: the coordinator, as a state machine.
//!
//! Reassignment is cooperative. Each partition has an owner and a target, the member that should
//! have it. Where they differ the owner is asked to give it up ([`Notice::Revoke`]) and keeps it
//! until it releases it or the deadline passes ([`Notice::Lost`]); then the target gets it under
//! the next generation. A member is asked once at a time. A partition with a commit under way is
//! not handed on, so its next owner starts from that commit.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::balance::balance;
use crate::port::{Commit, Committed, Generation, Partition};

/// A member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MemberId(pub(super) u64);

/// An assignment by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) partition: Partition,
    pub(super) generation: Generation,
}

/// What a member has to be told. It may be out of date when it is fetched: [`GroupState::holds`]
/// says.
#[derive(Debug)]
pub(super) enum Notice {
    Assigned(Vec<Held>),
    Revoke { held: Vec<Held>, until: Instant },
    Lost(Vec<Held>),
}

#[derive(Debug)]
struct Member {
    client: u64,
    revoke_deadline: Duration,
    notices: VecDeque<Notice>,
    /// When a dead client's session is over.
    expires: Option<Instant>,
}

#[derive(Debug, Default)]
struct Share {
    owner: Option<MemberId>,
    target: Option<MemberId>,
    generation: Generation,
    /// Set while the owner is asked to give it up.
    revoke_until: Option<Instant>,
    /// The owner must give it up even if it is the target.
    forced: bool,
    commits_under_way: u32,
    committed: Option<Committed>,
}

/// A group and how it shares one topic.
#[derive(Debug)]
pub(crate) struct GroupState {
    members: BTreeMap<MemberId, Member>,
    shares: Vec<Share>,
}

impl GroupState {
    pub(super) fn new(partitions: i32) -> Self {
        Self {
            members: BTreeMap::new(),
            shares: (0..partitions).map(|_| Share::default()).collect(),
        }
    }

    pub(super) fn restore(&mut self, partition: Partition, committed: Committed) {
        if let Some(share) = self.share_mut(partition) {
            share.committed = Some(committed);
        }
    }

    pub(crate) fn forget_commit(&mut self, partition: Partition) {
        if let Some(share) = self.share_mut(partition) {
            share.committed = None;
        }
    }

    pub(super) fn committed(&self) -> Vec<Option<Committed>> {
        self.shares
            .iter()
            .map(|share| share.committed.clone())
            .collect()
    }

    pub(super) fn committed_of(&self, partition: Partition) -> Option<Committed> {
        self.share(partition)?.committed.clone()
    }

    pub(super) fn join(&mut self, id: MemberId, client: u64, revoke_deadline: Duration) {
        let member = Member {
            client,
            revoke_deadline,
            notices: VecDeque::new(),
            expires: None,
        };
        self.members.insert(id, member);
        self.retarget();
    }

    pub(super) fn leave(&mut self, id: MemberId) {
        if self.members.remove(&id).is_none() {
            return;
        }
        for share in self
            .shares
            .iter_mut()
            .filter(|share| share.owner == Some(id))
        {
            share.free();
        }
        self.retarget();
    }

    /// The client is dead: its members go when their session is over.
    pub(super) fn expire_client(&mut self, client: u64, expires: Instant) {
        for member in self
            .members
            .values_mut()
            .filter(|member| member.client == client)
        {
            member.expires = Some(expires);
        }
    }

    pub(super) fn next_notice(&mut self, id: MemberId) -> Option<Notice> {
        self.members.get_mut(&id)?.notices.pop_front()
    }

    pub(super) fn holds(&self, id: MemberId, held: Held) -> bool {
        self.share(held.partition)
            .is_some_and(|share| share.owner == Some(id) && share.generation == held.generation)
    }

    pub(super) fn release(&mut self, id: MemberId, released: &[Held]) {
        for held in released {
            if self.holds(id, *held)
                && let Some(share) = self.share_mut(held.partition)
            {
                share.free();
            }
        }
    }

    /// Takes a commit up if the member holds every partition of it.
    pub(super) fn begin_commit(&mut self, id: MemberId, commits: &[Commit]) -> bool {
        let all_held = commits.iter().all(|commit| {
            self.holds(
                id,
                Held {
                    partition: commit.partition,
                    generation: commit.generation,
                },
            )
        });
        if all_held {
            for commit in commits {
                self.count_commit(commit.partition, |under_way| under_way + 1);
            }
        }
        all_held
    }

    /// Takes up a commit of somebody outside if the group has no members. None is assigned
    /// meanwhile what it names.
    pub(super) fn begin_commit_from_outside(&mut self, commits: &[Commit]) -> bool {
        let empty = self.members.is_empty();
        if empty {
            for commit in commits {
                self.count_commit(commit.partition, |under_way| under_way + 1);
            }
        }
        empty
    }

    pub(super) fn end_commit(&mut self, commits: Vec<Commit>, landed: bool) {
        for commit in commits {
            self.count_commit(commit.partition, |under_way| under_way - 1);
            if landed {
                self.restore(commit.partition, commit.committed);
            }
        }
    }

    /// Lets happen what is due. True if anything did, so that the members must be woken.
    pub(super) fn settle(&mut self, now: Instant) -> bool {
        let expired: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, member)| member.expires.is_some_and(|expires| expires <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in &expired {
            self.leave(*id);
        }
        let overdue = self.take_away(|share| share.revoke_until.is_some_and(|until| until <= now));
        let asked = self.ask(now);
        let assigned = self.assign();
        !expired.is_empty() || overdue || asked || assigned
    }

    /// When [`GroupState::settle`] has something to do next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let revokes = self.shares.iter().filter_map(|share| share.revoke_until);
        let expiries = self.members.values().filter_map(|member| member.expires);
        revokes.chain(expiries).min()
    }

    /// Makes every member give everything up, each partition going to the next member.
    pub(crate) fn rotate(&mut self) {
        for index in 0..self.shares.len() {
            if let Some(target) = self.shares[index].target {
                self.shares[index].target = self.after(target);
                self.shares[index].forced = self.shares[index].owner.is_some();
            }
        }
    }

    /// Takes everything from a client's members without asking; it goes to the next member.
    pub(crate) fn lose(&mut self, client: u64) {
        let losers: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, member)| member.client == client)
            .map(|(id, _)| *id)
            .collect();
        for index in 0..self.shares.len() {
            if let Some(owner) = self.shares[index]
                .owner
                .filter(|owner| losers.contains(owner))
            {
                self.shares[index].target = self.after(owner);
            }
        }
        self.take_away(|share| share.owner.is_some_and(|owner| losers.contains(&owner)));
    }

    /// The member after this one, around.
    fn after(&self, id: MemberId) -> Option<MemberId> {
        let mut later = self
            .members
            .range((std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded));
        later
            .next()
            .or_else(|| self.members.first_key_value())
            .map(|(id, _)| *id)
    }

    fn retarget(&mut self) {
        let holders: Vec<Option<MemberId>> = self.shares.iter().map(|share| share.target).collect();
        let members: Vec<MemberId> = self.members.keys().copied().collect();
        for (share, target) in self.shares.iter_mut().zip(balance(&holders, &members)) {
            share.target = target;
        }
    }

    /// Frees the partitions that match, and tells their owners that they are lost.
    fn take_away(&mut self, matches: impl Fn(&Share) -> bool) -> bool {
        let mut lost: BTreeMap<MemberId, Vec<Held>> = BTreeMap::new();
        for (partition, share) in (0..).zip(&mut self.shares) {
            if let Some(owner) = share.owner
                && matches(share)
            {
                lost.entry(owner).or_default().push(Held {
                    partition,
                    generation: share.generation,
                });
                share.free();
            }
        }
        self.tell(lost, Notice::Lost)
    }

    /// Asks owners to give up what should be another's.
    fn ask(&mut self, now: Instant) -> bool {
        let asked: Vec<MemberId> = self
            .shares
            .iter()
            .filter(|share| share.revoke_until.is_some())
            .filter_map(|share| share.owner)
            .collect();
        let mut revoked: BTreeMap<MemberId, Vec<Held>> = BTreeMap::new();
        for (partition, share) in (0..).zip(&mut self.shares) {
            let Some(owner) = share.owner.filter(|owner| !asked.contains(owner)) else {
                continue;
            };
            let Some(member) = self.members.get(&owner) else {
                continue;
            };
            if share.forced || share.target != share.owner {
                share.revoke_until = Some(now + member.revoke_deadline);
                revoked.entry(owner).or_default().push(Held {
                    partition,
                    generation: share.generation,
                });
            }
        }
        let any = !revoked.is_empty();
        for (owner, held) in revoked {
            if let Some(member) = self.members.get_mut(&owner) {
                let until = now + member.revoke_deadline;
                member.notices.push_back(Notice::Revoke { held, until });
            }
        }
        any
    }

    /// Gives free partitions to their targets.
    fn assign(&mut self) -> bool {
        let mut assigned: BTreeMap<MemberId, Vec<Held>> = BTreeMap::new();
        for (partition, share) in (0..).zip(&mut self.shares) {
            if share.owner.is_none()
                && share.commits_under_way == 0
                && let Some(target) = share.target
            {
                share.owner = Some(target);
                share.generation += 1;
                assigned.entry(target).or_default().push(Held {
                    partition,
                    generation: share.generation,
                });
            }
        }
        self.tell(assigned, Notice::Assigned)
    }

    fn tell(
        &mut self,
        told: BTreeMap<MemberId, Vec<Held>>,
        notice: impl Fn(Vec<Held>) -> Notice,
    ) -> bool {
        let any = !told.is_empty();
        for (id, held) in told {
            if let Some(member) = self.members.get_mut(&id) {
                member.notices.push_back(notice(held));
            }
        }
        any
    }

    fn share(&self, partition: Partition) -> Option<&Share> {
        self.shares.get(usize::try_from(partition).ok()?)
    }

    fn share_mut(&mut self, partition: Partition) -> Option<&mut Share> {
        self.shares.get_mut(usize::try_from(partition).ok()?)
    }

    fn count_commit(&mut self, partition: Partition, count: impl FnOnce(u32) -> u32) {
        if let Some(share) = self.share_mut(partition) {
            share.commits_under_way = count(share.commits_under_way);
        }
    }
}

impl Share {
    fn free(&mut self) {
        self.owner = None;
        self.revoke_until = None;
        self.forced = false;
    }
}

#[cfg(test)]
mod tests;
