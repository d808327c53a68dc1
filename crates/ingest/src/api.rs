//! The API as a whole: what it stands on, and its routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use postrider_daemon::CancellationToken;
use postrider_log::{Clock, Log, LogError};
use postrider_model::address::AddressPolicy;
use postrider_model::ids::TenantId;
use postrider_registry::Registry;
use std::time::Duration;

use crate::admission::Admission;
use crate::auth::InvalidOperatorKey;
use crate::config::{IngestConfig, InvalidIngest};
use crate::entrance::Entrance;
use crate::metrics::IngestMetrics;
use crate::problem::Problem;
use crate::producing::Producing;
use crate::reading::Readers;
use crate::{
    dead_letters, endpoints, events, history, installation, redrive, replay, status, tenants,
};

/// How long a request waits for the registry before something unknown is said not to exist.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// Where events are published.
pub(crate) const EVENTS: &str = "/v1/tenants/{tenant}/events";

/// What the API stands on.
#[derive(Debug)]
pub struct ApiContext<'a> {
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
    /// What stands before it.
    pub entrance: &'a Entrance,
    /// From when it is cancelled on, no event or delivery is appended: nobody would know where it belongs.
    pub halt: CancellationToken,
}

/// Why the API could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no usable operator key.
    #[error(transparent)]
    OperatorKey(#[from] InvalidOperatorKey),
    /// Limits that cannot be kept.
    #[error(transparent)]
    Config(#[from] InvalidIngest),
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
    pub(crate) policy: AddressPolicy,
    pub(crate) metrics: IngestMetrics,
    pub(crate) admission: Admission,
    pub(crate) producing: Producing,
    pub(crate) readers: Readers,
}

pub(crate) type ApiState = State<Arc<Shared>>;

impl Api {
    /// Builds the API; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When a limit allows nothing or the log gives no producer.
    pub async fn new(context: ApiContext<'_>) -> Result<Self, ApiError> {
        let ApiContext {
            log,
            registry,
            clock,
            config,
            policy,
            entrance,
            halt,
        } = context;
        let metrics = entrance.metrics().clone();
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
