//! What dead clients of Kafka mean for the process.
//!
//! The log replaces a client that died by itself. Until the new one is known to work the process is
//! not ready, and when that does not help for long, although brokers answer, it is not alive
//! either: perhaps another process can do what this one cannot. While no broker answers nobody is
//! helped by a restart, so that is no reason.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use postrider_log::kafka::{ClientKind, ClientState, KafkaLog};
use tokio::time::{MissedTickBehavior, interval};

use crate::roles::Process;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The condition of readiness for each kind of client.
const CONDITIONS: [(ClientKind, &str); 4] = [
    (ClientKind::Query, "kafka_query"),
    (ClientKind::Producer, "kafka_producers"),
    (ClientKind::Reader, "kafka_readers"),
    (ClientKind::Member, "kafka_members"),
];
const VITAL: &str = "kafka_clients";

/// Keeps the conditions of readiness and of life true to how the clients are.
pub(super) fn watch(process: &mut Process, log: Arc<KafkaLog>, dead_max: Duration) {
    let conditions = CONDITIONS.map(|(kind, name)| (kind, process.health.condition(name)));
    let vital = process.health.vital(VITAL);
    let stop = process.base.token().clone();
    process.base.background("kafka-clients", async move {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut given_up = false;
        loop {
            let states = log.clients();
            for (kind, condition) in &conditions {
                condition.set(are_alive(&states, *kind));
            }
            let hopeless = hopeless(&states, dead_max);
            vital.set(hopeless.is_none());
            if let Some(client) = hopeless.filter(|_| !given_up) {
                tracing::error!(
                    client,
                    "replacing a dead kafka client does not help; /livez says so"
                );
            }
            given_up = hopeless.is_some();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok::<(), Infallible>(()),
                _ = ticks.tick() => {}
            }
        }
    });
}

fn are_alive(states: &[ClientState], kind: ClientKind) -> bool {
    let mut own = states.iter().filter(|state| state.kind == kind);
    own.all(|state| state.alive)
}

/// A client that has been dead for too long.
fn hopeless(states: &[ClientState], dead_max: Duration) -> Option<&str> {
    let mut dead = states.iter().filter(|state| state.dead_for > dead_max);
    dead.next().map(|state| state.client.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD_MAX: Duration = Duration::from_secs(600);

    fn dead(kind: ClientKind, dead_for: Duration) -> ClientState {
        ClientState {
            client: "fan-out".to_owned(),
            kind,
            connected: Some(false),
            alive: false,
            replaced_total: 1,
            dead_for,
        }
    }

    #[test]
    fn one_dead_client_makes_its_kind_not_ready() {
        let states = [dead(ClientKind::Member, Duration::ZERO)];
        let not_ready = CONDITIONS.map(|(kind, _)| kind);
        let not_ready = not_ready.iter().filter(|kind| !are_alive(&states, **kind));
        assert_eq!(not_ready.collect::<Vec<_>>(), [&ClientKind::Member]);
    }

    #[test]
    fn what_replacing_does_not_help_for_long_is_given_up() {
        let for_long = [dead(ClientKind::Member, DEAD_MAX + Duration::from_secs(1))];
        assert_eq!(hopeless(&for_long, DEAD_MAX), Some("fan-out"));
        // Dead while no broker answers: it does not count.
        let outage = [dead(ClientKind::Member, Duration::ZERO)];
        assert_eq!(hopeless(&outage, DEAD_MAX), None);
    }
}
