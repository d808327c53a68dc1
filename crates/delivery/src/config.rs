//! Every limit of the delivery stages, with defaults that are safe.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits of the three stages.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryConfig {
    /// Of all stages.
    pub stage: StageConfig,
    /// Of fan-out.
    pub fan_out: FanOutConfig,
    /// Of deliver.
    pub deliver: DeliverConfig,
    /// Of the scheduler.
    pub scheduler: SchedulerConfig,
}

/// Limits that all stages share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageConfig {
    /// Time between commits while there is progress.
    pub commit_interval_ms: u64,
    /// Time between commits while there is none; they renew the lease.
    pub commit_idle_interval_ms: u64,
    /// How long a revoked partition may drain.
    pub revoke_drain_ms: u64,
    /// How long a stopping process may drain.
    pub stop_drain_ms: u64,
    /// Bytes each stage reads ahead.
    pub prefetch_bytes_max: usize,
    /// Bytes each stage has appended and not yet seen acknowledged.
    pub producer_queue_bytes_max: usize,
    /// Bytes kept of a record that could not be understood.
    pub raw_record_bytes_max: usize,
}

impl Default for StageConfig {
    fn default() -> Self {
        Self {
            commit_interval_ms: 500,
            commit_idle_interval_ms: 3_000,
            revoke_drain_ms: 5_000,
            stop_drain_ms: 25_000,
            prefetch_bytes_max: 16 * 1024 * 1024,
            producer_queue_bytes_max: 64 * 1024 * 1024,
            raw_record_bytes_max: 256 * 1024,
        }
    }
}

impl StageConfig {
    pub(crate) fn revoke_drain(&self) -> Duration {
        Duration::from_millis(self.revoke_drain_ms)
    }

    pub(crate) fn stop_drain(&self) -> Duration {
        Duration::from_millis(self.stop_drain_ms)
    }
}

/// Limits of fan-out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FanOutConfig {
    /// Events whose deliveries are not yet all acknowledged.
    pub events_in_flight_max: usize,
    /// How long an event waits for the registry position it was accepted at.
    pub registry_wait_ms: u64,
    /// How long an event id is remembered, so that its repeat is dropped.
    pub repeat_window_ms: u64,
    /// Event ids remembered for each partition.
    pub repeat_window_ids_max: usize,
}

impl Default for FanOutConfig {
    fn default() -> Self {
        Self {
            events_in_flight_max: 2_000,
            registry_wait_ms: 5_000,
            repeat_window_ms: 10 * 60 * 1000,
            repeat_window_ids_max: 100_000,
        }
    }
}

/// Limits of deliver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliverConfig {
    /// Attempts under way in this process.
    pub attempts_in_flight_max: usize,
    /// Attempts under way at one endpoint.
    pub lane_attempts_in_flight_max: usize,
    /// Deliveries that wait in one lane.
    pub lane_queue_max: usize,
    /// Records of one partition that are read and not settled.
    pub partition_unsettled_max: usize,
    /// Bytes of all records that are read and not settled.
    pub unsettled_bytes_max: usize,
    /// How long one attempt may take, unless the endpoint says otherwise.
    pub attempt_timeout_ms: u64,
    /// No attempt starts when the last successful commit is older; must be shorter than the group's session timeout.
    pub lease_ms: u64,
    /// How long a settlement is remembered, so that a copy of its record is dropped.
    pub settled_age_ms: u64,
    /// Settlements remembered for each partition.
    pub settled_max: usize,
}

impl Default for DeliverConfig {
    fn default() -> Self {
        Self {
            attempts_in_flight_max: 1_024,
            lane_attempts_in_flight_max: 32,
            lane_queue_max: 512,
            partition_unsettled_max: 2_000,
            unsettled_bytes_max: 256 * 1024 * 1024,
            attempt_timeout_ms: 15_000,
            lease_ms: 20_000,
            settled_age_ms: 10 * 60 * 1000,
            settled_max: 50_000,
        }
    }
}

/// Limits of the scheduler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// A retry that is due within this time waits in memory instead of in a shorter delay.
    pub timer_ms_max: u64,
    /// Bytes of retries that wait in memory.
    pub timer_bytes_max: usize,
    /// Retries whose next append is not yet acknowledged.
    pub releases_in_flight_max: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            timer_ms_max: 60_000,
            timer_bytes_max: 128 * 1024 * 1024,
            releases_in_flight_max: 1_000,
        }
    }
}

/// Which addresses requests may leave for, and what one may cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressConfig {
    /// Networks that are opened although the policy refuses them, such as `127.0.0.0/8`.
    pub allow_cidrs: Vec<String>,
    /// How long connecting may take, TLS included.
    pub connect_timeout_ms: u64,
    /// Idle connections kept for each host.
    pub idle_connections_per_host_max: usize,
    /// How long an idle connection is kept.
    pub idle_connection_ms: u64,
    /// Bytes read of a response before its connection is closed.
    pub response_bytes_max: usize,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self {
            allow_cidrs: Vec::new(),
            connect_timeout_ms: 5_000,
            idle_connections_per_host_max: 32,
            idle_connection_ms: 30_000,
            response_bytes_max: 64 * 1024,
        }
    }
}
