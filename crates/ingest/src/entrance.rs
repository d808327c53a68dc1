//! What stands before the API: it lets nobody in without a key, and answers for as long as there is
//! no log behind it.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use postrider_daemon::telemetry::{self, set_parent, trace_id};
use postrider_log::LogError;
use tokio::time::Instant;
use tower::ServiceExt;
use tracing::Instrument;

use crate::api::Api;
use crate::auth::Authority;
use crate::config::IngestConfig;
use crate::metrics::{IngestMetrics, Raised};
use crate::problem::Problem;
use crate::request::{TRACEPARENT, TRACESTATE, header_text};
use crate::shared::{ApiError, EVENTS, EVENTS_BATCH};

/// The entrance of a process that may begin before its log is there. Clones share everything.
#[derive(Debug, Clone)]
pub struct Entrance {
    guard: Arc<Guard>,
    opened: Arc<OnceLock<Opened>>,
}

/// Who is known, and where all who come are counted.
#[derive(Debug)]
struct Guard {
    authority: Authority,
    metrics: IngestMetrics,
}

#[derive(Debug)]
struct Opened {
    api: Api,
    router: Router,
}

impl Entrance {
    /// An entrance to nothing yet.
    ///
    /// # Errors
    /// When the configured operator key is weak, or the metrics are declared already.
    pub fn new(config: &IngestConfig, metrics: &prometheus::Registry) -> Result<Self, ApiError> {
        let guard = Guard {
            authority: Authority::new(config)?,
            metrics: IngestMetrics::new(metrics)?,
        };
        Ok(Self {
            guard: Arc::new(guard),
            opened: Arc::default(),
        })
    }

    /// From now on the API answers. Another one than the first is not taken. Must be called inside
    /// a tokio runtime.
    ///
    /// # Errors
    /// When neither the configuration nor the registry, which must be read, has an operator key.
    pub fn open(&self, api: Api) -> Result<(), ApiError> {
        let authority = self
            .guard
            .authority
            .with_registry(api.registry(), api.clock())?;
        let guard = Arc::new(Guard {
            authority,
            metrics: self.guard.metrics.clone(),
        });
        self.opened.get_or_init(|| Opened {
            router: surrounded(api.routes(), guard),
            api,
        });
        Ok(())
    }

    /// What is to be served: until it is opened, whoever may have a key is asked to come again.
    pub fn router(&self) -> Router {
        let opened = Arc::clone(&self.opened);
        let closed = Router::new()
            .route(EVENTS, post(refuse_event))
            .route(EVENTS_BATCH, post(refuse_event))
            .fallback(async || not_yet())
            .with_state(Arc::clone(&self.guard));
        let closed = surrounded(closed, Arc::clone(&self.guard));
        Router::new().fallback(move |request: Request| {
            let router = opened.get().map_or(&closed, |opened| &opened.router);
            router.clone().oneshot(request)
        })
    }

    /// Waits until the fate of every event taken so far is known, at most this long. For a stopping
    /// process, after its server has drained.
    pub async fn flush(&self, at_most: Duration) {
        if let Some(opened) = self.opened.get() {
            opened.api.flush(at_most).await;
        }
    }

    /// What is counted here, and by the API behind.
    pub fn metrics(&self) -> &IngestMetrics {
        &self.guard.metrics
    }
}

fn surrounded(routes: Router, guard: Arc<Guard>) -> Router {
    routes.layer(from_fn_with_state(guard, surround))
}

async fn refuse_event(State(guard): State<Arc<Guard>>) -> Problem {
    let problem = not_yet();
    guard.metrics.event_refused(problem.slug());
    problem
}

fn not_yet() -> Problem {
    LogError::Unavailable("it was not reached since this process began".to_owned()).into()
}

/// What surrounds every request: its span, who asks, the body of a problem, the metrics.
async fn surround(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let metrics = &guard.metrics;
    let _in_flight = Raised::by(&metrics.requests_in_flight, 1);
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
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let address = peer.map(|peer| peer.0.ip().to_canonical());
        let caller = guard.authority.caller(request.headers(), address).await;
        let response = match caller {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(problem) => problem.into_response(),
        };
        render_problem(response, trace_id(&traceparent))
    };
    let mut response = answered.instrument(span.clone()).await;
    // Answers hold secrets and payloads of tenants (RFC 9111, 5.2.2.5).
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
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
    metrics.request_ended(method, route, response.status().as_u16(), seconds);
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
