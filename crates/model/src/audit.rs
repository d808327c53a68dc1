//! Who changed what by the API.

use crate::ids::{ApiKeyId, TenantId};

/// A change that somebody made by the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// `aud_…`.
    pub id: String,
    /// When it was asked for.
    pub asked_at_ms: i64,
    /// Who asked.
    pub actor: Actor,
    /// The tenant that it is about.
    pub tenant: Option<TenantId>,
    /// What was done, such as `endpoint.create`.
    pub action: String,
    /// What it was done to, such as an endpoint's id; empty: the tenant, or the installation.
    pub subject: String,
    /// The status that was answered. From 500 on it is not known whether all of it was done.
    pub status: u16,
    /// Where the request came from.
    pub address: String,
    /// The trace that the request was part of; empty: none.
    pub trace_id: String,
}

/// Who asked for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// What kind of key the request bore.
    pub kind: ActorKind,
    /// The key; a portal token's is the one by which it was issued. None: the configured one.
    pub key_id: Option<ApiKeyId>,
    /// The key's name, or the user that a portal token was issued for.
    pub name: String,
}

/// What kind of key a request bore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActorKind {
    /// The operator key of the configuration.
    ConfiguredKey,
    /// An operator's key.
    OperatorKey,
    /// A tenant's key.
    TenantKey,
    /// A portal token.
    PortalToken,
}

impl ActorKind {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfiguredKey => "configured_key",
            Self::OperatorKey => "operator_key",
            Self::TenantKey => "tenant_key",
            Self::PortalToken => "portal_token",
        }
    }
}
