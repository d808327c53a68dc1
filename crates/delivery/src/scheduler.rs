//! The scheduler: a retry waits until it is due and returns to `deliveries`.
//!
//! Each partition of `retry` is a delay: its records become ready in order, one delay after they were appended, so
//! only the head is waited for. A ready record that is due soon spends the rest in a bounded timer; one that is not
//! goes to the longest delay that still fits. What comes out returns through the same door as a first try. A retry is
//! never early: it leaves when its due time has passed, whatever the delays say.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use postrider_log::{
    Assignment, Clock, Generation, NewRecord, Offset, Partition, Producer, Record, Target,
};
use postrider_model::delivery::Delivery;
use postrider_model::outcome::Reason;
use postrider_model::retry::DelayLadder;
use postrider_model::topics::{DELIVERIES, GROUP_SCHEDULER, RETRY};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::SchedulerConfig;
use crate::dead_letter;
use crate::durable::append_durably;
use crate::metrics::DeliveryMetrics;
use crate::progress::Lease;
use crate::stage::{Stage, StageContext, StageError, run_stage};

/// A head that waits longer than this has its partition paused, so that long delays do not fill the prefetch.
const PAUSE_FROM_MS: i64 = 1_000;
/// Records of one partition that wait in memory although their partition is paused.
const PAUSE_FROM_RECORDS: usize = 1_000;

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
    let make = |producer, _: Lease| Scheduler::new(context.clone(), producer);
    run_stage(&stage, stop, make).await;
}

/// The stage over `retry`.
struct Scheduler {
    context: SchedulerContext,
    producer: Arc<dyn Producer>,
    delays: BTreeMap<Partition, Delay>,
    timer: Timer,
    moves: FuturesUnordered<Moved>,
}

/// One partition: what was read and is not ready.
#[derive(Debug, Default)]
struct Delay {
    waiting: VecDeque<Waiting>,
    moving: usize,
    paused: bool,
    wants_pause: bool,
    draining: bool,
}

#[derive(Debug)]
struct Waiting {
    ready_at_ms: i64,
    due_at_ms: i64,
    generation: Generation,
    record: Record,
}

/// Ready records that are due soon, in order of their due time.
#[derive(Debug, Default)]
struct Timer {
    held: BTreeMap<(i64, Partition, Offset), Waiting>,
    bytes: usize,
}

impl Scheduler {
    /// A stage that owns nothing yet.
    fn new(context: SchedulerContext, producer: Arc<dyn Producer>) -> Self {
        Self {
            context,
            producer,
            delays: BTreeMap::new(),
            timer: Timer::default(),
            moves: FuturesUnordered::new(),
        }
    }

    /// Moves everything that is ready or due, and says when to look again.
    fn advance(&mut self) -> Option<i64> {
        let now_ms = self.context.clock.now_ms();
        self.release_due(now_ms);
        let partitions: Vec<Partition> = self.delays.keys().copied().collect();
        let mut wakes_at_ms = self
            .timer
            .held
            .first_key_value()
            .map(|((due_at_ms, ..), _)| *due_at_ms);
        for partition in partitions {
            while let Some(waiting) = self.next_ready(partition, now_ms) {
                self.place(waiting, now_ms);
            }
            let has_room = self.has_room_for_more();
            let delay = self.delays.entry(partition).or_default();
            let head = delay.waiting.front().map(|waiting| waiting.ready_at_ms);
            delay.wants_pause = head
                .is_some_and(|ready| ready.saturating_sub(now_ms) > PAUSE_FROM_MS)
                || delay.waiting.len() > PAUSE_FROM_RECORDS
                || !has_room;
            // Without room it is a finished move that wakes, not the time.
            wakes_at_ms = wakes_at_ms
                .into_iter()
                .chain(head.filter(|_| has_room))
                .min();
        }
        wakes_at_ms
    }

    fn has_room_for_more(&self) -> bool {
        self.timer.bytes < self.context.config.timer_bytes_max
            && self.moves.len() < self.context.config.releases_in_flight_max
    }

    fn next_ready(&mut self, partition: Partition, now_ms: i64) -> Option<Waiting> {
        let room = self.has_room_for_more();
        let delay = self.delays.get_mut(&partition)?;
        let ready = delay
            .waiting
            .front()
            .is_some_and(|waiting| waiting.ready_at_ms <= now_ms);
        (room && ready && !delay.draining)
            .then(|| delay.waiting.pop_front())
            .flatten()
    }

    /// Decides where a ready record goes: out, into the timer, or to a shorter delay.
    fn place(&mut self, waiting: Waiting, now_ms: i64) {
        let remaining_ms = waiting.due_at_ms.saturating_sub(now_ms);
        let timer_ms_max = i64::try_from(self.context.config.timer_ms_max).unwrap_or(i64::MAX);
        if remaining_ms <= 0 {
            self.release(waiting);
        } else if remaining_ms <= timer_ms_max {
            self.timer.hold(waiting);
        } else {
            match self.context.ladder.place(remaining_ms) {
                Some(partition) => self.move_to(waiting, RETRY, Target::Partition(partition)),
                None => self.timer.hold(waiting),
            }
        }
    }

    fn release_due(&mut self, now_ms: i64) {
        while self.moves.len() < self.context.config.releases_in_flight_max
            && let Some(waiting) = self.timer.next_due(now_ms)
        {
            self.release(waiting);
        }
    }

