//! The loop that every stage runs: own partitions, take records, resolve offsets, commit, hand
//! over.
//!
//! A stage is a group over one topic and a [`Stage`] that knows what to do with a record. The loop
//! here keeps the promises that are the same for all: an offset is committed only when the stage
//! resolved everything up to it, nothing is committed after a partition left, and a revoked
//! partition or a stopping process drains first.
//!
//! A stage that fails is closed and started again from what it committed; whatever it had appended
//! since then is appended again and dropped by whoever reads the copy.
//!
//! The loop itself waits for nothing without a bound, so that it hears of a revoke or a stop
//! whatever is away: a stage takes a record without waiting, and what it has to wait for it waits
//! for in [`Stage::progress`]; a partition is prepared beside everything else, and given up by
//! dropping that; and while a stage has no room for records, the group still tells what happens to
//! its partitions.

mod begins;
mod checking;
mod handover;
mod preparing;
mod producers;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use postrider_log::{
    Assignment, Backoff, Commit, CommitAck, Generation, Group, GroupEvent, GroupOptions, Log,
    LogError, Offset, Partition, ProducerOptions, Record,
};
use postrider_model::commit_note::CommitNote;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::StageConfig;
use crate::metrics::DeliveryMetrics;
use crate::progress::{Lease, Progress, Resolved};
use crate::standing::{self, Standing, TopicPast};
use crate::stopped::Stopped;
use begins::{Begins, begins};
use checking::{Checked, Checking};
use handover::Handover;
pub(crate) use preparing::Preparation;
use preparing::Preparing;
pub use producers::Producers;

const RESTARTS: Backoff = Backoff {
    first: Duration::from_millis(200),
    longest: Duration::from_secs(5),
};
/// Before a partition of which the log did not answer is prepared again.
const PREPARE_AGAIN: Duration = Duration::from_secs(1);
/// How often what a stage holds is shown.
const SHOW_INTERVAL: Duration = Duration::from_secs(2);
const FINAL_COMMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a stage stopped and must start again from its commits.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The log could not be used.
    #[error("the log failed the stage")]
    Log(#[from] LogError),
    /// An append whose order matters was not acknowledged.
    #[error("an append to {topic} was not acknowledged")]
    Append {
        /// The topic.
        topic: &'static str,
        /// Why.
        #[source]
        source: postrider_log::AppendError,
    },
    /// A log is another than the one that was read.
    #[error("the log is another than the one that was read")]
    Diverged,
    /// A task of the stage panicked.
    #[error("a task of the stage panicked: {0}")]
    Panicked(String),
}

/// What a stage does with the records of its topic.
///
/// The loop calls it from one task, and nothing here waits but [`Stage::progress`] and what
/// [`Stage::prepare`] answers. Everything it starts for a record is named by partition, generation
/// and offset, so that what finishes after the partition left says nothing.
pub(crate) trait Stage: Send {
    /// The topic it reads.
    const TOPIC: &'static str;
    /// Its group.
    const GROUP: &'static str;
    /// How long what somebody waits for gathers into batches.
    const LINGER: Duration;
    /// How long what nobody waits for gathers, if there is any.
    const GATHERS: Option<Duration> = None;

    /// What it must know of a partition before its first record.
    type Prepared: Send + 'static;

