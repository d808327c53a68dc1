//! Portal tokens: what a company's backend gets for a customer's browser.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use postrider_model::api_key::{Holder, Scope};
use postrider_model::payload::rfc3339;
use serde::Serialize;

use crate::api_keys::scopes;
use crate::audit::Subject;
use crate::auth::{Caller, PortalToken};
use crate::fields::{seconds_as_ms, text};
use crate::problem::Problem;
use crate::request::Segments;
use crate::shared::ApiState;

const LIFETIME_MS_DEFAULT: i64 = 60 * 60 * 1000;
const LIFETIME_MS_MAX: i64 = 24 * 60 * 60 * 1000;
const USER_BYTES_MAX: usize = 128;

/// The answer that issues a token.
#[derive(Debug, Serialize)]
struct IssuedView {
    token: String,
    scopes: Vec<&'static str>,
    expires_at: String,
}

/// `POST /v1/tenants/{tenant}/portal-tokens`: a token opens no more than the key by which it is
/// issued.
pub(crate) async fn issue(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    Segments(tenant): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut fields = api.read_optional_fields(&headers, body).await?;
    let scopes = fields.required("scopes", |value| {
        let asked = scopes(value)?;
        match &caller.holder {
            Holder::Tenant { scopes, .. } if !scopes.include(asked) => {
                Err("must be among those of the key that issues it".to_owned())
            }
            Holder::Operator | Holder::Tenant { .. } => Ok(asked),
        }
    });
    let lifetime_ms = fields.optional("expires_in", |value| match seconds_as_ms(value)? {
        lifetime_ms @ 1_000..=LIFETIME_MS_MAX => Ok(lifetime_ms),
        _ => Err(format!("must be 1 to {} seconds", LIFETIME_MS_MAX / 1000)),
    });
    let user = fields.optional("user", text(USER_BYTES_MAX));
    fields.finish()?;
    let Some(scopes) = scopes else {
        unreachable!("what is required and missing was refused")
    };
    let tenant = api.tenant(&tenant).await?;
    // Another process may just have revoked what is issued in this generation.
    api.refresh_registry().await?;
    let generation = api.registry.tenant(&tenant);
    let generation = generation.map_or(0, |tenant| tenant.value.portal_token_generation);
    let token = PortalToken {
        tenant,
        scopes,
        user: user.unwrap_or_default(),
        issuer: caller.actor.key_id,
        generation,
        expires_at_ms: api.clock.now_ms() + lifetime_ms.unwrap_or(LIFETIME_MS_DEFAULT),
    };
    let issued = IssuedView {
        token: token.write(|value| api.registry.prove(value)),
        scopes: token.scopes.iter().map(Scope::as_str).collect(),
        expires_at: rfc3339(token.expires_at_ms),
    };
    let user = Extension(Subject(token.user));
    Ok((StatusCode::CREATED, user, Json(issued)).into_response())
}

/// `POST /v1/tenants/{tenant}/portal-tokens/revoke`: all that were issued so far.
pub(crate) async fn revoke(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
) -> Result<StatusCode, Problem> {
    let tenant = api.tenant(&tenant).await?;
    let revoked = api.registry.revoke_portal_tokens(&tenant).await;
    revoked.map_err(|error| Problem::of_write(error, || format!("the tenant `{tenant}`")))?;
    Ok(StatusCode::NO_CONTENT)
}
