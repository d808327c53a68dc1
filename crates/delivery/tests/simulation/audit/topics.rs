//! Reading the topics on, and what their records say of one another.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use postrider_log::memory::MemoryLog;
use postrider_log::{Log, Offset, Partition, Reader, Record};
use postrider_model::delivery::{
    Attempt, AttemptOutcome, DeadLetter, DeadLetterContent, Delivery, Route, Settlement,
};
use postrider_model::event::EventPosition;
use postrider_model::outcome::RETRY_AFTER_MS_MAX;
use postrider_model::topics::{
    ATTEMPTS, DEAD_LETTERS, DELIVERIES, ENDPOINT_STATE, EVENTS, RETRY, ROUTES,
};
use postrider_model::work::WorkId;
use tokio::task::coop::unconstrained;

use super::{Audit, Retry, Settled, Step, Work, name};

/// What a record leads to comes before the record: where both landed since the last look, it is
/// known then.
const TOPICS: [&str; 7] = [
    EVENTS,
    DELIVERIES,
    RETRY,
    DEAD_LETTERS,
    ROUTES,
    ATTEMPTS,
    ENDPOINT_STATE,
];
/// Endpoints of which the name begins so answer with waits of their own.
const ASK_FOR_WAITS: [&str; 2] = ["limited", "lying"];

/// A topic and how far it was read.
#[derive(Debug)]
pub(super) struct Source {
    topic: &'static str,
    reader: Box<dyn Reader>,
    next: Vec<Offset>,
}

pub(super) async fn sources(log: &Arc<MemoryLog>) -> Vec<Source> {
    let mut sources = Vec::new();
    for topic in TOPICS {
        let partitions = log.partition_count(topic).await.expect("a topic");
        sources.push(Source {
            topic,
            reader: log.reader(topic).await.expect("a reader"),
            next: vec![0; usize::try_from(partitions).expect("few")],
        });
    }
    sources
}

impl Source {
    /// What landed since the last call. The log in memory answers at once; a gap at the end has no
    /// answer yet.
    fn news(&mut self, log: &MemoryLog) -> Vec<Record> {
        let mut news = Vec::new();
        for (partition, next) in (0..).zip(&mut self.next) {
            let bounds = log.bounds(self.topic, partition).now_or_never();
            if bounds.expect("at once").expect("bounds").end <= *next {
                continue;
            }
            let read = self
                .reader
                .read(partition, *next, usize::MAX, Duration::ZERO);
            if let Some(batch) = unconstrained(read).now_or_never() {
                let batch = batch.expect("records");
                *next = batch.next;
                news.extend(batch.records);
            }
        }
        news
    }
}

impl Audit {
    /// Reads on to the present end of every topic.
    pub(super) fn catch_up(&mut self) {
        for index in 0..self.sources.len() {
            let source = &mut self.sources[index];
            let topic = source.topic;
            for record in source.news(&self.log) {
                match topic {
                    EVENTS => self.read_event(&record),
                    DELIVERIES => self.read_delivery(&record),
                    RETRY => self.read_retry(&record),
                    DEAD_LETTERS => self.read_dead_letter(&record),
                    ROUTES => self.read_route(&record),
                    ATTEMPTS => self.read_attempt(&record),
                    _ => {
                        self.counts.lane_states += 1;
                        self.counts.blocked += self.lanes.read(&record);
                    }
                }
            }
        }
    }

    fn read_event(&mut self, record: &Record) {
        let position = EventPosition {
            partition: record.partition,
            offset: record.offset,
            appended_at_ms: record.timestamp_ms,
        };
        self.counts.events += 1;
        self.unrouted.insert(position);
        let open = self.open_events.entry(record.partition).or_default();
        open.insert(record.offset, position);
    }

