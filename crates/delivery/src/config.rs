//! Every limit of the delivery stages, with defaults that are safe.

use std::time::Duration;

use postrider_model::address::{AddressPolicy, InvalidAllowedNet};
use postrider_model::delivery::RESPONSE_EXCERPT_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// Limits of the three stages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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

/// Why the limits do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLimits {
    /// A limit that stops everything.
    #[error("`{0}`: must be at least 1")]
    Zero(&'static str),
    /// A lease that never holds.
    #[error(
        "`deliver.lease_ms`: must be more than twice `stage.commit_idle_interval_ms`, which renews it"
    )]
    Lease,
    /// More than a record of an attempt takes.
    #[error("`response_excerpt_bytes_max`: must be at most {RESPONSE_EXCERPT_BYTES_MAX}")]
    Excerpt,
}

impl DeliveryConfig {
    /// Checks that the limits go together: none stops everything, and the lease outlasts the
    /// commits that renew it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its key below the section.
    pub fn check(&self) -> Result<(), InvalidLimits> {
        if let Some((key, _)) = self.at_least_1().into_iter().find(|(_, limit)| *limit == 0) {
            return Err(InvalidLimits::Zero(key));
        }
        if self.deliver.lease_ms <= self.stage.commit_idle_interval_ms.saturating_mul(2) {
            return Err(InvalidLimits::Lease);
        }
        Ok(())
    }

    /// What stops everything when it is 0.
    fn at_least_1(&self) -> [(&'static str, usize); 17] {
        let past_check_interval_ms = self.stage.past_check_interval_ms;
        [
            (
                "stage.past_check_interval_ms",
                usize::try_from(past_check_interval_ms).unwrap_or(usize::MAX),
            ),
            (
                "stage.partitions_prepared_at_once_max",
                self.stage.partitions_prepared_at_once_max,
            ),
            (
                "fan_out.events_in_flight_max",
                self.fan_out.events_in_flight_max,
            ),
            (
                "fan_out.events_in_flight_bytes_max",
                self.fan_out.events_in_flight_bytes_max,
            ),
            (
                "deliver.attempts_in_flight_max",
                self.deliver.attempts_in_flight_max,
            ),
            (
                "deliver.lane_attempts_in_flight_max",
                self.deliver.lane_attempts_in_flight_max,
            ),
            ("deliver.lane_queue_max", self.deliver.lane_queue_max),
            (
                "deliver.lane_attempts_in_flight_initial",
                self.deliver.lane_attempts_in_flight_initial,
            ),
            (
                "deliver.lane_queue_bytes_max",
                self.deliver.lane_queue_bytes_max,
            ),
            (
                "deliver.catch_up_read_bytes_max",
                self.deliver.catch_up_read_bytes_max,
            ),
            (
                "deliver.lane_blocked_keys_max",
                self.deliver.lane_blocked_keys_max,
            ),
            (
                "deliver.lane_blocked_offsets_max",
                self.deliver.lane_blocked_offsets_max,
            ),
            (
                "deliver.partition_unsettled_max",
                self.deliver.partition_unsettled_max,
            ),
            (
                "deliver.unsettled_bytes_max",
                self.deliver.unsettled_bytes_max,
            ),
            ("scheduler.timer_bytes_max", self.scheduler.timer_bytes_max),
            (
                "scheduler.releases_in_flight_max",
                self.scheduler.releases_in_flight_max,
            ),
            (
                "scheduler.releases_per_second_max",
                self.scheduler.releases_per_second_max as usize,
            ),
        ]
    }
}

/// Limits that all stages share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageConfig {
    /// Time between commits while there is progress.
    pub commit_interval_ms: u64,
    /// Time between commits while there is none; they renew the lease.
    pub commit_idle_interval_ms: u64,
    /// Partitions for which a stage looks up at once what it must know before their first record.
    pub partitions_prepared_at_once_max: usize,
    /// How often it is looked whether the log still has what was read of it.
    pub past_check_interval_ms: u64,
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
            partitions_prepared_at_once_max: 8,
            past_check_interval_ms: 5_000,
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
    /// Bytes of their records; the last one may go beyond.
    pub events_in_flight_bytes_max: usize,
    /// How long an event id is remembered, so that its repeat is dropped.
    pub repeat_window_ms: u64,
    /// Event ids remembered for each partition.
    pub repeat_window_ids_max: usize,
}

impl Default for FanOutConfig {
    fn default() -> Self {
        Self {
            events_in_flight_max: 2_000,
            events_in_flight_bytes_max: 64 * 1024 * 1024,
            repeat_window_ms: 10 * 60 * 1000,
            repeat_window_ids_max: 100_000,
        }
    }
}

impl FanOutConfig {
    pub(crate) fn repeat_window_ms(&self) -> i64 {
        i64::try_from(self.repeat_window_ms).unwrap_or(i64::MAX)
    }
}

