//! Partitions that are stopped until an operator decides where they go on; `standing.rs` says why
//! and how.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use postrider_log::{Assignment, Bounds, Committed, Generation, Log, LogError, Partition};
use prometheus::IntGauge;
use tokio::time::{Instant, sleep_until};

use crate::standing::{Standing, decisions};

const LOOK_EVERY: Duration = Duration::from_secs(5);
const ALARM_EVERY: Duration = Duration::from_secs(60);

/// The stopped partitions of a stage. They stay assigned, but nothing is read or committed for
/// them.
pub(crate) struct Stopped {
    log: Arc<dyn Log>,
    group: &'static str,
    topic: &'static str,
    gauge: IntGauge,
    partitions: BTreeMap<Partition, Waiting>,
    looking: Option<BoxFuture<'static, Result<Vec<Found>, LogError>>>,
    look_at: Instant,
    alarm_at: Instant,
}

struct Waiting {
    assignment: Assignment,
    standing: Standing,
    /// The decision that was there when it was looked for first: an earlier one, which says nothing
    /// about this time.
    earlier: Option<Option<Committed>>,
}

/// What was found for a partition: a decision, and the log's bounds if it is a new one.
struct Found {
    partition: Partition,
    generation: Generation,
    decision: Option<Committed>,
    bounds: Option<Bounds>,
}

impl Stopped {
    pub(crate) fn new(
        log: Arc<dyn Log>,
        group: &'static str,
        topic: &'static str,
        gauge: IntGauge,
    ) -> Self {
        gauge.set(0);
        Self {
            log,
            group,
            topic,
            gauge,
            partitions: BTreeMap::new(),
            looking: None,
            look_at: Instant::now(),
            alarm_at: Instant::now(),
        }
    }

    /// Stops a partition. The alarm follows at once, for all that stop together.
    pub(crate) fn stop(&mut self, assignment: Assignment, standing: Standing) {
        let waiting = Waiting {
            assignment,
            standing,
            earlier: None,
        };
        self.partitions
            .insert(waiting.assignment.partition, waiting);
        self.count();
        (self.look_at, self.alarm_at) = (Instant::now(), Instant::now());
    }

    /// The partition left.
    pub(crate) fn forget(&mut self, partition: Partition) {
        if self.partitions.remove(&partition).is_some() {
            self.count();
        }
    }

    /// All of them left.
    pub(crate) fn clear(&mut self) {
        self.partitions.clear();
        self.count();
    }

    /// Waits until decisions were made, and gives the partitions with what was decided as their
    /// commit; for ever while nothing is stopped. Cancel-safe.
    pub(crate) async fn decided(&mut self) -> Vec<Assignment> {
        loop {
            if self.partitions.is_empty() {
                return pending().await;
            }
            if self.looking.is_none() {
                sleep_until(self.look_at).await;
            }
            let looking = self.looking.get_or_insert_with(|| {
                let log = Arc::clone(&self.log);
                Box::pin(look(log, self.group, self.topic, watched(&self.partitions)))
            });
            let found = looking.await;
            self.looking = None;
            self.look_at = Instant::now() + LOOK_EVERY;
            if Instant::now() >= self.alarm_at {
                self.alarm();
            }
            match found {
                Ok(found) => {
                    let decided: Vec<Assignment> =
                        found.into_iter().filter_map(|one| self.take(one)).collect();
                    self.count();
                    if !decided.is_empty() {
                        return decided;
                    }
                }
                Err(error) => {
                    tracing::warn!(stage = self.group, %error, "decisions cannot be looked for");
                }
            }
        }
    }

    fn take(&mut self, found: Found) -> Option<Assignment> {
        let waiting = self.partitions.get_mut(&found.partition)?;
        if waiting.assignment.generation != found.generation {
            return None;
        }
        let earlier = waiting
            .earlier
            .get_or_insert_with(|| found.decision.clone());
        if *earlier == found.decision {
            return None;
        }
        let (offset, bounds) = (found.decision?.offset, found.bounds?);
        if Standing::of(Some(offset), bounds).is_unknown() {
            tracing::error!(
                stage = self.group,
                partition = found.partition,
                offset,
                "an operator's decision is beyond the end of the log"
            );
            return None;
        }
        tracing::warn!(
            stage = self.group,
            partition = found.partition,
            offset,
            "going on where an operator decided"
        );
        let waiting = self.partitions.remove(&found.partition)?;
        Some(Assignment {
            committed: Some(waiting.standing.decided(offset)),
            bounds,
            ..waiting.assignment
        })
    }

    fn count(&self) {
        self.gauge
            .set(i64::try_from(self.partitions.len()).unwrap_or(i64::MAX));
    }

    fn alarm(&mut self) {
        self.alarm_at = Instant::now() + ALARM_EVERY;
        let cause = |(partition, waiting): (&Partition, &Waiting)| {
            format!("partition {partition}: {}", waiting.standing)
        };
        let causes: Vec<String> = self.partitions.iter().map(cause).collect();
        tracing::error!(
            stage = self.group,
            topic = self.topic,
            ?causes,
            "partitions are stopped, since nobody knows where they go on; `postrider recover` decides"
        );
    }
}

/// What is watched, and under it the earlier decision, once that is known.
type Watched = BTreeMap<(Partition, Generation), Option<Option<Committed>>>;

fn watched(partitions: &BTreeMap<Partition, Waiting>) -> Watched {
    let watch = |waiting: &Waiting| {
        let name = (waiting.assignment.partition, waiting.assignment.generation);
        (name, waiting.earlier.clone())
    };
    partitions.values().map(watch).collect()
}

async fn look(
    log: Arc<dyn Log>,
    group: &'static str,
    topic: &'static str,
    watched: Watched,
) -> Result<Vec<Found>, LogError> {
    let decisions = log.committed(&decisions(group), topic).await?;
    let mut found = Vec::new();
    for ((partition, generation), earlier) in watched {
        let index = usize::try_from(partition).unwrap_or(usize::MAX);
        let decision = decisions.get(index).cloned().flatten();
        let is_new = earlier.is_some_and(|earlier| earlier != decision);
        let bounds = match is_new {
            true => Some(log.bounds(topic, partition).await?),
            false => None,
        };
        found.push(Found {
            partition,
            generation,
            decision,
            bounds,
        });
    }
    Ok(found)
}
