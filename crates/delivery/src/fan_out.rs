//! Fan-out: an event becomes one delivery for each endpoint that wants it.
//!
//! Events of a partition are taken in order: wait for the registry position the event was accepted at, match the
//! tenant's endpoints, append one delivery each and, when those are acknowledged, the route that says who was matched. The appends of many
//! events are under way at once; an event's offset is resolved when all of its appends are acknowledged. If one is
//! not, the stage starts again from its commit and repeats everything after it in order; the copies that had landed
//! are dropped by deliver.

mod repeats;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use postrider_daemon::telemetry;
use postrider_log::{
    Append, AppendError, Assignment, Clock, Generation, NewRecord, Offset, Partition, Producer,
    Record, Target,
};
use postrider_model::delivery::{Delivery, Route};
use postrider_model::endpoint::Endpoint;
use postrider_model::event::{Event, EventPosition};
use postrider_model::ids::EndpointId;
use postrider_model::outcome::Reason;
use postrider_model::topics::{DELIVERIES, EVENTS, GROUP_FAN_OUT, ROUTES};
use postrider_model::wire::{EventContext, InvalidRecord};
use postrider_registry::{Matched, Registry};

use crate::config::FanOutConfig;
use crate::dead_letter;
use crate::durable::{append_durably, append_when_room};
use crate::metrics::DeliveryMetrics;
use crate::progress::Lease;
use crate::stage::{Stage, StageContext, StageError, run_stage};
use crate::view::as_new_as;
use repeats::RepeatWindow;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

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
    repeats: RepeatWindow,
    routed: FuturesUnordered<Routed>,
    in_flight: Vec<(Partition, usize)>,
}

impl FanOut {
    /// A stage that owns nothing yet.
    fn new(context: FanOutContext, producer: Arc<dyn Producer>) -> Self {
        let window = Duration::from_millis(context.config.repeat_window_ms);
        Self {
            repeats: RepeatWindow::new(window, context.config.repeat_window_ids_max),
            context,
            producer,
            routed: FuturesUnordered::new(),
            in_flight: Vec::new(),
        }
    }

    async fn route(&mut self, event: Event, record: Record, generation: Generation) {
        let position = EventPosition {
            partition: record.partition,
            offset: record.offset,
        };
        let repeated = self.repeats.is_repeat(&event, position);
        let matched = if repeated {
            self.context.metrics.events_repeated.inc();
            Matched {
                position: self.context.registry.position(),
                endpoints: Vec::new(),
            }
        } else {
            as_new_as(&self.context.registry, event.registry_position).await;
            self.context.registry.wanting(&event)
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
            registry_position: matched.position,
            accepted_at_ms: event.accepted_at_ms,
            routed_at_ms: self.context.clock.now_ms(),
            repeated_event: repeated,
            traceparent: event.trace.traceparent.clone(),
            endpoints,
        };
        let deliveries =
            append_deliveries(&*self.producer, &event, &route, &matched.endpoints).await;
        self.context.metrics.events_routed.inc();
        self.track(record, generation, route, deliveries);
    }

    /// Waits, beside everything else, until an event's deliveries are acknowledged, and only then appends its route, so
    /// that a route never names an endpoint that got nothing. A delivery too large for its topic makes the event a
    /// dead letter.
    fn track(
        &mut self,
        record: Record,
        generation: Generation,
        route: Route,
        deliveries: Vec<Append>,
    ) {
        let producer = self.producer.clone();
        let context = self.context.clone();
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
        self.push(partition, routed.in_current_span().boxed());
    }

    fn push(&mut self, partition: Partition, routed: Routed) {
        self.routed.push(routed);
        match self.in_flight.iter_mut().find(|(p, _)| *p == partition) {
            Some((_, count)) => *count += 1,
            None => self.in_flight.push((partition, 1)),
        }
    }

    fn refuse(&mut self, record: Record, generation: Generation, invalid: &InvalidRecord) {
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

async fn append_deliveries(
    producer: &dyn Producer,
    event: &Event,
    route: &Route,
    endpoints: &[Arc<Endpoint>],
) -> Vec<Append> {
    let mut appended = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let delivery = Delivery {
            event: event.clone(),
            endpoint: endpoint.id.clone(),
            position: route.position,
            run: 0,
            attempt: 1,
            registry_position: route.registry_position,
            due_at_ms: 0,
            ordered: endpoint.ordered.is_some(),
        };
        let key = Bytes::copy_from_slice(endpoint.id.as_str().as_bytes());
        let record = NewRecord {
            key,
            value: Some(delivery.encode()),
            headers: Vec::new(),
        };
        appended.push(append_when_room(producer, DELIVERIES, Target::Key, record).await);
    }
    appended
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

    async fn assigned(&mut self, _: &[Assignment]) -> Result<(), StageError> {
        self.context.registry.caught_up().await;
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.routed.len() < self.context.config.events_in_flight_max
    }

    async fn take(&mut self, record: Record, generation: Generation) -> Result<(), StageError> {
        let context = EventContext {
            position: EventPosition {
                partition: record.partition,
                offset: record.offset,
            },
            appended_at_ms: record.timestamp_ms,
            traceparent: header(&record, "traceparent"),
        };
        let event = Event::decode(record.value.as_ref().unwrap_or(&Bytes::new()), context);
        let span = telemetry::processing(EVENTS, record.partition, record.offset);
        if !telemetry::follow(&span, &record.headers)
            && let Ok(event) = &event
        {
            telemetry::set_parent(&span, &event.trace.traceparent, &event.trace.tracestate);
        }
        match event {
            Ok(event) => self.route(event, record, generation).instrument(span).await,
            Err(invalid) => span.in_scope(|| self.refuse(record, generation, &invalid)),
        }
        Ok(())
    }

    async fn progress(&mut self) -> Result<Vec<(Partition, Generation, Offset)>, StageError> {
        let Some(first) = self.routed.next().await else {
            return std::future::pending().await;
        };
        let mut resolved = vec![first?];
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

    fn pauses(&mut self) -> Vec<(Partition, bool)> {
        Vec::new()
    }

    fn metadata(&mut self, _: Partition, _: Offset) -> String {
        String::new()
    }

    fn drain(&mut self, _: &[Partition]) {}

    fn cut(&mut self, _: &[Partition]) {}

    fn is_idle(&self, partition: Partition) -> bool {
        self.in_flight
            .iter()
            .all(|(p, count)| *p != partition || *count == 0)
    }

    fn forget(&mut self, partition: Partition) {
        self.repeats.forget(partition);
    }
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().find(|(key, _)| key == name)?;
    std::str::from_utf8(value).ok()
}
