//! Where a stage goes on in a partition, and who says so when the log cannot.
//!
//! A group is *founded*: when its topic is created, the beginning is committed for every partition
//! ([`found`]). From then on each partition has a commit for as long as the installation lives,
//! since idle owners commit too. One that is missing was lost: with a broker's state, by a failover
//! without offsets, by its expiry while nothing ran. Then nobody knows what was done. To go on at
//! the end would skip what was not, to go on at the start would do a week again, so the partition
//! is stopped (`stopped.rs`) until an operator decides. The same goes for a commit beyond the end,
//! since the log lost records, and for one in a log that is another than it was (`past.rs`).
//!
//! A decision is a commit from outside. Kafka takes one for a group without members only, and other
//! partitions of the group go on meanwhile; so for a group at work the decision is left where its
//! members look for it, with a group of its own that nobody joins: `<group>-decisions`. The owner
//! of the stopped partition finds it, goes on there and commits. A decision counts only if it came
//! while the partition was stopped: one from an earlier time says nothing about this one.
//! [`decide`] makes it anew, with the next number, until it is taken.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use postrider_log::{Bounds, Committed, Log, LogError, Offset, Partition};
use postrider_model::commit_note::{CommitNote, Mark};
use postrider_model::payload::rfc3339;
use postrider_model::topics::{
    ATTEMPTS, DELIVERIES, ENDPOINT_STATE, EVENTS, GROUP_DELIVER, GROUP_FAN_OUT, GROUP_SCHEDULER,
    RETRY,
};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

use crate::past::{Contradiction, contradiction};

/// The groups and the topics they read.
pub const GROUPS: [(&str, &str); 3] = [
    (GROUP_FAN_OUT, EVENTS),
    (GROUP_DELIVER, DELIVERIES),
    (GROUP_SCHEDULER, RETRY),
];

/// How often a decision is made before it is given up, and how long each time it may take until it
/// is taken. Who watches looks every 5 s; the first time may fall into a partition's way from one
/// owner to another.
const DECISIONS: u32 = 4;
const TAKEN_WITHIN: Duration = Duration::from_secs(20);
const TAKEN_POLL: Duration = Duration::from_millis(500);

/// Where a group goes on in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Here: at its commit, or later where retention took records; at the beginning of a partition
    /// that never held any.
    At(Offset),
    /// There is no commit, but there were records.
    NoCommit,
    /// The commit is beyond the end of the log, which has lost records.
    BeyondEnd(Offset),
    /// The log is another than the one that was committed in: its topic was made again, or it lost
    /// records and grew since.
    Diverged(Contradiction),
    /// The topic was made again, and what it held is lost.
    MadeAgain,
    /// The record at this offset of `endpoint-state`, which deliver had written before its commit,
    /// is gone, and with it where lanes are that are behind.
    StatesLost(Offset),
}

impl Display for Standing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(offset) => write!(formatter, "goes on at {offset}"),
            Self::NoCommit => formatter.write_str("nothing is committed"),
            Self::BeyondEnd(offset) => write!(
                formatter,
                "{offset} is committed, beyond the end: the topic was made again or lost its last records"
            ),
            Self::Diverged(found) => {
                let Mark {
                    offset,
                    appended_at_ms,
                } = found.read;
                let read = rfc3339(appended_at_ms);
                write!(
                    formatter,
                    "the record of {read} was read at {offset}, where "
                )?;
                match found.present_appended_at_ms {
                    Some(present) => write!(formatter, "one of {} is now", rfc3339(present))?,
                    None => formatter.write_str("none is now")?,
                }
                formatter.write_str(": the topic was made again or lost records")
            }
            Self::MadeAgain => formatter.write_str(
                "the topic was made again, and what was not done of it is lost: `postrider endpoint replay` sends it again",
            ),
            Self::StatesLost(offset) => write!(
                formatter,
                "offset {offset} of endpoint-state was written and is gone: it was made again or lost records"
            ),
        }
    }
}

impl Standing {
    /// Judges by what is committed and what the log holds. The bounds must not be older than the
    /// commit.
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

    /// A decision to go on at the offset, as a commit. Where records were lost, what other records
    /// say of offsets from there on is void.
    #[must_use]
    pub fn decided(self, offset: Offset) -> Committed {
        let metadata = match self {
            Self::NoCommit => String::new(),
            Self::At(_)
            | Self::BeyondEnd(_)
            | Self::Diverged(_)
            | Self::MadeAgain
            | Self::StatesLost(_) => CommitNote::void_past().encode(),
        };
        Committed { offset, metadata }
    }
}

/// What is asked only once of a topic whose partitions are examined together.
#[derive(Debug, Default)]
pub(crate) struct TopicPast {
    was_there_before: OnceCell<Result<bool, LogError>>,
}

