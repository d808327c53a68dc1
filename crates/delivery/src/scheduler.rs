//! The scheduler: a retry waits until it is due and returns to `deliveries`.
//!
//! Each partition of `retry` is a delay: its records become ready in order, one delay after they
//! were appended, so only the head is waited for. A ready record that is due soon spends the rest
//! in a timer; one that is not goes to the longest delay that still fits. What comes out returns
//! through the same door as a first try, at a bounded pace (`outlet.rs`). A retry is never early:
//! it leaves when its due time has passed, whatever the delays say.
//!
//! What is in memory is bounded. When half of it is taken, nothing more is taken into the timer;
//! when all of it is, next to nothing into the outlets, and partitions pause. What does not fit
//! waits in the log, at the cost of a write, so nothing that is due stands behind what is not.

mod moves;
mod outlet;
mod timer;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{FuturesUnordered, StreamExt};
use postrider_daemon::telemetry;
use postrider_log::{
    Assignment, Clock, Generation, Log, Offset, Partition, Producer, Record, Target, partition_for,
};
use postrider_model::delivery::Delivery;
use postrider_model::outcome::Reason;
use postrider_model::retry::DelayLadder;
use postrider_model::topics::{DELIVERIES, GROUP_SCHEDULER, RETRY};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::config::SchedulerConfig;
use crate::metrics::DeliveryMetrics;
use crate::progress::Lease;
use crate::stage::{Preparation, Producers, Stage, StageContext, StageError, run_stage};
use outlet::{Outlet, Postponed};
use timer::{Place, Timer, Waiting, place};

/// A head that waits longer than this has its partition paused, so that long delays do not fill the
/// prefetch.
const PAUSE_FROM_MS: i64 = 1_000;
/// Records of one partition that wait in memory although their partition is paused.
const PAUSE_FROM_RECORDS: usize = 1_000;
/// The clock that due times are on may be set, so it is looked at this often at least.
const LOOKS_EVERY_MS: i64 = 1_000;

type Moved = BoxFuture<'static, (Partition, Generation, Offset)>;

/// What the scheduler works with.
#[derive(Debug, Clone)]
pub struct SchedulerContext {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The delays of the partitions of `retry`.
    pub ladder: DelayLadder,
    /// Limits.
    pub config: SchedulerConfig,
    /// Bytes kept of a record that cannot go on.
    pub raw_record_bytes_max: usize,
    /// Counters.
    pub metrics: DeliveryMetrics,
}

/// Runs the stage until told to stop.
pub async fn run(stage: StageContext, context: SchedulerContext, stop: CancellationToken) {
    let log = stage.log.clone();
    let make = |producers: Producers, _: Lease| {
        Scheduler::new(context.clone(), log.clone(), producers.prompt)
    };
    run_stage(&stage, stop, make).await;
}

/// The stage over `retry`.
struct Scheduler {
    context: SchedulerContext,
    log: Arc<dyn Log>,
    producer: Arc<dyn Producer>,
    delays: BTreeMap<Partition, Delay>,
    timer: Timer,
    /// One for each partition of `deliveries`; empty until their number is known.
    outlets: Vec<Outlet<Waiting>>,
    /// Everything that was read and neither left nor is on its way.
    held: Held,
    moves: FuturesUnordered<Moved>,
    /// Whose turn it is to be asked first, so that none of them has the moves for itself.
    first_outlet: usize,
    started: Instant,
}

/// What records take in memory.
#[derive(Debug, Default)]
struct Held {
    records: usize,
    bytes: usize,
}

impl Held {
    fn add(&mut self, record: &Record) {
        self.records += 1;
        self.bytes += record.size_bytes();
    }

    fn remove(&mut self, record: &Record) {
        self.records -= 1;
        self.bytes -= record.size_bytes();
    }
}

/// One partition: what was read and is not ready.
#[derive(Debug, Default)]
struct Delay {
    generation: Generation,
    waiting: VecDeque<Waiting>,
    moving: usize,
    paused: bool,
    wants_pause: bool,
    draining: bool,
}

/// Due times are on the wall clock, the pace is not.
#[derive(Debug, Clone, Copy)]
struct Now {
    wall_ms: i64,
    mono_ms: i64,
}

