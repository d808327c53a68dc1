//! Tenants: the customer accounts that endpoints and events belong to.

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
    /// When it was created.
    pub created_at_ms: i64,
}
