//! Events, as producers and ingest write them.

use bytes::Bytes;
use prost::Message;

use super::{
    InvalidRecord, field, message, position_from_proto, position_to_proto, proto,
    registry_id_to_proto, registry_stamp,
};
use crate::delivery::Route;
use crate::event::{Event, EventPosition, TraceContext};
use crate::filter::EventTypeName;
use crate::ids::{EndpointId, EventId, TenantId};
use crate::payload;

/// Longest ordering key in bytes.
pub const ORDERING_KEY_BYTES_MAX: usize = 128;
/// Longest `traceparent` carried on: twice what the present version of Trace Context needs.
const TRACEPARENT_BYTES_MAX: usize = 128;
/// Longest `tracestate` carried on: what Trace Context asks everyone to carry.
const TRACESTATE_BYTES_MAX: usize = 512;

/// What is known of an event's record besides its value.
#[derive(Debug, Clone, Copy)]
pub struct EventContext<'a> {
    /// Which record it is.
    pub position: EventPosition,
    /// Its `traceparent` header.
    pub traceparent: Option<&'a str>,
}

impl Event {
    /// The value of its record in `events`.
    pub fn encode(&self) -> Bytes {
        event_to_proto(self).encode_to_vec().into()
    }

    /// Reads the value of a record in `events`, and sets what the producer left out: the id from
    /// which record it is, the same at every reading; times from the append; trace context from the
    /// header.
    ///
    /// # Errors
    /// When it is malformed or asks for something that is not supported.
    pub fn decode(value: &Bytes, context: EventContext<'_>) -> Result<Self, InvalidRecord> {
        let mut event: proto::Event = message("event", value.clone())?;
        if event.id.is_empty() {
            event.id = derived_id(context.position);
        }
        let appended_at_ms = context.position.appended_at_ms;
        if event.occurred_at_ms == 0 {
            event.occurred_at_ms = appended_at_ms;
        }
        if event.accepted_at_ms == 0 {
            event.accepted_at_ms = appended_at_ms;
        }
        if event.traceparent.is_empty() {
            event.traceparent = context.traceparent.unwrap_or_default().to_owned();
        }
        event_from_proto(event)
    }
}

/// The id of an event whose producer gave none. Receivers drop an id that comes again, so it must
/// not with another event: the offset alone does not do.
fn derived_id(position: EventPosition) -> String {
    let EventPosition {
        partition,
        offset,
        appended_at_ms,
    } = position;
    format!("evt_p{partition}_{offset}_{appended_at_ms}")
}

pub(super) fn event_to_proto(event: &Event) -> proto::Event {
    proto::Event {
        id: event.id.as_str().to_owned(),
        tenant: event.tenant.as_str().to_owned(),
        r#type: event.event_type.as_str().to_owned(),
        occurred_at_ms: event.occurred_at_ms,
        data: event.data.clone(),
        data_content_type: String::new(),
        ordering_key: event.ordering_key.clone(),
        channels: Vec::new(),
        source: String::new(),
        registry_position: event.registry.position,
        registry_id: registry_id_to_proto(event.registry),
        accepted_at_ms: event.accepted_at_ms,
        traceparent: event.trace.traceparent.clone(),
        tracestate: event.trace.tracestate.clone(),
    }
}

/// An event with everything set.
pub(super) fn event_from_proto(event: proto::Event) -> Result<Event, InvalidRecord> {
    refuse_unsupported(&event)?;
    if event.ordering_key.len() > ORDERING_KEY_BYTES_MAX {
        let detail = format!("must be at most {ORDERING_KEY_BYTES_MAX} bytes");
        return Err(InvalidRecord::malformed("ordering_key", detail));
    }
    if !payload::is_representable(event.occurred_at_ms) {
        return Err(InvalidRecord::malformed(
            "occurred_at_ms",
            "must be in the years 1 to 9999",
        ));
    }
    Ok(Event {
        id: field("id", EventId::try_new(&event.id))?,
        tenant: field("tenant", TenantId::try_new(&event.tenant))?,
        event_type: field("type", EventTypeName::try_new(&event.r#type))?,
        occurred_at_ms: event.occurred_at_ms,
        data: event.data,
        ordering_key: event.ordering_key,
        registry: registry_stamp(event.registry_id, event.registry_position),
        accepted_at_ms: event.accepted_at_ms,
        trace: TraceContext {
            traceparent: header_or_nothing(event.traceparent, TRACEPARENT_BYTES_MAX),
            tracestate: header_or_nothing(event.tracestate, TRACESTATE_BYTES_MAX),
        },
    })
}

fn refuse_unsupported(event: &proto::Event) -> Result<(), InvalidRecord> {
    let is_json = event.data_content_type.is_empty()
        || event
            .data_content_type
            .eq_ignore_ascii_case(payload::CONTENT_TYPE);
    if !is_json {
        return Err(InvalidRecord::Unsupported {
            field: "data_content_type",
        });
    }
    if !event.channels.is_empty() {
        return Err(InvalidRecord::Unsupported { field: "channels" });
    }
    if !event.source.is_empty() {
        return Err(InvalidRecord::Unsupported { field: "source" });
    }
    Ok(())
}

/// A trace context that could be no header is dropped, as Trace Context asks: an event is not held
/// up for it.
fn header_or_nothing(value: String, bytes_max: usize) -> String {
    let fits = value.len() <= bytes_max && value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if fits { value } else { String::new() }
}

impl Route {
    /// The value of its record in `routes`.
    pub fn encode(&self) -> Bytes {
        let route = proto::Route {
            event_id: self.event_id.as_str().to_owned(),
            tenant: self.tenant.as_str().to_owned(),
            event_type: self.event_type.as_str().to_owned(),
            position: Some(position_to_proto(self.position)),
            registry_position: self.registry_position,
            endpoint_ids: self
                .endpoints
                .iter()
                .map(|id| id.as_str().to_owned())
                .collect(),
            accepted_at_ms: self.accepted_at_ms,
            routed_at_ms: self.routed_at_ms,
            repeated_event: self.repeated_event,
            traceparent: self.traceparent.clone(),
        };
        route.encode_to_vec().into()
    }

    /// Reads the value of a record in `routes`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(value: &[u8]) -> Result<Self, InvalidRecord> {
        let route: proto::Route = message("route", value)?;
        let endpoints = route.endpoint_ids.iter().map(|id| EndpointId::try_new(id));
        Ok(Self {
            event_id: field("event_id", EventId::try_new(&route.event_id))?,
            tenant: field("tenant", TenantId::try_new(&route.tenant))?,
            event_type: field("event_type", EventTypeName::try_new(&route.event_type))?,
            position: position_from_proto(route.position)?,
            registry_position: route.registry_position,
            endpoints: field("endpoint_ids", endpoints.collect())?,
            accepted_at_ms: route.accepted_at_ms,
            routed_at_ms: route.routed_at_ms,
            repeated_event: route.repeated_event,
            traceparent: route.traceparent,
        })
    }
}
