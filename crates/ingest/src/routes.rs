//! Every route of the API: what it is called by, who may, and what the audit calls it. A route that
//! does not say who may cannot be written down here.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use postrider_model::api_key::{Holder, Scope};

use crate::auth::Caller;
use crate::problem::Problem;
use crate::request;
use crate::shared::{EVENTS, EVENTS_BATCH, Shared};
use crate::{
    api_keys, audit, dead_letters, endpoints, events, history, installation, portal_tokens,
    redrive, replay, status, tenants,
};

/// Who may call a route. An operator may call each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nobody else.
    Operator,
    /// Who has a key of the tenant in the path, with one of these scopes.
    Tenant(&'static [Scope]),
    /// Who has a key of the tenant in the path, whatever its scopes, but no portal token.
    TenantKey,
}

const OPERATOR: Access = Access::Operator;
const PUBLISH: Access = Access::Tenant(&[Scope::Publish]);
const ENDPOINTS: Access = Access::Tenant(&[Scope::Endpoints]);
const READ: Access = Access::Tenant(&[Scope::Read]);
/// Who changes endpoints sees them.
const SEE_ENDPOINTS: Access = Access::Tenant(&[Scope::Read, Scope::Endpoints]);
/// Who delivers again sees what.
const SEE_DEAD_LETTERS: Access = Access::Tenant(&[Scope::Read, Scope::Repair]);
const REPAIR: Access = Access::Tenant(&[Scope::Repair]);

/// One way to call the API.
struct Route {
    method: Method,
    path: &'static str,
    access: Access,
    /// What the audit calls it; nothing if it changes nothing, or is an event.
    action: Option<&'static str>,
    handler: MethodRouter<Arc<Shared>>,
}

/// The one whose body may be large.
const IMPORT_ACTION: &str = "endpoint.import";

type At = (&'static str, Access);

fn get<H: Handler<T, Arc<Shared>>, T: 'static>((path, access): At, handler: H) -> Route {
    Route {
        method: Method::GET,
        path,
        access,
        action: None,
        handler: on(MethodFilter::GET, handler),
    }
}

/// A route that changes something.
fn change<H: Handler<T, Arc<Shared>>, T: 'static>(
    method: Method,
    (path, access): At,
    action: &'static str,
    handler: H,
) -> Route {
    let filter = MethodFilter::try_from(method.clone()).expect("a method of the table is known");
    Route {
        method,
        path,
        access,
        action: Some(action),
        handler: on(filter, handler),
    }
}

fn post<H: Handler<T, Arc<Shared>>, T: 'static>(at: At, action: &'static str, handler: H) -> Route {
    change(Method::POST, at, action, handler)
}

/// A route that takes events, which are no change and so in no audit.
fn publish<H: Handler<T, Arc<Shared>>, T: 'static>(path: &'static str, handler: H) -> Route {
    Route {
        action: None,
        ..post((path, PUBLISH), "", handler)
    }
}

const TENANT: &str = "/v1/tenants/{tenant}";
const LETTERS: &str = "/v1/tenants/{tenant}/dead-letters";
const TENANT_KEYS: &str = "/v1/tenants/{tenant}/keys";
const TENANT_KEY: &str = "/v1/tenants/{tenant}/keys/{key}";

