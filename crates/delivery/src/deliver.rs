//! Deliver: a delivery waits in its endpoint's lane, is attempted, and is settled.
//!
//! All traffic of an endpoint comes through one partition and so has one owner, this process. The owner takes the
//! partition's records in order: a copy of a step that was settled is dropped, a step whose work is already under way
//! waits beside it, and everything else goes to its lane. Lanes stand in line for the process's attempts, tenant by
//! tenant; [`carry`] takes a delivery from there to its settlement. A lane that cannot keep up goes behind: a cursor in
//! `endpoint-state` holds its place, and what does not fit into memory is read again from the log when there is room.
//!
//! [`partition`] and [`lane`] have the rules and know no runtime. This file does what they ask for: attempts, reads and
//! writes, each a task, and time. Nothing of a partition's state outlives its assignment: what the next owner must know
//! is in the log.

mod carry;
#[cfg(test)]
mod fixtures;
mod lane;
mod order;
mod partition;
mod pending;
mod reading;
mod rebuild;
mod settled;
mod state;
mod status;
mod take_over;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_daemon::telemetry;
use postrider_log::{
    Assignment, Batch, Commit, Generation, Log, LogError, Offset, Partition as PartitionNumber,
    Producer, Reader, Record,
};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::{Delivery, Settlement};
use postrider_model::event::TraceContext;
use postrider_model::flow::network::NetworkHealth;
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::outcome::Reason;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER};
use postrider_model::wire::InvalidRecord;
use postrider_registry::{Gate, Lookup};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

pub use carry::CarryContext;
use carry::{Carried, Carry};
pub(crate) use lane::LaneLimits;
use lane::{Memory, Now, Seen, Step, Turn};
use order::Again;
pub(crate) use order::OrderLimits;
use partition::{Partition, Taken};
pub use pending::PendingDeliveries;
use state::{NotWritten, Written};
pub use status::{LaneAnswers, LaneQuestions, LaneStatus, lane_questions};
use take_over::{TakenOver, take_over};
use waiting::{LaneKey, Waiting};

use crate::dead_letter;
use crate::metrics::Held;
use crate::progress::Lease;
use crate::sender::Sender;
use crate::stage::{Preparation, Stage, StageContext, StageError, run_stage};

const LEASE_CHECK: Duration = Duration::from_millis(100);
const NETWORK_PROBE_INTERVAL_MS: i64 = 1_000;

/// The stage over `deliveries`.
struct Deliver<S> {
    log: Arc<dyn Log>,
    context: Arc<CarryContext<S>>,
    limits: LaneLimits,
    raw_record_bytes_max: usize,
    lease: Lease,
    answers: Arc<LaneAnswers>,
    base: Instant,
    partitions: BTreeMap<PartitionNumber, Partition>,
    waiting: Waiting,
    in_flight: usize,
    slow_in_flight: usize,
    tick_at_ms: i64,
    /// Reads the log again; here when nobody uses it.
    reader: Option<Box<dyn Reader>>,
    read_turn: PartitionNumber,
    /// Keys of states that no longer count, to be removed when a commit has named the new id.
    stale: BTreeMap<PartitionNumber, Vec<Bytes>>,
    /// What endpoints answered lately, and whether it is our own network that is down.
    network: NetworkHealth<EndpointId, TenantId>,
    network_is_down: bool,
    network_probe_at_ms: i64,
    tasks: JoinSet<Finished>,
}

/// What a task ended with.
enum Finished {
    Carried {
        carried: Box<Carried>,
        generation: Generation,
        carry: Carry,
    },
    Buried {
        partition: PartitionNumber,
        generation: Generation,
        offset: Offset,
    },
    Read {
        partition: PartitionNumber,
        generation: Generation,
        from: Offset,
        reader: Option<Box<dyn Reader>>,
        batch: Result<Batch, LogError>,
    },
    Written {
        partition: PartitionNumber,
        generation: Generation,
        written: Result<Written, NotWritten>,
    },
    Removed,
    Abandoned {
        slow: bool,
    },
}

