//! What the registry tells metrics.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// What there is and what happened so far, for a metrics endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// Next offset to read.
    pub position: u64,
    /// How long ago the view was last known to be current.
    pub age: Duration,
    /// Tenants.
    pub tenants: usize,
    /// Endpoints that events are delivered to.
    pub endpoints_enabled: usize,
    /// Endpoints that are paused.
    pub endpoints_paused: usize,
    /// Endpoints that are disabled.
    pub endpoints_disabled: usize,
    /// Records read that count no more and were not removed yet.
    pub stale_records: usize,
    /// Records read whose key or value was not understood.
    pub unreadable_total: u64,
    /// Reads that failed.
    pub read_failures_total: u64,
    /// Writes that another writer got ahead of, repeated or answered as a conflict.
    pub conflicts_total: u64,
    /// Stale records removed by this process.
    pub tombstones_total: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) unreadable: AtomicU64,
    pub(crate) read_failures: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) tombstones: AtomicU64,
}
