//! Whose turn it is: the lanes in line, how many attempts may be under way, the share of the slow, and our own network.

use postrider_model::flow::network::NetworkHealth;
use postrider_model::ids::{EndpointId, TenantId};

use super::lines::Lines;
use super::step::Now;
use super::tally::{Share, Tally};
use crate::config::DeliverConfig;

const NETWORK_PROBE_INTERVAL_MS: i64 = 1_000;

#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) lines: Lines,
    in_flight: Tally,
    slow_in_flight: Tally,
    in_flight_max: usize,
    slow_in_flight_max: usize,
    /// What endpoints answered lately, and whether it is our own network that is down.
    pub(super) network: NetworkHealth<EndpointId, TenantId>,
    network_is_down: bool,
    network_probe_at_ms: i64,
}

/// Lets an attempt be under way, for as long as it lives.
#[derive(Debug)]
pub(super) struct Permit {
    _one: Share,
    slow: Option<Share>,
    slow_in_flight: Tally,
}

impl Permit {
    /// Counts it among the slow, or no longer.
    pub(super) fn count_as(&mut self, slow: bool) {
        if slow != self.slow.is_some() {
            self.slow = slow.then(|| self.slow_in_flight.share(1));
        }
    }
}

impl Dispatch {
    pub(super) fn new(config: &DeliverConfig) -> Self {
        Self {
            lines: Lines::default(),
            in_flight: Tally::default(),
            slow_in_flight: Tally::default(),
            in_flight_max: config.attempts_in_flight_max,
            slow_in_flight_max: config.slow_attempts_in_flight_max(),
            network: NetworkHealth::default(),
            network_is_down: false,
            network_probe_at_ms: 0,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.amount()
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < self.in_flight_max
    }

    /// The slow together have only their share of the attempts.
    pub(super) fn slow_has_room(&self) -> bool {
        self.slow_in_flight.amount() < self.slow_in_flight_max
    }

    pub(super) fn permit(&self, slow: bool) -> Permit {
        let mut permit = Permit {
            _one: self.in_flight.share(1),
            slow: None,
            slow_in_flight: self.slow_in_flight.clone(),
        };
        permit.count_as(slow);
        permit
    }

    pub(super) fn network_is_down(&self) -> bool {
        self.network_is_down
    }

    /// Looks whether our own network is down. Answers with whether that has changed.
    pub(super) fn look_at_network(&mut self, now: Now) -> bool {
        let was_down = self.network_is_down;
        self.network_is_down = self.network.is_down(now.mono_ms);
        was_down != self.network_is_down
    }

    /// Whether an attempt may start. While our own network is down, one in a second finds out when it is back; of another that
    /// is the answer when.
    pub(super) fn network_lets_start(&mut self, now: Now) -> Result<(), i64> {
        if !self.network_is_down {
            return Ok(());
        }
        if now.mono_ms < self.network_probe_at_ms {
            return Err(self.network_probe_at_ms);
        }
        self.network_probe_at_ms = now.mono_ms + NETWORK_PROBE_INTERVAL_MS;
        Ok(())
    }
}