/// Runs the stage until told to stop. `context` is made anew, with a producer of its own, each time the stage starts.
pub async fn run<S: Sender>(
    stage: StageContext,
    context: impl Fn(Arc<dyn Producer>) -> CarryContext<S>,
    answers: LaneAnswers,
    stop: CancellationToken,
) {
    let answers = Arc::new(answers);
    let make = |producer, lease| {
        let context = Arc::new(context(producer));
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
        context: Arc<CarryContext<S>>,
        raw_record_bytes_max: usize,
        lease: Lease,
        answers: Arc<LaneAnswers>,
    ) -> Self {
        Self {
            log,
            limits: context.config.lane_limits(),
            context,
            raw_record_bytes_max,
            lease,
            answers,
            base: Instant::now(),
            partitions: BTreeMap::new(),
            waiting: Waiting::default(),
            in_flight: 0,
            slow_in_flight: 0,
            tick_at_ms: i64::MAX,
            reader: None,
            read_turn: 0,
            stale: BTreeMap::new(),
            network: NetworkHealth::default(),
            network_is_down: false,
            network_probe_at_ms: 0,
            tasks: JoinSet::new(),
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
        let bytes: usize = self.partitions.values().map(Partition::bytes).sum();
        let bytes_max = self.context.config.unsettled_bytes_max;
        match bytes {
            _ if bytes >= bytes_max / 4 * 5 => Memory::Exceeded,
            _ if bytes >= bytes_max => Memory::Full,
            _ if bytes >= bytes_max / 2 => Memory::Tight,
            _ => Memory::Free,
        }
    }

    fn owned_under(
        &mut self,
        partition: PartitionNumber,
        generation: Generation,
    ) -> Option<&mut Partition> {
        under(&mut self.partitions, partition, generation)
    }

    // ---- lanes in line ----

    /// Puts a lane in line if it may start now, or sets the time when it may.
    fn line_up(&mut self, key: LaneKey, now: Now) {
        let Some(owned) = self
            .partitions
            .get_mut(&key.0)
            .filter(|owned| !owned.draining)
        else {
            return;
        };
        let turn = owned.turn(&key.1, &self.limits, now);
        let Some(lane) = owned.lanes.get_mut(&key.1) else {
            return;
        };
        match turn {
            Turn::At(at_ms) => {
                self.waiting.until(at_ms, key);
            }
            Turn::Now if !lane.in_line => {
                let Some(tenant) = lane.tenant().cloned() else {
                    return;
                };
                lane.in_line = true;
                let slow = lane.is_slow(self.context.config.slow_from_ms(), now);
                self.waiting.line_up(tenant, key, slow);
            }
            Turn::Now | Turn::Later => {}
        }
    }

    /// The slow together have only their share of the attempts.
    fn slow_has_room(&self) -> bool {
        self.slow_in_flight < self.context.config.slow_attempts_in_flight_max()
    }

    /// Starts attempts, one for each lane in line, while there is room and the lease holds.
    fn start_attempts(&mut self) {
        while self.in_flight < self.context.config.attempts_in_flight_max && self.lease.holds() {
            let now = self.now();
            if !self.network_lets_start(now) {
                return;
            }
            let Some(key) = self.waiting.next(self.slow_has_room()) else {
                return;
            };
            self.start_attempt(key, now);
        }
    }

    /// While our own network is down, one attempt a second finds out when it is back.
    fn network_lets_start(&mut self, now: Now) -> bool {
        let was_down = self.network_is_down;
        self.network_is_down = self.network.is_down(now.mono_ms);
        if self.network_is_down != was_down {
            let is_down = self.network_is_down;
            if is_down {
                tracing::error!("no endpoint can be reached: our own network seems down");
            } else {
                tracing::info!("endpoints can be reached again");
            }
            self.context.metrics.network_down.set(i64::from(is_down));
        }
        if !self.network_is_down {
            return true;
        }
        let probes = now.mono_ms >= self.network_probe_at_ms;
        if probes {
            self.network_probe_at_ms = now.mono_ms + NETWORK_PROBE_INTERVAL_MS;
        }
        self.tick_at_ms = self.tick_at_ms.min(self.network_probe_at_ms);
        probes
    }

    /// Learns about the network from how an attempt ended.
    fn learn_network(&mut self, step: &Step, reason: Reason, now: Now) {
        let (endpoint, tenant) = (&step.delivery.endpoint, &step.delivery.event.tenant);
        match reason {
            Reason::Ok => {
                if let Lookup::Found(found) = self.context.registry.endpoint(endpoint) {
                    let host = found.value.url.host_str().unwrap_or_default();
                    self.network.succeeded(endpoint, tenant, host, now.mono_ms);
                }
            }
            failure => self.network.failed(endpoint, failure),
        }
    }

    fn start_attempt(&mut self, key: LaneKey, now: Now) {
        let wishes = Wishes::of(&self.context, &key.1);
        let slow_has_room = self.slow_has_room();
        let Some(owned) = self.partitions.get_mut(&key.0) else {
            return;
        };
        let turn = owned.turn(&key.1, &self.limits, now);
        let Some(lane) = owned.lanes.get_mut(&key.1) else {
            return;
        };
        lane.in_line = false;
        lane.park(wishes.parked);
        let expires = lane.head_expires(&self.limits, now);
        if (wishes.parked && !expires) || turn != Turn::Now {
            self.line_up(key, now);
            return;
        }
        let slow = lane.is_slow(self.context.config.slow_from_ms(), now);
        if slow && !slow_has_room {
            self.line_up(key, now);
            return;
        }
        lane.set_rate(wishes.rate, now);
        if !expires && let Err(at_ms) = lane.take_token(now) {
            self.waiting.until(at_ms, key);
            return;
        }
        let failing_since_ms = lane.failing_since_ms();
        let Some((step, probe)) = owned.start(&key.1, expires, now) else {
            return;
        };
        self.in_flight += 1;
        self.slow_in_flight += usize::from(slow);
        let failed_at_ms = owned.failed_at_ms(&step.delivery);
        let interruptions = owned.settled.interruptions(&step.delivery.work_id());
        let carried = Carried {
            partition: key.0,
            step,
            interruptions,
            probe,
            slow,
            failing_since_ms,
            failed_at_ms,
            spared: self.network_is_down,
            expires,
        };
        self.spawn_carry(carried);
        self.line_up(key, now);
    }

    fn spawn_carry(&mut self, carried: Carried) {
        let Some(owned) = self.partitions.get(&carried.partition) else {
            return;
        };
        let (generation, cut, gone) = (owned.generation, owned.cut.clone(), owned.gone.clone());
        let (context, lease) = (self.context.clone(), self.lease.clone());
        self.tasks.spawn(async move {
            let carry = tokio::select! {
                biased;
                () = gone.cancelled() => return Finished::Abandoned { slow: carried.slow },
                carry = context.carry(&carried, &lease, &cut) => carry,
            };
            Finished::Carried {
                carried: Box::new(carried),
                generation,
                carry,
            }
        });
    }

    // ---- tasks end ----

    fn finish(&mut self, finished: Finished) {
        match finished {
            Finished::Removed => {}
            Finished::Abandoned { slow } => {
                self.in_flight -= 1;
                self.slow_in_flight = self.slow_in_flight.saturating_sub(usize::from(slow));
            }
            Finished::Buried {
                partition,
                generation,
                offset,
            } => {
                self.in_flight -= 1;
                if let Some(owned) = self.owned_under(partition, generation) {
                    owned.buried(offset);
                }
            }
            Finished::Carried {
                carried,
                generation,
                carry,
            } => {
                self.in_flight -= 1;
                self.slow_in_flight = self
                    .slow_in_flight
                    .saturating_sub(usize::from(carried.slow));
                if self.owned_under(carried.partition, generation).is_some() {
                    self.finish_carried(*carried, carry);
                }
            }
            Finished::Read {
                partition,
                generation,
                from,
                reader,
                batch,
            } => {
                self.reader = reader;
                if self.owned_under(partition, generation).is_some() {
                    self.finish_read(partition, from, batch);
                }
            }
            Finished::Written {
                partition,
                generation,
                written,
            } => {
                if let Some(owned) = self.owned_under(partition, generation) {
                    match written {
                        Ok(written) => owned.written(written),
                        Err(NotWritten) => owned.not_written(),
                    }
                }
            }
        }
    }

    fn finish_carried(&mut self, carried: Carried, carry: Carry) {
        let now = self.now();
        let Carried {
            partition,
            step,
            probe,
            failed_at_ms: carried_failed_at_ms,
            ..
        } = carried;
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return;
        };
        let endpoint = step.delivery.endpoint.clone();
        match carry {
            Carry::Settled {
                attempt,
                place,
                at_ms,
                seen,
            } => {
                owned.settled.note_own(&attempt, place, at_ms, step.offset);
                match attempt.settlement {
                    Some(Settlement::RetryScheduled { due_at_ms })
                        if step.delivery.order_key().is_some() =>
                    {
                        let again = Again {
                            attempt: attempt.number + 1,
                            due_at_ms,
                            failed_at_ms: carried_failed_at_ms.unwrap_or(attempt.started_at_ms),
                        };
                        owned.block(&step, probe, seen, again, now);
                    }
                    _ => {
                        let copies = owned.settle(&step, probe, seen, now);
                        self.context.metrics.copies_dropped.inc_by(copies);
                    }
                }
                if seen != Seen::Nothing {
                    self.learn_network(&step, attempt.reason, now);
                }
            }
            Carry::Interrupted => owned.unsettled(step, probe, false, now),
            Carry::Unstarted => owned.unsettled(step, probe, true, now),
        }
        self.line_up((partition, endpoint), now);
    }

    /// What keeps this process from sending anything to an endpoint, besides the endpoint.
    fn obstacles(&self, endpoint: &EndpointId) -> Vec<String> {
        let mut obstacles = self.context.obstacles(endpoint);
        if !self.lease.holds() {
            obstacles.push("this process has not committed for longer than its lease".to_owned());
        }
        if self.network_is_down {
            obstacles.push("the network of this process seems to be down".to_owned());
        }
        obstacles
    }

    // ---- time passes ----

    fn wake(&mut self) {
        let now = self.now();
        while let Some(key) = self.waiting.due(now.mono_ms) {
            if let Some(owned) = self.partitions.get_mut(&key.0) {
                owned.hunger();
            }
            self.line_up(key, now);
        }
        if now.mono_ms >= self.tick_at_ms {
            self.tick(now);
        }
    }

    fn tick(&mut self, now: Now) {
        let memory = self.memory();
        let slow_from_ms = self.context.config.slow_from_ms();
        let (mut slow_in_flight, mut unparked) = (0, Vec::new());
        for (number, owned) in &mut self.partitions {
            if owned.draining {
                continue;
            }
            let pressed = owned.held() > self.context.config.partition_unsettled_max / 2;
            let parked = |endpoint: &EndpointId| Wishes::of(&self.context, endpoint).parked;
            let ready = owned.tick(&self.limits, pressed, parked, now);
            unparked.extend(ready.into_iter().map(|endpoint| (*number, endpoint)));
            if memory == Memory::Free {
                // Another partition may have given the memory back that this one's lanes wait for.
                owned.hunger();
            } else {
                owned.shed(now);
            }
            slow_in_flight += owned.slow_in_flight(slow_from_ms, now);
        }
        self.slow_in_flight = slow_in_flight;
        for key in unparked {
            self.line_up(key, now);
        }
        self.write_states(now);
        self.set_tick(now);
    }

    fn set_tick(&mut self, now: Now) {
        let soonest = self
            .partitions
            .values()
            .filter_map(Partition::tick_after_ms)
            .min();
        self.tick_at_ms = soonest.map_or(i64::MAX, |after_ms| now.mono_ms.saturating_add(after_ms));
    }

    fn write_states(&mut self, now: Now) {
        let interval_ms = self.context.config.state_interval_ms();
        for (&number, owned) in &mut self.partitions {
            if owned.writing || owned.draining {
                continue;
            }
            let (generation, state_id) = (owned.generation, owned.state_id());
            let producer = self.context.producer.clone();
            if owned.needs_new_id {
                self.stale
                    .entry(number)
                    .or_default()
                    .extend(owned.state_keys());
                let states = owned.rewrite(&self.limits, now);
                self.tasks.spawn(async move {
                    let written = state::write_all(&*producer, number, &states).await;
                    Finished::Written {
                        partition: number,
                        generation,
                        written: Ok(written),
                    }
                });
                continue;
            }
            let due = owned.due_writes(&self.limits, interval_ms, now);
            if !due.is_empty() {
                self.tasks.spawn(async move {
                    let written = state::write(&*producer, number, state_id, due).await;
                    Finished::Written {
                        partition: number,
                        generation,
                        written,
                    }
                });
            }
        }
    }

    // ---- records come in ----

    fn admit(&mut self, record: &Record, generation: Generation, memory: Memory, now: Now) {
        let value = record.value.as_deref().unwrap_or_default();
        let partition = record.partition;
        let delivery = Delivery::decode(value)
            .and_then(|delivery| keyed(record, delivery))
            .map(|delivery| in_trace(record, delivery));
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return;
        };
        match delivery {
            Ok(delivery) => {
                let step = Step {
                    offset: record.offset,
                    bytes: record.size_bytes(),
                    appended_ms: record.timestamp_ms,
                    delivery: Box::new(delivery),
                };
                let key = (partition, step.delivery.endpoint.clone());
                match owned.admit(step, &self.limits, memory, now) {
                    Taken::Queued => self.line_up(key, now),
                    Taken::Copy => self.context.metrics.copies_dropped.inc(),
                    Taken::Passed => {}
                }
            }
            Err(invalid) => {
                owned.pass(record.offset);
                self.bury(record, generation, &invalid);
            }
        }
        self.tick_at_ms = self.tick_at_ms.min(now.mono_ms + 100);
    }

    fn bury(&mut self, record: &Record, generation: Generation, invalid: &InvalidRecord) {
        let context = self.context.clone();
        let (partition, offset) = (record.partition, record.offset);
        let gone = match self.partitions.get_mut(&partition) {
            Some(owned) => {
                owned.burying += 1;
                owned.gone.clone()
            }
            None => return,
        };
        let now_ms = self.context.clock.now_ms();
        let (reason, detail) = (invalid.reason(), invalid.to_string());
        let letter = dead_letter::of_record(
            DELIVERIES,
            record,
            reason,
            detail,
            self.raw_record_bytes_max,
            now_ms,
        );
        self.in_flight += 1;
        self.tasks.spawn(async move {
            let place = (partition, offset);
            tokio::select! {
                biased;
                () = gone.cancelled() => Finished::Abandoned { slow: false },
                () = dead_letter::keep(&*context.producer, &context.metrics, DELIVERIES, letter, place) => {
                    Finished::Buried { partition, generation, offset }
                }
            }
        });
    }

    fn resolved(&mut self) -> Vec<(PartitionNumber, Generation, Offset)> {
        let mut resolved = Vec::new();
        for (number, owned) in &mut self.partitions {
            let generation = owned.generation;
            resolved.extend(
                owned
                    .resolved()
                    .into_iter()
                    .map(|offset| (*number, generation, offset)),
            );
        }
        resolved
    }

    /// When there is something to do although nothing happens.
    fn wakes_at(&self) -> Option<Instant> {
        let due_ms = self.waiting.first_at_ms().unwrap_or(i64::MAX);
        let first = due_ms.min(self.tick_at_ms);
        let at = u64::try_from(first).ok().filter(|_| first < i64::MAX)?;
        Some(self.base + Duration::from_millis(at))
    }
}

