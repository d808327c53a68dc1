//! Keys for the API, of operators and of tenants: created, shown, revoked. A key is in the answer
//! that creates it and nowhere else.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use postrider_model::api_key::{ApiKey, Holder, Scope, Scopes};
use postrider_model::ids::{ApiKeyId, TenantId};
use postrider_model::payload::rfc3339;
use postrider_registry::{Versioned, WriteError};
use serde::Serialize;
use serde_json::Value;

use crate::audit::Subject;
use crate::fields::{Fields, parse_object, text, texts, time};
use crate::page::{self, Page};
use crate::problem::Problem;
use crate::request::{self, Parameters, Segments};
use crate::shared::{ApiState, Shared};
use crate::{auth, ids};

const NAME_BYTES_MAX: usize = 512;

/// A key as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct ApiKeyView {
    id: ApiKeyId,
    name: String,
    /// None: an operator's.
    tenant: Option<TenantId>,
    /// None: an operator's, which opens everything.
    scopes: Option<Vec<&'static str>>,
    prefix: String,
    created_at: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
}

/// The answer that creates a key.
#[derive(Debug, Serialize)]
struct CreatedView {
    key: String,
    #[serde(flatten)]
    shown: ApiKeyView,
}

impl ApiKeyView {
    fn of(key: &ApiKey) -> Self {
        let scopes = match key.holder {
            Holder::Operator => None,
            Holder::Tenant { scopes, .. } => Some(scopes.iter().map(Scope::as_str).collect()),
        };
        Self {
            id: key.id.clone(),
            name: key.name.clone(),
            tenant: key.holder.tenant().cloned(),
            scopes,
            prefix: key.prefix.clone(),
            created_at: rfc3339(key.created_at_ms),
            expires_at: key.expires_at_ms.map(rfc3339),
            last_used_at: key.last_used_at_ms.map(rfc3339),
        }
    }
}

/// `POST /v1/keys`
pub(crate) async fn create_for_operators(
    State(api): ApiState,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let fields = read(&api, &headers, body).await?;
    create_for(&api, fields, |_| Some(Holder::Operator)).await
}

/// `POST /v1/tenants/{tenant}/keys`
pub(crate) async fn create(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let fields = read(&api, &headers, body).await?;
    let tenant = api.tenant(&tenant).await?;
    create_for(&api, fields, |fields| {
        let scopes = fields.required("scopes", scopes)?;
        Some(Holder::Tenant { tenant, scopes })
    })
    .await
}

/// A list of scopes, of which there must be one.
pub(crate) fn scopes(value: &Value) -> Result<Scopes, String> {
    let named = texts(value)?;
    if named.is_empty() {
        return Err("must name at least one scope".to_owned());
    }
    let parsed = named.iter().map(|name| name.parse::<Scope>());
    let parsed: Result<Vec<_>, _> = parsed.collect();
    parsed
        .map(|scopes| scopes.into_iter().collect())
        .map_err(|error| error.to_string())
}

async fn read(api: &Shared, headers: &HeaderMap, body: Body) -> Result<Fields, Problem> {
    request::expect_json(headers)?;
    let body = api.read_body(headers, body).await?;
    Ok(Fields::new(parse_object(&body)?))
}

async fn create_for(
    api: &Shared,
    mut fields: Fields,
    holder: impl FnOnce(&mut Fields) -> Option<Holder>,
) -> Result<Response, Problem> {
    let now_ms = api.clock.now_ms();
    let name = fields.required("name", |value| match text(NAME_BYTES_MAX)(value)? {
        name if name.trim().is_empty() => Err("must say what the key is for".to_owned()),
        name => Ok(name),
    });
    let expires_at_ms = fields.optional("expires_at", |value| match time(value)? {
        end if end <= now_ms => Err("must be in the future".to_owned()),
        end => Ok(end),
    });
    let holder = holder(&mut fields);
    fields.finish()?;
    let (Some(name), Some(holder)) = (name, holder) else {
        // Unreachable: what is missing was noted as wrong.
        return Err(Problem::field("", "lacks something"));
    };
    let (key, hash, prefix) = auth::generate(&holder);
    let new = ApiKey {
        id: ids::new_api_key_id(now_ms),
        name,
        holder,
        hash,
        prefix,
        created_at_ms: now_ms,
        expires_at_ms,
        last_used_at_ms: None,
    };
    let subject = Subject(new.id.to_string());
    let created = api.registry.create_api_key(new).await;
    let created = created.map_err(|error| Problem::of_write(error, || "the key".to_owned()))?;
    let shown = ApiKeyView::of(&created.value);
    let mut response = (StatusCode::CREATED, Json(CreatedView { key, shown })).into_response();
    response.extensions_mut().insert(subject);
    Ok(response)
}

