//! Endpoints: created, shown, patched, deleted, paused, disabled, their secrets rotated; one by one
//! or imported.

mod import;
mod settings;
mod state;

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use postrider_model::address::Host;
use postrider_model::endpoint::{Endpoint, EndpointState, PayloadFormat};
use postrider_model::filter::EventTypeFilter;
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::signature::SigningSecret;
use postrider_registry::{Lookup, Versioned, WriteError};
use serde_json::{Map, Value, json};
use url::Url;

use self::settings::{Settings, view};
use crate::audit::Subject;
use crate::fields::{Fields, parse_object, parsed, seconds_as_ms};
use crate::ids;
use crate::page::{self, Page};
use crate::problem::Problem;
use crate::request::{self, Parameters, Segments};
use crate::shared::{ApiState, Shared, tenant_id};

pub(crate) use self::import::import;
pub(crate) use self::state::{disable, enable, pause, resume};

const MERGE_PATCH: &str = "application/merge-patch+json";
/// Secrets that sign at once: each makes the signature header longer.
const SECRETS_MAX: usize = 5;
const OVERLAP_MS_MAX: i64 = 30 * 24 * 60 * 60 * 1000;
/// How often a change is repeated on what others made of the endpoint meanwhile.
const CHANGES_MAX: usize = 10;

/// `POST /v1/tenants/{tenant}/endpoints`
pub(crate) async fn create(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    request::expect_json(&headers)?;
    let body = api.read_body(&headers, body).await?;
    // What is wrong with it is said first, so that nobody creates a tenant for nothing.
    let new = read_new(&api, &tenant_id(&tenant)?, parse_object(&body)?)?;
    api.tenant(&tenant).await?;
    let NewEndpoint { endpoint, secret } = new;
    let id = endpoint.id.clone();
    let created = api.registry.create_endpoint(endpoint).await;
    let created = created.map_err(|error| Problem::of_write(error, || name_of(&id)))?;
    let mut shown = shown(&api, &created);
    shown["secret"] = json!(secret.reveal());
    let made = Extension(Subject(created.value.id.to_string()));
    Ok((StatusCode::CREATED, with_etag(&created), made, Json(shown)).into_response())
}

/// An endpoint to write, with its secret sealed in it and beside it.
pub(crate) struct NewEndpoint {
    pub(crate) endpoint: Endpoint,
    pub(crate) secret: SigningSecret,
}

/// Reads a new endpoint. A secret that is given is taken over, so that receivers of another system
/// need no change.
pub(crate) fn read_new(
    api: &Shared,
    tenant: &TenantId,
    values: Map<String, Value>,
) -> Result<NewEndpoint, Problem> {
    let mut fields = Fields::new(values);
    let id = fields.optional("id", parsed(EndpointId::try_new));
    let secret = fields.optional("secret", parsed(SigningSecret::parse));
    let settings = Settings::take(&mut fields);
    fields.finish()?;
    let Some(settings) = settings else {
        unreachable!("what is wrong was noted")
    };
    judge(api, settings.url())?;
    let now_ms = api.clock.now_ms();
    let id = id.unwrap_or_else(|| ids::new_endpoint_id(now_ms));
    let secret = secret.unwrap_or_else(new_secret);
    let endpoint = Endpoint {
        tenant: tenant.clone(),
        url: settings.url().clone(),
        description: String::new(),
        metadata: BTreeMap::new(),
        event_types: EventTypeFilter::default(),
        format: PayloadFormat::default(),
        retry_schedule: None,
        attempt_timeout_ms: None,
        rate_limit: None,
        ordered: None,
        secrets: vec![api.registry.seal(&id, &secret)],
        state: EndpointState::Enabled,
        discard_matched_before: 0,
        created_at_ms: now_ms,
        id,
    };
    Ok(NewEndpoint {
        endpoint: settings.apply(endpoint),
        secret,
    })
}

/// `GET /v1/tenants/{tenant}/endpoints`
pub(crate) async fn list(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    Parameters(mut parameters): Parameters,
) -> Result<Json<Page<Value>>, Problem> {
    let tenant = api.tenant(&tenant).await?;
    let limit = page::limit(&mut parameters);
    let after =
        page::cursor::<String>(&mut parameters).and_then(|id| EndpointId::try_new(&id).ok());
    parameters.finish()?;
    let endpoints = api.registry.endpoints(&tenant, after.as_ref(), limit + 1);
    Ok(Json(Page::of_ids(
        endpoints,
        limit,
        |endpoint| endpoint.value.id.to_string(),
        |endpoint| shown(&api, endpoint),
    )))
}