/// A partition, if it is still the assignment that somebody worked for: what is left of a former one is for nobody.
fn under(
    partitions: &mut BTreeMap<PartitionNumber, Partition>,
    partition: PartitionNumber,
    generation: Generation,
) -> Option<&mut Partition> {
    partitions
        .get_mut(&partition)
        .filter(|owned| owned.generation == generation)
}

/// Its key finds a delivery again when it is read a second time, so it must be that of its endpoint.
fn keyed(record: &Record, delivery: Delivery) -> Result<Delivery, InvalidRecord> {
    if record.key.as_ref() == delivery.endpoint.as_str().as_bytes() {
        return Ok(delivery);
    }
    Err(InvalidRecord::Malformed {
        field: "key",
        detail: "is not the endpoint's id".to_owned(),
    })
}

/// The delivery goes on from where whoever appended it was in the trace, if they said so.
fn in_trace(record: &Record, mut delivery: Delivery) -> Delivery {
    if let Some((traceparent, tracestate)) = telemetry::context_in(&record.headers) {
        delivery.event.trace = TraceContext {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate.to_owned(),
        };
    }
    delivery
}

/// How an endpoint wants to be called, as the registry has it now.
#[derive(Debug, Default)]
struct Wishes {
    /// It is not to be called for now. What is deleted or unknown is not parked: it is settled.
    parked: bool,
    rate: Option<(f64, u32)>,
}

