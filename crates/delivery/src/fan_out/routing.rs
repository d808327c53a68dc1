//! The event whose turn it is, from its record to the last of its appends that had to wait for
//! room.

use std::sync::Arc;

use bytes::Bytes;
use postrider_log::{Append, Generation, NewRecord, Partition, Producer, Record, Target};
use postrider_model::delivery::{Delivery, Route};
use postrider_model::endpoint::Endpoint;
use postrider_model::event::Event;
use postrider_model::identity::RegistryStamp;
use postrider_model::topics::DELIVERIES;
use postrider_registry::Matched;
use tracing::Span;

use super::repeats::{Fingerprint, Repeat};
use crate::durable::Waiting;

/// A record that was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) record: Record,
    pub(super) generation: Generation,
    /// Its number among those that were received.
    pub(super) received: u64,
}

/// An event that nothing was concluded for yet.
#[derive(Debug)]
pub(super) struct Unjudged {
    pub(super) event: Event,
    pub(super) taken: Taken,
    pub(super) fingerprint: Fingerprint,
    pub(super) repeat: Repeat,
    pub(super) span: Span,
}

/// An event whose endpoints are known and whose deliveries are being appended.
#[derive(Debug)]
pub(super) struct Routing {
    pub(super) event: Event,
    pub(super) record: Record,
    pub(super) generation: Generation,
    pub(super) route: Route,
    pub(super) span: Span,
    matched_at: RegistryStamp,
    endpoints: std::vec::IntoIter<Arc<Endpoint>>,
    /// The next append, which found the producer's queue full.
    waiting: Option<Waiting>,
    /// Those that were begun.
    pub(super) deliveries: Vec<Append>,
}

/// How far the event is whose turn it is.
#[derive(Debug)]
pub(super) enum Head {
    Unjudged(Box<Unjudged>),
    Routing(Box<Routing>),
}

impl Head {
    pub(super) fn partition(&self) -> Partition {
        match self {
            Self::Unjudged(unjudged) => unjudged.taken.record.partition,
            Self::Routing(routing) => routing.record.partition,
        }
    }
}

impl Routing {
    pub(super) fn new(unjudged: Unjudged, route: Route, matched: Matched) -> Self {
        let Unjudged {
            event, taken, span, ..
        } = unjudged;
        let Matched {
            registry,
            endpoints,
        } = matched;
        Self {
            event,
            record: taken.record,
            generation: taken.generation,
            route,
            span,
            deliveries: Vec::with_capacity(endpoints.len()),
            matched_at: registry,
            endpoints: endpoints.into_iter(),
            waiting: None,
        }
    }

    /// Begins the appends one after the other, as far as there is room; whether all have begun.
    /// Until then nothing later may be appended, so order holds.
    pub(super) fn append_all(&mut self, producer: &dyn Producer) -> bool {
        let span = self.span.clone();
        let _entered = span.enter();
        while let Some(waiting) = self.waiting.take().or_else(|| self.next_delivery()) {
            let Some(append) = waiting.start(producer) else {
                self.waiting = Some(waiting);
                return false;
            };
            self.deliveries.push(append);
        }
        true
    }

    fn next_delivery(&mut self) -> Option<Waiting> {
        let endpoint = self.endpoints.next()?;
        let delivery = Delivery {
            event: self.event.clone(),
            endpoint: endpoint.id.clone(),
            position: self.route.position,
            run: 0,
            attempt: 1,
            registry: self.matched_at,
            due_at_ms: 0,
            ordered: endpoint.ordered.is_some(),
        };
        let record = NewRecord {
            key: Bytes::copy_from_slice(endpoint.id.as_str().as_bytes()),
            value: Some(delivery.encode()),
            headers: Vec::new(),
        };
        Some(Waiting::new(DELIVERIES, Target::Key, record))
    }
}