/// Limits of deliver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliverConfig {
    /// Attempts under way in this process.
    pub attempts_in_flight_max: usize,
    /// Of `attempts_in_flight_max`, the part in per cent that endpoints may use together which
    /// answer slowly, or are not known to answer at all.
    pub slow_attempts_percent_max: u8,
    /// Attempts under way at one endpoint, at most.
    pub lane_attempts_in_flight_max: usize,
    /// Attempts under way at one endpoint of which nothing is known yet.
    pub lane_attempts_in_flight_initial: usize,
    /// An endpoint that takes longer to answer counts among the slow.
    pub slow_after_ms: u32,
    /// Deliveries that wait in memory for one endpoint; more stay in the log.
    pub lane_queue_max: usize,
    /// Their bytes.
    pub lane_queue_bytes_max: usize,
    /// How long a delivery may hold its partition's commit before a cursor does that instead.
    pub hold_ms_max: u64,
    /// Failures in a row after which an endpoint is left alone for a while.
    pub breaker_failures: u32,
    /// How long it is left alone at first; twice as long each time.
    pub breaker_pause_ms_min: u64,
    /// How long at most.
    pub breaker_pause_ms_max: u64,
    /// Time between two writes of where an endpoint's backlog begins.
    pub state_interval_ms: u64,
    /// Bytes read again from the log at once.
    pub catch_up_read_bytes_max: usize,
    /// Ordering keys of one ordered endpoint that may be held back beside its cursor, each by a
    /// delivery that failed or by more deliveries than fit into memory; where there are more, the
    /// endpoint waits.
    pub lane_blocked_keys_max: usize,
    /// Their deliveries.
    pub lane_blocked_offsets_max: usize,
    /// How long a delivery may fail at an ordered endpoint until it is dead-lettered, unless the
    /// endpoint would rather wait.
    pub blocked_ms_max: u64,
    /// Records of one partition that hold its commit.
    pub partition_unsettled_max: usize,
    /// Bytes of all deliveries in memory; when it is reached, deliveries stay in the log.
    pub unsettled_bytes_max: usize,
    /// An endpoint at which nothing succeeded for so long is disabled.
    pub disable_failing_after_ms: u64,
    /// A delivery that waited in the log for so long is dead-lettered, so that retention does not
    /// take it. At most nine tenths of the retention of `deliveries` count.
    pub expires_after_ms: u64,
    /// Where ingest reaches this process's health server, `host:port`. It is part of each commit,
    /// and nothing but `endpoint status` uses it: there the owner of a lane is asked for what only
    /// its memory holds. `postrider` fills an empty one in (the address it listens at or, if that
    /// is all of them, `HOSTNAME`) and adds a missing port, so it is needed only where ingest
    /// cannot resolve that name, as in Kubernetes. If it is wrong, the status lacks that part.
    pub advertised_address: String,
    /// How long one attempt may take, unless the endpoint says otherwise.
    pub attempt_timeout_ms: u64,
    /// No attempt starts when the last successful commit is older; must be shorter than the group's
    /// session timeout.
    pub lease_ms: u64,
    /// How long a settlement is remembered, so that a copy of its record is dropped.
    pub settled_age_ms: u64,
    /// Settlements remembered for each partition.
    pub settled_max: usize,
}

impl Default for DeliverConfig {
    fn default() -> Self {
        Self {
            attempts_in_flight_max: 2_048,
            slow_attempts_percent_max: 50,
            lane_attempts_in_flight_max: 64,
            lane_attempts_in_flight_initial: 4,
            slow_after_ms: 1_000,
            lane_queue_max: 512,
            lane_queue_bytes_max: 4 * 1024 * 1024,
            hold_ms_max: 5_000,
            breaker_failures: 5,
            breaker_pause_ms_min: 1_000,
            breaker_pause_ms_max: 300_000,
            state_interval_ms: 1_000,
            catch_up_read_bytes_max: 1024 * 1024,
            lane_blocked_keys_max: 4_096,
            lane_blocked_offsets_max: 100_000,
            blocked_ms_max: 60 * 60 * 1000,
            partition_unsettled_max: 10_000,
            unsettled_bytes_max: 256 * 1024 * 1024,
            disable_failing_after_ms: 5 * 24 * 60 * 60 * 1000,
            expires_after_ms: 6 * 24 * 60 * 60 * 1000,
            advertised_address: String::new(),
            attempt_timeout_ms: 15_000,
            lease_ms: 20_000,
            settled_age_ms: 10 * 60 * 1000,
            settled_max: 50_000,
        }
    }
}

impl DeliverConfig {
    pub(crate) fn blocked_ms_max(&self) -> i64 {
        millis(self.blocked_ms_max)
    }

    pub(crate) fn disable_failing_after_ms(&self) -> i64 {
        millis(self.disable_failing_after_ms)
    }

    pub(crate) fn state_interval_ms(&self) -> i64 {
        millis(self.state_interval_ms)
    }

