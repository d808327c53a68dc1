//! Many events in one request, each with a result of its own.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use postrider_model::ids::EventId;
use serde::Serialize;
use tokio::time::Instant;

use super::input::{self, Stamp};
use super::{IDEMPOTENCY_KEY, append, count};
use crate::items;
use crate::problem::{FieldError, Problem};
use crate::request::{self, JSON, JSON_LINES, Segments};
use crate::shared::{ApiState, Shared};

/// Events of one request that wait for the log at a time.
const IN_FLIGHT_MAX: usize = 32;

/// The answer about a batch.
#[derive(Debug, Serialize)]
struct BatchView {
    accepted: usize,
    refused: usize,
    /// One for each event, in their order.
    results: Vec<ResultView>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum ResultView {
    /// The log has it durably.
    Accepted { id: EventId },
    Refused {
        /// Under which it is to be published again; none if it cannot be read.
        id: Option<EventId>,
        /// Last part of the problem's type.
        problem: &'static str,
        detail: String,
        errors: Vec<FieldError>,
        /// In how many seconds to publish it again; none: it will be refused again.
        retry_after: Option<u32>,
    },
}

impl ResultView {
    fn refused(id: Option<EventId>, problem: Problem) -> Self {
        Self::Refused {
            id,
            problem: problem.slug(),
            detail: match &problem {
                Problem::PerhapsTaken { .. } => {
                    "the log did not answer in time, so the event may have been accepted".to_owned()
                }
                other => other.to_string(),
            },
            retry_after: problem.retry_after_s(),
            errors: match problem {
                Problem::Invalid(errors) => errors,
                _ => Vec::new(),
            },
        }
    }
}

/// `POST /v1/tenants/{tenant}/events/batch`: a JSON array, or JSON lines. Answered 202 only if each
/// event is accepted; else 207, and the results say which.
pub(crate) async fn publish(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let results = accept_all(&api, &tenant, &headers, body).await;
    let results = results.inspect_err(|problem| api.metrics.event_refused(problem.slug()))?;
    let is_accepted = |result: &&ResultView| matches!(result, ResultView::Accepted { .. });
    let accepted = results.iter().filter(is_accepted).count();
    let refused = results.len() - accepted;
    let status = match refused {
        0 => StatusCode::ACCEPTED,
        _ => StatusCode::MULTI_STATUS,
    };
    let view = BatchView {
        accepted,
        refused,
        results,
    };
    Ok((status, Json(view)).into_response())
}

async fn accept_all(
    api: &Shared,
    tenant: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Vec<ResultView>, Problem> {
    let config = &api.config;
    let parse = match request::media_type(headers).as_deref() {
        Some(JSON) => events_of_array,
        Some(JSON_LINES) => events_of_lines,
        _ => {
            let expected = "application/json or application/x-ndjson";
            return Err(Problem::MediaType { expected });
        }
    };
    if headers.contains_key(IDEMPOTENCY_KEY) {
        let detail = "names one event, and a batch has many: give each its `id`";
        return Err(Problem::field("Idempotency-Key", detail));
    }
    let bytes_max = config.batch_bytes_max;
    // Of what does not say how long it is, room is kept for what comes.
    let announced = request::content_length(headers).unwrap_or(config.event_bytes_max);
    if announced > bytes_max {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    let mut admitted = api.admission.admit(announced)?;
    let tenant = api.tenant(tenant).await?;
    let at_most = config.body_timeout();
    let body = request::read_admitted(headers, body, bytes_max, at_most, &mut admitted).await?;
    let events = parse(&body, config.batch_events_max)?;
    drop(body);
    let stamp = Stamp {
        tenant,
        now_ms: api.clock.now_ms(),
        registry: api.registry.stamp(),
        trace: request::trace_context(headers),
    };
    let deadline = Instant::now() + config.append_timeout();
    // Begun one after the other, so that events of one ordering key keep their order.
    let results = stream::iter(events)
        .map(|event| accept(api, event, stamp.clone(), deadline))
        .buffered(IN_FLIGHT_MAX);
    Ok(results.collect().await)
}

/// Takes one event, unless the batch has taken too long already.
async fn accept(api: &Shared, event: Bytes, stamp: Stamp, deadline: Instant) -> ResultView {
    let stamp = Stamp {
        now_ms: api.clock.now_ms(),
        ..stamp
    };
    let read = read(api, &event, stamp);
    let id = read.as_ref().ok().map(|read| read.event.id.clone());
    let appended = async {
        let read = read?;
        if Instant::now() >= deadline {
            return Err(Problem::NotTaken);
        }
        let _place = api.admission.place()?;
        append(api, read.event).await
    };
    let accepted = appended.await;
    count(api, accepted.as_ref());
    match accepted {
        Ok(id) => ResultView::Accepted { id },
        Err(problem) => ResultView::refused(id, problem),
    }
}

fn read(api: &Shared, event: &Bytes, stamp: Stamp) -> Result<input::Read, Problem> {
    let bytes_max = api.config.event_bytes_max;
    if event.len() > bytes_max {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    input::from_json(event, stamp)
}

fn events_of_array(body: &Bytes, max: usize) -> Result<Vec<Bytes>, Problem> {
    let items = items::of_array(body, max)?.into_iter();
    Ok(items
        .map(|item| body.slice_ref(item.get().as_bytes()))
        .collect())
}

/// A line that is no JSON has a result of its own.
fn events_of_lines(body: &Bytes, max: usize) -> Result<Vec<Bytes>, Problem> {
    let lines = items::of_lines(body, max)?.into_iter();
    Ok(lines.map(|(_, line)| body.slice_ref(line)).collect())
}
