//! Deliver: a delivery waits in its endpoint's lane, is attempted, and is settled.
//!
//! All traffic of an endpoint comes through one partition and so has one owner, this process. The
//! way of a delivery:
//! 1. [`Deliver::admit`] decodes its record; [`partition`] drops a duplicate, and gives the rest to
//!    the [`lane`] of the endpoint.
//! 2. [`dispatch`] has the lanes in line, tenant by tenant, and permits for the attempts.
//! 3. [`attempt`] looks up, signs, sends, asks for the verdict, and writes what follows.
//!    When the endpoint has answered, [`Deliver::answered`] lets its lane go on; the record takes
//!    longer.
//! 4. [`Deliver::attempt_ended`] gives the end back to the partition, which resolves the offset.
//!
//! A lane that cannot keep up goes behind (`lane/cover.rs`): a cursor in `endpoint-state` says
//! where it goes on, and what does not fit into memory is read again from the log
//! (`partition/catch_up.rs`) when there is room.
//!
//! The partition and what is in it have the rules and know no runtime. This file does what they ask
//! for: attempts, reads and writes, each a task, and time. Nothing of a partition's state outlives
//! its assignment: what the next owner must know is in the log.

mod attempt;
mod dispatch;
#[cfg(test)]
mod fixtures;
mod lane;
mod lanes;
mod limits;
mod lines;
mod partition;
mod pending;
mod permits;
mod read;
mod rebuild;
mod settled;
mod state;
mod state_id;
mod step;
mod take_over;
mod tally;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use postrider_daemon::telemetry;
use postrider_log::{
    Assignment, Commit, Generation, Log, Offset, Partition as PartitionNumber, Record,
};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::{Attempt, Delivery, Settlement};
use postrider_model::event::TraceContext;
use postrider_model::ids::EndpointId;
use postrider_model::outcome::Reason;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER};
use postrider_model::verdict::Seen;
use postrider_model::wire::InvalidRecord;
use postrider_registry::Lookup;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

pub use self::attempt::DeliverContext;
use self::attempt::{AttemptEnd, AttemptJob};
use self::dispatch::{Dispatch, Wishes};
use self::lane::NextAttempt;
use self::limits::LaneLimits;
use self::partition::{Partition, StatesToWrite, Taken};
pub use self::pending::PendingDeliveries;
use self::read::{ReadBatch, ReadsAgain};
use self::state::{NotWritten, Written};
use self::state_id::StateId;
use self::step::{Answered, Memory, Now, Step};
use self::take_over::{TakenOver, take_over};
use self::tally::Tally;
use crate::dead_letter;
use crate::lane_status::{LaneAnswers, LaneStatus};
use crate::metrics::Held;
use crate::progress::Lease;
use crate::sender::Sender;
use crate::stage::{Preparation, Producers, Stage, StageContext, StageError, run_stage};

const LEASE_CHECK: Duration = Duration::from_millis(100);
/// Room for a task is made for each delivery, and cleared and copied.
const TASK_BYTES_MAX: usize = 4 << 10;

/// The stage over `deliveries`.
struct Deliver<S> {
    log: Arc<dyn Log>,
    context: Arc<DeliverContext<S>>,
    limits: LaneLimits,
    raw_record_bytes_max: usize,
    lease: Lease,
    answers: Arc<LaneAnswers>,
    base: Instant,
    partitions: BTreeMap<PartitionNumber, Partition>,
    /// What tells the tasks of each to end.
    ends: BTreeMap<PartitionNumber, Ends>,
    dispatch: Dispatch,
    /// The memory that unsettled deliveries take.
    memory: Tally,
    /// How much room they left when it was looked last.
    memory_was: Memory,
    tick_at_ms: i64,
    /// Reads the log again; here when nobody uses it.
    reads_again: ReadsAgain,
    /// The partition that was read for last.
    read_last: PartitionNumber,
    tasks: JoinSet<Finished>,
    /// What attempts tell before what follows from them is written.
    answered: mpsc::Receiver<Answered>,
    tells_answered: mpsc::Sender<Answered>,
}

#[derive(Default)]
struct Ends {
    /// Attempts end, since the partition leaves.
    cut: CancellationToken,
    /// Everything ends, since the partition has left.
    gone: CancellationToken,
}

