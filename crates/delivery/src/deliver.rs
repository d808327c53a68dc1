//! Deliver: a delivery waits in its endpoint's lane, is attempted, and is settled.
//!
//! All traffic of an endpoint comes through one partition and so has one owner, this process. The owner takes the
//! partition's records in order: a copy of a step that was settled is dropped, a step whose work is already under way
//! waits beside it, and everything else goes to its lane. Lanes stand in line for the process's attempts, one attempt
//! a turn. [`carry`] takes it from there.
//!
//! Nothing of a partition's state outlives its assignment: what the next owner must know is in the log.

mod carry;
mod lane;
mod rebuild;
mod settled;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use postrider_log::{Assignment, Generation, Log, Offset, Partition, Producer, Record};
use postrider_model::delivery::{Delivery, WorkId};
use postrider_model::ids::EndpointId;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER};
use postrider_model::wire::InvalidRecord;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use carry::CarryContext;
use carry::{Carried, Carry};
use lane::{Lane, Step};
use settled::SettledSet;

use crate::dead_letter;
use crate::progress::Lease;
use crate::sender::Sender;
use crate::stage::{Stage, StageContext, StageError, run_stage};

const LEASE_CHECK: Duration = Duration::from_millis(100);

/// The stage over `deliveries`.
struct Deliver<S> {
    log: Arc<dyn Log>,
    context: Arc<CarryContext<S>>,
    raw_record_bytes_max: usize,
    lease: Lease,
    partitions: BTreeMap<Partition, Owned>,
    /// Lanes that may start an attempt, each once.
    line: VecDeque<(Partition, EndpointId)>,
    in_flight: usize,
    unsettled_bytes: usize,
    tasks: JoinSet<Finished>,
    resolved: Vec<(Partition, Generation, Offset)>,
}

/// A partition this worker owns.
struct Owned {
    generation: Generation,
    settled: SettledSet,
    lanes: BTreeMap<EndpointId, Lane>,
    /// Work that is queued or under way, with the copies and later steps that wait for it.
    active: BTreeMap<WorkId, Active>,
    /// Records behind one that found its lane full.
    held: VecDeque<Record>,
    /// The records that are read and not settled, with their size in bytes.
    unsettled: BTreeMap<Offset, usize>,
    in_flight: usize,
    paused: bool,
    draining: bool,
    cut: CancellationToken,
    gone: CancellationToken,
}

struct Active {
    /// No record of `attempts` that this work will write can have a lower offset.
    attempts_from: Offset,
    waiting: Vec<Step>,
}

/// What a task ended with.
enum Finished {
    Carried {
        carried: Carried,
        generation: Generation,
        carry: Carry,
    },
    Buried {
        partition: Partition,
        generation: Generation,
        offset: Offset,
    },
    Abandoned,
}

