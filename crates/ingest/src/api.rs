//! The API as a whole: what it stands on.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use postrider_daemon::CancellationToken;
use postrider_log::{Clock, Log};
use postrider_model::address::AddressPolicy;
use postrider_registry::Registry;

use crate::admission::Admission;
use crate::auditor::Auditor;
use crate::changes::Changes;
use crate::config::IngestConfig;
use crate::metrics::IngestMetrics;
use crate::producing::Producing;
use crate::reading::Readers;
use crate::routes;
use crate::shared::{ApiError, Shared};

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
        let auditing = Arc::clone(&log);
        let readers = Readers::new(log, &config);
        let changes = Changes::new(config.changes_in_flight_max);
        let auditor = Auditor::new(auditing, &config);
        let shared = Shared {
            registry,
            clock,
            config,
            policy,
            metrics,
            admission,
            producing,
            readers,
            changes,
            auditor,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub(crate) fn routes(&self) -> Router {
        routes::router(&self.shared)
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    pub(crate) async fn flush(&self, at_most: Duration) {
        self.shared.changes.finish(at_most).await;
        self.shared.producing.flush(at_most).await;
    }
}