    pub(crate) fn slow_attempts_in_flight_max(&self) -> usize {
        (self.attempts_in_flight_max * usize::from(self.slow_attempts_percent_max) / 100).max(1)
    }
}

/// As times are counted here.
pub(crate) fn millis(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Limits of the scheduler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// A retry that is due within this time waits in memory instead of in a shorter delay.
    pub timer_ms_max: u64,
    /// Bytes of retries in memory; when half of it is taken, more wait in the log until they are
    /// due.
    pub timer_bytes_max: usize,
    /// Retries whose next append is not yet acknowledged.
    pub releases_in_flight_max: usize,
    /// Retries that one process returns to one partition of `deliveries` in a second.
    pub releases_per_second_max: u32,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            timer_ms_max: 90_000,
            timer_bytes_max: 128 * 1024 * 1024,
            releases_in_flight_max: 1_000,
            releases_per_second_max: 1_000,
        }
    }
}

/// Which addresses requests may leave for, and what one may cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressConfig {
    /// Networks that are opened although the policy refuses them, such as `127.0.0.0/8`.
    pub allow_cidrs: Vec<String>,
    /// How long a name may take to be resolved.
    pub dns_timeout_ms: u64,
    /// Names that are resolved at once for each tenant; more wait, within the same time.
    pub dns_lookups_per_tenant_max: usize,
    /// Answers of DNS that are remembered.
    pub dns_cache_answers_max: u64,
    /// Addresses of a name that are tried.
    pub dns_addresses_max: usize,
    /// How long connecting may take, TLS included.
    pub connect_timeout_ms: u64,
    /// Connections, idle ones included: for a new one, the one that is idle longest goes. A process
    /// that may open fewer files takes as many as those leave.
    pub connections_max: usize,
    /// How long an idle connection is kept; less if the receiver says so.
    pub idle_connection_ms: u64,
    /// A connection that is older takes no more requests, so that changes of DNS are followed.
    pub connection_age_max_ms: u64,
    /// While a request waits on an HTTP/2 connection, the receiver is asked so often whether it is
    /// there.
    pub http2_ping_interval_ms: u64,
    /// Without an answer to that for so long the connection is dead, and what waits on it has
    /// failed.
    pub http2_ping_timeout_ms: u64,
    /// Bytes read of a response before its connection is closed.
    pub response_bytes_max: usize,
    /// Bytes of a response's body that are kept with the attempt, for those who ask why it failed;
    /// 0: none.
    pub response_excerpt_bytes_max: usize,
    /// How long the body of a response is read, within the attempt's time; its status counts
    /// however the body ends.
    pub response_body_timeout_ms: u64,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self {
            allow_cidrs: Vec::new(),
            dns_timeout_ms: 3_000,
            dns_lookups_per_tenant_max: 16,
            dns_cache_answers_max: 8_192,
            dns_addresses_max: 16,
            connect_timeout_ms: 5_000,
            connections_max: 4_096,
            idle_connection_ms: 30_000,
            connection_age_max_ms: 60_000,
            http2_ping_interval_ms: 5_000,
            http2_ping_timeout_ms: 5_000,
            response_bytes_max: 64 * 1024,
            response_excerpt_bytes_max: RESPONSE_EXCERPT_BYTES_MAX,
            response_body_timeout_ms: 2_000,
        }
    }
}

impl EgressConfig {
    /// Checks what the types of the fields cannot say.
    ///
    /// # Errors
    /// Names the first key that is wrong.
    pub fn check(&self) -> Result<(), InvalidLimits> {
        let counts = [
            (
                "dns_lookups_per_tenant_max",
                self.dns_lookups_per_tenant_max,
            ),
            ("dns_addresses_max", self.dns_addresses_max),
            ("connections_max", self.connections_max),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(InvalidLimits::Zero(key));
        }
        if self.response_excerpt_bytes_max > RESPONSE_EXCERPT_BYTES_MAX {
            return Err(InvalidLimits::Excerpt);
        }
        Ok(())
    }

    /// Which addresses may be dialled.
    ///
    /// # Errors
    /// When a text of `allow_cidrs` is no net.
    pub fn policy(&self) -> Result<AddressPolicy, InvalidAllowedNet> {
        AddressPolicy::try_new(&self.allow_cidrs)
    }
}

#[cfg(test)]
mod tests {
    use super::{DeliveryConfig, InvalidLimits};

    #[test]
    fn the_defaults_go_together() {
        assert_eq!(DeliveryConfig::default().check(), Ok(()));
    }

    #[test]
    fn limits_that_do_not_go_together_are_refused() {
        let mut config = DeliveryConfig::default();
        config.deliver.lane_queue_max = 0;
        assert_eq!(
            config.check(),
            Err(InvalidLimits::Zero("deliver.lane_queue_max"))
        );
        config = DeliveryConfig::default();
        config.deliver.lease_ms = 5_000;
        assert_eq!(config.check(), Err(InvalidLimits::Lease));
    }
}