impl Scheduler {
    /// A stage that owns nothing yet.
    fn new(context: SchedulerContext, log: Arc<dyn Log>, producer: Arc<dyn Producer>) -> Self {
        Self {
            context,
            log,
            producer,
            delays: BTreeMap::new(),
            timer: Timer::default(),
            outlets: Vec::new(),
            held: Held::default(),
            moves: FuturesUnordered::new(),
            first_outlet: 0,
            started: Instant::now(),
        }
    }

    fn now(&self) -> Now {
        let mono_ms = self.started.elapsed().as_millis();
        Now {
            wall_ms: self.context.clock.now_ms(),
            mono_ms: i64::try_from(mono_ms).unwrap_or(i64::MAX),
        }
    }

    /// Moves everything that is ready or due, and says in how long to look again.
    fn advance(&mut self) -> i64 {
        let now = self.now();
        while self.may_move()
            && let Some(waiting) = self.timer.take_due(now.wall_ms)
        {
            self.place(waiting, now);
        }
        let partitions: Vec<Partition> = self.delays.keys().copied().collect();
        for partition in partitions {
            while let Some(waiting) = self.next_ready(partition, now) {
                self.place(waiting, now);
            }
        }
        self.let_out(now);
        self.decide_pauses(now);
        self.wakes_in_ms(now)
    }

    fn let_out(&mut self, now: Now) {
        let outlets = self.outlets.len();
        for turn in 0..outlets {
            let index = (self.first_outlet + turn) % outlets;
            while self.may_move()
                && let Some(waiting) = self.outlets[index].next(now.mono_ms)
            {
                self.release(waiting, now);
            }
        }
        self.first_outlet = (self.first_outlet + 1) % outlets.max(1);
    }

    fn may_move(&self) -> bool {
        self.moves.len() < self.context.config.releases_in_flight_max
    }

    fn is_full(&self) -> bool {
        self.held.bytes >= self.context.config.timer_bytes_max
    }

    fn next_ready(&mut self, partition: Partition, now: Now) -> Option<Waiting> {
        let may_move = self.may_move();
        let delay = self.delays.get_mut(&partition)?;
        let ready = delay
            .waiting
            .front()
            .is_some_and(|waiting| waiting.ready_at_ms <= now.wall_ms);
        (may_move && ready && !delay.draining)
            .then(|| delay.waiting.pop_front())
            .flatten()
    }

    fn decide_pauses(&mut self, now: Now) {
        let is_full = self.is_full();
        // Only records that cannot be understood are moved however many are on their way.
        let is_clogged = self.moves.len() > self.context.config.releases_in_flight_max;
        for delay in self.delays.values_mut() {
            let head = delay.waiting.front();
            delay.wants_pause = is_clogged
                || delay.waiting.len() > PAUSE_FROM_RECORDS
                || head.is_some_and(|head| {
                    is_full || head.ready_at_ms.saturating_sub(now.wall_ms) > PAUSE_FROM_MS
                });
        }
    }

    /// While nothing more may move it is a finished move that wakes, not the time.
    fn wakes_in_ms(&self, now: Now) -> i64 {
        if !self.may_move() {
            return LOOKS_EVERY_MS;
        }
        let heads = self.delays.values().filter(|delay| !delay.draining);
        let ready_at_ms = heads
            .filter_map(|delay| Some(delay.waiting.front()?.ready_at_ms))
            .chain(self.timer.next_due_ms());
        let ready_in_ms = ready_at_ms.map(|at_ms| at_ms.saturating_sub(now.wall_ms));
        let outlets = self.outlets.iter();
        let leaves_at_ms = outlets.filter_map(|outlet| outlet.next_at_ms(now.mono_ms));
        let leaves_in_ms = leaves_at_ms.map(|at_ms| at_ms.saturating_sub(now.mono_ms));
        let wakes_in_ms = ready_in_ms.chain(leaves_in_ms).min();
        wakes_in_ms
            .unwrap_or(LOOKS_EVERY_MS)
            .clamp(1, LOOKS_EVERY_MS)
    }