/// `GET /v1/tenants/{tenant}/endpoints/{endpoint}`
pub(crate) async fn show(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
) -> Result<Response, Problem> {
    let found = find(&api, &tenant, &id).await?;
    Ok(answer(&api, &found))
}

/// `PATCH /v1/tenants/{tenant}/endpoints/{endpoint}`: a merge patch (RFC 7396).
pub(crate) async fn patch(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let media_type = request::media_type(&headers);
    if !matches!(media_type.as_deref(), Some(MERGE_PATCH | request::JSON)) {
        return Err(Problem::MediaType {
            expected: MERGE_PATCH,
        });
    }
    let body = api.read_body(&headers, body).await?;
    let patch = parse_object(&body)?;
    let changed = change(&api, &tenant, &id, &headers, |endpoint| {
        let settings = Settings::of(endpoint).patched(patch.clone())?;
        if *settings.url() != endpoint.url {
            judge(&api, settings.url())?;
        }
        Ok(settings.apply(endpoint.clone()))
    });
    Ok(answer(&api, &changed.await?.after))
}

/// `DELETE /v1/tenants/{tenant}/endpoints/{endpoint}`
pub(crate) async fn delete(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let (found, insists) = find_to_change(&api, &tenant, &id, &headers).await?;
    let id = found.value.id.clone();
    match api
        .registry
        .delete_endpoint(&id, insists.then_some(found.version))
        .await
    {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(WriteError::Deleted) => Err(Problem::NotFound(name_of(&id))),
        Err(error) => Err(Problem::of_write(error, || name_of(&id))),
    }
}

/// `POST /v1/tenants/{tenant}/endpoints/{endpoint}/secret/rotate`: a new secret signs from now on,
/// beside the one it replaces for as long as `overlap` (in seconds) says.
pub(crate) async fn rotate_secret(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut fields = api.read_optional_fields(&headers, body).await?;
    let secret = fields
        .optional("secret", parsed(SigningSecret::parse))
        .unwrap_or_else(new_secret);
    let overlap_ms = fields
        .optional("overlap", parse_overlap)
        .unwrap_or_else(|| {
            i64::try_from(api.config.secret_overlap_default_s).unwrap_or(OVERLAP_MS_MAX) * 1000
        });
    fields.finish()?;
    let now_ms = api.clock.now_ms();
    let changed = change(&api, &tenant, &id, &headers, |endpoint| {
        let new = api.registry.seal(&endpoint.id, &secret);
        let until_ms = now_ms.saturating_add(overlap_ms);
        let old = endpoint.secrets.iter().cloned().map(|mut old| {
            old.expires_at_ms = Some(
                old.expires_at_ms
                    .map_or(until_ms, |earlier| earlier.min(until_ms)),
            );
            old
        });
        let valid = old.filter(|old| old.expires_at_ms.is_some_and(|until| until > now_ms));
        let secrets: Vec<_> = std::iter::once(new).chain(valid).collect();
        if secrets.len() > SECRETS_MAX {
            return Err(Problem::TooMany {
                of: "secrets that still sign",
                max: SECRETS_MAX,
            });
        }
        Ok(Endpoint {
            secrets,
            ..endpoint.clone()
        })
    })
    .await?
    .after;
    let mut shown = shown(&api, &changed);
    shown["secret"] = json!(secret.reveal());
    Ok((with_etag(&changed), Json(shown)).into_response())
}

fn parse_overlap(value: &Value) -> Result<i64, String> {
    let overlap_ms = seconds_as_ms(value)?;
    if overlap_ms > OVERLAP_MS_MAX {
        return Err(format!("must be at most {} seconds", OVERLAP_MS_MAX / 1000));
    }
    Ok(overlap_ms)
}

/// An endpoint before and after a change.
struct Change {
    before: Versioned<Endpoint>,
    after: Versioned<Endpoint>,
}