impl Wishes {
    fn of<S>(context: &CarryContext<S>, endpoint: &EndpointId) -> Self {
        let Lookup::Found(endpoint) = context.registry.endpoint(endpoint) else {
            return Self::default();
        };
        let rate = endpoint.value.rate_limit.as_ref();
        Self {
            parked: context.registry.gate(&endpoint.value) != Gate::Open,
            rate: rate.map(|limit| (limit.per_second(), limit.burst())),
        }
    }
}

impl<S: Sender> Stage for Deliver<S> {
    const TOPIC: &'static str = DELIVERIES;
    const GROUP: &'static str = GROUP_DELIVER;
    /// Settlements are written behind an answer that took longer, so batching them costs nobody anything.
    const LINGER: Duration = Duration::from_millis(5);

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
        let number = assignment.partition;
        let committed = assignment
            .committed
            .as_ref()
            .map_or(0, |committed| committed.offset);
        let from = committed.max(assignment.bounds.start);
        let mut owned = Partition::new(assignment.generation, from, committed, taken.settled);
        owned.restore(taken.written, taken.states, &self.limits, now);
        self.partitions.insert(number, owned);
        self.stale.insert(number, taken.stale);
        self.tick_at_ms = self.tick_at_ms.min(now.mono_ms);
    }

    fn take(&mut self, record: Record, generation: Generation) {
        if self.owned_under(record.partition, generation).is_some() {
            let (memory, now) = (self.memory(), self.now());
            self.admit(&record, generation, memory, now);
        }
    }

    async fn progress(&mut self) -> Result<Vec<(PartitionNumber, Generation, Offset)>, StageError> {
        self.start_attempts();
        self.start_read();
        let mut resolved = self.resolved();
        if resolved.is_empty() {
            let lease_expired = self.waiting.is_anybody_in_line() && !self.lease.holds();
            let wakes_at = self.wakes_at();
            tokio::select! {
                biased;
                Some(joined) = self.tasks.join_next() => {
                    let finished = joined.map_err(|error| StageError::Panicked(error.to_string()))?;
                    self.finish(finished);
                }
                () = sleep_until(wakes_at.unwrap_or(self.base)), if wakes_at.is_some() => {}
                () = sleep(LEASE_CHECK), if lease_expired => {}
                Some((endpoint, answer)) = self.answers.next() => {
                    let now = self.now();
                    let mut owned = self.partitions.iter();
                    let mut status = owned.find_map(|(number, owned)| owned.status(*number, &endpoint, &self.limits, now));
                    if let Some(status) = &mut status {
                        status.obstacles = self.obstacles(&endpoint);
                    }
                    // Whoever asked may have gone.
                    drop(answer.send(status));
                }
                else => std::future::pending().await,
            }
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
            state_id: Some(owned.state_id()),
            state_written: Some(owned.state_written()),
            behind_from: owned.behind_from(),
            owner: self.context.config.advertised_address.clone(),
            ..CommitNote::default()
        }
    }

    fn committed(&mut self, commits: &[Commit]) {
        for commit in commits {
            let Some(owned) = self.owned_under(commit.partition, commit.generation) else {
                continue;
            };
            owned.committed(commit.committed.offset);
            let named = CommitNote::decode(&commit.committed.metadata).state_id;
            if named == Some(owned.state_id())
                && !owned.needs_new_id
                && let Some(keys) = self.stale.remove(&commit.partition)
            {
                let (producer, partition) = (self.context.producer.clone(), commit.partition);
                self.tasks.spawn(async move {
                    state::remove(&*producer, partition, keys).await;
                    Finished::Removed
                });
            }
        }
    }

    fn show(&self) {
        let now = self.now();
        let mut held = Held {
            in_flight: self.in_flight,
            attempts_max: self.context.config.attempts_in_flight_max,
            bytes: self.partitions.values().map(Partition::bytes).sum(),
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
        self.waiting.leave(partitions);
    }

    fn cut(&mut self, partitions: &[PartitionNumber]) {
        for owned in partitions
            .iter()
            .filter_map(|partition| self.partitions.get(partition))
        {
            owned.cut.cancel();
        }
    }

    fn is_idle(&self, partition: PartitionNumber) -> bool {
        self.partitions
            .get(&partition)
            .is_none_or(|owned| owned.in_flight() + owned.burying == 0)
    }

    fn forget(&mut self, partition: PartitionNumber) {
        if let Some(owned) = self.partitions.remove(&partition) {
            owned.gone.cancel();
        }
        self.stale.remove(&partition);
        self.waiting.leave(&[partition]);
    }
}

#[cfg(test)]
mod tests {
    use super::settled::SettledSet;
    use super::*;

    #[test]
    fn what_is_left_of_a_former_assignment_is_for_nobody() {
        let settled = SettledSet::new(0, 0, 1_000, 10);
        let mut partitions = BTreeMap::from([(3, Partition::new(8, 0, 0, settled))]);
        assert!(under(&mut partitions, 3, 7).is_none());
        assert!(under(&mut partitions, 3, 8).is_some());
        assert!(under(&mut partitions, 4, 8).is_none());
    }
}
