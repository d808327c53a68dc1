//! The loop that every stage runs: own partitions, take records, resolve offsets, commit, hand over.
//!
//! A stage is a group over one topic and a [`Stage`] that knows what to do with a record. The loop here keeps the
//! promises that are the same for all: an offset is committed only when the stage resolved everything up to it,
//! nothing is committed after a partition left, and a revoked partition or a stopping process drains first.
//!
//! A stage that fails is closed and started again from what it committed; whatever it had appended since then is
//! appended again and dropped by whoever reads the copy.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use postrider_log::{
    Assignment, Commit, CommitAck, Generation, Group, GroupEvent, GroupOptions, Log, LogError,
    Offset, Partition, Producer, ProducerOptions, Record,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::StageConfig;
use crate::metrics::DeliveryMetrics;
use crate::progress::{Lease, Progress, Resolved};
use crate::standing::Standing;
use crate::stopped::Stopped;

const RESTART_BACKOFF_MIN: Duration = Duration::from_millis(200);
const RESTART_BACKOFF_MAX: Duration = Duration::from_secs(5);
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
    /// A task of the stage panicked.
    #[error("a task of the stage panicked: {0}")]
    Panicked(String),
}

/// What a stage does with the records of its topic.
///
/// The loop calls it from one task. Everything it starts for a record is named by partition, generation and offset,
/// so that what finishes after the partition left says nothing.
pub(crate) trait Stage: Send {
    /// The topic it reads.
    const TOPIC: &'static str;
    /// Its group.
    const GROUP: &'static str;
    /// How long its appends gather into batches.
    const LINGER: Duration;

    /// Prepares for new partitions, before their first record.
    fn assigned(
        &mut self,
        assignments: &[Assignment],
    ) -> impl Future<Output = Result<(), StageError>> + Send;
    /// Whether it can take a record now.
    fn has_room(&self) -> bool;
    /// Takes a record. It holds the commit until it comes out of [`Stage::progress`].
    fn take(
        &mut self,
        record: Record,
        generation: Generation,
    ) -> impl Future<Output = Result<(), StageError>> + Send;
    /// Waits for work to finish or time to pass, and names the offsets resolved by it. Cancel-safe.
    fn progress(
        &mut self,
    ) -> impl Future<Output = Result<Vec<(Partition, Generation, Offset)>, StageError>> + Send;
    /// Partitions to stop (`true`) or go on (`false`) reading since the last call.
    fn pauses(&mut self) -> Vec<(Partition, bool)>;
    /// What to remember beside a commit of this offset.
    fn metadata(&mut self, partition: Partition, offset: Offset) -> String;
    /// These commits are durable.
    fn committed(&mut self, _commits: &[Commit]) {}
    /// Shows in the metrics what it holds.
    fn show(&self) {}
    /// Starts no more work for these partitions.
    fn drain(&mut self, partitions: &[Partition]);
    /// Cuts the work of these partitions that may be cut.
    fn cut(&mut self, partitions: &[Partition]);
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
    /// How long after its last successful commit a stage may act; shorter than the group's session timeout.
    pub lease_term: Duration,
    /// Counters.
    pub metrics: DeliveryMetrics,
}

impl StageContext {
    /// A producer for one life of a stage. It waits for acknowledgements as long as the log needs: an append that is
    /// given up would break the order of those behind it.
    async fn producer<S: Stage>(&self) -> Result<Arc<dyn Producer>, LogError> {
        let options = ProducerOptions {
            name: S::GROUP,
            append_timeout: None,
            linger: S::LINGER,
            queue_bytes_max: self.config.producer_queue_bytes_max,
        };
        Ok(Arc::from(self.log.producer(options).await?))
    }
}

