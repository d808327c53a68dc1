//! Limits of the exporter.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often the exporter gathers, and what it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExporterConfig {
    /// How often everything is gathered, in milliseconds.
    pub interval_ms: u64,
    /// Bytes read at once, at most.
    pub read_bytes_max: usize,
    /// Bytes read in one gathering to find the oldest ready deliveries, at most; the next goes on
    /// from there.
    pub ready_bytes_max: usize,
    /// Retries whose due time is kept, at most; those beyond are estimated.
    pub retries_max: usize,
    /// Settled offsets kept for each partition, at most.
    pub settled_max: usize,
    /// Tenants and endpoints that are shown by name for each measure, at most.
    pub worst_max: usize,
}

impl Default for ExporterConfig {
    fn default() -> Self {
        Self {
            interval_ms: 5_000,
            read_bytes_max: 4 * 1024 * 1024,
            ready_bytes_max: 64 * 1024 * 1024,
            retries_max: 1_000_000,
            settled_max: 100_000,
            worst_max: 10,
        }
    }
}

impl ExporterConfig {
    /// How often everything is gathered.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.max(1))
    }
}
