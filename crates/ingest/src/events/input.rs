//! An event as published, and what ingest adds to it. Pure but for the random part of a new id.

use axum::http::HeaderMap;
use bytes::Bytes;
use postrider_model::event::{Event, EventPosition, TraceContext};
use postrider_model::filter::EventTypeName;
use postrider_model::identity::RegistryStamp;
use postrider_model::ids::{EventId, TenantId};
use postrider_model::wire::{EventContext, InvalidRecord, ORDERING_KEY_BYTES_MAX, proto};
use prost::Message;
use serde_json::{Map, Value};

use crate::fields::{Fields, RawObject, json_problem, parsed, text, time};
use crate::ids;
use crate::problem::Problem;

/// Another spelling of an event's id.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";
const DATA: &str = "data";
const NOT_YET: &str = "is not supported yet";

/// An event, and whether its producer named it.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) event: Event,
    is_named: bool,
}

/// The event under the id that the header names, as text or as a string in quotes
/// (draft-ietf-httpapi-idempotency-key-header): it is another spelling of the event's own.
pub(crate) fn with_key(read: Read, headers: &HeaderMap) -> Result<Event, Problem> {
    const HEADER: &str = "Idempotency-Key";
    let Read { event, is_named } = read;
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(event);
    };
    if values.next().is_some() {
        return Err(Problem::field(HEADER, "is given twice"));
    }
    let text = value
        .to_str()
        .map_err(|_| Problem::field(HEADER, "must be text"))?;
    let quoted = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    let id = EventId::try_new(quoted.unwrap_or(text));
    let id = id.map_err(|error| Problem::field(HEADER, error))?;
    if is_named && id != event.id {
        return Err(Problem::field(
            HEADER,
            "must be the event's `id`, or absent",
        ));
    }
    Ok(Event { id, ..event })
}

/// What ingest knows of every event.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    pub(crate) tenant: TenantId,
    pub(crate) now_ms: i64,
    pub(crate) registry: RegistryStamp,
    pub(crate) trace: TraceContext,
}

/// Reads `{type, data, id?, occurred_at?, ordering_key?}`. Data stays the bytes that came,
/// whitespace, order of names and form of numbers included.
pub(crate) fn from_json(body: &Bytes, stamp: Stamp) -> Result<Read, Problem> {
    let RawObject(mut raw) = RawObject::parse(body)?;
    let data = raw
        .remove(DATA)
        .map(|data| body.slice_ref(data.get().as_bytes()));
    let mut values = Map::new();
    for (name, value) in raw {
        let value: Value =
            serde_json::from_str(value.get()).map_err(|error| json_problem(&error))?;
        values.insert(name, value);
    }
    let mut fields = Fields::new(values);
    let event_type = fields.required("type", parsed(publishable_type));
    let id = fields.optional("id", parsed(EventId::try_new));
    let occurred_at_ms = fields.optional("occurred_at", time);
    let ordering_key = fields.optional("ordering_key", text(ORDERING_KEY_BYTES_MAX));
    fields.refuse("channels", NOT_YET);
    fields.refuse("source", NOT_YET);
    if data.is_none() {
        fields.wrong(DATA, "is required");
    }
    fields.finish()?;
    let (Some(event_type), Some(data)) = (event_type, data) else {
        unreachable!("what is required and missing was refused")
    };
    let is_named = id.is_some();
    let event = Event {
        id: id.unwrap_or_else(|| ids::new_event_id(stamp.now_ms)),
        tenant: stamp.tenant,
        event_type,
        occurred_at_ms: occurred_at_ms.unwrap_or(stamp.now_ms),
        data,
        ordering_key: ordering_key.unwrap_or_default(),
        registry: stamp.registry,
        accepted_at_ms: stamp.now_ms,
        trace: stamp.trace,
    };
    Ok(Read { event, is_named })
}

/// Reads a `postrider.v1.Event`. The tenant may be left out, since the path names it.
pub(crate) fn from_protobuf(body: &Bytes, stamp: Stamp) -> Result<Read, Problem> {
    let mut event = proto::Event::decode(body.clone()).map_err(|error| Problem::Syntax {
        format: "postrider.v1.Event",
        detail: error.to_string(),
    })?;
    if !event.tenant.is_empty() && event.tenant != stamp.tenant.as_str() {
        return Err(Problem::field(
            "tenant",
            "must be empty or that of the path",
        ));
    }
    event.tenant = stamp.tenant.to_string();
    let is_named = !event.id.is_empty();
    if !is_named {
        event.id = ids::new_event_id(stamp.now_ms).to_string();
    }
    event.registry_position = stamp.registry.position;
    event.registry_id = Some(stamp.registry.registry_id);
    event.accepted_at_ms = stamp.now_ms;
    if event.traceparent.is_empty() {
        event.traceparent = stamp.trace.traceparent;
        event.tracestate = stamp.trace.tracestate;
    }
    // Read as fan-out will read it, so that what it would not understand is refused here. The
    // position is not used: the event has an id.
    let context = EventContext {
        position: EventPosition {
            partition: 0,
            offset: 0,
            appended_at_ms: stamp.now_ms,
        },
        traceparent: None,
    };
    let event =
        Event::decode(&event.encode_to_vec().into(), context).map_err(|error| match error {
            InvalidRecord::Unsupported { field } => Problem::field(field, NOT_YET),
            InvalidRecord::Malformed { field, detail } => Problem::field(field, detail),
        })?;
    if event.event_type.is_reserved() {
        return Err(Problem::field("type", RESERVED));
    }
    Ok(Read { event, is_named })
}

const RESERVED: &str = "must not begin with `postrider.`, which is reserved";

fn publishable_type(text: &str) -> Result<EventTypeName, String> {
    let event_type = EventTypeName::try_new(text).map_err(|error| error.to_string())?;
    if event_type.is_reserved() {
        Err(RESERVED.to_owned())
    } else {
        Ok(event_type)
    }
}