/// Where a group goes on in a partition, by what it committed, what the log holds and what was read
/// of it.
///
/// # Errors
/// When the log cannot say.
pub(crate) async fn examine(
    log: &dyn Log,
    topic: &str,
    partition: Partition,
    committed: Option<&Committed>,
    bounds: Bounds,
    past: &TopicPast,
) -> Result<Standing, LogError> {
    let standing = Standing::of(committed.map(|committed| committed.offset), bounds);
    if standing.is_unknown() {
        return Ok(standing);
    }
    let Some(committed) = committed else {
        let topic_was = past
            .was_there_before
            .get_or_init(|| was_there_before(log, topic));
        // Attempts of a partition come from the deliveries of the same, which had a commit while
        // they were there.
        let was_there = topic_was.await.clone()?
            || topic == DELIVERIES && was_used(log, ATTEMPTS, partition).await?;
        return Ok(if was_there {
            Standing::MadeAgain
        } else {
            standing
        });
    };
    let note = CommitNote::decode(&committed.metadata);
    if note.made_again {
        return Ok(Standing::MadeAgain);
    }
    if let Some(found) = contradiction(log, topic, partition, note.marks()).await? {
        return Ok(Standing::Diverged(found));
    }
    // Of the groups here only deliver names states. Nobody but the partition's owner adds to them.
    if let Some(state) = note.last_state()
        && log.bounds(ENDPOINT_STATE, partition).await?.end <= state
    {
        return Ok(Standing::StatesLost(state));
    }
    Ok(standing)
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

impl PartitionStanding {
    /// From where on everything is that may not have been done, as far as the commit tells: after
    /// the last record that was read and is still there; where the lanes' states are lost, where
    /// the first of them was. If it tells nothing, from the start.
    ///
    /// # Errors
    /// When the log cannot say.
    pub async fn undone_from(&self, log: &dyn Log, topic: &str) -> Result<Offset, LogError> {
        let Bounds { start, end } = self.bounds;
        let Some(committed) = &self.committed else {
            return Ok(start);
        };
        let note = CommitNote::decode(&committed.metadata);
        let mut from = None;
        for read in note.marks() {
            let found = contradiction(log, topic, self.partition, [read]).await?;
            if found.is_none() {
                from = Some(read.offset + 1);
                continue;
            }
            if from.is_none() {
                // None of it is there. What took its place is later.
                let later = log.offset_for_time(topic, self.partition, read.appended_at_ms);
                from = Some(later.await?);
            }
            break;
        }
        if matches!(self.standing, Standing::StatesLost(_)) {
            from = Some(note.behind_from.unwrap_or(committed.offset));
        }
        Ok(from.map_or(start, |from| from.clamp(start, end)))
    }
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
    let partitions: Vec<Partition> = (0..log.partition_count(topic).await?).collect();
    standings_of(log, group, topic, &partitions).await
}

async fn standings_of(
    log: &dyn Log,
    group: &str,
    topic: &str,
    partitions: &[Partition],
) -> Result<Vec<PartitionStanding>, LogError> {
    let mut standings = Vec::new();
    let past = TopicPast::default();
    let committed = (0..).zip(log.committed(group, topic).await?);
    for (partition, committed) in committed.filter(|(one, _)| partitions.contains(one)) {
        let bounds = log.bounds(topic, partition).await?;
        let standing = examine(log, topic, partition, committed.as_ref(), bounds, &past).await?;
        standings.push(PartitionStanding {
            partition,
            committed,
            bounds,
            standing,
        });
    }
    Ok(standings)
}

/// Founds the groups: commits the beginning for every partition whose topic was just `created`,
/// whatever was committed in one of that name before, and for every partition without a commit that
/// never held a record. Harmless when repeated.
///
/// A topic that is created where others have a past was there before, and what it held is lost. Its
/// partitions stay stopped until an operator decides; the answer names it.
///
/// # Errors
/// When the log cannot be used, or a group at work does not take it up.
pub async fn found(log: &dyn Log, created: &[String]) -> Result<Vec<&'static str>, DecideError> {
    let has_past = has_past(log, created).await?;
    let mut made_again = Vec::new();
    for (group, topic) in GROUPS {
        let is_new = created.iter().any(|name| name == topic);
        if is_new && has_past {
            stop_at_beginning(log, group, topic).await?;
            made_again.push(topic);
            continue;
        }
        let unfounded: Vec<Partition> = if is_new {
            (0..log.partition_count(topic).await?).collect()
        } else {
            let standings = standings(log, group, topic).await?;
            let unfounded = standings
                .iter()
                .filter(|one| one.committed.is_none() && one.standing == Standing::At(0));
            unfounded.map(|one| one.partition).collect()
        };
        let beginnings = beginnings(log, group, unfounded).await?;
        decide(log, group, topic, beginnings).await?;
    }
    Ok(made_again)
}