    /// Decides where a ready record goes: out, into the timer, or to a shorter delay.
    fn place(&mut self, waiting: Waiting, now: Now) {
        let timer_ms_max = i64::try_from(self.context.config.timer_ms_max).unwrap_or(i64::MAX);
        // Half of the memory is for what is on its way out.
        let is_tight = self.held.bytes >= self.context.config.timer_bytes_max / 2;
        let timer_ms_max = if is_tight { 0 } else { timer_ms_max };
        let remaining_ms = waiting.due_at_ms.saturating_sub(now.wall_ms);
        match place(remaining_ms, timer_ms_max, &self.context.ladder) {
            Place::Out => self.offer(waiting, now),
            Place::Timer => self.timer.hold(waiting),
            Place::Delay(partition) => self.return_to_log(waiting, partition),
        }
    }

    /// Puts a due record in line for its partition, or lets it come again later.
    fn offer(&mut self, waiting: Waiting, now: Now) {
        let key = waiting.record.key.clone();
        let partitions = i32::try_from(self.outlets.len()).unwrap_or(i32::MAX);
        let index = usize::try_from(partition_for(&key, partitions)).unwrap_or_default();
        let is_full = self.is_full();
        let offered = self.outlets[index].offer(&key, waiting, is_full, now.mono_ms);
        if let Err(Postponed { item, wait_ms }) = offered {
            let later = Waiting {
                due_at_ms: now.wall_ms.saturating_add(wait_ms),
                postponed: true,
                ..item
            };
            self.context.metrics.retries_postponed.inc();
            self.place(later, now);
        }
    }

    fn release(&mut self, waiting: Waiting, now: Now) {
        let late_ms = now.wall_ms.saturating_sub(waiting.due_at_ms);
        self.context.metrics.retry_released(late_ms);
        let value = waiting.record.value.clone();
        self.move_to(waiting, DELIVERIES, Target::Key, value);
    }

    fn return_to_log(&mut self, waiting: Waiting, partition: Partition) {
        let mut value = waiting.record.value.clone();
        if waiting.postponed
            && let Some(bytes) = &value
            && let Ok(delivery) = Delivery::decode(bytes)
        {
            let due_at_ms = waiting.due_at_ms;
            let later = Delivery {
                due_at_ms,
                ..delivery
            };
            value = Some(later.encode());
        }
        self.move_to(waiting, RETRY, Target::Partition(partition), value);
    }

    fn move_to(
        &mut self,
        waiting: Waiting,
        topic: &'static str,
        target: Target,
        value: Option<Bytes>,
    ) {
        let producer = self.producer.clone();
        let context = self.context.clone();
        let Waiting {
            record, generation, ..
        } = waiting;
        self.held.remove(&record);
        self.begin_move(record.partition, generation);
        let span = span_of(&record);
        let moved = async move {
            moves::append(&*producer, &context, &record, topic, target, value).await;
            (record.partition, generation, record.offset)
        };
        self.moves.push(moved.instrument(span).boxed());
    }

    fn refuse(&mut self, record: Record, generation: Generation, reason: Reason, detail: String) {
        let producer = self.producer.clone();
        let context = self.context.clone();
        self.begin_move(record.partition, generation);
        let buried = async move {
            moves::bury(&*producer, &context, &record, reason, detail).await;
            (record.partition, generation, record.offset)
        };
        self.moves.push(buried.boxed());
    }

    fn begin_move(&mut self, partition: Partition, generation: Generation) {
        if let Some(delay) = self.owned(partition, generation) {
            delay.moving += 1;
        }
    }

    /// The partition, if it is owned under that assignment.
    fn owned(&mut self, partition: Partition, generation: Generation) -> Option<&mut Delay> {
        self.delays
            .get_mut(&partition)
            .filter(|delay| delay.generation == generation)
    }

    /// Forgets what was read of a partition and waits beyond its own line.
    fn forget_held(&mut self, partition: Partition) {
        let of_partition = |waiting: &Waiting| waiting.record.partition == partition;
        let outlets = self.outlets.iter_mut();
        let in_line = outlets.flat_map(|outlet| outlet.take_out(of_partition));
        for waiting in self.timer.take_out(of_partition).into_iter().chain(in_line) {
            self.held.remove(&waiting.record);
        }
    }
}

/// The span of moving a retry on. It begins when the record leaves, not when it was read: a wait of
/// hours holds no span.
fn span_of(record: &Record) -> Span {
    let span = telemetry::processing(RETRY, record.partition, record.offset);
    if span.is_disabled() || telemetry::follow(&span, &record.headers) {
        return span;
    }
    if let Ok(delivery) = Delivery::decode(record.value.as_ref().unwrap_or(&Bytes::new())) {
        let trace = &delivery.event.trace;
        telemetry::set_parent(&span, &trace.traceparent, &trace.tracestate);
    }
    span
}