    fn read_delivery(&mut self, record: &Record) {
        let Ok(delivery) = Delivery::decode(value(record)) else {
            return;
        };
        let id = delivery.work_id();
        let (attempt, endpoint) = (delivery.attempt, name(&id).to_owned());
        // A retry of it may have been read before.
        let is_new = |work: &Work| work.steps.is_empty();
        if self.works.get(&id).is_none_or(is_new) {
            let shown = (delivery.event.id.as_str().to_owned(), endpoint.clone());
            self.shown.entry(shown).or_default().push(id.clone());
        }
        let work = self.works.entry(id.clone()).or_default();
        work.order_key = delivery.order_key().map(str::to_owned);
        let step = work.steps.entry(attempt).or_insert(Step {
            offset: record.offset,
            landed_ms: record.timestamp_ms,
            copies: 0,
        });
        step.copies += 1;
        let is_new = step.copies == 1 && attempt == 1 && id.run == 0;
        if let Some(key) = delivery.order_key().filter(|_| is_new && !work.ended) {
            self.orders.expect(&id, key, record.offset);
        }
        let is_first = attempt == 1 && id.run == 0 && step.copies == 1;
        if is_first && work.order_key.is_none() && !work.is_settled(1) {
            self.unserved
                .entry(endpoint)
                .or_default()
                .insert(record.offset);
        }
        let open = self.open_deliveries.entry(record.partition).or_default();
        open.insert(record.offset, (id, attempt));
    }

    fn read_retry(&mut self, record: &Record) {
        let Ok(retry) = Delivery::decode(value(record)) else {
            return;
        };
        self.counts.retries += 1;
        let id = retry.work_id();
        let work = self.works.entry(id.clone()).or_default();
        let known = work.retries.entry(retry.attempt).or_insert(Retry {
            landed_ms: record.timestamp_ms,
            due_at_ms: retry.due_at_ms,
            open: [].into(),
        });
        known.landed_ms = known.landed_ms.min(record.timestamp_ms);
        known.due_at_ms = known.due_at_ms.min(retry.due_at_ms);
        known.open.insert((record.partition, record.offset));
        let open = self.open_retries.entry(record.partition).or_default();
        open.insert(record.offset, (id, retry.attempt));
    }

    fn read_dead_letter(&mut self, record: &Record) {
        self.counts.dead_letters += 1;
        let letter = DeadLetter::decode(value(record)).expect("a dead letter");
        match letter.content {
            DeadLetterContent::Delivery(delivery) => {
                let work = self.works.entry(delivery.work_id()).or_default();
                let landed = work.dead.entry(delivery.attempt);
                landed.or_insert(record.timestamp_ms);
            }
            DeadLetterContent::Raw(raw) => {
                if raw.topic == EVENTS {
                    let is_it = |at: &EventPosition| {
                        (at.partition, at.offset) == (raw.partition, raw.offset)
                    };
                    self.unrouted.retain(|at| !is_it(at));
                } else if raw.topic == DELIVERIES
                    && let Some(open) = self.open_deliveries.get_mut(&raw.partition)
                {
                    open.remove(&raw.offset);
                }
            }
        }
    }

    /// A route names no endpoint that got nothing.
    fn read_route(&mut self, record: &Record) {
        let route = Route::decode(value(record)).expect("a route");
        self.unrouted.remove(&route.position);
        self.note_route(&route);
        for endpoint in route.endpoints {
            let id = WorkId {
                position: route.position,
                endpoint,
                run: 0,
            };
            let delivery = self.works.get(&id).and_then(|work| work.steps.get(&1));
            let landed_ms = delivery.map(|step| step.landed_ms);
            assert!(
                landed_ms.is_some_and(|at_ms| self.came_first(at_ms, record)),
                "routed before its delivery was in the log: {id:?}"
            );
            if !self.works[&id].ended {
                self.promised.insert(id);
            }
        }
    }