/// Runs the stage until told to stop. `context` is made anew, with a producer of its own, each time the stage starts.
pub async fn run<S: Sender>(
    stage: StageContext,
    context: impl Fn(Arc<dyn Producer>) -> CarryContext<S>,
    stop: CancellationToken,
) {
    let make = |producer, lease| {
        let context = Arc::new(context(producer));
        Deliver::new(
            stage.log.clone(),
            context,
            stage.config.raw_record_bytes_max,
            lease,
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
    ) -> Self {
        Self {
            log,
            context,
            raw_record_bytes_max,
            lease,
            partitions: BTreeMap::new(),
            line: VecDeque::new(),
            in_flight: 0,
            unsettled_bytes: 0,
            tasks: JoinSet::new(),
            resolved: Vec::new(),
        }
    }

    /// Takes a record in, or gives it back when its lane is full.
    fn admit(&mut self, record: Record, generation: Generation) -> Result<(), Record> {
        let value = record.value.clone().unwrap_or_default();
        match Delivery::decode(&value) {
            Ok(delivery) => {
                let step = Step {
                    offset: record.offset,
                    delivery: Box::new(delivery),
                };
                self.admit_step(record.partition, step).map_err(|_| record)
            }
            Err(invalid) => {
                self.bury(&record, generation, &invalid);
                Ok(())
            }
        }
    }

    fn admit_step(&mut self, partition: Partition, step: Step) -> Result<(), Step> {
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return Ok(());
        };
        let work = step.delivery.work_id();
        if owned.settled.is_copy(&work, step.delivery.attempt) {
            self.context.metrics.copies_dropped.inc();
            self.resolve(partition, step.offset);
            return Ok(());
        }
        if let Some(active) = owned.active.get_mut(&work) {
            active.waiting.push(step);
            return Ok(());
        }
        let endpoint = step.delivery.endpoint.clone();
        let lane = owned.lanes.entry(endpoint.clone()).or_default();
        lane.push(step, self.context.config.lane_queue_max)?;
        let active = Active {
            attempts_from: owned.settled.next(),
            waiting: Vec::new(),
        };
        owned.active.insert(work, active);
        if lane.lines_up(self.context.config.lane_attempts_in_flight_max) {
            self.line.push_back((partition, endpoint));
        }
        Ok(())
    }

    /// Starts attempts, one for each lane in line, while there is room and the lease holds.
    fn start_attempts(&mut self) {
        while self.in_flight < self.context.config.attempts_in_flight_max && self.lease.holds() {
            let Some((partition, endpoint)) = self.line.pop_front() else {
                return;
            };
            let Some(owned) = self.partitions.get_mut(&partition) else {
                continue;
            };
            let Some(lane) = owned.lanes.get_mut(&endpoint) else {
                continue;
            };
            let Some(step) = lane.start() else { continue };
            if lane.lines_up(self.context.config.lane_attempts_in_flight_max) {
                self.line.push_back((partition, endpoint));
            }
            owned.in_flight += 1;
            self.in_flight += 1;
            let interruptions = owned.settled.interruptions(&step.delivery.work_id());
            let (generation, cut, gone) = (owned.generation, owned.cut.clone(), owned.gone.clone());
            let carried = Carried {
                partition,
                step,
                interruptions,
            };
            let (context, lease) = (self.context.clone(), self.lease.clone());
            self.tasks.spawn(async move {
                let carry = tokio::select! {
                    biased;
                    () = gone.cancelled() => return Finished::Abandoned,
                    carry = context.carry(&carried, &lease, &cut) => carry,
                };
                Finished::Carried {
                    carried,
                    generation,
                    carry,
                }
            });
        }
    }

    fn finish(&mut self, finished: Finished) {
        match finished {
            Finished::Abandoned => self.in_flight -= 1,
            Finished::Buried {
                partition,
                generation,
                offset,
            } => {
                self.in_flight -= 1;
                if let Some(owned) = self.owned_under(partition, generation) {
                    owned.in_flight -= 1;
                    self.resolve(partition, offset);
                }
            }
            Finished::Carried {
                carried,
                generation,
                carry,
            } => {
                self.in_flight -= 1;
                let partition = carried.partition;
                if self.owned_under(partition, generation).is_some() {
                    self.finish_carried(carried, carry);
                    self.admit_held(partition);
                }
            }
        }
    }

    fn finish_carried(&mut self, carried: Carried, carry: Carry) {
        let Carried {
            partition, step, ..
        } = carried;
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return;
        };
        owned.in_flight -= 1;
        let endpoint = step.delivery.endpoint.clone();
        let lane = owned.lanes.entry(endpoint.clone()).or_default();
        lane.finish();
        let (offset, mut settled, mut waiting) = (step.offset, false, Vec::new());
        match carry {
            Carry::Settled {
                attempt,
                place,
                at_ms,
            } => {
                owned.settled.note(&attempt, place, at_ms, offset);
                let active = owned.active.remove(&attempt.work);
                waiting = active.map_or_else(Vec::new, |active| active.waiting);
                settled = true;
            }
            Carry::Interrupted => {}
            Carry::Unstarted => lane.push_front(step),
        }
        let draining = owned.draining;
        if !draining && lane.lines_up(self.context.config.lane_attempts_in_flight_max) {
            self.line.push_back((partition, endpoint));
        } else if lane.is_empty() {
            owned.lanes.remove(&endpoint);
        }
        if settled {
            self.resolve(partition, offset);
        }
        if !draining {
            waiting
                .into_iter()
                .for_each(|step| self.admit_waiting(partition, step));
        }
    }

    fn resolve(&mut self, partition: Partition, offset: Offset) {
        if let Some(owned) = self.partitions.get_mut(&partition) {
            self.unsettled_bytes -= owned.unsettled.remove(&offset).unwrap_or(0);
            self.resolved.push((partition, owned.generation, offset));
        }
    }

    /// A step that waited for its work goes on; if its lane is full, it waits for the work once more.
    fn admit_waiting(&mut self, partition: Partition, step: Step) {
        if let Err(step) = self.admit_step(partition, step)
            && let Some(owned) = self.partitions.get_mut(&partition)
        {
            let endpoint = step.delivery.endpoint.clone();
            let active = Active {
                attempts_from: owned.settled.next(),
                waiting: Vec::new(),
            };
            owned.active.insert(step.delivery.work_id(), active);
            owned.lanes.entry(endpoint).or_default().push_front(step);
        }
    }

    /// Goes on with the records behind a full lane.
    fn admit_held(&mut self, partition: Partition) {
        while let Some(owned) = self.partitions.get_mut(&partition)
            && !owned.draining
            && let Some(record) = owned.held.pop_front()
        {
            let generation = owned.generation;
            if let Err(record) = self.admit(record, generation) {
                if let Some(owned) = self.partitions.get_mut(&partition) {
                    owned.held.push_front(record);
                }
                return;
            }
        }
    }

    fn owned_under(&mut self, partition: Partition, generation: Generation) -> Option<&mut Owned> {
        self.partitions
            .get_mut(&partition)
            .filter(|owned| owned.generation == generation)
    }

    fn bury(&mut self, record: &Record, generation: Generation, invalid: &InvalidRecord) {
        let context = self.context.clone();
        let (partition, offset) = (record.partition, record.offset);
        let gone = match self.partitions.get_mut(&partition) {
            Some(owned) => {
                owned.in_flight += 1;
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
            let written = tokio::select! {
                biased;
                () = gone.cancelled() => return Finished::Abandoned,
                written = dead_letter::write(&*context.producer, &context.metrics, &letter) => written,
            };
            if written.is_err() {
                tracing::error!(dead_letter = letter.id, "the dead letter is too large for its topic");
            }
            Finished::Buried { partition, generation, offset }
        });
    }
}

