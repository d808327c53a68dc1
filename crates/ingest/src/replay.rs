//! Replaying: events of a time are delivered to one endpoint, as a run of their own, whether they
//! were before or not. For what an endpoint missed while it was disabled, and for what its owner
//! lost.
//!
//! What is read is `events`, in the time of the log, and what decides is the endpoint as it is now.
//! Events come in the order of their partition, so those of one ordering key in theirs.

use std::collections::BTreeSet;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use postrider_log::Record;
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::event::{Event, EventPosition};
use postrider_model::ids::EventId;
use postrider_model::operational::{self, PROOF_HEADER};
use postrider_model::topics::EVENTS;
use postrider_model::wire::EventContext;
use postrider_registry::Registry;
use serde_json::Value;

use crate::endpoints;
use crate::fields::{self, Fields, parse_object};
use crate::page;
use crate::problem::Problem;
use crate::reading::{Forward, Range, Step};
use crate::request::{self, Segments, TRACEPARENT};
use crate::runs::{self, Run};
use crate::shared::{ApiState, Shared};

/// What is to be replayed.
#[derive(Debug)]
pub(crate) struct Replay {
    command_id: String,
    since_ms: i64,
    /// `None`: everything there is when the command begins.
    until_ms: Option<i64>,
    cursor: Option<Vec<Range>>,
}

impl Replay {
    /// From a time on, up to now.
    pub(crate) fn since(since_ms: i64, command_id: String) -> Self {
        Self {
            command_id,
            since_ms,
            until_ms: None,
            cursor: None,
        }
    }

    fn take(api: &Shared, mut fields: Fields) -> Result<Self, Problem> {
        let command_id = runs::take_command_id(api, &mut fields);
        let since_ms = fields.required("since", fields::time);
        let until_ms = fields.optional("until", fields::time);
        let cursor = page::cursor(&mut fields);
        fields.finish()?;
        let Some(since_ms) = since_ms else {
            unreachable!("what is wrong was noted")
        };
        Ok(Self {
            command_id,
            since_ms,
            until_ms,
            cursor,
        })
    }
}

/// `POST /v1/tenants/{tenant}/endpoints/{endpoint}/replay`
pub(crate) async fn replay(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    request::expect_json(&headers)?;
    let config = &api.config;
    let (bytes_max, at_most) = (config.body_bytes_max, config.body_timeout());
    let body = request::read_body(&headers, body, bytes_max, at_most).await?;
    let replay = Replay::take(&api, Fields::new(parse_object(&body)?))?;
    let found = endpoints::find(&api, &tenant, &id).await?;
    run(&api, &found.value, replay).await.map(Json)
}

/// Appends as much as one request may; the answer says where to go on.
pub(crate) async fn run(
    api: &Shared,
    endpoint: &Endpoint,
    replay: Replay,
) -> Result<Value, Problem> {
    if matches!(endpoint.state, EndpointState::Disabled { .. }) {
        return Err(Problem::WrongState(
            "it is disabled, so nothing would be delivered: enable it first",
        ));
    }
    let mut budget = api.readers.admit(Some(&endpoint.tenant))?;
    let mut topic = api.readers.topic(EVENTS, &budget).await?;
    let ranges = match replay.cursor {
        Some(rest) => topic.checked(rest)?,
        None => {
            topic
                .ranges(0..topic.partitions, Some(replay.since_ms), replay.until_ms)
                .await?
        }
    };
    let mut events = Forward::new(topic, ranges);
    let mut run = Run::new(api, replay.command_id, &api.metrics.events_replayed);
    // A producer may have published an event twice, which counts once.
    let mut seen: BTreeSet<EventId> = BTreeSet::new();
    let rest = loop {
        let records = match events.next(&mut budget).await? {
            Step::Records(records) => records,
            Step::Done => break None,
            Step::Cut => break Some(events.rest()),
        };
        let mut full = None;
        for record in &records {
            let Some((event, position)) = wanted_event(&api.registry, record, endpoint) else {
                continue;
            };
            if seen.len() >= api.config.replay_deliveries_max.max(1) {
                full = Some(record);
                break;
            }
            let id = event.id.clone();
            if seen.insert(id.clone()) {
                run.add(id.as_str(), event, position, &endpoint.id).await?;
            }
        }
        if let Some(record) = full {
            events.back_to(record);
            break Some(events.rest());
        }
    };
    run.flush().await?;
    Ok(run.answer("replayed", rest.as_ref()))
}

/// The event of a record, if it is one that the endpoint wants.
fn wanted_event(
    registry: &Registry,
    record: &Record,
    endpoint: &Endpoint,
) -> Option<(Event, EventPosition)> {
    let position = EventPosition {
        partition: record.partition,
        offset: record.offset,
        appended_at_ms: record.timestamp_ms,
    };
    let header = |name| {
        let mut headers = record.headers.iter();
        let (_, value) = headers.find(|(known, _)| known == name)?;
        std::str::from_utf8(value).ok()
    };
    let context = EventContext {
        position,
        traceparent: header(TRACEPARENT),
    };
    let value = record.value.as_ref()?;
    let event = Event::decode(value, context).ok()?;
    let wanted = event.tenant == endpoint.tenant
        && endpoint.event_types.matches(&event.event_type)
        && !operational::is_about(&event, &endpoint.id)
        && (!event.event_type.is_reserved()
            || registry.is_own(&event, value, header(PROOF_HEADER)));
    wanted.then_some((event, position))
}
