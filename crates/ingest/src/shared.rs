//! What every handler of the API has.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use postrider_log::{Clock, LogError};
use postrider_model::address::AddressPolicy;
use postrider_model::ids::TenantId;
use postrider_registry::Registry;

use crate::admission::Admission;
use crate::auditor::Auditor;
use crate::changes::Changes;
use crate::config::{IngestConfig, InvalidIngest};
use crate::fields::Fields;
use crate::metrics::IngestMetrics;
use crate::operator_key::InvalidOperatorKey;
use crate::problem::Problem;
use crate::producing::Producing;
use crate::reading::Readers;
use crate::request;

/// How long a request waits for the registry before something unknown is said not to exist.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// Where events are published.
pub(crate) const EVENTS: &str = "/v1/tenants/{tenant}/events";
/// Where many are published at once.
pub(crate) const EVENTS_BATCH: &str = "/v1/tenants/{tenant}/events/batch";

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
    pub(crate) changes: Changes,
    pub(crate) auditor: Auditor,
}

pub(crate) type ApiState = State<Arc<Shared>>;

impl Shared {
    /// The tenant of the path, which must exist. It is said not to exist only after looking at a
    /// view that is as new as this request.
    pub(crate) async fn tenant(&self, text: &str) -> Result<TenantId, Problem> {
        let id = tenant_id(text)?;
        if self.registry.tenant(&id).is_none() {
            self.refresh_registry().await?;
            if self.registry.tenant(&id).is_none() {
                return Err(Problem::NoTenant(id));
            }
        }
        Ok(id)
    }

    /// Reads a body that is no event and no import.
    pub(crate) async fn read_body(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Bytes, Problem> {
        let (bytes_max, at_most) = (self.config.body_bytes_max, self.config.body_timeout());
        request::read_body(headers, body, bytes_max, at_most).await
    }

    /// The fields of such a body, none if it was left out.
    pub(crate) async fn read_optional_fields(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Fields, Problem> {
        let (bytes_max, at_most) = (self.config.body_bytes_max, self.config.body_timeout());
        let values = request::read_optional_object(headers, body, bytes_max, at_most).await?;
        Ok(Fields::new(values.unwrap_or_default()))
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

/// The tenant that the path names, whether it exists or not.
pub(crate) fn tenant_id(text: &str) -> Result<TenantId, Problem> {
    TenantId::try_new(text).map_err(|_| Problem::NotFound(format!("the tenant {text:?}")))
}