/// What a task ended with, and in which assignment of a partition it was begun. Results of an
/// earlier assignment are ignored.
struct Finished {
    partition: PartitionNumber,
    generation: Generation,
    result: TaskResult,
}

enum TaskResult {
    /// An attempt ended.
    Attempted(Box<AttemptJob>, AttemptEnd),
    /// The dead letter of a record that is no delivery is durable.
    DeadLettered(Offset),
    /// Records were read again.
    Read(ReadsAgain, ReadBatch),
    /// States of lanes were written, or not.
    Written(Result<Written, NotWritten>),
    /// Nothing that anybody has to know.
    Nothing,
}

/// Runs the stage until told to stop. `context` is made anew, with producers of its own, each time
/// the stage starts.
pub async fn run<S: Sender>(
    stage: StageContext,
    context: impl Fn(Producers) -> DeliverContext<S>,
    answers: LaneAnswers,
    stop: CancellationToken,
) {
    let answers = Arc::new(answers);
    let make = |producers, lease| {
        let context = Arc::new(context(producers));
        Deliver::new(
            stage.log.clone(),
            context,
            stage.config.raw_record_bytes_max,
            lease,
            answers.clone(),
        )
    };
    run_stage(&stage, stop, make).await;
}

impl<S: Sender> Deliver<S> {
    /// A stage that owns nothing yet.
    fn new(
        log: Arc<dyn Log>,
        context: Arc<DeliverContext<S>>,
        raw_record_bytes_max: usize,
        lease: Lease,
        answers: Arc<LaneAnswers>,
    ) -> Self {
        let attempts_max = context.config.attempts_in_flight_max.max(1);
        let (tells_answered, answered) = mpsc::channel(attempts_max);
        Self {
            log,
            limits: LaneLimits::from(&context.config),
            dispatch: Dispatch::new(&context.config),
            context,
            raw_record_bytes_max,
            lease,
            answers,
            base: Instant::now(),
            partitions: BTreeMap::new(),
            ends: BTreeMap::new(),
            memory: Tally::default(),
            memory_was: Memory::Free,
            tick_at_ms: i64::MAX,
            reads_again: ReadsAgain::default(),
            read_last: 0,
            tasks: JoinSet::new(),
            answered,
            tells_answered,
        }
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: i64::try_from(self.base.elapsed().as_millis()).unwrap_or(i64::MAX),
            wall_ms: self.context.clock.now_ms(),
            ages_tell: self.context.clock.ages_tell(),
        }
    }

    fn memory(&self) -> Memory {
        Memory::of(
            self.memory.amount(),
            self.context.config.unsettled_bytes_max,
        )
    }

    fn owned_under(
        &mut self,
        partition: PartitionNumber,
        generation: Generation,
    ) -> Option<&mut Partition> {
        under(&mut self.partitions, partition, generation)
    }

    // ---- records come in ----

    fn admit(&mut self, record: &Record, now: Now) {
        let memory = self.memory();
        let Some(owned) = self.partitions.get_mut(&record.partition) else {
            return;
        };
        match decode(record) {
            Ok(delivery) => {
                let step = Step::new(record, delivery, &self.memory);
                let key = (record.partition, step.delivery.endpoint.clone());
                match owned.admit(step, &self.limits, memory, now) {
                    Taken::Queued => self.line_up(key, now),
                    Taken::Duplicate => self.context.metrics.duplicates_dropped.inc(),
                    Taken::Passed => {}
                }
            }
            Err(invalid) => self.dead_letter(record, &invalid, now),
        }
        self.tick_at_ms = self.tick_at_ms.min(now.mono_ms + 100);
    }

    /// Writes a dead letter of a record that is no delivery.
    fn dead_letter(&mut self, record: &Record, invalid: &InvalidRecord, now: Now) {
        let Some(owned) = self.partitions.get_mut(&record.partition) else {
            return;
        };
        owned.dead_letter(record.offset);
        let letter = dead_letter::of_record(
            DELIVERIES,
            record,
            invalid.reason(),
            invalid.to_string(),
            self.raw_record_bytes_max,
            now.wall_ms,
        );
        let (permit, context) = (self.dispatch.permit(), self.context.clone());
        let (partition, offset) = (record.partition, record.offset);
        self.spawn(partition, async move {
            let _permit = permit;
            let (producer, metrics) = (&*context.producers.prompt, &context.metrics);
            dead_letter::keep(producer, metrics, DELIVERIES, letter, (partition, offset)).await;
            TaskResult::DeadLettered(offset)
        });
    }

    // ---- attempts ----

    fn spawn_attempt(&mut self, job: AttemptJob) {
        let Some(cut) = self.ends.get(&job.partition).map(|ends| ends.cut.clone()) else {
            return;
        };
        let (context, lease) = (self.context.clone(), self.lease.clone());
        self.spawn(job.partition, async move {
            let end = context.attempt(&job, &lease, &cut).await;
            TaskResult::Attempted(Box::new(job), end)
        });
    }

    /// The endpoint may be called again: the record of the attempt is the log's time, not its own.
    fn answered(&mut self, answered: Answered) {
        let now = self.now();
        let (partition, generation) = (answered.partition, answered.generation);
        if let Some(owned) = self.owned_under(partition, generation) {
            owned.answered(&answered, now);
            self.line_up((partition, answered.endpoint), now);
        }
    }

    fn attempt_ended(&mut self, job: AttemptJob, end: AttemptEnd) {
        let now = self.now();
        let (partition, step, probes) = (job.partition, job.step, job.probes);
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return;
        };
        let key = (partition, step.delivery.endpoint.clone());
        match end {
            AttemptEnd::Interrupted => owned.unsettled(step, probes, false, now),
            AttemptEnd::NotSent => owned.unsettled(step, probes, true, now),
            AttemptEnd::Settled {
                attempt,
                place,
                at_ms,
                seen,
            } => {
                owned.settled.note_own(&attempt, place, at_ms, step.offset);
                if let Some(next) = next_in_place(&attempt, &step, job.failed_at_ms) {
                    owned.block(&step, probes, seen, next, now);
                } else {
                    let duplicates = owned.settle(&step, probes, seen, now);
                    self.context.metrics.duplicates_dropped.inc_by(duplicates);
                }
                if seen != Seen::Nothing {
                    self.learn_network(&step.delivery, attempt.reason, now);
                }
            }
        }
        self.line_up(key, now);
    }

    /// Learns about the network from how an attempt ended.
    fn learn_network(&mut self, delivery: &Delivery, reason: Reason, now: Now) {
        let network = &mut self.dispatch.network;
        match reason {
            Reason::Ok => {
                if let Lookup::Found(found) = self.context.registry.endpoint(&delivery.endpoint) {
                    let host = found.value.url.host_str().unwrap_or_default();
                    let tenant = &delivery.event.tenant;
                    network.succeeded(&delivery.endpoint, tenant, host, now.mono_ms);
                }
            }
            failure => network.failed(&delivery.endpoint, failure),
        }
    }

    /// What keeps this process from sending anything to an endpoint, besides the endpoint.
    fn obstacles(&self, endpoint: &EndpointId) -> Vec<String> {
        let mut obstacles = self.context.obstacles(endpoint);
        if !self.lease.holds() {
            obstacles.push("this process has not committed for longer than its lease".to_owned());
        }
        if self.dispatch.network_is_down() {
            obstacles.push("the network of this process seems to be down".to_owned());
        }
        obstacles
    }

    // ---- time passes ----

    fn wake(&mut self) {
        let now = self.now();
        while let Some(key) = self.dispatch.lines.due(now.mono_ms) {
            if let Some(owned) = self.partitions.get_mut(&key.0) {
                owned.read_for_lane(&key.1);
            }
            self.line_up(key, now);
        }
        if now.mono_ms >= self.tick_at_ms {
            self.tick(now);
        }
    }

    fn tick(&mut self, now: Now) {
        let memory = self.memory();
        let mut ready = Vec::new();
        for (&number, owned) in &mut self.partitions {
            if owned.draining {
                continue;
            }
            let pressed = owned.held() > self.context.config.partition_unsettled_max / 2;
            let paused = |endpoint: &EndpointId| Wishes::of(&self.context, endpoint).paused;
            let unpaused = owned.tick(&self.limits, pressed, paused, now);
            ready.extend(unpaused.into_iter().map(|endpoint| (number, endpoint)));
            if memory != Memory::Free {
                owned.evict(now);
            }
        }
        for key in ready {
            self.line_up(key, now);
        }
        self.write_states(now);
        let soonest = self
            .partitions
            .values()
            .filter_map(Partition::tick_after_ms);
        let after_ms = soonest.min().unwrap_or(i64::MAX);
        self.tick_at_ms = now.mono_ms.saturating_add(after_ms);
    }

    fn write_states(&mut self, now: Now) {
        let interval_ms = self.context.config.state_interval_ms();
        let mut writes = Vec::new();
        for (&number, owned) in &mut self.partitions {
            if !owned.draining
                && let Some(states) = owned.states_to_write(&self.limits, interval_ms, now)
            {
                writes.push((number, owned.state_id.id(), states));
            }
        }
        for (partition, id, states) in writes {
            let producer = self.context.producers.prompt.clone();
            self.spawn_always(partition, async move {
                let written = match states {
                    StatesToWrite::Changes(changes) => {
                        state::write(&*producer, partition, id, changes).await
                    }
                    StatesToWrite::AllAnew(states) => {
                        Ok(state::write_all(&*producer, partition, &states).await)
                    }
                };
                TaskResult::Written(written)
            });
        }
    }

    // ---- tasks ----

    /// Spawns a task for a partition, which ends when the partition has left.
    fn spawn<F>(&mut self, partition: PartitionNumber, task: F)
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        const { assert!(size_of::<F>() <= TASK_BYTES_MAX, "box what is rare in it") };
        let Some(gone) = self.ends.get(&partition).map(|ends| ends.gone.clone()) else {
            return;
        };
        // Each layer around a future that is not boxed makes room for it twice.
        let task = Box::pin(task);
        self.spawn_always(partition, async move {
            let ended = gone.run_until_cancelled(task).await;
            ended.unwrap_or(TaskResult::Nothing)
        });
    }

    /// Spawns a task for a partition that goes on when the partition has left.
    fn spawn_always(
        &mut self,
        partition: PartitionNumber,
        task: impl Future<Output = TaskResult> + Send + 'static,
    ) {
        let Some(generation) = self
            .partitions
            .get(&partition)
            .map(|owned| owned.generation)
        else {
            return;
        };
        self.tasks.spawn(task.map(move |result| Finished {
            partition,
            generation,
            result,
        }));
    }

    fn finish(&mut self, finished: Finished) {
        let Finished {
            partition,
            generation,
            mut result,
        } = finished;
        if let TaskResult::Read(reads, _) = &mut result {
            self.reads_again = std::mem::take(reads);
        }
        let Some(owned) = self.owned_under(partition, generation) else {
            return;
        };
        match result {
            TaskResult::Attempted(job, end) => self.attempt_ended(*job, end),
            TaskResult::DeadLettered(offset) => owned.dead_lettered(offset),
            TaskResult::Read(_, batch) => self.read_ended(partition, batch),
            TaskResult::Written(Ok(written)) => owned.written(written),
            TaskResult::Written(Err(NotWritten)) => owned.not_written(),
            TaskResult::Nothing => {}
        }
    }

    fn resolved(&mut self) -> Vec<(PartitionNumber, Generation, Offset)> {
        let mut resolved = Vec::new();
        for (number, owned) in &mut self.partitions {
            let (generation, offsets) = (owned.generation, owned.resolved());
            resolved.extend(
                offsets
                    .into_iter()
                    .map(|offset| (*number, generation, offset)),
            );
        }
        resolved
    }

    /// When there is something to do although nothing happens.
    fn wakes_at(&self) -> Option<Instant> {
        let due_ms = self.dispatch.lines.first_at_ms().unwrap_or(i64::MAX);
        let first = due_ms.min(self.tick_at_ms);
        let at = u64::try_from(first).ok().filter(|_| first < i64::MAX)?;
        Some(self.base + Duration::from_millis(at))
    }
}

