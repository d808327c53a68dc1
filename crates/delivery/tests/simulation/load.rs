//! Load, under which half of the endpoints are slow.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_model::endpoint::Endpoint;
use postrider_model::event::Event;
use postrider_model::filter::{EventTypeFilter, EventTypeName};
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::signature::SigningSecret;
use postrider_registry::Lookup;

use super::chronicle::Sent;
use super::world::World;

const TENANT: &str = "acme";
const EVENT_TYPE: &str = "load.came";
/// Of each kind.
const ENDPOINTS: usize = 10;
const EVENTS_PER_SECOND: usize = 50;
const SECONDS: usize = 5;
/// A small part of the load: what waits for the slow ones does not fit into memory.
const UNSETTLED_BYTES_MAX: usize = 1 << 18;

/// How a world under load fared.
#[derive(Debug)]
pub(crate) struct Load {
    /// Deliveries to endpoints that answer at once.
    pub(crate) healthy: usize,
    /// How many of these were made.
    pub(crate) healthy_made: usize,
    /// How long after its event the latest of them was made.
    pub(crate) healthy_late_ms_max: i64,
    /// How many were made to the slow ones while the load lasted.
    pub(crate) slow_made_meanwhile: usize,
}

impl World {
    /// 1,000 deliveries a second, of which half go to endpoints that take up to 4 s, or longer than
    /// is waited for.
    pub(crate) async fn run_half_slow(mut self) -> Load {
        self.config.deliver.unsettled_bytes_max = UNSETTLED_BYTES_MAX;
        for number in 0..ENDPOINTS {
            self.add(&format!("healthy_{number}")).await;
            self.add(&format!("slow_{number}")).await;
        }
        self.start(0);
        self.pass(Duration::from_secs(5)).await;
        let mut published_ms = BTreeMap::new();
        for _ in 0..SECONDS * 10 {
            for _ in 0..EVENTS_PER_SECOND / 10 {
                let event = self.load();
                published_ms.insert(event.id.as_str().to_owned(), event.accepted_at_ms);
                self.append_event(&event, false).await;
            }
            self.pass(Duration::from_millis(100)).await;
        }
        let is_slow = |sent: &&Sent| sent.endpoint.starts_with("slow_");
        let slow_made_meanwhile = self.sent().iter().filter(is_slow).count();
        self.settle().await;
        let mut sent = self.sent();
        sent.retain(|sent| sent.endpoint.starts_with("healthy_"));
        let late_ms = sent
            .iter()
            .map(|sent| sent.wall_ms - published_ms[&sent.event_id]);
        Load {
            healthy: ENDPOINTS * published_ms.len(),
            healthy_made: sent.len(),
            healthy_late_ms_max: late_ms.max().unwrap_or_default(),
            slow_made_meanwhile,
        }
    }

    fn load(&mut self) -> Event {
        let tenant = TenantId::try_new(TENANT).expect("an id");
        self.event(tenant, EVENT_TYPE)
    }

    /// An endpoint that wants the load.
    async fn add(&self, name: &str) {
        let registry = &self.tenants.registry;
        let healthy = EndpointId::try_new("ep_healthy").expect("an id");
        let Lookup::Found(healthy) = registry.endpoint(&healthy) else {
            panic!("the tenants have endpoints");
        };
        let id = EndpointId::try_new(&format!("ep_{name}")).expect("an id");
        let secret = registry.seal(&id, &SigningSecret::generate(&[7; 32]));
        let wanted = EventTypeName::try_new(EVENT_TYPE).expect("a type");
        let endpoint = Endpoint {
            id,
            url: format!("https://example.com/{name}")
                .parse()
                .expect("a url"),
            event_types: EventTypeFilter::try_new(vec![wanted.as_str().to_owned()])
                .expect("a filter"),
            secrets: vec![secret],
            ..(*healthy.value).clone()
        };
        let created = registry.create_endpoint(endpoint).await;
        created.expect("the registry is spared");
        self.watch.audit(|audit| audit.belongs(name, TENANT));
    }
}