    /// Looks up what must be known of a new partition that is read from this offset on. Dropped
    /// when it leaves meanwhile.
    fn prepare(&self, assignment: &Assignment, from: Offset) -> Preparation<Self::Prepared>;
    /// The partition is prepared; from now on its records may come.
    fn begin(&mut self, assignment: &Assignment, prepared: Self::Prepared);
    /// Whether it can take records now. When that changes, [`Stage::progress`] returns.
    fn has_room(&self) -> bool {
        true
    }
    /// Takes a record. It holds the commit until it comes out of [`Stage::progress`].
    fn take(&mut self, record: Record, generation: Generation);
    /// Waits for work to finish or time to pass, and names the offsets resolved by it. Cancel-safe.
    fn progress(
        &mut self,
    ) -> impl Future<Output = Result<Vec<(Partition, Generation, Offset)>, StageError>> + Send;
    /// Partitions to stop (`true`) or go on (`false`) reading since the last call.
    fn pauses(&mut self) -> Vec<(Partition, bool)> {
        Vec::new()
    }
    /// What to remember beside a commit of this offset.
    fn note(&mut self, _: Partition, _: Offset) -> CommitNote {
        CommitNote::default()
    }
    /// These commits are durable.
    fn committed(&mut self, _commits: &[Commit]) {}
    /// Shows in the metrics what it holds.
    fn show(&self) {}
    /// Starts no more work for these partitions.
    fn drain(&mut self, partitions: &[Partition]);
    /// Cuts the work of these partitions that may be cut.
    fn cut(&mut self, _: &[Partition]) {}
    /// Whether nothing of the partition is under way.
    fn is_idle(&self, partition: Partition) -> bool;
    /// Forgets the partition and ends whatever is under way for it.
    fn forget(&mut self, partition: Partition);
}

/// What every stage runs with.
#[derive(Debug, Clone)]
pub struct StageContext {
    /// Where its topic is.
    pub log: Arc<dyn Log>,
    /// Limits.
    pub config: StageConfig,
    /// How long after its last successful commit a stage may act; shorter than the group's session
    /// timeout.
    pub lease_term: Duration,
    /// Counters.
    pub metrics: DeliveryMetrics,
}

impl StageContext {
    /// The producers for one life of a stage. They wait for acknowledgements as long as the log
    /// needs: an append that is given up would break the order of those behind it.
    async fn producers<S: Stage>(&self) -> Result<Producers, LogError> {
        let options = ProducerOptions {
            name: S::GROUP,
            append_timeout: None,
            linger: S::LINGER,
            queue_bytes_max: self.config.producer_queue_bytes_max,
        };
        Producers::start(&*self.log, options, S::GATHERS).await
    }
}

/// Runs a stage until it is told to stop, starting it again whenever it fails. `make` builds it
/// anew each time, with producers of its own and the lease it must hold before it acts on the
/// world.
pub(crate) async fn run_stage<S: Stage>(
    context: &StageContext,
    stop: CancellationToken,
    mut make: impl FnMut(Producers, Lease) -> S,
) {
    let mut failures = 0;
    context.metrics.begin_at_zero(S::GROUP, S::TOPIC);
    while !stop.is_cancelled() {
        let started = Instant::now();
        let lease = Lease::new(context.lease_term);
        // Nothing is held yet that would have to be given up in order.
        let Some(joined) = stop.run_until_cancelled(join::<S>(context)).await else {
            return;
        };
        let result = match joined {
            Ok((producers, group)) => {
                let stage = make(producers, lease.clone());
                run_once(context, stage, group, lease, &stop).await
            }
            Err(error) => Err(error.into()),
        };
        let Err(error) = result else { return };
        context
            .metrics
            .stage_restarts
            .with_label_values(&[S::GROUP])
            .inc();
        tracing::error!(
            stage = S::GROUP,
            error = &error as &dyn std::error::Error,
            "stage failed, starting it again from its commits"
        );
        if started.elapsed() > RESTARTS.longest {
            failures = 0;
        }
        failures += 1;
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = sleep(RESTARTS.pause(failures)) => {}
        }
    }
}

/// The producers and a place in the group, for one life of a stage.
async fn join<S: Stage>(context: &StageContext) -> Result<(Producers, Box<dyn Group>), LogError> {
    let producers = context.producers::<S>().await?;
    let options = GroupOptions {
        group: S::GROUP.to_owned(),
        topic: S::TOPIC.to_owned(),
        revoke_deadline: context.config.revoke_drain(),
        prefetch_bytes_max: context.config.prefetch_bytes_max,
    };
    Ok((producers, context.log.group(options).await?))
}