/// Changes an endpoint on the version that was looked at. If somebody else changed it meanwhile and
/// the caller did not insist on a version, the change is made again on theirs. That there is
/// nothing to change is concluded from a fresh view only: an endpoint that somebody else has just
/// enabled is not disabled yet.
async fn change(
    api: &Shared,
    tenant: &str,
    id: &str,
    headers: &HeaderMap,
    make: impl Fn(&Endpoint) -> Result<Endpoint, Problem>,
) -> Result<Change, Problem> {
    let mut rounds = 0;
    let mut fresh = false;
    loop {
        let (found, insists) = find_to_change(api, tenant, id, headers).await?;
        let changed = make(&found.value)?;
        if changed == *found.value && !fresh {
            api.refresh_registry().await?;
            fresh = true;
            continue;
        }
        let id = &found.value.id;
        let written = api
            .registry
            .update_endpoint(id, Some(found.version), |_| changed.clone());
        rounds += 1;
        match written.await {
            Ok(after) => {
                return Ok(Change {
                    before: found,
                    after,
                });
            }
            Err(WriteError::Conflict { .. }) if !insists && rounds < CHANGES_MAX => {}
            Err(WriteError::Deleted) => return Err(Problem::NotFound(name_of(id))),
            Err(error) => return Err(Problem::of_write(error, || name_of(id))),
        }
    }
}

/// The endpoint of the path. It is said not to exist only after looking at a view that is as new as
/// this request.
pub(crate) async fn find(
    api: &Shared,
    tenant: &str,
    id: &str,
) -> Result<Versioned<Endpoint>, Problem> {
    let tenant = api.tenant(tenant).await?;
    let missing = || Problem::NotFound(format!("the endpoint {id:?}"));
    let id = EndpointId::try_new(id).map_err(|_| missing())?;
    let mut found = api.registry.endpoint(&id);
    if found == Lookup::Unknown {
        api.refresh_registry().await?;
        found = api.registry.endpoint(&id);
    }
    match found {
        Lookup::Found(found) if found.value.tenant == tenant => Ok(found),
        Lookup::Found(_) | Lookup::Deleted | Lookup::Unknown => Err(missing()),
    }
}

/// The endpoint of the path at a version that `If-Match` allows, and whether the caller insists on
/// that version. The caller may know a newer one than this process has seen.
async fn find_to_change(
    api: &Shared,
    tenant: &str,
    id: &str,
    headers: &HeaderMap,
) -> Result<(Versioned<Endpoint>, bool), Problem> {
    let found = find(api, tenant, id).await?;
    match if_match(headers, found.version) {
        None => return Ok((found, false)),
        Some(true) => return Ok((found, true)),
        Some(false) => api.refresh_registry().await?,
    }
    let found = find(api, tenant, id).await?;
    if if_match(headers, found.version) == Some(true) {
        return Ok((found, true));
    }
    Err(Problem::Changed {
        present: found.version,
    })
}

/// Whether `If-Match` allows the version; `None` if there is none.
fn if_match(headers: &HeaderMap, version: u64) -> Option<bool> {
    let mut values = headers.get_all(header::IF_MATCH).iter().peekable();
    values.peek()?;
    let present = format!("\"{version}\"");
    let mut tags = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    Some(tags.any(|tag| tag.trim() == "*" || tag.trim() == present))
}

/// Refuses an address that no webhook would ever reach. What a name resolves to is judged when it
/// is dialled: names change.
fn judge(api: &Shared, url: &Url) -> Result<(), Problem> {
    let Some(Host::Address(address)) = Host::of(url) else {
        return Ok(());
    };
    if api.policy.permits(address) {
        return Ok(());
    }
    Err(Problem::field(
        "url",
        format!(
            "{address} is private or reserved, and webhooks are not sent there; who runs the service opens networks with \
             `egress.allow_cidrs`"
        ),
    ))
}

fn answer(api: &Shared, endpoint: &Versioned<Endpoint>) -> Response {
    (with_etag(endpoint), Json(shown(api, endpoint))).into_response()
}

/// The endpoint with what its receiver needs to verify signatures by key pair: the public key of
/// its newest secret. `null`: that is shared, or does not open.
fn shown(api: &Shared, endpoint: &Versioned<Endpoint>) -> Value {
    let mut shown = view(endpoint);
    let opened = api
        .registry
        .signing_secrets(&endpoint.value, api.clock.now_ms());
    let newest = opened.ok().and_then(|secrets| secrets.into_iter().next());
    shown["public_key"] = json!(newest.and_then(|secret| secret.public_key()));
    shown
}

fn with_etag(endpoint: &Versioned<Endpoint>) -> [(header::HeaderName, HeaderValue); 1] {
    let tag = HeaderValue::from_str(&format!("\"{}\"", endpoint.version));
    [(
        header::ETAG,
        tag.expect("digits in quotes are a header's value"),
    )]
}

fn name_of(id: &EndpointId) -> String {
    format!("the endpoint `{id}`")
}

fn new_secret() -> SigningSecret {
    SigningSecret::generate(&ids::random_bytes::<32>())
}