fn all() -> Vec<Route> {
    let mut routes = vec![
        get(("/v1/tenants", OPERATOR), tenants::list),
        get((TENANT, READ), tenants::show),
        change(Method::PUT, (TENANT, OPERATOR), "tenant.put", tenants::put),
        post(
            ("/v1/tenants/{tenant}/pause", OPERATOR),
            "tenant.pause",
            tenants::pause,
        ),
        post(
            ("/v1/tenants/{tenant}/resume", OPERATOR),
            "tenant.resume",
            tenants::resume,
        ),
        publish(EVENTS, events::publish),
        publish(EVENTS_BATCH, events::publish_batch),
        get(("/v1/tenants/{tenant}/events/{event}", READ), history::show),
        get((LETTERS, SEE_DEAD_LETTERS), dead_letters::list),
        get(
            (
                "/v1/tenants/{tenant}/dead-letters/{letter}",
                SEE_DEAD_LETTERS,
            ),
            dead_letters::show,
        ),
        post(
            ("/v1/tenants/{tenant}/dead-letters/redrive", REPAIR),
            "dead_letter.redrive",
            redrive::redrive,
        ),
        get(("/v1/installation", OPERATOR), installation::show),
        post(
            ("/v1/pause", OPERATOR),
            "installation.pause",
            installation::pause,
        ),
        post(
            ("/v1/resume", OPERATOR),
            "installation.resume",
            installation::resume,
        ),
        get(("/v1/dead-letters", OPERATOR), dead_letters::list_raw),
        get(
            ("/v1/dead-letters/{letter}", OPERATOR),
            dead_letters::show_raw,
        ),
        get(("/v1/audit", OPERATOR), audit::list),
    ];
    routes.extend(of_endpoints());
    routes.extend(of_keys());
    routes
}

fn of_endpoints() -> Vec<Route> {
    const ALL: &str = "/v1/tenants/{tenant}/endpoints";
    const ONE: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}";
    const IMPORT: &str = "/v1/tenants/{tenant}/endpoints/import";
    const ENABLE: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}/enable";
    const DISABLE: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}/disable";
    const PAUSE: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}/pause";
    const RESUME: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}/resume";
    const ROTATE: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}/secret/rotate";
    const REPLAY: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}/replay";
    const STATUS: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}/status";
    const ATTEMPTS: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}/attempts";
    vec![
        get((ALL, SEE_ENDPOINTS), endpoints::list),
        get((ONE, SEE_ENDPOINTS), endpoints::show),
        get((STATUS, SEE_ENDPOINTS), status::show),
        get((ATTEMPTS, READ), history::list_attempts),
        post((ALL, ENDPOINTS), "endpoint.create", endpoints::create),
        post((IMPORT, ENDPOINTS), IMPORT_ACTION, endpoints::import),
        change(
            Method::PATCH,
            (ONE, ENDPOINTS),
            "endpoint.update",
            endpoints::patch,
        ),
        change(
            Method::DELETE,
            (ONE, ENDPOINTS),
            "endpoint.delete",
            endpoints::delete,
        ),
        post((ENABLE, ENDPOINTS), "endpoint.enable", endpoints::enable),
        post((DISABLE, ENDPOINTS), "endpoint.disable", endpoints::disable),
        post((PAUSE, ENDPOINTS), "endpoint.pause", endpoints::pause),
        post((RESUME, ENDPOINTS), "endpoint.resume", endpoints::resume),
        post(
            (ROTATE, ENDPOINTS),
            "endpoint.rotate_secret",
            endpoints::rotate_secret,
        ),
        post((REPLAY, REPAIR), "endpoint.replay", replay::replay),
    ]
}

fn of_keys() -> Vec<Route> {
    const OPERATOR_KEYS: &str = "/v1/keys";
    const OPERATOR_KEY: &str = "/v1/keys/{key}";
    const TOKENS: &str = "/v1/tenants/{tenant}/portal-tokens";
    const VOID: &str = "/v1/tenants/{tenant}/portal-tokens/revoke";
    vec![
        get((OPERATOR_KEYS, OPERATOR), api_keys::list_of_operators),
        get((OPERATOR_KEY, OPERATOR), api_keys::show_of_operators),
        post(
            (OPERATOR_KEYS, OPERATOR),
            "key.create",
            api_keys::create_for_operators,
        ),
        change(
            Method::DELETE,
            (OPERATOR_KEY, OPERATOR),
            "key.revoke",
            api_keys::revoke_of_operators,
        ),
        get((TENANT_KEYS, OPERATOR), api_keys::list),
        get((TENANT_KEY, OPERATOR), api_keys::show),
        post((TENANT_KEYS, OPERATOR), "key.create", api_keys::create),
        change(
            Method::DELETE,
            (TENANT_KEY, OPERATOR),
            "key.revoke",
            api_keys::revoke,
        ),
        post(
            (TOKENS, Access::TenantKey),
            "portal_token.issue",
            portal_tokens::issue,
        ),
        post(
            (VOID, OPERATOR),
            "portal_token.revoke",
            portal_tokens::revoke,
        ),
    ]
}