async fn run_once<S: Stage>(
    context: &StageContext,
    stage: S,
    group: Box<dyn Group>,
    lease: Lease,
    stop: &CancellationToken,
) -> Result<(), StageError> {
    let gauge = context
        .metrics
        .partitions_stopped
        .with_label_values(&[S::GROUP]);
    let mut runner = Runner {
        context,
        stage,
        group,
        lease,
        progress: Progress::default(),
        preparing: Preparing::new(context.config.partitions_prepared_at_once_max),
        checking: Checking::new(
            context.log.clone(),
            S::TOPIC,
            Duration::from_millis(context.config.past_check_interval_ms),
        ),
        stopped: Stopped::new(context.log.clone(), S::GROUP, S::TOPIC, gauge),
        diverged: false,
        handover: None,
        stopping: None,
        commit_pending: None,
        commit_next: Instant::now(),
        show_next: Instant::now(),
    };
    let result = runner.run(stop).await;
    runner.group.close().await;
    result
}

struct Runner<'a, S: Stage> {
    context: &'a StageContext,
    stage: S,
    group: Box<dyn Group>,
    lease: Lease,
    progress: Progress,
    preparing: Preparing<Examined<S::Prepared>>,
    checking: Checking,
    stopped: Stopped,
    /// A partition's log is another than it was.
    diverged: bool,
    handover: Option<Handover>,
    stopping: Option<Handover>,
    commit_pending: Option<PendingCommit>,
    commit_next: Instant,
    show_next: Instant,
}

/// Where reading begins and what the stage needs to know for it, or why nobody can say.
type Examined<P> = Result<(Begins, P), Standing>;

struct PendingCommit {
    ack: CommitAck,
    commits: Vec<Commit>,
    /// Before the group was told: a process that is frozen while it tells, and thawed later, does
    /// not take the commit for a new one.
    sent_at: Instant,
}

impl PendingCommit {
    fn send(group: &mut dyn Group, commits: Vec<Commit>) -> Self {
        let sent_at = Instant::now();
        let ack = group.commit(commits.clone());
        Self {
            ack,
            commits,
            sent_at,
        }
    }
}

