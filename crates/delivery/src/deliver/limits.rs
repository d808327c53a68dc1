//! The limits of every lane, as the configuration says.

use postrider_model::flow::breaker::BreakerLimits;
use postrider_model::flow::concurrency::ConcurrencyLimits;

use crate::config::{DeliverConfig, millis};

#[derive(Debug, Clone, Copy)]
pub(super) struct LaneLimits {
    /// Deliveries that wait in memory.
    pub(super) queue_max: usize,
    /// Their bytes.
    pub(super) queue_bytes_max: usize,
    /// Settled offsets above one that is not settled.
    pub(super) window_max: usize,
    /// How long a record may hold the commit.
    pub(super) hold_ms_max: i64,
    /// Age of a record at which retention comes near: it is dead-lettered before the log loses it.
    pub(super) expires_after_ms: i64,
    /// How long an endpoint may take to answer before it counts as slow.
    pub(super) slow_from_ms: i64,
    pub(super) order: OrderLimits,
    pub(super) breaker: BreakerLimits,
    pub(super) concurrency: ConcurrencyLimits,
}

/// What may be blocked at one ordered endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrderLimits {
    /// Ordering keys.
    pub(super) keys_max: usize,
    /// Their deliveries.
    pub(super) offsets_max: usize,
}

impl From<&DeliverConfig> for LaneLimits {
    fn from(config: &DeliverConfig) -> Self {
        Self {
            queue_max: config.lane_queue_max,
            queue_bytes_max: config.lane_queue_bytes_max,
            window_max: config.lane_queue_max.saturating_mul(2),
            hold_ms_max: millis(config.hold_ms_max),
            expires_after_ms: millis(config.expires_after_ms),
            slow_from_ms: i64::from(config.slow_after_ms),
            order: OrderLimits {
                keys_max: config.lane_blocked_keys_max,
                offsets_max: config.lane_blocked_offsets_max,
            },
            breaker: BreakerLimits {
                failures_to_open: config.breaker_failures,
                pause_ms_min: millis(config.breaker_pause_ms_min),
                pause_ms_max: millis(config.breaker_pause_ms_max),
            },
            concurrency: ConcurrencyLimits {
                initial: config.lane_attempts_in_flight_initial,
                max: config.lane_attempts_in_flight_max,
                slow_from_ms: config.slow_after_ms,
            },
        }
    }
}