    fn release(&mut self, waiting: Waiting) {
        self.context.metrics.retries_released.inc();
        self.move_to(waiting, DELIVERIES, Target::Key);
    }

    fn move_to(&mut self, waiting: Waiting, topic: &'static str, target: Target) {
        let producer = self.producer.clone();
        let context = self.context.clone();
        let Waiting {
            record, generation, ..
        } = waiting;
        self.delays.entry(record.partition).or_default().moving += 1;
        let moved = async move {
            let copy = NewRecord {
                key: record.key.clone(),
                value: record.value.clone(),
                headers: record.headers.clone(),
            };
            if append_durably(&*producer, topic, target, copy)
                .await
                .is_err()
            {
                let detail = format!("the retry is larger than {topic} takes");
                bury(&*producer, &context, &record, Reason::TooLarge, detail).await;
            }
            (record.partition, generation, record.offset)
        };
        self.moves.push(moved.boxed());
    }

    fn refuse(&mut self, record: Record, generation: Generation, reason: Reason, detail: String) {
        let producer = self.producer.clone();
        let context = self.context.clone();
        self.delays.entry(record.partition).or_default().moving += 1;
        let buried = async move {
            bury(&*producer, &context, &record, reason, detail).await;
            (record.partition, generation, record.offset)
        };
        self.moves.push(buried.boxed());
    }
}

async fn bury(
    producer: &dyn Producer,
    context: &SchedulerContext,
    record: &Record,
    reason: Reason,
    detail: String,
) {
    let cap = context.raw_record_bytes_max;
    let letter = dead_letter::of_record(RETRY, record, reason, detail, cap, context.clock.now_ms());
    if dead_letter::write(producer, &context.metrics, &letter)
        .await
        .is_err()
    {
        tracing::error!(
            dead_letter = letter.id,
            "the dead letter is too large for its topic"
        );
    }
}

impl Timer {
    fn hold(&mut self, waiting: Waiting) {
        self.bytes += waiting.record.size_bytes();
        let place = (
            waiting.due_at_ms,
            waiting.record.partition,
            waiting.record.offset,
        );
        self.held.insert(place, waiting);
    }

    fn next_due(&mut self, now_ms: i64) -> Option<Waiting> {
        let ((due_at_ms, ..), _) = self.held.first_key_value()?;
        if *due_at_ms > now_ms {
            return None;
        }
        let (_, waiting) = self.held.pop_first()?;
        self.bytes -= waiting.record.size_bytes();
        Some(waiting)
    }

    fn forget(&mut self, partition: Partition) {
        self.held
            .retain(|(_, held_partition, _), _| *held_partition != partition);
        self.bytes = self
            .held
            .values()
            .map(|waiting| waiting.record.size_bytes())
            .sum();
    }
}

impl Stage for Scheduler {
    const TOPIC: &'static str = RETRY;
    const GROUP: &'static str = GROUP_SCHEDULER;
    const LINGER: Duration = Duration::ZERO;

    async fn assigned(&mut self, assignments: &[Assignment]) -> Result<(), StageError> {
        for assignment in assignments {
            self.delays.insert(assignment.partition, Delay::default());
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        true
    }

    async fn take(&mut self, record: Record, generation: Generation) -> Result<(), StageError> {
        let delivery = match Delivery::decode(record.value.as_ref().unwrap_or(&Bytes::new())) {
            Ok(delivery) => delivery,
            Err(invalid) => {
                self.refuse(record, generation, invalid.reason(), invalid.to_string());
                return Ok(());
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
            ready_at_ms: (record.timestamp_ms + delay_ms).min(delivery.due_at_ms),
            due_at_ms: delivery.due_at_ms,
            generation,
            record,
        };
        self.delays
            .entry(waiting.record.partition)
            .or_default()
            .waiting
            .push_back(waiting);
        Ok(())
    }

    async fn progress(&mut self) -> Result<Vec<(Partition, Generation, Offset)>, StageError> {
        let wakes_at_ms = self.advance();
        let wait = wakes_at_ms.map(|at| {
            at.saturating_sub(self.context.clock.now_ms())
                .clamp(1, 60_000)
        });
        let wakes_at =
            Instant::now() + Duration::from_millis(wait.unwrap_or(60_000).unsigned_abs());
        let first = tokio::select! {
            biased;
            Some(moved) = self.moves.next() => moved,
            () = sleep_until(wakes_at) => return Ok(Vec::new()),
        };
        let mut moved = vec![first];
        while let Some(Some(next)) = self.moves.next().now_or_never() {
            moved.push(next);
        }
        for (partition, ..) in &moved {
            if let Some(delay) = self.delays.get_mut(partition) {
                delay.moving = delay.moving.saturating_sub(1);
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

    fn metadata(&mut self, _: Partition, _: Offset) -> String {
        String::new()
    }

    fn show(&self) {
        let bytes = i64::try_from(self.timer.bytes).unwrap_or(i64::MAX);
        self.context.metrics.retries_held_bytes.set(bytes);
    }

    fn drain(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.delays.entry(*partition).or_default().draining = true;
            self.timer.forget(*partition);
        }
    }

    fn cut(&mut self, _: &[Partition]) {}

    fn is_idle(&self, partition: Partition) -> bool {
        self.delays
            .get(&partition)
            .is_none_or(|delay| delay.moving == 0)
    }

    fn forget(&mut self, partition: Partition) {
        self.delays.remove(&partition);
        self.timer.forget(partition);
    }
}