impl<S: Stage> Runner<'_, S> {
    async fn run(&mut self, stop: &CancellationToken) -> Result<(), StageError> {
        loop {
            let wakes_at = self.wakes_at();
            let has_room = self.stage.has_room();
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.stopping.is_none() => self.begin_stop(self.context.config.stop_drain()),
                () = sleep_until(wakes_at) => {}
                told = told(&mut self.commit_pending) => self.commit_told(told),
                resolved = self.stage.progress() => self.resolve(resolved?),
                decided = self.stopped.decided() => self.prepare(decided, Duration::ZERO),
                (assignment, examined) = self.preparing.next() => self.examined(assignment, examined)?,
                checked = self.checking.next(&self.progress) => self.learn_past(checked),
                event = next_event(&mut *self.group, has_room) => self.on_event(event?),
            }
            self.apply_pauses();
            self.commit_if_due();
            self.show_if_due();
            self.advance_handover().await;
            if self.advance_stop().await {
                return if self.diverged {
                    Err(StageError::Diverged)
                } else {
                    Ok(())
                };
            }
        }
    }

    /// When the loop has something to do by itself. The next commit waits for the pending one.
    fn wakes_at(&self) -> Instant {
        let handovers = self
            .handover
            .iter()
            .chain(&self.stopping)
            .map(Handover::wakes_at);
        let commit = self.commit_pending.is_none().then_some(self.commit_next);
        let far = Instant::now() + Duration::from_secs(3600);
        handovers.chain(commit).fold(far, Instant::min)
    }

    fn on_event(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Assigned(assignments) => self.assign(assignments),
            GroupEvent::Records(records) => self.take(records),
            GroupEvent::Truncated {
                partition,
                from,
                to,
            } => self.report_loss(partition, from, to),
            GroupEvent::BeyondEnd {
                partition,
                position,
                ..
            } => self.diverge(partition, Standing::BeyondEnd(position)),
            GroupEvent::Revoke {
                partitions,
                deadline,
            } => {
                tracing::info!(
                    stage = S::GROUP,
                    ?partitions,
                    "partitions revoked, draining"
                );
                self.stage.drain(&partitions);
                for partition in &partitions {
                    self.stopped.forget(*partition);
                    self.preparing.forget(*partition);
                }
                self.handover = Some(Handover::new(partitions, deadline));
            }
            GroupEvent::Lost(partitions) => {
                tracing::warn!(stage = S::GROUP, ?partitions, "partitions lost");
                if let Some(handover) = &mut self.handover {
                    handover
                        .partitions
                        .retain(|partition| !partitions.contains(partition));
                }
                self.handover
                    .take_if(|handover| handover.partitions.is_empty());
                for partition in partitions {
                    self.forget(partition);
                }
            }
        }
    }

    fn assign(&mut self, assignments: Vec<Assignment>) {
        if self.stopping.is_some() {
            return;
        }
        let partitions: Vec<Partition> = assignments.iter().map(|one| one.partition).collect();
        tracing::info!(stage = S::GROUP, ?partitions, "partitions assigned");
        self.prepare(assignments, Duration::ZERO);
    }

    /// Prepares for partitions, after a pause.
    fn prepare(&mut self, assignments: Vec<Assignment>, pause: Duration) {
        let past = Arc::new(TopicPast::default());
        for assignment in assignments {
            // Where it begins if the log is still the one that was committed in, which is looked at
            // first.
            let from = Standing::of(
                assignment
                    .committed
                    .as_ref()
                    .map(|committed| committed.offset),
                assignment.bounds,
            );
            let Standing::At(from) = from else {
                self.stopped.stop(assignment, from);
                continue;
            };
            let (log, prepared) = (
                self.context.log.clone(),
                self.stage.prepare(&assignment, from),
            );
            let (examined, past) = (assignment.clone(), Arc::clone(&past));
            let preparation = async move {
                sleep(pause).await;
                match begins(&*log, S::TOPIC, &examined, &past).await? {
                    Ok(last) => Ok(Ok((last, prepared.await?))),
                    Err(unknown) => Ok(Err(unknown)),
                }
            };
            self.preparing.add(assignment, Box::pin(preparation));
        }
    }

    /// Begins to read a partition, if its commit says where. One of which the log does not answer
    /// holds no other up: it is asked again.
    fn examined(
        &mut self,
        assignment: Assignment,
        examined: Result<Examined<S::Prepared>, StageError>,
    ) -> Result<(), StageError> {
        match examined {
            Ok(Ok((begins, prepared))) => self.begin(&assignment, begins, prepared),
            Ok(Err(unknown)) => {
                if unknown == Standing::MadeAgain {
                    self.note_made_again(assignment.partition, assignment.generation);
                }
                self.stopped.stop(assignment, unknown);
            }
            Err(StageError::Log(LogError::Unavailable(reason))) => {
                let partition = assignment.partition;
                tracing::warn!(
                    stage = S::GROUP,
                    partition,
                    reason,
                    "the partition cannot be prepared yet, trying again"
                );
                self.prepare(vec![assignment], PREPARE_AGAIN);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Commits that the partition's topic was made again, as [`crate::standing::found`] does for a
    /// group without members: once other partitions go on, nobody could tell any more. If that
    /// fails, the next owner tells it again.
    fn note_made_again(&mut self, partition: Partition, generation: Generation) {
        drop(self.group.commit(vec![Commit {
            partition,
            generation,
            committed: standing::made_again(),
        }]));
    }

    fn begin(&mut self, assignment: &Assignment, begins: Begins, prepared: S::Prepared) {
        let (partition, from) = (assignment.partition, begins.from);
        self.stage.begin(assignment, prepared);
        self.progress.assign(assignment, from, begins.last);
        let committed = assignment.committed.as_ref();
        let lost_from = committed.map_or(0, |committed| committed.offset);
        if lost_from < from {
            self.report_loss(partition, lost_from, from);
        }
        tracing::debug!(stage = S::GROUP, partition, from, "reading begins");
        self.group.start(partition, from);
    }

    fn learn_past(&mut self, checked: Vec<Checked>) {
        for Checked { asked, found } in checked {
            match found {
                None => self.progress.verified(&asked),
                Some(found)
                    if self.progress.generation(asked.partition) == Some(asked.generation) =>
                {
                    self.diverge(asked.partition, Standing::Diverged(found));
                }
                Some(_) => {}
            }
        }
    }

    /// What is known of a partition is of another log. What was read of it is committed once more,
    /// since a commit goes with a topic that is deleted, and with everything that may be in memory
    /// of it the stage starts again, to find it stopped by what the commit says.
    fn diverge(&mut self, partition: Partition, cause: Standing) {
        tracing::error!(
            stage = S::GROUP,
            topic = S::TOPIC,
            partition,
            %cause,
            "the log is another than the one that was read; the stage starts again and stops the partition"
        );
        if !self.progress.commit_again(partition)
            && let Some(generation) = self.progress.generation(partition)
        {
            self.note_made_again(partition, generation);
            self.forget(partition);
        }
        self.diverged = true;
        if self.stopping.is_none() {
            self.begin_stop(self.context.config.revoke_drain());
        }
    }

    fn take(&mut self, records: Vec<Record>) {
        for record in records {
            let draining = self.stopping.iter().chain(&self.handover);
            if draining
                .flat_map(|handover| &handover.partitions)
                .any(|p| *p == record.partition)
            {
                continue;
            }
            let Some(generation) = self.progress.generation(record.partition) else {
                continue;
            };
            if self.progress.begin(&record) {
                self.stage.take(record, generation);
            }
        }
    }

    fn report_loss(&self, partition: Partition, from: Offset, to: Offset) {
        let records = u64::try_from(to - from).unwrap_or_default();
        self.context
            .metrics
            .records_lost
            .with_label_values(&[S::TOPIC])
            .inc_by(records);
        tracing::error!(
            topic = S::TOPIC,
            partition,
            from,
            to,
            "retention took records before they were read; raise the topic's retention"
        );
    }

    fn resolve(&mut self, resolved: Vec<(Partition, Generation, Offset)>) {
        for (partition, generation, offset) in resolved {
            self.progress.resolve(Resolved {
                partition,
                generation,
                offset,
            });
        }
    }

    fn apply_pauses(&mut self) {
        for (partition, pause) in self.stage.pauses() {
            if pause {
                self.group.pause(partition);
            } else {
                self.group.resume(partition);
            }
        }
    }

    fn commit_if_due(&mut self) {
        if self.commit_pending.is_none() && Instant::now() >= self.commit_next {
            self.send_commits(
                None,
                Duration::from_millis(self.context.config.commit_idle_interval_ms),
            );
            self.commit_next =
                Instant::now() + Duration::from_millis(self.context.config.commit_interval_ms);
        }
    }

    /// Needs no waking of its own: commits are more frequent.
    fn show_if_due(&mut self) {
        if Instant::now() < self.show_next {
            return;
        }
        self.show_next = Instant::now() + SHOW_INTERVAL;
        let owned = i64::try_from(self.progress.partitions().len()).unwrap_or(i64::MAX);
        let gauge = &self.context.metrics.partitions_owned;
        gauge.with_label_values(&[S::GROUP]).set(owned);
        self.stage.show();
    }

    fn send_commits(&mut self, only: Option<&[Partition]>, idle_interval: Duration) {
        let commits = self.progress.due(only, idle_interval, |partition, offset| {
            self.stage.note(partition, offset)
        });
        if commits.is_empty() {
            return;
        }
        self.commit_pending = Some(PendingCommit::send(&mut *self.group, commits));
    }

    fn commit_told(
        &mut self,
        (result, commit): (Result<(), postrider_log::CommitError>, PendingCommit),
    ) {
        match result {
            Ok(()) => {
                self.lease.renew(commit.sent_at);
                self.stage.committed(&commit.commits);
                self.progress.committed(commit.commits);
            }
            Err(error) => tracing::warn!(stage = S::GROUP, %error, "commit not acknowledged"),
        }
    }

    async fn advance_handover(&mut self) {
        let Some(handover) = &mut self.handover else {
            return;
        };
        if !handover.is_over(&mut self.stage) {
            return;
        }
        let partitions = std::mem::take(&mut handover.partitions);
        self.handover = None;
        self.commit_finally(&partitions).await;
        for &partition in &partitions {
            self.forget(partition);
        }
        self.group.release();
    }

    async fn advance_stop(&mut self) -> bool {
        let Some(stopping) = &mut self.stopping else {
            return false;
        };
        if !stopping.is_over(&mut self.stage) {
            return false;
        }
        let partitions = self.progress.partitions();
        self.commit_finally(&partitions).await;
        for partition in partitions {
            self.forget(partition);
        }
        true
    }

    fn begin_stop(&mut self, drain: Duration) {
        let partitions = self.progress.partitions();
        self.stage.drain(&partitions);
        self.stopped.clear();
        self.preparing.clear();
        self.stopping = Some(Handover::new(partitions, drain));
    }

    /// Commits what is resolved before partitions leave. If it fails, the next owner repeats what
    /// was settled since the last commit, and drops it by its settlements.
    async fn commit_finally(&mut self, partitions: &[Partition]) {
        self.settle_pending_commit().await;
        self.send_commits(Some(partitions), Duration::MAX);
        self.settle_pending_commit().await;
    }

    async fn settle_pending_commit(&mut self) {
        if self.commit_pending.is_some()
            && let Ok(told) = timeout(FINAL_COMMIT_TIMEOUT, told(&mut self.commit_pending)).await
        {
            self.commit_told(told);
        }
        self.commit_pending = None;
    }

    fn forget(&mut self, partition: Partition) {
        self.stage.forget(partition);
        self.stopped.forget(partition);
        self.preparing.forget(partition);
        self.progress.remove(partition);
    }
}

/// Without room no record is taken, but whatever happens to the partitions is. Cancel-safe.
async fn next_event(group: &mut dyn Group, has_room: bool) -> Result<GroupEvent, LogError> {
    match has_room {
        true => group.next().await,
        false => group.next_rebalance().await,
    }
}

/// Waits for the pending commit; for ever if there is none. Cancel-safe.
async fn told(
    pending: &mut Option<PendingCommit>,
) -> (Result<(), postrider_log::CommitError>, PendingCommit) {
    let result = match pending.as_mut() {
        Some(commit) => (&mut commit.ack).await,
        None => std::future::pending().await,
    };
    let commit = pending
        .take()
        .expect("it was there before the wait and nobody else takes it");
    (result, commit)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;

    const FREEZE: Duration = Duration::from_millis(50);

    /// A group whose process is frozen just when it has told of a commit.
    #[derive(Debug)]
    struct FrozenAsItCommits {
        told_at: Option<Instant>,
    }

    #[async_trait]
    impl Group for FrozenAsItCommits {
        async fn next(&mut self) -> Result<GroupEvent, LogError> {
            std::future::pending().await
        }

        async fn next_rebalance(&mut self) -> Result<GroupEvent, LogError> {
            std::future::pending().await
        }

        fn start(&mut self, _partition: Partition, _from: Offset) {}

        fn pause(&mut self, _partition: Partition) {}

        fn resume(&mut self, _partition: Partition) {}

        fn commit(&mut self, _commits: Vec<Commit>) -> CommitAck {
            self.told_at = Some(Instant::now());
            std::thread::sleep(FREEZE);
            let (_, ack) = CommitAck::pending();
            ack
        }

        fn release(&mut self) {}

        async fn close(&mut self) {}
    }

    #[test]
    fn a_commit_is_as_old_as_when_the_group_was_told_of_it() {
        let mut group = FrozenAsItCommits { told_at: None };
        let pending = PendingCommit::send(&mut group, Vec::new());
        assert!(Some(pending.sent_at) <= group.told_at);
    }
}
