//! Where a stage goes on in a partition, and who says so when the log cannot.
//!
//! A group is *founded*: when its topic is created, the beginning is committed for every partition ([`found`]). From
//! then on each partition has a commit for as long as the installation lives, since idle owners commit too. One that is
//! missing was lost: with a broker's state, by a failover without offsets, by its expiry while nothing ran. Then nobody
//! knows what was done. To go on at the end would skip what was not, to go on at the start would do a week again, so
//! the partition is stopped (`stopped.rs`) until an operator decides. The same goes for a commit beyond the end: the
//! log lost records.
//!
//! A decision is a commit from outside. Kafka takes one for a group without members only, and other partitions of the
//! group go on meanwhile; so for a group at work the decision is left where its members look for it, with a group of
//! its own that nobody joins: `<group>-decisions`. The owner of the stopped partition finds it, goes on there and
//! commits. A decision counts only if it came while the partition was stopped: one from an earlier time says nothing
//! about this one. [`decide`] makes it anew, with the next number, until it is taken.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_log::{Bounds, Committed, Log, LogError, Offset, Partition};
use postrider_model::topics::{
    DELIVERIES, EVENTS, GROUP_DELIVER, GROUP_FAN_OUT, GROUP_SCHEDULER, RETRY,
};
use tokio::time::{Instant, sleep};

/// The groups and the topics they read.
pub const GROUPS: [(&str, &str); 3] = [
    (GROUP_FAN_OUT, EVENTS),
    (GROUP_DELIVER, DELIVERIES),
    (GROUP_SCHEDULER, RETRY),
];

/// How often a decision is made before it is given up, and how long each time it may take until it is taken. Who watches
/// looks every 5 s; the first time may fall into a partition's way from one owner to another.
const DECISIONS: u32 = 4;
const TAKEN_WITHIN: Duration = Duration::from_secs(20);
const TAKEN_POLL: Duration = Duration::from_millis(500);

/// Where a group goes on in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Here: at its commit, or later where retention took records; at the beginning of a partition that never held any.
    At(Offset),
    /// There is no commit, but there were records.
    NoCommit,
    /// The commit is beyond the end of the log, which has lost records.
    BeyondEnd(Offset),
}

impl Standing {
    /// Judges by what is committed and what the log holds. The bounds must not be older than the commit.
    #[must_use]
    pub fn of(committed: Option<Offset>, bounds: Bounds) -> Self {
        match committed {
            // An offset that was given is never given again, so nothing can be skipped or repeated.
            None if bounds.end == 0 => Self::At(0),
            None => Self::NoCommit,
            Some(offset) if offset > bounds.end => Self::BeyondEnd(offset),
            Some(offset) => Self::At(offset.max(bounds.start)),
        }
    }

    /// Whether nobody but an operator can say.
    #[must_use]
    pub fn is_unknown(self) -> bool {
        !matches!(self, Self::At(_))
    }
}

/// A partition and where its group goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStanding {
    /// Partition.
    pub partition: Partition,
    /// What the group committed last.
    pub committed: Option<Committed>,
    /// What the log holds.
    pub bounds: Bounds,
    /// What follows.
    pub standing: Standing,
}

/// Why a decision was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// The log could not be used.
    #[error("the log cannot be used")]
    Log(#[from] LogError),
    /// The group has members, but none of them owns the partitions and follows the decision.
    #[error("no process of the group took the decision for partitions {0:?}")]
    NotTaken(Vec<Partition>),
}

/// Where a group goes on, for every partition of its topic.
///
/// # Errors
/// When the log cannot say.
pub async fn standings(
    log: &dyn Log,
    group: &str,
    topic: &str,
) -> Result<Vec<PartitionStanding>, LogError> {
    let mut standings = Vec::new();
    for (partition, committed) in (0..).zip(log.committed(group, topic).await?) {
        let bounds = log.bounds(topic, partition).await?;
        let offset = committed.as_ref().map(|committed| committed.offset);
        standings.push(PartitionStanding {
            partition,
            committed,
            bounds,
            standing: Standing::of(offset, bounds),
        });
    }
    Ok(standings)
}

