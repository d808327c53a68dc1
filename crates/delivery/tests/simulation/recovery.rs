//! An endpoint that refuses connections for half a minute, and comes back.

use std::time::Duration;

use postrider_log::{NewRecord, Target};
use postrider_model::ids::TenantId;
use postrider_model::topics::{EVENTS, event_key};

use super::network::{BEHAVIOURS, FLAPS_MS};
use super::tenants::TENANTS;
use super::world::World;

const EVERY: Duration = Duration::from_millis(200);
const HEALTHY: &str = "healthy";
const REFUSES: &str = "flapping";

/// How it went, in milliseconds.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// The longest time from an event to its first attempt at an endpoint that was well all the
    /// while.
    pub(crate) neighbour_waited: i64,
    /// From when the endpoint took connections again to the first request.
    pub(crate) asked_after: i64,
    /// From then to when all that waited for it had come.
    pub(crate) caught_up_after: i64,
    /// How long events waited that came after that.
    pub(crate) waited_then: i64,
}

impl World {
    pub(crate) async fn run_refused(mut self) -> Recovery {
        self.config.deliver.breaker_failures = 5;
        self.start(0);
        let (refuses_ms, returns_ms) = (FLAPS_MS, 2 * FLAPS_MS);
        let mut published = Vec::new();
        while self.clock.elapsed_ms() < returns_ms + FLAPS_MS - 1_000 {
            for endpoint in [HEALTHY, REFUSES] {
                let at_ms = self.clock.elapsed_ms();
                let id = self.publish_to(endpoint).await;
                published.push((endpoint, id, at_ms));
            }
            self.pass(EVERY).await;
        }
        let sent = self.sent();
        let first_from = |id: &str, from_ms: i64| {
            let mut requests = sent.iter().filter(|sent| sent.event_id == id);
            requests.find(|sent| sent.at_ms >= from_ms)
        };
        let asked_ms = sent
            .iter()
            .find(|sent| sent.endpoint == REFUSES && sent.at_ms >= returns_ms)
            .map(|sent| sent.at_ms);
        let asked_ms = asked_ms.expect("it is asked again");
        let waited = |endpoint: &str, from_ms: i64| {
            let late = published
                .iter()
                .filter(|(of, _, at_ms)| *of == endpoint && *at_ms >= from_ms)
                .map(|(_, id, at_ms)| {
                    first_from(id, 0).map_or(i64::MAX, |sent| sent.at_ms - at_ms)
                });
            late.max().expect("events")
        };
        // What was given up while it refused is not asked for again; it waits for nobody.
        let missed = published
            .iter()
            .filter(|(of, _, at_ms)| *of == REFUSES && (refuses_ms..asked_ms).contains(at_ms))
            .filter_map(|(_, id, _)| first_from(id, returns_ms));
        let caught_up_ms = missed.map(|sent| sent.at_ms).max().expect("a backlog");
        let recovery = Recovery {
            neighbour_waited: waited(HEALTHY, 0),
            asked_after: asked_ms - returns_ms,
            caught_up_after: caught_up_ms - asked_ms,
            waited_then: waited(REFUSES, caught_up_ms),
        };
        self.settle().await;
        recovery
    }

    async fn publish_to(&mut self, endpoint: &str) -> String {
        let place = BEHAVIOURS.iter().position(|name| *name == endpoint);
        let tenant = TENANTS[place.expect("an endpoint") % TENANTS.len()];
        let tenant = TenantId::try_new(tenant).expect("an id");
        let event = self.event(tenant, &format!("to.{endpoint}"));
        let record = NewRecord {
            key: event_key(&event.tenant, &event.ordering_key, &event.id),
            value: Some(event.encode()),
            headers: Vec::new(),
        };
        let appended = self.producer.append(EVENTS, Target::Key, record).await;
        appended.expect("the producer is spared");
        event.id.as_str().to_owned()
    }
}