/// The API's routes, each behind its access, and what is answered where there is none.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in all() {
        let guarded = Guarded {
            access: route.access,
            action: route.action,
            shared: Arc::clone(shared),
        };
        let handler = route
            .handler
            .route_layer(from_fn_with_state(guarded, guard));
        router = router.route(route.path, handler);
    }
    router
        .fallback(async || Problem::NoRoute)
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .with_state(Arc::clone(shared))
}

/// Of every route: method, path, and whether it is in the audit. For those who describe or try them
/// all.
pub fn routes() -> Vec<(Method, &'static str, bool)> {
    all()
        .into_iter()
        .map(|route| (route.method, route.path, route.action.is_some()))
        .collect()
}

/// What stands before one route.
#[derive(Debug, Clone)]
struct Guarded {
    access: Access,
    action: Option<&'static str>,
    shared: Arc<Shared>,
}

/// Lets in who may, and puts what was changed into the audit before it is answered.
async fn guard(
    State(guarded): State<Guarded>,
    parameters: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let caller = request.extensions().get::<Caller>();
    // Segments that are no text lead nowhere, and without a caller nobody gets here.
    let (Some(caller), Ok(parameters)) = (caller, parameters) else {
        return Problem::NoRoute.into_response();
    };
    let parameter = |name| {
        let mut named = parameters.iter().filter(|(key, _)| *key == name);
        named.next().map(|(_, value)| value)
    };
    if let Err(problem) = guarded.access.check(caller, parameter("tenant")) {
        return problem.into_response();
    }
    let Some(action) = guarded.action else {
        return next.run(request).await;
    };
    let subject = parameter("endpoint").or_else(|| parameter("key"));
    let asked = audit::Asked {
        action,
        tenant: parameter("tenant").map(str::to_owned),
        subject: subject.map(str::to_owned),
        asked_at_ms: guarded.shared.clock.now_ms(),
        traceparent: request::trace_context(request.headers()).traceparent,
        caller: caller.clone(),
    };
    let shared = &guarded.shared;
    let is_large = action == IMPORT_ACTION
        && request::may_exceed(request.headers(), shared.config.body_bytes_max);
    let holder = caller.holder.tenant().cloned();
    let change = {
        let shared = Arc::clone(shared);
        async move { audit::note(&shared, asked, next.run(request).await).await }
    };
    let made = shared.changes.make(holder.as_ref(), is_large, change).await;
    made.unwrap_or_else(IntoResponse::into_response)
}

impl Access {
    /// Whether this caller may call the route for this tenant.
    fn check(self, caller: &Caller, of_path: Option<&str>) -> Result<(), Problem> {
        let (tenant, scopes) = match &caller.holder {
            Holder::Operator => return Ok(()),
            Holder::Tenant { tenant, scopes } => (tenant, *scopes),
        };
        let needed = match self {
            Self::Operator => {
                return Err(Problem::Forbidden("this needs an operator key".to_owned()));
            }
            Self::TenantKey | Self::Tenant(_) if of_path != Some(tenant.as_str()) => {
                let detail = format!("the key is of the tenant \"{tenant}\", and opens no other");
                return Err(Problem::Forbidden(detail));
            }
            Self::TenantKey if caller.is_portal_token() => {
                let detail = "this needs a key: a portal token is no key to issue or revoke others";
                return Err(Problem::Forbidden(detail.to_owned()));
            }
            Self::TenantKey => return Ok(()),
            Self::Tenant(needed) => needed,
        };
        if needed.iter().any(|scope| scopes.contains(*scope)) {
            return Ok(());
        }
        let needed: Vec<_> = needed.iter().map(|scope| format!("`{scope}`")).collect();
        let needed = needed.join(" or ");
        Err(Problem::Forbidden(format!(
            "the key lacks the scope {needed}"
        )))
    }
}