/// Founds the groups: commits the beginning for every partition without a commit whose topic was just `created`, or that
/// never held a record. Harmless when repeated.
///
/// # Errors
/// When the log cannot be used, or a group at work does not take it up.
pub async fn found(log: &dyn Log, created: &[String]) -> Result<(), DecideError> {
    for (group, topic) in GROUPS {
        let is_new = created.iter().any(|name| name == topic);
        let unfounded = |one: &PartitionStanding| {
            one.committed.is_none() && (is_new || one.standing == Standing::At(0))
        };
        let beginnings: BTreeMap<Partition, Offset> = standings(log, group, topic)
            .await?
            .iter()
            .filter(|one| unfounded(one))
            .map(|one| (one.partition, 0))
            .collect();
        decide(log, group, topic, beginnings).await?;
    }
    Ok(())
}

/// Decides where a group goes on in partitions that have no commit, or one beyond the end, and waits until it is
/// committed. Those that have a proper commit by then are left alone.
///
/// # Errors
/// When the log cannot be used, or a group at work does not take the decision.
pub async fn decide(
    log: &dyn Log,
    group: &str,
    topic: &str,
    mut offsets: BTreeMap<Partition, Offset>,
) -> Result<(), DecideError> {
    for _ in 0..DECISIONS {
        if offsets.is_empty() {
            return Ok(());
        }
        let commits = commits(&offsets, "");
        match log.set_committed(group, topic, &commits).await {
            Ok(()) => return Ok(()),
            Err(LogError::GroupHasMembers(_)) => leave(log, group, topic, &offsets).await?,
            Err(error) => return Err(error.into()),
        }
        let until = Instant::now() + TAKEN_WITHIN;
        while !offsets.is_empty() && Instant::now() < until {
            sleep(TAKEN_POLL).await;
            for one in standings(log, group, topic).await? {
                if one.committed.is_some() && !one.standing.is_unknown() {
                    offsets.remove(&one.partition);
                }
            }
        }
    }
    if offsets.is_empty() {
        return Ok(());
    }
    Err(DecideError::NotTaken(offsets.into_keys().collect()))
}

/// The group that decisions for another are left with.
pub(crate) fn decisions(group: &str) -> String {
    format!("{group}-decisions")
}

/// Leaves decisions for the owners of stopped partitions, under a number that was not used before.
async fn leave(
    log: &dyn Log,
    group: &str,
    topic: &str,
    offsets: &BTreeMap<Partition, Offset>,
) -> Result<(), LogError> {
    let group = decisions(group);
    let before = log.committed(&group, topic).await?;
    let last = before
        .iter()
        .flatten()
        .filter_map(|decision| decision.metadata.parse::<u64>().ok())
        .max();
    let number = last.map_or(1, |last| last.wrapping_add(1)).to_string();
    log.set_committed(&group, topic, &commits(offsets, &number))
        .await
}

fn commits(offsets: &BTreeMap<Partition, Offset>, metadata: &str) -> Vec<(Partition, Committed)> {
    let commit = |(partition, offset): (&Partition, &Offset)| {
        let committed = Committed {
            offset: *offset,
            metadata: metadata.to_owned(),
        };
        (*partition, committed)
    };
    offsets.iter().map(commit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_commit_within_the_log_or_an_unused_partition_says_where_to_go_on() {
        let bounds = |start, end| Bounds { start, end };
        for (committed, bounds, standing) in [
            (None, bounds(0, 0), Standing::At(0)),
            (None, bounds(0, 1), Standing::NoCommit),
            (None, bounds(7, 7), Standing::NoCommit),
            (Some(0), bounds(0, 0), Standing::At(0)),
            (Some(3), bounds(0, 9), Standing::At(3)),
            (Some(9), bounds(0, 9), Standing::At(9)),
            (Some(3), bounds(5, 9), Standing::At(5)),
            (Some(10), bounds(5, 9), Standing::BeyondEnd(10)),
            (Some(1), bounds(0, 0), Standing::BeyondEnd(1)),
        ] {
            assert_eq!(Standing::of(committed, bounds), standing, "{committed:?}");
        }
    }
}
