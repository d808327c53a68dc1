//! Whose turn it is: the lanes in line, how many attempts may be under way, the share of the slow,
//! and our own network.

use postrider_model::flow::network::NetworkHealth;
use postrider_model::ids::{EndpointId, TenantId};
use postrider_registry::{Gate, Lookup};

use super::Deliver;
use super::attempt::{AttemptJob, DeliverContext};
use super::lane::Turn;
use super::lines::{LaneKey, Lines};
use super::permits::{Permit, Permits};
use super::step::Now;
use crate::config::DeliverConfig;
use crate::sender::Sender;

const NETWORK_PROBE_INTERVAL_MS: i64 = 1_000;

#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) lines: Lines,
    permits: Permits,
    in_flight_max: usize,
    slow_in_flight_max: usize,
    /// What endpoints answered lately, and whether it is our own network that is down.
    pub(super) network: NetworkHealth<EndpointId, TenantId>,
    network_is_down: bool,
    network_probe_at_ms: i64,
}

impl Dispatch {
    pub(super) fn new(config: &DeliverConfig) -> Self {
        Self {
            lines: Lines::default(),
            permits: Permits::default(),
            in_flight_max: config.attempts_in_flight_max,
            slow_in_flight_max: config.slow_attempts_in_flight_max(),
            network: NetworkHealth::default(),
            network_is_down: false,
            network_probe_at_ms: 0,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.permits.given()
    }

    fn has_room(&self) -> bool {
        self.in_flight() < self.in_flight_max
    }

    /// The slow together have only their share of the attempts.
    fn slow_has_room(&self) -> bool {
        self.permits.slow() < self.slow_in_flight_max
    }

    pub(super) fn permit(&self) -> Permit {
        self.permits.give()
    }

    pub(super) fn network_is_down(&self) -> bool {
        self.network_is_down
    }

    /// Looks whether our own network is down. Answers with whether that has changed.
    fn look_at_network(&mut self, now: Now) -> bool {
        let was_down = self.network_is_down;
        self.network_is_down = self.network.is_down(now.mono_ms);
        was_down != self.network_is_down
    }

    /// Whether an attempt may start. While our own network is down, one in a second finds out when
    /// it is back; of another that is the answer when.
    fn network_lets_start(&mut self, now: Now) -> Result<(), i64> {
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

impl<S: Sender> Deliver<S> {
    /// Puts a lane in line if it may start now, or sets the time when it may.
    pub(super) fn line_up(&mut self, key: LaneKey, now: Now) {
        let owned = self.partitions.get_mut(&key.0);
        let Some(owned) = owned.filter(|owned| !owned.draining) else {
            return;
        };
        match owned.turn(&key.1, &self.limits, now) {
            Turn::At(at_ms) => self.dispatch.lines.until(at_ms, key),
            Turn::Now => {
                let Some(mut lane) = owned.lane_mut(&key.1) else {
                    return;
                };
                if let (false, Some(tenant)) = (lane.in_line, lane.tenant().cloned()) {
                    lane.in_line = true;
                    let slow = lane.is_slow(self.limits.slow_from_ms, now);
                    self.dispatch.lines.line_up(tenant, key, slow);
                }
            }
            Turn::Later => {}
        }
    }

    /// Starts attempts, one for each lane in line, while there is room and the lease holds.
    pub(super) fn start_attempts(&mut self) {
        while self.dispatch.has_room() && self.lease.holds() {
            let now = self.now();
            self.look_at_network(now);
            if let Err(at_ms) = self.dispatch.network_lets_start(now) {
                self.tick_at_ms = self.tick_at_ms.min(at_ms);
                return;
            }
            let slow_has_room = self.dispatch.slow_has_room();
            let Some(key) = self.dispatch.lines.next(slow_has_room) else {
                return;
            };
            match self.next_job(&key, now) {
                Ok(job) => {
                    if let Some(job) = job {
                        self.spawn_attempt(job);
                    }
                    self.line_up(key, now);
                }
                Err(at_ms) => self.dispatch.lines.until(at_ms, key),
            }
        }
    }

    fn look_at_network(&mut self, now: Now) {
        if !self.dispatch.look_at_network(now) {
            return;
        }
        let is_down = self.dispatch.network_is_down();
        if is_down {
            tracing::error!("no endpoint can be reached: our own network seems down");
        } else {
            tracing::info!("endpoints can be reached again");
        }
        self.context.metrics.network_down.set(i64::from(is_down));
    }

    /// The next attempt of a lane whose turn has come, if it may still start; or when it may, at
    /// the rate that the endpoint asked for.
    fn next_job(&mut self, key: &LaneKey, now: Now) -> Result<Option<AttemptJob>, i64> {
        let wishes = Wishes::of(&self.context, &key.1);
        let limits = &self.limits;
        let Some(owned) = self.partitions.get_mut(&key.0) else {
            return Ok(None);
        };
        let Some(mut lane) = owned.lane_mut(&key.1) else {
            return Ok(None);
        };
        lane.in_line = false;
        lane.pause(wishes.paused);
        if lane.turn(limits, now) != Turn::Now {
            return Ok(None);
        }
        let slow = lane.is_slow(limits.slow_from_ms, now);
        if slow && !self.dispatch.slow_has_room() {
            return Ok(None);
        }
        let expires = lane.head_expires(limits, now);
        if !expires {
            lane.take_token(wishes.rate, now)?;
        }
        let failing_since_ms = lane.failing_since_ms();
        drop(lane);
        let slow = self.dispatch.permits.count(slow);
        let Some((step, probes)) = owned.start(&key.1, expires, slow, now) else {
            return Ok(None);
        };
        Ok(Some(AttemptJob {
            partition: key.0,
            generation: owned.generation,
            interruptions: owned.settled.interruptions(&step.delivery.work_id()),
            probes,
            failing_since_ms,
            failed_at_ms: owned.failed_at_ms(&step.delivery),
            network_is_down: self.dispatch.network_is_down(),
            expires,
            step,
            tells_answered: self.tells_answered.clone(),
            _permit: self.dispatch.permit(),
        }))
    }
}

/// How an endpoint wants to be called, as the registry has it now.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// It is not to be called for now. What is deleted or unknown is not paused: it is settled.
    pub(super) paused: bool,
    rate: Option<(f64, u32)>,
}

impl Wishes {
    pub(super) fn of<S>(context: &DeliverContext<S>, endpoint: &EndpointId) -> Self {
        let Lookup::Found(endpoint) = context.registry.endpoint(endpoint) else {
            return Self::default();
        };
        let rate = endpoint.value.rate_limit.as_ref();
        Self {
            paused: context.registry.gate(&endpoint.value) != Gate::Open,
            rate: rate.map(|limit| (limit.per_second(), limit.burst())),
        }
    }
}