impl<S: Sender> Stage for Deliver<S> {
    const TOPIC: &'static str = DELIVERIES;
    const GROUP: &'static str = GROUP_DELIVER;
    /// Settlements are written behind an answer that took longer, so batching them costs nobody anything.
    const LINGER: Duration = Duration::from_millis(5);

    async fn assigned(&mut self, assignments: &[Assignment]) -> Result<(), StageError> {
        self.context.registry.caught_up().await;
        let now_ms = self.context.clock.now_ms();
        let rebuilt = assignments.iter().map(|assignment| {
            rebuild::settled_set(&*self.log, &self.context.config, assignment, now_ms)
        });
        let rebuilt = try_join_all(rebuilt).await?;
        for (assignment, settled) in assignments.iter().zip(rebuilt) {
            self.partitions.insert(
                assignment.partition,
                Owned::new(assignment.generation, settled),
            );
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        true
    }

    async fn take(&mut self, record: Record, generation: Generation) -> Result<(), StageError> {
        let partition = record.partition;
        let Some(owned) = self.owned_under(partition, generation) else {
            return Ok(());
        };
        let bytes = record.size_bytes();
        owned.unsettled.insert(record.offset, bytes);
        self.unsettled_bytes += bytes;
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return Ok(());
        };
        if !owned.held.is_empty() {
            owned.held.push_back(record);
        } else if let Err(record) = self.admit(record, generation)
            && let Some(owned) = self.partitions.get_mut(&partition)
        {
            owned.held.push_back(record);
        }
        Ok(())
    }