/// The first commits of partitions. Nothing is known of them, whatever other records say: nothing
/// of them was settled before what `attempts` has by now.
async fn beginnings(
    log: &dyn Log,
    group: &str,
    partitions: Vec<Partition>,
) -> Result<BTreeMap<Partition, Committed>, LogError> {
    let mut beginnings = BTreeMap::new();
    for partition in partitions {
        let rebuild_from = match log.bounds(ATTEMPTS, partition).await {
            _ if group != GROUP_DELIVER => None,
            Ok(bounds) => Some(bounds.end),
            Err(LogError::NoSuchTopic(_)) => Some(0),
            Err(error) => return Err(error),
        };
        let note = CommitNote {
            rebuild_from,
            ..CommitNote::void_past()
        };
        let beginning = Committed {
            offset: 0,
            metadata: note.encode(),
        };
        beginnings.insert(partition, beginning);
    }
    Ok(beginnings)
}

/// Whether anything was delivered, or about to be, before these topics were created.
async fn has_past(log: &dyn Log, created: &[String]) -> Result<bool, LogError> {
    let is_old = |topic: &&str| !created.iter().any(|name| name == topic);
    for topic in [DELIVERIES, ATTEMPTS].into_iter().filter(is_old) {
        match log.all_bounds(topic).await {
            Ok(bounds) if bounds.iter().any(|one| one.end > 0) => return Ok(true),
            Ok(_) | Err(LogError::NoSuchTopic(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether a topic that has an empty partition without a commit was made again, of which Kafka
/// forgets the commits as well.
async fn was_there_before(log: &dyn Log, topic: &str) -> Result<bool, LogError> {
    let is_empty = log.all_bounds(topic).await?.iter().all(|one| one.end == 0);
    if !is_empty || !has_past(log, &[topic.to_owned()]).await? {
        return Ok(false);
    }
    for (group, _) in GROUPS.into_iter().filter(|(_, read)| *read == topic) {
        let committed = log.committed(group, topic).await?;
        let is_founded = |one: &Committed| !CommitNote::decode(&one.metadata).made_again;
        // A partition that was added has no commit either, but others have.
        if committed.iter().flatten().any(is_founded) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the partition ever held a record.
async fn was_used(log: &dyn Log, topic: &str, partition: Partition) -> Result<bool, LogError> {
    match log.bounds(topic, partition).await {
        Ok(bounds) => Ok(bounds.end > 0),
        Err(LogError::NoSuchTopic(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A commit that says that the topic was made again.
pub(crate) fn made_again() -> Committed {
    Committed {
        offset: 0,
        metadata: CommitNote::of_made_again().encode(),
    }
}

/// Notes in every partition that the topic was made again. A group at work has seen that itself,
/// and takes no commits.
async fn stop_at_beginning(log: &dyn Log, group: &str, topic: &str) -> Result<(), LogError> {
    let partitions = 0..log.partition_count(topic).await?;
    let stops: Vec<_> = partitions.map(|one| (one, made_again())).collect();
    match log.set_committed(group, topic, &stops).await {
        Err(LogError::GroupHasMembers(_)) => Ok(()),
        done => done,
    }
}

/// Decides where a group goes on in partitions of which its commits do not say, and waits until it
/// is committed. Those that have a proper commit by then are left alone. [`Standing::decided`]
/// makes the commits.
///
/// # Errors
/// When the log cannot be used, or a group at work does not take the decision.
pub async fn decide(
    log: &dyn Log,
    group: &str,
    topic: &str,
    mut decisions: BTreeMap<Partition, Committed>,
) -> Result<(), DecideError> {
    for _ in 0..DECISIONS {
        if decisions.is_empty() {
            return Ok(());
        }
        let commits: Vec<_> = decisions.clone().into_iter().collect();
        match log.set_committed(group, topic, &commits).await {
            Ok(()) => return Ok(()),
            Err(LogError::GroupHasMembers(_)) => leave(log, group, topic, commits).await?,
            Err(error) => return Err(error.into()),
        }
        let until = Instant::now() + TAKEN_WITHIN;
        while !decisions.is_empty() && Instant::now() < until {
            sleep(TAKEN_POLL).await;
            let undecided: Vec<Partition> = decisions.keys().copied().collect();
            for one in standings_of(log, group, topic, &undecided).await? {
                if one.committed.is_some() && !one.standing.is_unknown() {
                    decisions.remove(&one.partition);
                }
            }
        }
    }
    if decisions.is_empty() {
        return Ok(());
    }
    Err(DecideError::NotTaken(decisions.into_keys().collect()))
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
    mut commits: Vec<(Partition, Committed)>,
) -> Result<(), LogError> {
    let group = decisions(group);
    let before = log.committed(&group, topic).await?;
    let last = before
        .iter()
        .flatten()
        .filter_map(|decision| decision.metadata.parse::<u64>().ok())
        .max();
    let number = last.map_or(1, |last| last.wrapping_add(1)).to_string();
    for (_, commit) in &mut commits {
        commit.metadata.clone_from(&number);
    }
    log.set_committed(&group, topic, &commits).await
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