/// A partition, if this is still the assignment that a task worked for.
fn under(
    partitions: &mut BTreeMap<PartitionNumber, Partition>,
    partition: PartitionNumber,
    generation: Generation,
) -> Option<&mut Partition> {
    partitions
        .get_mut(&partition)
        .filter(|owned| owned.generation == generation)
}

/// The delivery in a record. Its key finds it again when it is read a second time, so it must be
/// that of its endpoint. It goes on from where whoever appended it was in the trace, if they said
/// so.
fn decode(record: &Record) -> Result<Delivery, InvalidRecord> {
    let mut delivery = Delivery::decode(record.value.as_deref().unwrap_or_default())?;
    if record.key.as_ref() != delivery.endpoint.as_str().as_bytes() {
        return Err(InvalidRecord::Malformed {
            field: "key",
            detail: "is not the endpoint's id".to_owned(),
        });
    }
    if let Some((traceparent, tracestate)) = telemetry::context_in(&record.headers) {
        delivery.event.trace = TraceContext {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate.to_owned(),
        };
    }
    Ok(delivery)
}

/// Where order matters, a delivery that is retried keeps its place: this is its next attempt.
fn next_in_place(attempt: &Attempt, step: &Step, failed_at_ms: Option<i64>) -> Option<NextAttempt> {
    step.delivery.order_key()?;
    match attempt.settlement? {
        Settlement::RetryScheduled { due_at_ms } => Some(NextAttempt {
            number: attempt.number + 1,
            due_at_ms,
            failed_at_ms: failed_at_ms.unwrap_or(attempt.started_at_ms),
        }),
        Settlement::Delivered | Settlement::DeadLettered | Settlement::Dropped => None,
    }
}