    /// Every settlement leaves what it says behind, and that came first.
    fn read_attempt(&mut self, record: &Record) {
        let made = Attempt::decode(value(record)).expect("an attempt");
        self.counts.attempts += 1;
        self.check_outcome(&made);
        self.note_drop(&made);
        let Some(settlement) = made.settlement else {
            return;
        };
        self.check_consequence(&made, settlement, record);
        let endpoint = name(&made.work).to_owned();
        let work = self.works.entry(made.work.clone()).or_default();
        if let Some(step) = work.steps.get(&1)
            && let Some(unserved) = self.unserved.get_mut(&endpoint)
        {
            unserved.remove(&step.offset);
        }
        let owner = self.latest.get(&record.partition).copied();
        let is_late = work.asked.iter().any(|(number, tenure, begun_ms)| {
            (*number, *begun_ms) == (made.number, made.started_at_ms) && Some(*tenure) != owner
        });
        work.settlements.push(Settled {
            place: record.offset,
            number: made.number,
            is_end: settlement.is_end(),
            delivery_offset: made.delivery_offset,
            is_late,
        });
        work.settled_to = work.settled_to.max(made.number);
        if settlement.is_end() {
            work.ended = true;
            if let Some(key) = &work.order_key {
                self.orders.ended(&made.work, key);
            }
            self.promised.remove(&made.work);
        }
    }

    fn check_outcome(&self, made: &Attempt) {
        if matches!(made.outcome, AttemptOutcome::Succeeded) {
            let shown = (
                made.event_id.as_str().to_owned(),
                name(&made.work).to_owned(),
                made.number,
            );
            assert!(
                self.succeeded.contains(&shown),
                "the endpoint never said so: {made:?}"
            );
        }
    }

    fn check_consequence(&mut self, made: &Attempt, settlement: Settlement, record: &Record) {
        let work = self.works.get(&made.work);
        let left = match settlement {
            Settlement::RetryScheduled { due_at_ms } if self.is_ordered(&made.work) => {
                self.expect_again(made, due_at_ms);
                return;
            }
            Settlement::RetryScheduled { due_at_ms } => {
                self.check_wait(made, due_at_ms);
                let retry = work.and_then(|work| work.retries.get(&(made.number + 1)));
                retry.map(|retry| retry.landed_ms)
            }
            Settlement::DeadLettered => work.and_then(|work| work.dead.get(&made.number).copied()),
            Settlement::Delivered | Settlement::Dropped => return,
        };
        assert!(
            left.is_some_and(|at_ms| self.came_first(at_ms, record)),
            "settled before what it led to was in the log: {made:?}"
        );
    }

    /// The wait is that of the schedule, with jitter that everybody computes alike, or what the
    /// endpoint asked for.
    fn check_wait(&self, made: &Attempt, due_at_ms: i64) {
        if self.rules.clock_is_set || !self.rules.honest {
            return;
        }
        let wait_ms = due_at_ms - made.started_at_ms - i64::from(made.duration_ms);
        let schedule = &self.rules.schedule;
        let scheduled_ms = schedule
            .delay_after(&made.work, made.number)
            .expect("a retry");
        let asked = ASK_FOR_WAITS
            .iter()
            .any(|asks| name(&made.work).starts_with(asks));
        let longest_ms = if asked {
            RETRY_AFTER_MS_MAX
        } else {
            scheduled_ms
        };
        assert!(
            (scheduled_ms - 1..=longest_ms + 1).contains(&wait_ms),
            "waits {wait_ms} ms, not {scheduled_ms} ms: {made:?}"
        );
    }

    fn came_first(&self, landed_ms: i64, record: &Record) -> bool {
        self.rules.clock_is_set || landed_ms <= record.timestamp_ms
    }
}

fn value(record: &Record) -> &[u8] {
    record.value.as_deref().unwrap_or_default()
}

/// How a partition of a topic is named in what breaks.
pub(super) fn place(topic: &str, partition: Partition, offset: Offset) -> String {
    format!("{topic} {partition}/{offset}")
}
