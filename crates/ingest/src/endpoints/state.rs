//! Pausing and resuming, disabling and enabling an endpoint.
//!
//! A paused endpoint goes on matching, so nothing is missed. A disabled one does not; what was
//! matched before waits. On enable the caller says what becomes of that backlog, and may ask for
//! what was missed.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::payload::rfc3339;
use serde_json::json;

use super::{answer, change, shown, with_etag};
use crate::auth::Caller;
use crate::fields::{self, parsed};
use crate::problem::Problem;
use crate::replay::{self, Replay};
use crate::request::Segments;
use crate::runs;
use crate::shared::{ApiState, Shared};

/// The reason of an endpoint that somebody disabled on purpose.
const DISABLED_BY_HAND: &str = "manual";

/// `POST /v1/tenants/{tenant}/endpoints/{endpoint}/pause`: events are matched and wait.
pub(crate) async fn pause(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set_state(&api, &tenant, &id, &headers, |state| match state {
        EndpointState::Enabled | EndpointState::Paused => Ok(EndpointState::Paused),
        EndpointState::Disabled { .. } => Err(Problem::WrongState(
            "it is disabled, so nothing is delivered that could be paused",
        )),
    })
    .await
}

/// `POST /v1/tenants/{tenant}/endpoints/{endpoint}/resume`: what waits is delivered.
pub(crate) async fn resume(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set_state(&api, &tenant, &id, &headers, |state| match state {
        EndpointState::Enabled | EndpointState::Paused => Ok(EndpointState::Enabled),
        EndpointState::Disabled { .. } => Err(Problem::WrongState(
            "it is disabled, which `…/enable` ends, not `…/resume`",
        )),
    })
    .await
}

/// `POST /v1/tenants/{tenant}/endpoints/{endpoint}/disable`: events are matched no more. What is
/// disabled already keeps the reason and the time.
pub(crate) async fn disable(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let since_ms = api.clock.now_ms();
    set_state(&api, &tenant, &id, &headers, |state| match state {
        EndpointState::Enabled | EndpointState::Paused => Ok(EndpointState::Disabled {
            reason: DISABLED_BY_HAND.to_owned(),
            since_ms,
        }),
        EndpointState::Disabled { .. } => Ok(state.clone()),
    })
    .await
}

/// `POST /v1/tenants/{tenant}/endpoints/{endpoint}/enable`: events are matched again, and the
/// backlog is delivered, or dropped if the body says so. The answer names since when the endpoint
/// was disabled: what happened from then on it missed, unless the body asks to replay it.
pub(crate) async fn enable(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    Segments((tenant, id)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut fields = api.read_optional_fields(&headers, body).await?;
    let backlog = fields.optional("backlog", parsed(Backlog::parse));
    let replay_since_ms = fields.optional("replay_since", fields::time);
    let command_id = runs::take_command_id(&api, &mut fields);
    fields.finish()?;
    if replay_since_ms.is_some() {
        caller.may_repair()?;
    }
    let backlog = backlog.unwrap_or(Backlog::Resume);
    let changed = change(&api, &tenant, &id, &headers, |endpoint| {
        match (&endpoint.state, backlog) {
            (EndpointState::Disabled { .. }, _) => Ok(Endpoint {
                state: EndpointState::Enabled,
                discard_matched_before: match backlog {
                    Backlog::Resume => endpoint.discard_matched_before,
                    // The view has the version that disabled the endpoint, so everything in the
                    // backlog was matched at an earlier position, and what is matched once this is
                    // written will be at a later one.
                    Backlog::Discard => api.registry.position(),
                },
                ..endpoint.clone()
            }),
            (EndpointState::Enabled, Backlog::Resume) => Ok(endpoint.clone()),
            (EndpointState::Enabled, Backlog::Discard) => Err(Problem::WrongState(
                "it is enabled, so its backlog is being delivered and cannot be discarded",
            )),
            (EndpointState::Paused, _) => Err(Problem::WrongState(
                "it is paused, which `…/resume` ends, not `…/enable`",
            )),
        }
    })
    .await?;
    let mut shown = shown(&api, &changed.after);
    if let EndpointState::Disabled { since_ms, .. } = changed.before.value.state {
        shown["disabled_since"] = json!(rfc3339(since_ms));
    }
    if let Some(since_ms) = replay_since_ms {
        let replay = Replay::since(since_ms, command_id.clone());
        let replayed = replay::run(&api, &changed.after.value, replay).await;
        // The endpoint is enabled whatever became of the replay, which can be repeated by itself.
        shown["replay"] = replayed.unwrap_or_else(|problem| {
            let detail = problem.to_string();
            json!({ "command_id": command_id, "complete": false, "next_cursor": null, "detail": detail })
        });
    }
    Ok((with_etag(&changed.after), Json(shown)).into_response())
}

/// What becomes of deliveries that were matched before the endpoint was disabled.
#[derive(Debug, Clone, Copy)]
enum Backlog {
    Resume,
    Discard,
}

impl Backlog {
    fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "resume" => Ok(Self::Resume),
            "discard" => Ok(Self::Discard),
            _ => Err("must be `resume` or `discard`"),
        }
    }
}

async fn set_state(
    api: &Shared,
    tenant: &str,
    id: &str,
    headers: &HeaderMap,
    transition: impl Fn(&EndpointState) -> Result<EndpointState, Problem>,
) -> Result<Response, Problem> {
    let changed = change(api, tenant, id, headers, |endpoint| {
        Ok(Endpoint {
            state: transition(&endpoint.state)?,
            ..endpoint.clone()
        })
    });
    Ok(answer(api, &changed.await?.after))
}