impl<S: Sender> Stage for Deliver<S> {
    const TOPIC: &'static str = DELIVERIES;
    const GROUP: &'static str = GROUP_DELIVER;
    /// A retry and a dead letter are written behind an answer that took longer, and the next
    /// delivery of an ordering key waits for an attempt.
    const LINGER: Duration = Duration::from_millis(5);
    /// Nobody waits for other attempts. Those that are not recorded are repeated after a crash.
    const GATHERS: Option<Duration> = Some(Duration::from_millis(50));

    type Prepared = TakenOver;

    fn prepare(&self, assignment: &Assignment, _: Offset) -> Preparation<TakenOver> {
        let (log, context) = (self.log.clone(), self.context.clone());
        let assignment = assignment.clone();
        Box::pin(async move {
            context.registry.caught_up().await;
            Ok(take_over(&*log, &context, &assignment).await?)
        })
    }

    fn begin(&mut self, assignment: &Assignment, taken: TakenOver) {
        let now = self.now();
        let committed = assignment.committed.as_ref();
        let committed = committed.map_or(0, |committed| committed.offset);
        let mut owned = Partition::new(
            assignment.generation,
            committed.max(assignment.bounds.start),
            committed,
            taken.settled,
            StateId::new(taken.written, taken.stale),
            self.memory.clone(),
        );
        owned.restore(taken.states, &self.limits, now);
        self.partitions.insert(assignment.partition, owned);
        self.ends.insert(assignment.partition, Ends::default());
        self.tick_at_ms = self.tick_at_ms.min(now.mono_ms);
    }

