//! Tenants: the customer accounts that endpoints and events belong to; and the installation they
//! are all part of.

use std::collections::BTreeMap;

use crate::ids::TenantId;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The caller's own id.
    pub id: TenantId,
    /// For people.
    pub name: String,
    /// Free pairs.
    pub metadata: BTreeMap<String, String>,
    /// Nothing is sent to its endpoints; events are matched and wait.
    pub paused: bool,
    /// When it was created.
    pub created_at_ms: i64,
    /// How often its portal tokens were revoked: those of an earlier generation are void.
    pub portal_token_generation: u64,
}

/// What holds for the whole installation, until something else was written: nothing is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Installation {
    /// Nothing is sent to any endpoint; events are matched and wait.
    pub deliveries_paused: bool,
}