/// Runs a stage until it is told to stop, starting it again whenever it fails. `make` builds it anew each time, with a
/// producer of its own and the lease it must hold before it acts on the world.
pub(crate) async fn run_stage<S: Stage>(
    context: &StageContext,
    stop: CancellationToken,
    mut make: impl FnMut(Arc<dyn Producer>, Lease) -> S,
) {
    let mut backoff = RESTART_BACKOFF_MIN;
    context.metrics.begin_at_zero(S::GROUP, S::TOPIC);
    while !stop.is_cancelled() {
        let started = Instant::now();
        let lease = Lease::new(context.lease_term);
        let result = match context.producer::<S>().await {
            Ok(producer) => run_once(context, make(producer, lease.clone()), lease, &stop).await,
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
        if started.elapsed() > RESTART_BACKOFF_MAX {
            backoff = RESTART_BACKOFF_MIN;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(RESTART_BACKOFF_MAX);
    }
}

async fn run_once<S: Stage>(
    context: &StageContext,
    stage: S,
    lease: Lease,
    stop: &CancellationToken,
) -> Result<(), StageError> {
    let options = GroupOptions {
        group: S::GROUP.to_owned(),
        topic: S::TOPIC.to_owned(),
        revoke_deadline: context.config.revoke_drain(),
        prefetch_bytes_max: context.config.prefetch_bytes_max,
    };
    let group = context.log.group(options).await?;
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
        stopped: Stopped::new(context.log.clone(), S::GROUP, S::TOPIC, gauge),
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

struct Runner<'a, S> {
    context: &'a StageContext,
    stage: S,
    group: Box<dyn Group>,
    lease: Lease,
    progress: Progress,
    stopped: Stopped,
    handover: Option<Handover>,
    stopping: Option<Handover>,
    commit_pending: Option<PendingCommit>,
    commit_next: Instant,
    show_next: Instant,
}

/// Partitions that are being drained: at `cut_at` what still runs is cut, at `end_at` they go as they are.
struct Handover {
    partitions: Vec<Partition>,
    cut_at: Option<Instant>,
    end_at: Instant,
}

impl Handover {
    fn new(partitions: Vec<Partition>, deadline: Duration) -> Self {
        let now = Instant::now();
        Self {
            partitions,
            cut_at: Some(now + deadline * 3 / 4),
            end_at: now + deadline * 19 / 20,
        }
    }

    fn wakes_at(&self) -> Instant {
        self.cut_at.unwrap_or(self.end_at)
    }
}

struct PendingCommit {
    ack: CommitAck,
    commits: Vec<Commit>,
    sent_at: Instant,
}

impl<S: Stage> Runner<'_, S> {
    async fn run(&mut self, stop: &CancellationToken) -> Result<(), StageError> {
        loop {
            let wakes_at = self.wakes_at();
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.stopping.is_none() => self.begin_stop(),
                () = sleep_until(wakes_at) => {}
                told = told(&mut self.commit_pending) => self.commit_told(told),
                resolved = self.stage.progress() => self.resolve(resolved?),
                decided = self.stopped.decided() => self.begin(decided).await?,
                event = self.group.next(), if self.stage.has_room() => self.on_event(event?).await?,
            }
            self.apply_pauses();
            self.commit_if_due();
            self.show_if_due();
            self.advance_handover().await;
            if self.advance_stop().await {
                return Ok(());
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

    async fn on_event(&mut self, event: GroupEvent) -> Result<(), StageError> {
        match event {
            GroupEvent::Assigned(assignments) => self.assign(assignments).await?,
            GroupEvent::Records(records) => self.take(records).await?,
            GroupEvent::Truncated {
                partition,
                from,
                to,
            } => self.report_loss(partition, from, to),
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
        Ok(())
    }

    async fn assign(&mut self, assignments: Vec<Assignment>) -> Result<(), StageError> {
        if self.stopping.is_some() {
            return Ok(());
        }
        let mut stopped = Vec::new();
        let mut known = Vec::new();
        for assignment in assignments {
            let standing = standing(&assignment);
            if standing.is_unknown() {
                stopped.push((assignment, standing));
            } else {
                known.push(assignment);
            }
        }
        self.stopped.stop(stopped);
        self.begin(known).await?;
        let partitions = self.progress.partitions();
        tracing::info!(stage = S::GROUP, ?partitions, "partitions assigned");
        Ok(())
    }

    /// Begins to read partitions at their commits.
    async fn begin(&mut self, assignments: Vec<Assignment>) -> Result<(), StageError> {
        self.stage.assigned(&assignments).await?;
        for assignment in assignments {
            let partition = assignment.partition;
            let Standing::At(from) = standing(&assignment) else {
                continue;
            };
            self.progress.assign(&assignment, from);
            let lost_from = assignment.committed.map_or(0, |committed| committed.offset);
            if lost_from < from {
                self.report_loss(partition, lost_from, from);
            }
            tracing::debug!(stage = S::GROUP, partition, from, "reading begins");
            self.group.start(partition, from);
        }
        Ok(())
    }

    async fn take(&mut self, records: Vec<Record>) -> Result<(), StageError> {
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
            if self.progress.begin(record.partition, record.offset) {
                self.stage.take(record, generation).await?;
            }
        }
        Ok(())
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
            self.stage.metadata(partition, offset)
        });
        if commits.is_empty() {
            return;
        }
        let ack = self.group.commit(commits.clone());
        self.commit_pending = Some(PendingCommit {
            ack,
            commits,
            sent_at: Instant::now(),
        });
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
        if !is_over(handover, &mut self.stage) {
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
        if !is_over(stopping, &mut self.stage) {
            return false;
        }
        let partitions = self.progress.partitions();
        self.commit_finally(&partitions).await;
        for partition in partitions {
            self.forget(partition);
        }
        true
    }

    fn begin_stop(&mut self) {
        let partitions = self.progress.partitions();
        self.stage.drain(&partitions);
        self.stopped.clear();
        self.stopping = Some(Handover::new(partitions, self.context.config.stop_drain()));
    }

    /// Commits what is resolved before partitions leave. If it fails, the next owner repeats what was settled since
    /// the last commit, and drops it by its settlements.
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
        self.progress.remove(partition);
    }
}

/// Where reading begins, if anybody can say.
fn standing(assignment: &Assignment) -> Standing {
    let committed = assignment.committed.as_ref();
    Standing::of(
        committed.map(|committed| committed.offset),
        assignment.bounds,
    )
}

fn is_over<S: Stage>(handover: &mut Handover, stage: &mut S) -> bool {
    let now = Instant::now();
    if handover.cut_at.is_some_and(|cut_at| now >= cut_at) {
        handover.cut_at = None;
        stage.cut(&handover.partitions);
    }
    now >= handover.end_at
        || handover
            .partitions
            .iter()
            .all(|partition| stage.is_idle(*partition))
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
