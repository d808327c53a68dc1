//! Fan-out: an event becomes one delivery for each endpoint that wants it.
//!
//! Events are taken in order, one after the other: wait for the registry position the event was accepted at, match the
//! tenant's endpoints, append one delivery each and, when those are acknowledged, the route that says who was matched.
//! The appends of many events are under way at once; an event's offset is resolved when all of its appends are
//! acknowledged. If one is not, the stage starts again from its commit and repeats everything after it in order; the
//! copies that had landed are dropped by deliver.

mod repeats;
mod routing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use postrider_daemon::telemetry;
use postrider_log::{
    AppendError, Assignment, Clock, Generation, NewRecord, Offset, Partition, Producer, Record,
    Target,
};
use postrider_model::delivery::Route;
use postrider_model::event::{Event, EventPosition};
use postrider_model::ids::EndpointId;
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
use crate::stage::{Preparation, Stage, StageContext, StageError, run_stage};
use crate::view::{CurrentView, Needed};
use repeats::RepeatWindow;
use routing::{Head, Routing, Taken, Unjudged};

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
    let make = |producer, _: Lease| FanOut::new(context.clone(), producer);
    run_stage(&stage, stop, make).await;
}

/// The stage over `events`.
struct FanOut {
    context: FanOutContext,
    producer: Arc<dyn Producer>,
    view: CurrentView,
    repeats: RepeatWindow,
    /// Records whose turn has not come, in order. They fit the group's prefetch: no more is taken while there are any.
    waiting: VecDeque<Taken>,
    head: Option<Head>,
    routed: FuturesUnordered<Routed>,
    in_flight: Vec<(Partition, usize)>,
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
    fn new(context: FanOutContext, producer: Arc<dyn Producer>) -> Self {
        let window = Duration::from_millis(context.config.repeat_window_ms);
        Self {
            view: CurrentView::new(context.registry.clone()),
            repeats: RepeatWindow::new(window, context.config.repeat_window_ids_max),
            context,
            producer,
            waiting: VecDeque::new(),
            head: None,
            routed: FuturesUnordered::new(),
            in_flight: Vec::new(),
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
                    self.head = Some(Head::Routing(Box::new(self.judge(*unjudged))));
                }
                Some(Head::Routing(mut routing)) => {
                    if !routing.append_all(&*self.producer) {
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
            let context = EventContext {
                position: position_of(record),
                appended_at_ms: record.timestamp_ms,
                traceparent: header(record, "traceparent"),
            };
            let event = Event::decode(record.value.as_ref().unwrap_or(&Bytes::new()), context);
            let span = telemetry::processing(EVENTS, record.partition, record.offset);
            if !telemetry::follow(&span, &record.headers)
                && let Ok(event) = &event
            {
                telemetry::set_parent(&span, &event.trace.traceparent, &event.trace.tracestate);
            }
            match event {
                Ok(event) => {
                    return Some(Head::Unjudged(Box::new(Unjudged { event, taken, span })));
                }
                Err(invalid) => span.in_scope(|| self.refuse(taken, &invalid)),
            }
        }
    }

    fn may_judge(&mut self, unjudged: &Unjudged) -> bool {
        let Unjudged { event, taken, .. } = unjudged;
        self.repeats.has_seen(event, position_of(&taken.record))
            || self.view.suffices(
                Needed::for_event(event, &self.context.registry),
                taken.received,
            )
    }

    /// Says who gets an event.
    fn judge(&mut self, unjudged: Unjudged) -> Routing {
        let event = &unjudged.event;
        let position = position_of(&unjudged.taken.record);
        let repeated = self.repeats.is_repeat(event, position);
        let matched = if repeated {
            self.context.metrics.events_repeated.inc();
            Matched {
                registry: self.context.registry.stamp(),
                endpoints: Vec::new(),
            }
        } else {
            self.context.registry.wanting(event)
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
        Routing::new(unjudged, route, matched)
    }

    /// Waits, beside everything else, until an event's deliveries are acknowledged, and only then appends its route, so
    /// that a route never names an endpoint that got nothing. A delivery too large for its topic makes the event a
    /// dead letter.
    fn track(&mut self, routing: Routing) {
        let producer = self.producer.clone();
        let context = self.context.clone();
        let Routing {
            record,
            generation,
            route,
            span,
            deliveries,
            ..
        } = routing;
        let (partition, offset) = (record.partition, record.offset);
        let routed = async move {
            let mut too_large = 0_usize;
            for delivery in join_all(deliveries).await {
                match delivery {
                    Ok(_) => {}
                    Err(AppendError::TooLarge) => too_large += 1,
                    Err(source) => {
                        return Err(StageError::Append {
                            topic: DELIVERIES,
                            source,
                        });
                    }
                }
            }
            append_route(&*producer, &route).await;
            if too_large > 0 {
                let detail = format!(
                    "the deliveries to {too_large} endpoints are larger than the topic takes"
                );
                bury(&*producer, &context, &record, Reason::TooLarge, detail).await;
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

    fn refuse(&mut self, taken: Taken, invalid: &InvalidRecord) {
        let Taken {
            record, generation, ..
        } = taken;
        let producer = self.producer.clone();
        let context = self.context.clone();
        let (reason, detail) = (invalid.reason(), invalid.to_string());
        let (partition, offset) = (record.partition, record.offset);
        let buried = async move {
            bury(&*producer, &context, &record, reason, detail).await;
            Ok((partition, generation, offset))
        };
        self.push(partition, buried.in_current_span().boxed());
    }
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
    let mut letter = dead_letter::of_record(EVENTS, record, reason, detail.clone(), cap, now_ms);
    if dead_letter::write(producer, &context.metrics, &letter)
        .await
        .is_err()
    {
        letter = dead_letter::of_record(EVENTS, record, reason, detail, 0, now_ms);
        if dead_letter::write(producer, &context.metrics, &letter)
            .await
            .is_err()
        {
            tracing::error!(
                dead_letter = letter.id,
                "even an empty dead letter is too large for its topic"
            );
        }
    }
}

impl Stage for FanOut {
    const TOPIC: &'static str = EVENTS;
    const GROUP: &'static str = GROUP_FAN_OUT;
    const LINGER: Duration = Duration::ZERO;

    type Prepared = ();

    fn prepare(&self, _: &Assignment) -> Preparation<()> {
        let registry = self.context.registry.clone();
        Box::pin(async move {
            registry.caught_up().await;
            Ok(())
        })
    }

    fn begin(&mut self, _: &Assignment, (): ()) {}

    fn has_room(&self) -> bool {
        self.waiting.is_empty()
            && self.head.is_none()
            && self.routed.len() < self.context.config.events_in_flight_max
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
        let had_room = self.has_room();
        let halt = self.advance();
        let mut resolved = Vec::new();
        if self.has_room() == had_room {
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
        self.repeats.forget(partition);
    }
}

fn position_of(record: &Record) -> EventPosition {
    EventPosition {
        partition: record.partition,
        offset: record.offset,
    }
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().find(|(key, _)| key == name)?;
    std::str::from_utf8(value).ok()
}
