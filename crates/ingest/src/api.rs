//! The API as a whole: what it stands on, and its routes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use postrider_daemon::CancellationToken;
use postrider_log::{Clock, Log};
use postrider_model::address::AddressPolicy;
use postrider_registry::Registry;

use crate::admission::Admission;
use crate::config::IngestConfig;
use crate::metrics::IngestMetrics;
use crate::problem::Problem;
use crate::producing::Producing;
use crate::reading::Readers;
use crate::shared::{ApiError, EVENTS, Shared};
use crate::{
    dead_letters, endpoints, events, history, installation, redrive, replay, status, tenants,
};

/// What the API stands on.
#[derive(Debug)]
pub struct ApiContext {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Tenants and endpoints; its follower runs.
    pub registry: Registry,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Limits.
    pub config: IngestConfig,
    /// Which addresses webhooks may reach.
    pub policy: AddressPolicy,
    /// Counters, those of [`Entrance::metrics`](crate::Entrance::metrics).
    pub metrics: IngestMetrics,
    /// From when it is cancelled on, no event or delivery is appended: nobody would know where it
    /// belongs.
    pub halt: CancellationToken,
}

/// The HTTP API. Clones share everything.
#[derive(Debug, Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

impl Api {
    /// Builds the API; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When a limit allows nothing or the log gives no producer.
    pub async fn new(context: ApiContext) -> Result<Self, ApiError> {
        let ApiContext {
            log,
            registry,
            clock,
            config,
            policy,
            metrics,
            halt,
        } = context;
        config.check()?;
        let admission = Admission::new(&config, &metrics);
        let producing = Producing::open(&*log, &config, halt).await?;
        let readers = Readers::new(log, &config);
        let shared = Shared {
            registry,
            clock,
            config,
            policy,
            metrics,
            admission,
            producing,
            readers,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub(crate) fn routes(&self) -> Router {
        Router::new()
            .route("/v1/tenants", get(tenants::list))
            .route("/v1/tenants/{tenant}", get(tenants::show).put(tenants::put))
            .route("/v1/tenants/{tenant}/pause", post(tenants::pause))
            .route("/v1/tenants/{tenant}/resume", post(tenants::resume))
            .route(EVENTS, post(events::publish))
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
            .with_state(Arc::clone(&self.shared))
    }

    pub(crate) async fn flush(&self, at_most: Duration) {
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
