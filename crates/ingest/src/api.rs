//! The API as a whole: what it stands on, its routes, and what surrounds every request.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use postrider_daemon::telemetry::{self, set_parent, trace_id};
use postrider_log::{Clock, Log, LogError};
use postrider_model::ids::TenantId;
use postrider_registry::Registry;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Instrument;

use crate::admission::Admission;
use crate::auth::{InvalidOperatorKey, OperatorKey};
use crate::config::IngestConfig;
use crate::metrics::{IngestMetrics, Raised};
use crate::problem::Problem;
use crate::producing::Producing;
use crate::reading::Readers;
use crate::request::{TRACEPARENT, TRACESTATE, header_text};
use crate::{
    dead_letters, endpoints, events, history, installation, redrive, replay, status, tenants,
};

/// How long a request waits for the registry before something unknown is said not to exist.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);

/// What the API stands on.
#[derive(Debug)]
pub struct ApiContext<'a> {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Tenants and endpoints; its follower runs.
    pub registry: Registry,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Limits and the operator key.
    pub config: IngestConfig,
    /// Where the API's metrics are declared.
    pub metrics: &'a prometheus::Registry,
}

/// Why the API could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no usable operator key.
    #[error(transparent)]
    OperatorKey(#[from] InvalidOperatorKey),
    /// A limit allows nothing at all.
    #[error("{0} must be larger")]
    Limit(&'static str),
    /// The log gave no producer.
    #[error("open a producer")]
    Log(#[from] LogError),
    /// A metric's name is taken.
    #[error("declare metrics")]
    Metrics(#[from] prometheus::Error),
}

/// The HTTP API. Clones share everything.
#[derive(Debug, Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

/// What every handler has.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registry: Registry,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: IngestConfig,
    pub(crate) metrics: IngestMetrics,
    pub(crate) admission: Admission,
    pub(crate) producing: Producing,
    pub(crate) readers: Readers,
    operator_key: OperatorKey,
}

pub(crate) type ApiState = State<Arc<Shared>>;

impl Api {
    /// Builds the API; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the operator key is missing or weak, a limit allows nothing, the log gives no producer, or the metrics are
    /// declared already.
    pub async fn new(context: ApiContext<'_>) -> Result<Self, ApiError> {
        let ApiContext {
            log,
            registry,
            clock,
            config,
            metrics,
        } = context;
        let operator_key = OperatorKey::try_new(config.operator_key.as_ref())?;
        let metrics = IngestMetrics::new(metrics)?;
        let admission = Admission::try_new(&config, &metrics)?;
        let producing = Producing::open(&*log, &config).await?;
        let readers = Readers::new(log, &config);
        let shared = Shared {
            registry,
            clock,
            config,
            metrics,
            admission,
            producing,
            readers,
            operator_key,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The routes, to be served.
    pub fn router(&self) -> Router {
        let shared = Arc::clone(&self.shared);
        Router::new()
            .route("/v1/tenants", get(tenants::list))
            .route("/v1/tenants/{tenant}", get(tenants::show).put(tenants::put))
            .route("/v1/tenants/{tenant}/pause", post(tenants::pause))
            .route("/v1/tenants/{tenant}/resume", post(tenants::resume))
            .route("/v1/tenants/{tenant}/events", post(events::publish))
            .route("/v1/tenants/{tenant}/events/{event}", get(history::show))
            .merge(endpoint_routes())
            .route("/v1/tenants/{tenant}/dead-letters", get(dead_letters::list))
            .route(
                "/v1/tenants/{tenant}/dead-letters/redrive",
                post(redrive::redrive),
            )
            .route(
                "/v1/tenants/{tenant}/dead-letters/{letter}",
                get(dead_letters::show),
            )
            .route("/v1/installation", get(installation::show))
            .route("/v1/pause", post(installation::pause))
            .route("/v1/resume", post(installation::resume))
            .route("/v1/dead-letters", get(dead_letters::list_raw))
            .route("/v1/dead-letters/{letter}", get(dead_letters::show_raw))
            .fallback(async || Problem::NoRoute)
            .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
            .layer(from_fn_with_state(Arc::clone(&shared), surround))
            .with_state(shared)
    }

    /// Waits until the fate of every event taken so far is known, at most this long. For a stopping process, after its
    /// server has drained.
    pub async fn flush(&self, at_most: Duration) {
        self.shared.producing.flush(at_most).await;
    }
}

fn endpoint_routes() -> Router<Arc<Shared>> {
    const ALL: &str = "/v1/tenants/{tenant}/endpoints";
    const ONE: &str = "/v1/tenants/{tenant}/endpoints/{endpoint}";
    Router::new()
        .route(ALL, get(endpoints::list).post(endpoints::create))
        .route(&format!("{ALL}/import"), post(endpoints::import))
        .route(
            ONE,
            get(endpoints::show)
                .patch(endpoints::patch)
                .delete(endpoints::delete),
        )
        .route(&format!("{ONE}/enable"), post(endpoints::enable))
        .route(&format!("{ONE}/disable"), post(endpoints::disable))
        .route(&format!("{ONE}/pause"), post(endpoints::pause))
        .route(&format!("{ONE}/resume"), post(endpoints::resume))
        .route(
            &format!("{ONE}/secret/rotate"),
            post(endpoints::rotate_secret),
        )
        .route(&format!("{ONE}/replay"), post(replay::replay))
        .route(&format!("{ONE}/status"), get(status::show))
        .route(&format!("{ONE}/attempts"), get(history::list_attempts))
}

/// What surrounds every request: its span, the check of the operator key, the body of a problem, the metrics.
async fn surround(State(api): ApiState, request: Request, next: Next) -> Response {
    let _in_flight = Raised::by(&api.metrics.requests_in_flight, 1);
    let started = Instant::now();
    let method = method_label(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("none", MatchedPath::as_str);
    let traceparent = header_text(request.headers(), TRACEPARENT).to_owned();
    let span = tracing::info_span!("request", otel.kind = "server", method, route);
    set_parent(
        &span,
        &traceparent,
        header_text(request.headers(), TRACESTATE),
    );
    let answered = async {
        let response = if api.operator_key.admits(request.headers()) {
            next.run(request).await
        } else {
            Problem::Unauthorized.into_response()
        };
        render_problem(response, trace_id(&traceparent))
    };
    let response = answered.instrument(span.clone()).await;
    let status = response.status();
    telemetry::describe(
        &span,
        "http.response.status_code",
        i64::from(status.as_u16()),
    );
    if status.is_server_error() {
        telemetry::fail(&span, "server_error");
    }
    let seconds = started.elapsed().as_secs_f64();
    api.metrics
        .request_ended(method, route, response.status().as_u16(), seconds);
    response
}

/// Gives a problem its body; headers that it came with, such as `Allow`, stay.
fn render_problem(mut response: Response, trace_id: Option<&str>) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else {
        return response;
    };
    let mut rendered = problem.render(trace_id);
    for (name, value) in response.headers() {
        if !rendered.headers().contains_key(name) {
            rendered.headers_mut().append(name, value.clone());
        }
    }
    rendered
}

/// Methods are the caller's choice, labels are not.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

impl Shared {
    /// The tenant of the path, which must exist. It is said not to exist only after looking at a view that is as new as
    /// this request.
    pub(crate) async fn tenant(&self, text: &str) -> Result<TenantId, Problem> {
        let missing = || Problem::NotFound(format!("the tenant {text:?}"));
        let id = TenantId::try_new(text).map_err(|_| missing())?;
        if self.registry.tenant(&id).is_none() {
            self.refresh_registry().await?;
            self.registry.tenant(&id).ok_or_else(missing)?;
        }
        Ok(id)
    }

    /// Brings the registry's view up to now.
    pub(crate) async fn refresh_registry(&self) -> Result<(), Problem> {
        if self.registry.refresh(REFRESH_TIMEOUT).await {
            Ok(())
        } else {
            Err(Problem::RegistryBehind)
        }
    }
}