impl Stage for Scheduler {
    const TOPIC: &'static str = RETRY;
    const GROUP: &'static str = GROUP_SCHEDULER;
    const LINGER: Duration = Duration::ZERO;

    /// Over how many partitions of `deliveries` keys are spread.
    type Prepared = i32;

    fn prepare(&self, _: &Assignment, _: Offset) -> Preparation<i32> {
        if let known @ 1.. = i32::try_from(self.outlets.len()).unwrap_or(i32::MAX) {
            return ready(Ok(known)).boxed();
        }
        let log = self.log.clone();
        Box::pin(async move { Ok(log.key_partitions(DELIVERIES).await?) })
    }

    fn begin(&mut self, assignment: &Assignment, partitions: i32) {
        if self.outlets.is_empty() {
            let per_second = self.context.config.releases_per_second_max;
            let now = self.now();
            self.outlets = (0..partitions)
                .map(|_| Outlet::new(per_second, now.mono_ms))
                .collect();
        }
        let delay = Delay {
            generation: assignment.generation,
            ..Delay::default()
        };
        self.delays.insert(assignment.partition, delay);
    }

    fn take(&mut self, record: Record, generation: Generation) {
        let delivery = match Delivery::decode(record.value.as_ref().unwrap_or(&Bytes::new())) {
            Ok(delivery) => delivery,
            Err(invalid) => {
                self.refuse(record, generation, invalid.reason(), invalid.to_string());
                return;
            }
        };
        let index = usize::try_from(record.partition).unwrap_or(usize::MAX);
        let delay_ms = self
            .context
            .ladder
            .delays_ms()
            .get(index)
            .copied()
            .unwrap_or(0);
        let waiting = Waiting {
            ready_at_ms: record
                .timestamp_ms
                .saturating_add(delay_ms)
                .min(delivery.due_at_ms),
            due_at_ms: delivery.due_at_ms,
            postponed: false,
            generation,
            record,
        };
        let partition = waiting.record.partition;
        let delay = self.delays.get_mut(&partition);
        if let Some(delay) = delay.filter(|delay| delay.generation == generation) {
            self.held.add(&waiting.record);
            delay.waiting.push_back(waiting);
        }
    }

    async fn progress(&mut self) -> Result<Vec<(Partition, Generation, Offset)>, StageError> {
        let wakes_in_ms = self.advance();
        let wakes_at = Instant::now() + Duration::from_millis(wakes_in_ms.unsigned_abs());
        let first = tokio::select! {
            biased;
            Some(moved) = self.moves.next() => moved,
            () = sleep_until(wakes_at) => return Ok(Vec::new()),
        };
        let mut moved = vec![first];
        while let Some(Some(next)) = self.moves.next().now_or_never() {
            moved.push(next);
        }
        for (partition, generation, _) in &moved {
            if let Some(delay) = self.owned(*partition, *generation) {
                delay.moving -= 1;
            }
        }
        Ok(moved)
    }

    fn pauses(&mut self) -> Vec<(Partition, bool)> {
        let changed = self
            .delays
            .iter_mut()
            .filter(|(_, delay)| delay.paused != delay.wants_pause);
        changed
            .map(|(&partition, delay)| {
                delay.paused = delay.wants_pause;
                (partition, delay.paused)
            })
            .collect()
    }

    fn show(&self) {
        let Held { records, bytes } = self.held;
        self.context.metrics.retries_held(records, bytes);
    }

    fn drain(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(delay) = self.delays.get_mut(partition) {
                delay.draining = true;
            }
            self.forget_held(*partition);
        }
    }

    fn is_idle(&self, partition: Partition) -> bool {
        self.delays
            .get(&partition)
            .is_none_or(|delay| delay.moving == 0)
    }

    fn forget(&mut self, partition: Partition) {
        let delay = self.delays.remove(&partition).unwrap_or_default();
        for waiting in &delay.waiting {
            self.held.remove(&waiting.record);
        }
        self.forget_held(partition);
    }
}

#[cfg(test)]
mod tests;
