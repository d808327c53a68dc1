//! Fan-out: an event becomes one delivery for each endpoint that wants it.
//!
//! Events are taken in order, one after the other: wait for the registry position the event was
//! accepted at, match the tenant's endpoints, append one delivery each and, when those are
//! acknowledged, the route that says who was matched. The appends of many events are under way at
//! once; an event's offset is resolved when all of its appends are acknowledged. If one is not, the
//! stage starts again from its commit and repeats everything after it in order; the copies that had
//! landed are dropped by deliver.

mod rebuild;
mod repeats;
mod routing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use postrider_daemon::telemetry;
use postrider_log::{
    AppendError, Assignment, Clock, Generation, Log, NewRecord, Offset, Partition, Producer,
    Record, Target,
};
use postrider_model::delivery::Route;
use postrider_model::event::{Event, EventPosition};
use postrider_model::ids::EndpointId;
use postrider_model::operational::PROOF_HEADER;
use postrider_model::outcome::Reason;
use postrider_model::topics::{DELIVERIES, EVENTS, GROUP_FAN_OUT, ROUTES};
use postrider_model::wire::{EventContext, InvalidRecord};
use postrider_registry::{Matched, Registry};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::FanOutConfig;
use crate::dead_letter;
use crate::durable::{QUEUE_FULL_PAUSE, append_durably};
use crate::metrics::DeliveryMetrics;
use crate::progress::Lease;
use crate::said::Said;
use crate::stage::{Preparation, Producers, Stage, StageContext, StageError, run_stage};
use crate::view::{CurrentView, Needed};
use repeats::{Fingerprint, Fingerprints, Repeat, RepeatWindows, Seen};
use routing::{Head, Routing, Taken, Unjudged};

/// Of repeats that say something else.
static REPEATS_SAID: Said = Said::new();

type Routed = BoxFuture<'static, Result<(Partition, Generation, Offset), StageError>>;

/// What fan-out works with.
#[derive(Debug, Clone)]
pub struct FanOutContext {
    /// Who wants what.
    pub registry: Registry,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Limits.
    pub config: FanOutConfig,
    /// Bytes kept of a record that cannot go on.
    pub raw_record_bytes_max: usize,
    /// Counters.
    pub metrics: DeliveryMetrics,
}

/// Runs the stage until told to stop.
pub async fn run(stage: StageContext, context: FanOutContext, stop: CancellationToken) {
    let log = stage.log.clone();
    let make = |producers, _: Lease| FanOut::new(context.clone(), log.clone(), producers);
    run_stage(&stage, stop, make).await;
}

/// The stage over `events`.
struct FanOut {
    context: FanOutContext,
    log: Arc<dyn Log>,
    producers: Producers,
    view: CurrentView,
    fingerprints: Fingerprints,
    repeats: RepeatWindows,
    /// Records whose turn has not come, in order. They fit the group's prefetch: no more is taken
    /// while there are any.
    waiting: VecDeque<Taken>,
    head: Option<Head>,
    routed: FuturesUnordered<Routed>,
    in_flight: Vec<(Partition, usize)>,
    /// Bytes of the records of `routed`.
    bytes: Arc<AtomicUsize>,
}

/// The bytes of a record, counted for as long as this lives.
struct Held {
    counted: Arc<AtomicUsize>,
    bytes: usize,
}