/// `GET /v1/keys`
pub(crate) async fn list_of_operators(
    State(api): ApiState,
    Parameters(parameters): Parameters,
) -> Result<Json<Page<ApiKeyView>>, Problem> {
    list_of(&api, None, parameters)
}

/// `GET /v1/tenants/{tenant}/keys`
pub(crate) async fn list(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    Parameters(parameters): Parameters,
) -> Result<Json<Page<ApiKeyView>>, Problem> {
    let tenant = api.tenant(&tenant).await?;
    list_of(&api, Some(&tenant), parameters)
}

fn list_of(
    api: &Shared,
    holder: Option<&TenantId>,
    mut parameters: Fields,
) -> Result<Json<Page<ApiKeyView>>, Problem> {
    let limit = page::limit(&mut parameters);
    let after = page::cursor::<String>(&mut parameters);
    let after = after.and_then(|id| ApiKeyId::try_new(&id).ok());
    parameters.finish()?;
    let keys = api.registry.api_keys(holder, after.as_ref(), limit + 1);
    Ok(Json(Page::of_ids(
        keys,
        limit,
        |key| key.value.id.to_string(),
        |key| ApiKeyView::of(&key.value),
    )))
}

/// `GET /v1/keys/{key}`
pub(crate) async fn show_of_operators(
    State(api): ApiState,
    Segments(key): Segments<String>,
) -> Result<Json<ApiKeyView>, Problem> {
    show_of(&api, None, &key).await
}

/// `GET /v1/tenants/{tenant}/keys/{key}`
pub(crate) async fn show(
    State(api): ApiState,
    Segments((tenant, key)): Segments<(String, String)>,
) -> Result<Json<ApiKeyView>, Problem> {
    let tenant = api.tenant(&tenant).await?;
    show_of(&api, Some(&tenant), &key).await
}

async fn show_of(
    api: &Shared,
    holder: Option<&TenantId>,
    text: &str,
) -> Result<Json<ApiKeyView>, Problem> {
    let id = id(text)?;
    let mut found: Option<Versioned<ApiKey>> = api.registry.api_key(holder, &id);
    if found.is_none() {
        api.refresh_registry().await?;
        found = api.registry.api_key(holder, &id);
    }
    let found = found.ok_or_else(|| not_found(text))?;
    Ok(Json(ApiKeyView::of(&found.value)))
}

/// `DELETE /v1/keys/{key}`
pub(crate) async fn revoke_of_operators(
    State(api): ApiState,
    Segments(key): Segments<String>,
) -> Result<StatusCode, Problem> {
    revoke_of(&api, None, &key).await
}

/// `DELETE /v1/tenants/{tenant}/keys/{key}`
pub(crate) async fn revoke(
    State(api): ApiState,
    Segments((tenant, key)): Segments<(String, String)>,
) -> Result<StatusCode, Problem> {
    let tenant = api.tenant(&tenant).await?;
    revoke_of(&api, Some(&tenant), &key).await
}

async fn revoke_of(
    api: &Shared,
    holder: Option<&TenantId>,
    text: &str,
) -> Result<StatusCode, Problem> {
    let revoked = api.registry.revoke_api_key(holder, &id(text)?).await;
    match revoked {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(WriteError::NotFound) => Err(not_found(text)),
        Err(error) => Err(Problem::of_write(error, || format!("the key {text:?}"))),
    }
}

fn id(text: &str) -> Result<ApiKeyId, Problem> {
    ApiKeyId::try_new(text).map_err(|_| not_found(text))
}

fn not_found(text: &str) -> Problem {
    Problem::NotFound(format!("the key {text:?}"))
}
