//! Publishing: an event is taken apart, checked, appended, and accepted only when the log has it
//! durably.

mod batch;
mod input;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use postrider_log::{AppendError, NewRecord};
use postrider_model::event::{Event, TraceContext};
use postrider_model::ids::EventId;
use postrider_model::topics;
use serde_json::json;
use tokio::time::Instant;

use self::input::{IDEMPOTENCY_KEY, Stamp};
use crate::problem::Problem;
use crate::request::{self, JSON, PROTOBUF, Segments};
use crate::shared::{ApiState, Shared};

pub(crate) use self::batch::publish as publish_batch;

/// `POST /v1/tenants/{tenant}/events`
pub(crate) async fn publish(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let accepted = accept(&api, &tenant, &headers, body).await;
    count(&api, accepted.as_ref());
    accepted.map(|id| (StatusCode::ACCEPTED, Json(json!({ "id": id }))).into_response())
}

fn count(api: &Shared, accepted: Result<&EventId, &Problem>) {
    match accepted {
        Ok(_) => api.metrics.events_accepted.inc(),
        Err(problem) => api.metrics.event_refused(problem.slug()),
    }
}

async fn accept(
    api: &Arc<Shared>,
    tenant: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<EventId, Problem> {
    let bytes_max = api.config.event_bytes_max;
    let announced = request::content_length(headers).unwrap_or(bytes_max);
    if announced > bytes_max {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    let parse = match request::media_type(headers).as_deref() {
        Some(JSON) => input::from_json,
        Some(PROTOBUF) => input::from_protobuf,
        _ => {
            let expected = "application/json or application/x-protobuf";
            return Err(Problem::MediaType { expected });
        }
    };
    let mut admitted = api.admission.admit(announced)?;
    let tenant = api.tenant(tenant).await?;
    let at_most = api.config.body_timeout();
    let body = request::read_admitted(headers, body, bytes_max, at_most, &mut admitted).await?;
    let stamp = Stamp {
        tenant,
        now_ms: api.clock.now_ms(),
        registry: api.registry.stamp(),
        trace: request::trace_context(headers),
    };
    let event = input::with_key(parse(&body, stamp)?, headers)?;
    // While the log takes its time, only the record is kept.
    drop(body);
    append(api, event).await
}

fn record(event: Event) -> (NewRecord, EventId, TraceContext) {
    let record = NewRecord {
        key: topics::event_key(&event.tenant, &event.ordering_key, &event.id),
        value: Some(event.encode()),
        headers: Vec::new(),
    };
    (record, event.id, event.trace)
}

async fn append(api: &Shared, event: Event) -> Result<EventId, Problem> {
    let (record, id, trace) = record(event);
    let began = Instant::now();
    let fate = api.producing.append(topics::EVENTS, record, &trace).await;
    match fate {
        Ok(_) => {
            api.admission.waited(began.elapsed());
            Ok(id)
        }
        Err(AppendError::QueueFull) => Err(api.admission.refuse()),
        Err(AppendError::TooLarge) => {
            Err(Problem::field("", "the event is larger than the log takes"))
        }
        Err(AppendError::Failed(detail)) => {
            tracing::warn!(detail, "event not appended");
            Err(Problem::NotTaken)
        }
        Err(AppendError::Unknown(_)) => Err(Problem::PerhapsTaken { id: id.to_string() }),
    }
}
