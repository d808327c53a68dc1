//! Tenants: put, shown, listed.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use postrider_model::ids::TenantId;
use postrider_model::payload::rfc3339;
use postrider_model::tenant::Tenant;
use postrider_registry::Versioned;
use serde_json::{Value, json};

use crate::fields::{Fields, text};
use crate::metadata;
use crate::page::{self, Page};
use crate::problem::Problem;
use crate::request::{self, Parameters, Segments};
use crate::shared::{ApiState, Shared};

const NAME_BYTES_MAX: usize = 512;

/// `PUT /v1/tenants/{tenant}`: creates it, or makes it what the body says; what that does not say
/// stays as it is.
pub(crate) async fn put(
    State(api): ApiState,
    Segments(id): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = TenantId::try_new(&id).map_err(|error| Problem::field("tenant", error))?;
    let config = &api.config;
    let (bytes_max, at_most) = (config.body_bytes_max, config.body_timeout());
    let values = request::read_optional_object(&headers, body, bytes_max, at_most).await?;
    let present = api.registry.tenant(&id);
    if let Some(present) = &present
        && values.is_none()
    {
        return Ok(Json(view(present)).into_response());
    }
    let mut fields = Fields::new(values.unwrap_or_default());
    let name = fields.optional("name", text(NAME_BYTES_MAX));
    let metadata = metadata::take_if_said(&mut fields);
    fields.finish()?;
    let new = Tenant {
        id,
        name: String::new(),
        metadata: BTreeMap::new(),
        paused: false,
        created_at_ms: api.clock.now_ms(),
        portal_token_generation: 0,
    };
    // What is not said stays as it is, also if somebody else says it meanwhile.
    let change = |present: &Tenant| Tenant {
        name: name.clone().unwrap_or_else(|| present.name.clone()),
        metadata: metadata.clone().unwrap_or_else(|| present.metadata.clone()),
        ..present.clone()
    };
    let what = format!("the tenant `{}`", new.id);
    let put = api.registry.change_tenant(&new, change).await;
    let put = put.map_err(|error| Problem::of_write(error, || what))?;
    let status = if present.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Ok((status, Json(view(&put))).into_response())
}

/// `GET /v1/tenants/{tenant}`
pub(crate) async fn show(
    State(api): ApiState,
    Segments(id): Segments<String>,
) -> Result<Json<Value>, Problem> {
    let id = api.tenant(&id).await?;
    let tenant = api.registry.tenant(&id);
    tenant
        .map(|tenant| Json(view(&tenant)))
        .ok_or_else(|| Problem::NotFound(format!("the tenant `{id}`")))
}

/// `GET /v1/tenants`
pub(crate) async fn list(
    State(api): ApiState,
    Parameters(mut parameters): Parameters,
) -> Result<Json<Page<Value>>, Problem> {
    let limit = page::limit(&mut parameters);
    let after = page::cursor::<String>(&mut parameters).and_then(|id| TenantId::try_new(&id).ok());
    parameters.finish()?;
    let tenants = api.registry.tenants(after.as_ref(), limit + 1);
    Ok(Json(Page::of_ids(
        tenants,
        limit,
        |tenant| tenant.value.id.to_string(),
        view,
    )))
}

/// `POST /v1/tenants/{tenant}/pause`: nothing is sent to its endpoints; events are matched and
/// wait.
pub(crate) async fn pause(
    State(api): ApiState,
    Segments(id): Segments<String>,
) -> Result<Json<Value>, Problem> {
    set_paused(&api, &id, true).await
}

/// `POST /v1/tenants/{tenant}/resume`: what waits is sent, except to endpoints that are paused
/// themselves.
pub(crate) async fn resume(
    State(api): ApiState,
    Segments(id): Segments<String>,
) -> Result<Json<Value>, Problem> {
    set_paused(&api, &id, false).await
}

async fn set_paused(api: &Shared, id: &str, paused: bool) -> Result<Json<Value>, Problem> {
    let id = api.tenant(id).await?;
    let written = api.registry.pause_tenant(&id, paused).await;
    let written =
        written.map_err(|error| Problem::of_write(error, || format!("the tenant `{id}`")))?;
    Ok(Json(view(&written)))
}

fn view(tenant: &Versioned<Tenant>) -> Value {
    let Tenant {
        id,
        name,
        metadata,
        paused,
        created_at_ms,
        portal_token_generation: _,
    } = &*tenant.value;
    json!({
        "id": id,
        "name": name,
        "metadata": metadata,
        "paused": paused,
        "created_at": rfc3339(*created_at_ms),
        "version": tenant.version,
    })
}
