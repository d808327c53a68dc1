//! The parts of a request, taken so that what is wrong with them becomes a [`Problem`].

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::BytesMut;
use futures_util::StreamExt;
use postrider_daemon::telemetry::{current_traceparent, current_tracestate, trace_id};
use postrider_model::event::TraceContext;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::time::{timeout, timeout_at};

use crate::admission::Admitted;
use crate::fields::{Fields, parse_object};
use crate::gzip::decompress;
use crate::problem::Problem;

pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const TRACESTATE: &str = "tracestate";
pub(crate) const JSON: &str = "application/json";
pub(crate) const JSON_LINES: &str = "application/x-ndjson";
pub(crate) const PROTOBUF: &str = "application/x-protobuf";

/// The variable segments of the path. One that is no text leads nowhere.
#[derive(Debug)]
pub(crate) struct Segments<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Self(segments))
            .map_err(|_| Problem::NoRoute)
    }
}

/// The query parameters.
#[derive(Debug)]
pub(crate) struct Parameters(pub(crate) Fields);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        pairs
            .map(|Query(pairs)| Self(Fields::of_query(pairs)))
            .map_err(|error| Problem::Syntax {
                format: "a query",
                detail: error.body_text(),
            })
    }
}

/// What the `Content-Type` says, without parameters, in lower case. `None` if it says nothing. A
/// charset has no effect on JSON (RFC 8259, section 11), which is UTF-8; that the text is not is
/// noticed when it is read.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let (essence, _) = value.split_once(';').unwrap_or((value, ""));
    Some(essence.trim().to_ascii_lowercase())
}

/// Whether the body is compressed by gzip (RFC 9110, section 8.4); another coding is refused.
fn is_gzip(headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(coding) = headers.get(header::CONTENT_ENCODING) else {
        return Ok(false);
    };
    let is = |name: &str| coding.as_bytes().eq_ignore_ascii_case(name.as_bytes());
    if is("gzip") || is("x-gzip") {
        Ok(true)
    } else if is("identity") {
        Ok(false)
    } else {
        Err(Problem::Encoded)
    }
}

/// Refuses every media type but JSON.
pub(crate) fn expect_json(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers).as_deref() {
        Some(JSON) => Ok(()),
        _ => Err(Problem::MediaType { expected: JSON }),
    }
}

/// How long the body will be, if the head says so.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Whether what comes may be longer than so many bytes, as far as the head says.
pub(crate) fn may_exceed(headers: &HeaderMap, bytes: usize) -> bool {
    let is_plain = !headers.contains_key(header::CONTENT_ENCODING);
    !is_plain || content_length(headers).is_none_or(|length| length > bytes)
}

/// Reads the body, at most so many bytes in so much time.
pub(crate) async fn read_body(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    at_most: Duration,
) -> Result<Bytes, Problem> {
    read(headers, body, bytes_max, at_most, None).await
}

/// Reads the body of an event, as long as there is room for what comes.
pub(crate) async fn read_admitted(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    at_most: Duration,
    admitted: &mut Admitted,
) -> Result<Bytes, Problem> {
    let whole = read(headers, body, bytes_max, at_most, Some(&mut *admitted)).await?;
    admitted.keep_arrived();
    Ok(whole)
}

async fn read(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    at_most: Duration,
    mut admitted: Option<&mut Admitted>,
) -> Result<Bytes, Problem> {
    let is_gzip = is_gzip(headers)?;
    if content_length(headers).is_some_and(|length| length > bytes_max) {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    let read = async {
        let mut chunks = body.into_data_stream();
        let mut whole = BytesMut::new();
        while let Some(chunk) = next_chunk(&mut chunks, admitted.as_deref_mut()).await {
            let chunk = chunk.map_err(|_| Problem::BodyBroken)?;
            if whole.len() + chunk.len() > bytes_max {
                return Err(Problem::BodyTooLarge { bytes_max });
            }
            if let Some(admitted) = &mut admitted {
                admitted.grow(chunk.len())?;
            }
            if whole.is_empty() {
                whole = BytesMut::from(chunk);
            } else {
                whole.extend_from_slice(&chunk);
            }
        }
        Ok(whole.freeze())
    };
    let whole = timeout(at_most, read)
        .await
        .map_err(|_| Problem::BodyTimeout)??;
    if !is_gzip {
        return Ok(whole);
    }
    // Room is kept for the larger of what came and what comes out of it.
    let (came, mut out) = (whole.len(), 0);
    let grow = |bytes| {
        let before = came.max(out);
        out += bytes;
        match &mut admitted {
            Some(admitted) => admitted.grow(came.max(out) - before),
            None => Ok(()),
        }
    };
    decompress(&whole, bytes_max, grow).await
}

/// Waits for a part of the body; if that takes long, without the room that was kept for what was
/// announced.
async fn next_chunk(
    chunks: &mut BodyDataStream,
    admitted: Option<&mut Admitted>,
) -> Option<Result<Bytes, axum::Error>> {
    if let Some(admitted) = admitted
        && let Some(until) = admitted.waits_until()
    {
        if let Ok(chunk) = timeout_at(until, chunks.next()).await {
            return chunk;
        }
        admitted.keep_arrived();
    }
    chunks.next().await
}

/// Reads a body that may be left out, which then is `None`.
pub(crate) async fn read_optional_object(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    at_most: Duration,
) -> Result<Option<Map<String, Value>>, Problem> {
    let body = read_body(headers, body, bytes_max, at_most).await?;
    if body.is_empty() {
        return Ok(None);
    }
    expect_json(headers)?;
    parse_object(&body).map(Some)
}

/// The trace that the request is part of: that of the present span if there is one, else as the
/// headers say.
pub(crate) fn trace_context(headers: &HeaderMap) -> TraceContext {
    if let Some(traceparent) = current_traceparent() {
        return TraceContext {
            traceparent,
            tracestate: current_tracestate().unwrap_or_default(),
        };
    }
    let traceparent = header_text(headers, TRACEPARENT);
    if trace_id(traceparent).is_none() {
        return TraceContext::default();
    }
    TraceContext {
        traceparent: traceparent.to_owned(),
        tracestate: header_text(headers, TRACESTATE).to_owned(),
    }
}

/// The header's text, empty if there is none.
pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}