    async fn progress(&mut self) -> Result<Vec<(Partition, Generation, Offset)>, StageError> {
        self.start_attempts();
        if self.resolved.is_empty() {
            let lease_expired = !self.line.is_empty() && !self.lease.holds();
            tokio::select! {
                biased;
                Some(joined) = self.tasks.join_next() => {
                    let finished = joined.map_err(|error| StageError::Panicked(error.to_string()))?;
                    self.finish(finished);
                }
                () = sleep(LEASE_CHECK), if lease_expired => {}
                else => std::future::pending().await,
            }
        }
        while let Some(joined) = self.tasks.try_join_next() {
            let finished = joined.map_err(|error| StageError::Panicked(error.to_string()))?;
            self.finish(finished);
        }
        self.start_attempts();
        Ok(std::mem::take(&mut self.resolved))
    }

    fn pauses(&mut self) -> Vec<(Partition, bool)> {
        let unsettled_max = self.context.config.partition_unsettled_max;
        let bytes_full = self.unsettled_bytes >= self.context.config.unsettled_bytes_max;
        let mut changed = Vec::new();
        for (&partition, owned) in &mut self.partitions {
            let full = owned.unsettled.len() >= unsettled_max
                || (bytes_full && !owned.unsettled.is_empty());
            let pause = full || !owned.held.is_empty();
            if pause != owned.paused {
                owned.paused = pause;
                changed.push((partition, pause));
            }
        }
        changed
    }

    /// The commit names where the next owner rebuilds the settled set from: before the oldest settlement it still
    /// needs, and before whatever the work under way may write.
    fn metadata(&mut self, partition: Partition, offset: Offset) -> String {
        let now_ms = self.context.clock.now_ms();
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return String::new();
        };
        let oldest = owned.settled.expire(now_ms, offset);
        let rebuild_from = owned
            .active
            .values()
            .map(|active| active.attempts_from)
            .fold(oldest, Offset::min);
        settled::metadata(rebuild_from)
    }

    fn drain(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(owned) = self.partitions.get_mut(partition) {
                owned.draining = true;
                owned.held.clear();
                owned.lanes.values_mut().for_each(Lane::clear);
            }
        }
        self.line
            .retain(|(partition, _)| !partitions.contains(partition));
    }

    fn cut(&mut self, partitions: &[Partition]) {
        for owned in partitions
            .iter()
            .filter_map(|partition| self.partitions.get(partition))
        {
            owned.cut.cancel();
        }
    }

    fn is_idle(&self, partition: Partition) -> bool {
        self.partitions
            .get(&partition)
            .is_none_or(|owned| owned.in_flight == 0)
    }

    fn forget(&mut self, partition: Partition) {
        if let Some(owned) = self.partitions.remove(&partition) {
            owned.gone.cancel();
            self.unsettled_bytes -= owned.unsettled.values().sum::<usize>();
        }
        self.line.retain(|(lined_up, _)| *lined_up != partition);
    }
}

impl Owned {
    fn new(generation: Generation, settled: SettledSet) -> Self {
        Self {
            generation,
            settled,
            lanes: BTreeMap::new(),
            active: BTreeMap::new(),
            held: VecDeque::new(),
            unsettled: BTreeMap::new(),
            in_flight: 0,
            paused: false,
            draining: false,
            cut: CancellationToken::new(),
            gone: CancellationToken::new(),
        }
    }
}
