//! Endpoints: the URLs customers registered, and how they want to be called.

use std::collections::BTreeMap;

use url::Url;

use crate::filter::EventTypeFilter;
use crate::ids::{EndpointId, TenantId};
use crate::retry::RetrySchedule;

/// An endpoint, with its secrets still sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// The tenant it belongs to.
    pub tenant: TenantId,
    /// Where to POST.
    pub url: Url,
    /// For people.
    pub description: String,
    /// Free pairs.
    pub metadata: BTreeMap<String, String>,
    /// Which events it wants.
    pub event_types: EventTypeFilter,
    /// What the body looks like.
    pub format: PayloadFormat,
    /// Waits between attempts; `None`: the installation's default.
    pub retry_schedule: Option<RetrySchedule>,
    /// How long one attempt may take; `None`: the installation's default.
    pub attempt_timeout_ms: Option<u32>,
    /// Signing secrets, newest first.
    pub secrets: Vec<SealedSecret>,
    /// Whether it is delivered to.
    pub state: EndpointState,
    /// When it was created.
    pub created_at_ms: i64,
}

/// Whether an endpoint is delivered to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointState {
    /// Events are matched and delivered.
    Enabled,
    /// Events are not matched.
    Disabled {
        /// Why, for people and programs: `manual`, `endpoint_gone`, ….
        reason: String,
    },
}

/// What the body of a webhook looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadFormat {
    /// `{"type","timestamp","data"}`, as Standard Webhooks recommends.
    #[default]
    Standard,
    /// The event's data alone.
    Raw,
}

/// A signing secret, encrypted under the installation's key with the endpoint's id as associated data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// Which key encrypted it.
    pub key_id: String,
    /// Nonce and ciphertext.
    pub sealed: Vec<u8>,
    /// Until when it signs; `None`: without end.
    pub expires_at_ms: Option<i64>,
}
