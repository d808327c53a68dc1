//! Many events in one request, each with a result of its own.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use postrider_model::ids::EventId;
use serde::Serialize;
use serde_json::value::RawValue;

use super::input::{self, Stamp};
use super::{append, count};
use crate::fields::without_mark;
use crate::problem::{FieldError, Problem};
use crate::request::{self, JSON, JSON_LINES, Segments};
use crate::shared::{ApiState, Shared};

/// Events of one request that wait for the log at a time.
const IN_FLIGHT_MAX: usize = 64;

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
        /// Last part of the problem's type.
        problem: &'static str,
        detail: String,
        errors: Vec<FieldError>,
        /// In how many seconds to publish it again; none: it will be refused again.
        retry_after: Option<u32>,
    },
}

impl ResultView {
    fn of(result: Result<EventId, Problem>) -> Self {
        match result {
            Ok(id) => Self::Accepted { id },
            Err(problem) => Self::Refused {
                problem: problem.slug(),
                detail: problem.to_string(),
                retry_after: problem.retry_after_s(),
                errors: match problem {
                    Problem::Invalid(errors) => errors,
                    _ => Vec::new(),
                },
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
    let config = &api.config;
    let parse = match request::media_type(&headers).as_deref() {
        Some(JSON) => parse_array,
        Some(JSON_LINES) => parse_lines,
        _ => {
            let expected = "application/json or application/x-ndjson";
            return Err(Problem::MediaType { expected });
        }
    };
    let bytes_max = config.batch_bytes_max;
    let announced = request::content_length(&headers).unwrap_or(bytes_max);
    if announced > bytes_max {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    let mut admitted = api.admission.admit(announced)?;
    let tenant = api.tenant(&tenant).await?;
    let at_most = config.body_timeout();
    let body = request::read_admitted(&headers, body, bytes_max, at_most, &mut admitted).await?;
    let events = parse(&body)?;
    let max = config.batch_events_max;
    if events.len() > max {
        let detail = format!("must have at most {max} events, not {}", events.len());
        return Err(Problem::field("", detail));
    }
    let stamp = Stamp {
        tenant,
        now_ms: api.clock.now_ms(),
        registry: api.registry.stamp(),
        trace: request::trace_context(&headers),
    };
    // Begun one after the other, so that events of one ordering key keep their order.
    let results = stream::iter(events)
        .map(|event| accept(&api, event, stamp.clone()))
        .buffered(IN_FLIGHT_MAX)
        .map(ResultView::of);
    let results: Vec<_> = results.collect().await;
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

async fn accept(api: &Shared, event: Bytes, stamp: Stamp) -> Result<EventId, Problem> {
    let bytes_max = api.config.event_bytes_max;
    let accepted = if event.len() > bytes_max {
        Err(Problem::BodyTooLarge { bytes_max })
    } else {
        match input::from_json(&event, stamp) {
            Ok(read) => append(api, read.event).await,
            Err(problem) => Err(problem),
        }
    };
    count(api, accepted.as_ref());
    accepted
}

fn parse_array(body: &Bytes) -> Result<Vec<Bytes>, Problem> {
    let items: Result<Vec<&RawValue>, _> = serde_json::from_slice(without_mark(body));
    let items = items.map_err(|error| {
        if error.is_data() {
            Problem::field("", "the body must be a JSON array")
        } else {
            Problem::Syntax {
                format: "JSON",
                detail: error.to_string(),
            }
        }
    })?;
    let bytes = |item: &RawValue| body.slice_ref(item.get().as_bytes());
    Ok(items.into_iter().map(bytes).collect())
}

/// A line that is no JSON has a result of its own.
#[expect(clippy::unnecessary_wraps, reason = "as the other one")]
fn parse_lines(body: &Bytes) -> Result<Vec<Bytes>, Problem> {
    let lines = without_mark(body)
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii);
    let filled = lines.filter(|line| !line.is_empty());
    Ok(filled.map(|line| body.slice_ref(line)).collect())
}