    fn take(&mut self, record: Record, generation: Generation) {
        if self.owned_under(record.partition, generation).is_some() {
            let now = self.now();
            self.admit(&record, now);
        }
    }

    async fn progress(&mut self) -> Result<Vec<(PartitionNumber, Generation, Offset)>, StageError> {
        self.start_attempts();
        self.start_read();
        let mut resolved = self.resolved();
        if resolved.is_empty() {
            let lease_expired = self.dispatch.lines.is_anybody_in_line() && !self.lease.holds();
            let wakes_at = self.wakes_at();
            tokio::select! {
                biased;
                Some(answered) = self.answered.recv() => self.answered(answered),
                Some(joined) = self.tasks.join_next() => {
                    let finished = joined.map_err(|error| StageError::Panicked(error.to_string()))?;
                    self.finish(finished);
                }
                () = sleep_until(wakes_at.unwrap_or(self.base)), if wakes_at.is_some() => {}
                () = sleep(LEASE_CHECK), if lease_expired => {}
                Some((endpoint, answer)) = self.answers.next() => {
                    // Whoever asked may have gone.
                    drop(answer.send(self.status(&endpoint)));
                }
                else => std::future::pending().await,
            }
        }
        while let Ok(answered) = self.answered.try_recv() {
            self.answered(answered);
        }
        while let Some(joined) = self.tasks.try_join_next() {
            let finished = joined.map_err(|error| StageError::Panicked(error.to_string()))?;
            self.finish(finished);
        }
        self.wake();
        self.start_attempts();
        resolved.extend(self.resolved());
        Ok(resolved)
    }