impl Held {
    fn new(counted: &Arc<AtomicUsize>, record: &Record) -> Self {
        let bytes = record.size_bytes();
        counted.fetch_add(bytes, Ordering::Relaxed);
        Self {
            counted: Arc::clone(counted),
            bytes,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counted.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the events that were taken wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Halt {
    /// There are none.
    Idle,
    /// A newer view.
    View,
    /// Room in the producer's queue.
    Queue,
}

impl FanOut {
    /// A stage that owns nothing yet.
    fn new(context: FanOutContext, log: Arc<dyn Log>, producers: Producers) -> Self {
        Self {
            view: CurrentView::new(context.registry.clone()),
            fingerprints: Fingerprints::default(),
            repeats: RepeatWindows::new(),
            context,
            log,
            producers,
            waiting: VecDeque::new(),
            head: None,
            routed: FuturesUnordered::new(),
            in_flight: Vec::new(),
            bytes: Arc::default(),
        }
    }

    /// Routes what was taken, in order, as far as it goes without waiting.
    fn advance(&mut self) -> Halt {
        loop {
            match self.head.take().or_else(|| self.next_head()) {
                None => return Halt::Idle,
                Some(Head::Unjudged(unjudged)) => {
                    if !self.may_judge(&unjudged) {
                        self.head = Some(Head::Unjudged(unjudged));
                        return Halt::View;
                    }
                    self.head = self
                        .judge(*unjudged)
                        .map(|routing| Head::Routing(Box::new(routing)));
                }
                Some(Head::Routing(mut routing)) => {
                    if !routing.append_all(&*self.producers.prompt) {
                        self.head = Some(Head::Routing(routing));
                        return Halt::Queue;
                    }
                    self.context.metrics.events_routed.inc();
                    self.track(*routing);
                }
            }
        }
    }

    /// The next event. What is none goes to dead letters.
    fn next_head(&mut self) -> Option<Head> {
        loop {
            let taken = self.waiting.pop_front()?;
            let record = &taken.record;
            let event = decode(record);
            let span = telemetry::processing(EVENTS, record.partition, record.offset);
            if !telemetry::follow(&span, &record.headers)
                && let Ok(event) = &event
            {
                telemetry::set_parent(&span, &event.trace.traceparent, &event.trace.tracestate);
            }
            match event {
                Ok(event) => {
                    let fingerprint = self.fingerprints.of(&event);
                    let repeat = self.repeat(fingerprint, record);
                    return Some(Head::Unjudged(Box::new(Unjudged {
                        event,
                        taken,
                        fingerprint,
                        repeat,
                        span,
                    })));
                }
                Err(invalid) => {
                    span.in_scope(|| self.refuse(taken, invalid.reason(), invalid.to_string()));
                }
            }
        }
    }

    fn repeat(&mut self, fingerprint: Fingerprint, record: &Record) -> Repeat {
        match self.repeats.get_mut(&record.partition) {
            Some(seen) => seen.repeat(fingerprint, record.offset, record.timestamp_ms),
            None => Repeat::No,
        }
    }

    /// A repeat is dropped whatever the view says.
    fn may_judge(&mut self, unjudged: &Unjudged) -> bool {
        let Unjudged { event, taken, .. } = unjudged;
        unjudged.repeat != Repeat::No
            || self.view.suffices(
                Needed::for_event(event, &self.context.registry),
                taken.received,
            )
    }

    /// Says who gets an event. One that is refused goes to dead letters.
    fn judge(&mut self, unjudged: Unjudged) -> Option<Routing> {
        let Unjudged { event, taken, .. } = &unjudged;
        let (registry, position) = (&self.context.registry, position_of(&taken.record));
        let repeated = unjudged.repeat != Repeat::No;
        let matched = if repeated {
            self.count_repeat(&unjudged);
            Matched {
                registry: registry.stamp(),
                endpoints: Vec::new(),
            }
        } else if let Some((reason, detail)) = refusal(registry, event, &taken.record) {
            let Unjudged { taken, span, .. } = unjudged;
            span.in_scope(|| self.refuse(taken, reason, detail));
            return None;
        } else {
            let matched = registry.wanting(event);
            self.remember(unjudged.fingerprint, &taken.record);
            if matched.endpoints.is_empty() {
                self.context.metrics.events_unmatched.inc();
            }
            matched
        };
        let endpoints: Vec<EndpointId> = matched
            .endpoints
            .iter()
            .map(|endpoint| endpoint.id.clone())
            .collect();
        let route = Route {
            event_id: event.id.clone(),
            tenant: event.tenant.clone(),
            event_type: event.event_type.clone(),
            position,
            registry_position: matched.registry.position,
            accepted_at_ms: event.accepted_at_ms,
            routed_at_ms: self.context.clock.now_ms(),
            repeated_event: repeated,
            traceparent: event.trace.traceparent.clone(),
            endpoints,
        };
        Some(Routing::new(unjudged, route, matched))
    }

    /// What was refused is not remembered: it may come again when nothing is wrong with it any
    /// more.
    fn remember(&mut self, fingerprint: Fingerprint, record: &Record) {
        if let Some(seen) = self.repeats.get_mut(&record.partition) {
            seen.remember(fingerprint, record.offset, record.timestamp_ms);
        }
    }

    fn count_repeat(&self, unjudged: &Unjudged) {
        self.context.metrics.events_repeated.inc();
        if unjudged.repeat == Repeat::Changed {
            self.context.metrics.events_repeated_changed.inc();
            if let Some(unsaid) = REPEATS_SAID.say() {
                let event = &unjudged.event;
                tracing::warn!(
                    tenant = %event.tenant,
                    event_id = %event.id,
                    unsaid,
                    "event dropped as a repeat of its id, although it says something else"
                );
            }
        }
    }

    /// Waits, beside everything else, until an event's deliveries are acknowledged, and only then
    /// appends its route, so that a route never names an endpoint that got nothing. A delivery too
    /// large for its topic makes the event a dead letter.
    fn track(&mut self, routing: Routing) {
        let producers = self.producers.clone();
        let context = self.context.clone();
        let Routing {
            record,
            generation,
            mut route,
            span,
            deliveries,
            ..
        } = routing;
        let (partition, offset) = (record.partition, record.offset);
        let held = Held::new(&self.bytes, &record);
        let routed = async move {
            let _held = held;
            let mut too_large = Vec::new();
            for (delivery, endpoint) in join_all(deliveries).await.into_iter().zip(&route.endpoints)
            {
                match delivery {
                    Ok(_) => {}
                    Err(AppendError::TooLarge) => too_large.push(endpoint.clone()),
                    Err(source) => {
                        return Err(StageError::Append {
                            topic: DELIVERIES,
                            source,
                        });
                    }
                }
            }
            route
                .endpoints
                .retain(|endpoint| !too_large.contains(endpoint));
            append_route(&*producers.gathering, &route).await;
            if let Some(first) = too_large.first() {
                let detail = format!(
                    "the deliveries to {} endpoints, the first of them {first}, are larger than the topic takes",
                    too_large.len()
                );
                Box::pin(bury(
                    &*producers.prompt,
                    &context,
                    &record,
                    Reason::TooLarge,
                    detail,
                ))
                .await;
            }
            Ok((partition, generation, offset))
        };
        self.push(partition, routed.instrument(span).boxed());
    }

    fn push(&mut self, partition: Partition, routed: Routed) {
        self.routed.push(routed);
        match self.in_flight.iter_mut().find(|(p, _)| *p == partition) {
            Some((_, count)) => *count += 1,
            None => self.in_flight.push((partition, 1)),
        }
    }

    fn refuse(&mut self, taken: Taken, reason: Reason, detail: String) {
        let Taken {
            record, generation, ..
        } = taken;
        let producer = self.producers.prompt.clone();
        let context = self.context.clone();
        let (partition, offset) = (record.partition, record.offset);
        let held = Held::new(&self.bytes, &record);
        let buried = async move {
            let _held = held;
            bury(&*producer, &context, &record, reason, detail).await;
            Ok((partition, generation, offset))
        };
        self.push(partition, buried.in_current_span().boxed());
    }
}

/// Why an event goes to nobody although it can be read, as HTTP would have refused it. The view
/// must be as new as the event.
fn refusal(registry: &Registry, event: &Event, record: &Record) -> Option<(Reason, String)> {
    if registry.tenant(&event.tenant).is_none() {
        let detail = format!("there is no tenant {}", event.tenant);
        return Some((Reason::UnknownTenant, detail));
    }
    let value = record.value.as_deref().unwrap_or_default();
    let proof = header(record, PROOF_HEADER);
    if event.event_type.is_reserved() && !registry.is_own(event, value, proof) {
        let detail = format!(
            "events of the type {} are Postrider's own",
            event.event_type
        );
        return Some((Reason::ReservedType, detail));
    }
    None
}

async fn append_route(producer: &dyn Producer, route: &Route) {
    let key = Bytes::copy_from_slice(route.event_id.as_str().as_bytes());
    let record = NewRecord {
        key,
        value: Some(route.encode()),
        headers: Vec::new(),
    };
    if append_durably(producer, ROUTES, Target::Key, record)
        .await
        .is_err()
    {
        tracing::error!(event_id = %route.event_id, "the route is too large for its topic");
    }
}

/// Keeps a record that cannot go on as a dead letter, cut to a size that every topic takes.
async fn bury(
    producer: &dyn Producer,
    context: &FanOutContext,
    record: &Record,
    reason: Reason,
    detail: String,
) {
    let now_ms = context.clock.now_ms();
    let cap = context.raw_record_bytes_max;
    let letter = dead_letter::of_record(EVENTS, record, reason, detail, cap, now_ms);
    let place = (record.partition, record.offset);
    dead_letter::keep(producer, &context.metrics, EVENTS, letter, place).await;
}

impl Stage for FanOut {
    const TOPIC: &'static str = EVENTS;
    const GROUP: &'static str = GROUP_FAN_OUT;
    const LINGER: Duration = Duration::ZERO;
    /// Deliveries are on their way before a route is written, so that gathering these delays only
    /// when the history of an event shows its endpoints, and the commit.
    const GATHERS: Option<Duration> = Some(Duration::from_millis(100));

    type Prepared = Seen;

    fn prepare(&self, assignment: &Assignment, from: Offset) -> Preparation<Seen> {
        let (log, registry) = (self.log.clone(), self.context.registry.clone());
        let (config, fingerprints) = (self.context.config.clone(), self.fingerprints.clone());
        let assignment = assignment.clone();
        Box::pin(async move {
            registry.caught_up().await;
            let seen = rebuild::seen(&*log, &registry, &config, &fingerprints, &assignment, from);
            Ok(seen.await?)
        })
    }

    fn begin(&mut self, assignment: &Assignment, seen: Seen) {
        self.repeats.insert(assignment.partition, seen);
    }

    fn has_room(&self) -> bool {
        self.waiting.is_empty()
            && self.head.is_none()
            && self.routed.len() < self.context.config.events_in_flight_max
            && self.bytes.load(Ordering::Relaxed) < self.context.config.events_in_flight_bytes_max
    }

    fn take(&mut self, record: Record, generation: Generation) {
        let received = self.view.receive();
        self.waiting.push_back(Taken {
            record,
            generation,
            received,
        });
    }

    async fn progress(&mut self) -> Result<Vec<(Partition, Generation, Offset)>, StageError> {
        // What failed must not be passed: fates that are known come before further appends.
        let mut resolved = Vec::new();
        while let Some(Some(next)) = self.routed.next().now_or_never() {
            resolved.push(next?);
        }
        let had_room = self.has_room();
        let halt = self.advance();
        if resolved.is_empty() && self.has_room() == had_room {
            tokio::select! {
                biased;
                Some(first) = self.routed.next() => resolved.push(first?),
                () = self.view.refreshed(), if halt == Halt::View => {}
                () = sleep(QUEUE_FULL_PAUSE), if halt == Halt::Queue => {}
                else => return std::future::pending().await,
            }
        }
        while let Some(Some(next)) = self.routed.next().now_or_never() {
            resolved.push(next?);
        }
        for (partition, _, _) in &resolved {
            if let Some((_, count)) = self.in_flight.iter_mut().find(|(p, _)| p == partition) {
                *count -= 1;
            }
        }
        Ok(resolved)
    }

    fn drain(&mut self, partitions: &[Partition]) {
        self.waiting
            .retain(|taken| !partitions.contains(&taken.record.partition));
        self.head.take_if(|head| {
            matches!(head, Head::Unjudged(_)) && partitions.contains(&head.partition())
        });
    }

    fn is_idle(&self, partition: Partition) -> bool {
        let is_head = self.head.as_ref().map(Head::partition) == Some(partition);
        let is_under_way = |(p, count): &(Partition, usize)| *p == partition && *count > 0;
        !is_head && !self.in_flight.iter().any(is_under_way)
    }

    fn forget(&mut self, partition: Partition) {
        self.drain(&[partition]);
        self.head.take_if(|head| head.partition() == partition);
        self.repeats.remove(&partition);
    }
}

fn position_of(record: &Record) -> EventPosition {
    EventPosition {
        partition: record.partition,
        offset: record.offset,
        appended_at_ms: record.timestamp_ms,
    }
}

fn decode(record: &Record) -> Result<Event, InvalidRecord> {
    let context = EventContext {
        position: position_of(record),
        traceparent: header(record, "traceparent"),
    };
    Event::decode(record.value.as_ref().unwrap_or(&Bytes::new()), context)
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().find(|(key, _)| key == name)?;
    std::str::from_utf8(value).ok()
}