    fn pauses(&mut self) -> Vec<(PartitionNumber, bool)> {
        let unsettled_max = self.context.config.partition_unsettled_max;
        let mut changed = Vec::new();
        for (&number, owned) in &mut self.partitions {
            let pause = owned.held() >= unsettled_max;
            if pause != owned.paused {
                owned.paused = pause;
                changed.push((number, pause));
            }
        }
        changed
    }

    fn note(&mut self, partition: PartitionNumber, offset: Offset) -> CommitNote {
        let clock = &self.context.clock;
        // Where no age tells anything, no settlement is old.
        let now_ms = if clock.ages_tell() { clock.now_ms() } else { 0 };
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return CommitNote::default();
        };
        CommitNote {
            rebuild_from: Some(owned.rebuild_from(offset, now_ms)),
            state_id: Some(owned.state_id.id()),
            state_written: Some(owned.state_id.last()),
            behind_from: owned.behind_from(),
            owner: self.context.config.advertised_address.clone(),
            ..CommitNote::default()
        }
    }

    fn committed(&mut self, commits: &[Commit]) {
        for commit in commits {
            let partition = commit.partition;
            let Some(owned) = self.owned_under(partition, commit.generation) else {
                continue;
            };
            owned.committed(commit.committed.offset);
            let named = CommitNote::decode(&commit.committed.metadata).state_id;
            let stale = owned.state_id.named(named);
            if !stale.is_empty() {
                let producer = self.context.producers.prompt.clone();
                self.spawn_always(partition, async move {
                    state::remove(&*producer, partition, stale).await;
                    TaskResult::Nothing
                });
            }
        }
    }

    fn show(&self) {
        let now = self.now();
        let mut held = Held {
            in_flight: self.dispatch.in_flight(),
            attempts_max: self.context.config.attempts_in_flight_max,
            bytes: self.memory.amount(),
            bytes_max: self.context.config.unsettled_bytes_max,
            ..Held::default()
        };
        for (number, owned) in &self.partitions {
            for lane in owned.statuses(*number, &self.limits, now) {
                held.add(&lane);
            }
        }
        self.context.metrics.held(&held);
    }

    fn drain(&mut self, partitions: &[PartitionNumber]) {
        for partition in partitions {
            if let Some(owned) = self.partitions.get_mut(partition) {
                owned.drain();
            }
        }
        self.dispatch.lines.remove(partitions);
    }

    fn cut(&mut self, partitions: &[PartitionNumber]) {
        for partition in partitions {
            if let Some(ends) = self.ends.get(partition) {
                ends.cut.cancel();
            }
        }
    }

    fn is_idle(&self, partition: PartitionNumber) -> bool {
        let owned = self.partitions.get(&partition);
        owned.is_none_or(Partition::is_idle)
    }

    fn forget(&mut self, partition: PartitionNumber) {
        self.partitions.remove(&partition);
        if let Some(ends) = self.ends.remove(&partition) {
            ends.gone.cancel();
        }
        self.dispatch.lines.remove(&[partition]);
        self.reads_again.forget(partition);
    }
}

impl<S: Sender> Deliver<S> {
    /// What is known of an endpoint's lane, if it is here.
    fn status(&self, endpoint: &EndpointId) -> Option<LaneStatus> {
        let now = self.now();
        let mut owned = self.partitions.iter();
        let mut status =
            owned.find_map(|(number, owned)| owned.status(*number, endpoint, &self.limits, now))?;
        status.obstacles = self.obstacles(endpoint);
        Some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::settled::SettledSet;
    use super::*;

    #[test]
    fn results_of_a_former_assignment_are_ignored() {
        let settled = SettledSet::new(0, 0, 1_000, 10);
        let written = Written {
            id: 0,
            first: 0,
            last: 0,
        };
        let state_id = StateId::new(written, Vec::new());
        let owned = Partition::new(8, 0, 0, settled, state_id, Tally::default());
        let mut partitions = BTreeMap::from([(3, owned)]);
        assert!(under(&mut partitions, 3, 7).is_none());
        assert!(under(&mut partitions, 3, 8).is_some());
        assert!(under(&mut partitions, 4, 8).is_none());
    }
}
