//! Tenants, their endpoints, and what they change while everything runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use postrider_log::memory::SplitMix64;
use postrider_model::endpoint::{Endpoint, EndpointState, RateLimit, WhenBlocked};
use postrider_model::filter::{EventTypeFilter, EventTypeName};
use postrider_model::fixtures;
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::retry::RetrySchedule;
use postrider_model::signature::SigningSecret;
use postrider_model::tenant::{Installation, Tenant};
use postrider_registry::{Lookup, Registry};

use super::audit::EVERYBODY;
use super::network::BEHAVIOURS;
use super::watch::Watch;

pub(crate) const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
const SCHEDULE_MS: [i64; 3] = [1_000, 3_000, 8_000];
const ATTEMPT_TIMEOUT_MS: u32 = 2_500;
const RATE_BURST: u32 = 2;

pub(crate) fn schedule() -> RetrySchedule {
    RetrySchedule::try_new(SCHEDULE_MS.to_vec()).expect("a schedule")
}

/// The customers of a world.
pub(crate) struct Tenants {
    pub(super) registry: Registry,
    watch: Arc<Watch>,
    /// Endpoints that were not deleted, and whose they are.
    endpoints: BTreeMap<String, TenantId>,
    created: usize,
    /// Who wants order.
    order: SplitMix64,
}

impl Tenants {
    pub(crate) async fn register(registry: Registry, watch: Arc<Watch>, seed: u64) -> Self {
        let mut tenants = Self {
            order: SplitMix64::new(seed ^ 0x0de2),
            registry,
            watch,
            endpoints: BTreeMap::new(),
            created: 0,
        };
        for tenant in TENANTS {
            let tenant = Tenant {
                id: tenant_id(tenant),
                name: String::new(),
                metadata: [].into(),
                paused: false,
                created_at_ms: 1,
                portal_token_generation: 0,
            };
            tenants.registry.put_tenant(tenant).await.expect("a tenant");
        }
        for (behaviour, tenant) in BEHAVIOURS.iter().zip(TENANTS.iter().cycle()) {
            tenants.create(behaviour, tenant).await;
        }
        tenants
    }

    /// The endpoint, and whose it is, of a number.
    pub(crate) fn pick(&self, random: &mut SplitMix64) -> Option<(String, TenantId)> {
        let index = random.below(self.endpoints.len() as u64);
        let mut picked = self.endpoints.iter();
        let (name, tenant) = picked.nth(usize::try_from(index).expect("few"))?;
        Some((name.clone(), tenant.clone()))
    }

    /// Who wants an event by the registry as it is known here, and that one's position.
    pub(crate) fn who_wants(
        &self,
        tenant: &TenantId,
        event_type: &EventTypeName,
    ) -> (u64, Vec<(EndpointId, u64)>) {
        let matched = self.registry.matching(tenant, event_type);
        let version = |endpoint: &Arc<Endpoint>| match self.registry.endpoint(&endpoint.id) {
            Lookup::Found(found) => Some((endpoint.id.clone(), found.version)),
            Lookup::Deleted | Lookup::Unknown => None,
        };
        let endpoints = matched.endpoints.iter().filter_map(version).collect();
        (matched.registry.position, endpoints)
    }

    /// One change, told in words.
    pub(crate) async fn change(&mut self, random: &mut SplitMix64, at_ms: i64) -> String {
        if random.once_in(4) {
            let behaviour = BEHAVIOURS[usize::try_from(random.below(12)).expect("few")];
            let tenant = TENANTS[usize::try_from(random.below(3)).expect("few")];
            self.created += 1;
            let name = format!("{behaviour}_{}", self.created);
            self.create(&name, tenant).await;
            return format!("{tenant} creates {name}");
        }
        let Some((name, _)) = self.pick(random) else {
            return "no endpoint is left".to_owned();
        };
        match random.below(14) {
            0 | 1 => {
                self.delete(&name, at_ms).await;
                format!("{name} is deleted")
            }
            2..5 if self.is_enabled(&name) => {
                let (reason, since_ms) = ("manual".to_owned(), 1);
                let disabled = EndpointState::Disabled { reason, since_ms };
                self.put_state(&name, disabled).await;
                self.watch.audit(|audit| audit.silence(&name, at_ms));
                format!("{name} is disabled")
            }
            5..8 if self.is_enabled(&name) => {
                self.put_state(&name, EndpointState::Paused).await;
                self.watch.audit(|audit| audit.silence(&name, at_ms));
                format!("{name} is paused")
            }
            8 | 9 => {
                let per_second = [1.0, 2.0, 5.0][usize::try_from(random.below(3)).expect("few")];
                let rate = (!random.once_in(4)).then_some(per_second);
                self.put_rate(&name, rate, at_ms).await;
                format!("{name} wants {rate:?} requests a second")
            }
            10 => {
                let tenant = TENANTS[usize::try_from(random.below(3)).expect("few")];
                let paused = random.once_in(2);
                self.pause_tenant(tenant, paused, at_ms).await;
                format!("all of {tenant} is paused: {paused}")
            }
            11 => {
                let paused = random.once_in(2);
                self.pause_all(paused, at_ms).await;
                format!("everything is paused: {paused}")
            }
            12 => {
                self.discard(&name).await;
                format!("{name} wants nothing of what was before")
            }
            _ => {
                self.enable(&name).await;
                format!("{name} is enabled")
            }
        }
    }

    /// Enables what is disabled, or deletes it if it would only be disabled again, and resumes what
    /// is paused.
    pub(crate) async fn make_peace(&mut self, at_ms: i64) {
        self.pause_all(false, at_ms).await;
        for tenant in TENANTS {
            self.pause_tenant(tenant, false, at_ms).await;
        }
        let names: Vec<String> = self.endpoints.keys().cloned().collect();
        for name in names {
            if name.starts_with("gone") {
                self.delete(&name, at_ms).await;
            } else if !self.is_enabled(&name) {
                self.enable(&name).await;
            }
        }
    }

    async fn enable(&mut self, name: &str) {
        self.watch.audit(|audit| audit.end_silence(name));
        self.put_state(name, EndpointState::Enabled).await;
    }

    async fn pause_tenant(&self, tenant: &str, paused: bool, at_ms: i64) {
        self.hush(tenant, paused, at_ms);
        let written = self.registry.pause_tenant(&tenant_id(tenant), paused).await;
        written.expect("the registry is spared");
    }

    async fn pause_all(&self, deliveries_paused: bool, at_ms: i64) {
        self.hush(EVERYBODY, deliveries_paused, at_ms);
        let installation = Installation { deliveries_paused };
        let written = self.registry.put_installation(installation).await;
        written.expect("the registry is spared");
    }

    fn hush(&self, scope: &str, paused: bool, at_ms: i64) {
        self.watch.audit(|audit| {
            if paused {
                audit.silence(scope, at_ms);
            } else {
                audit.end_silence(scope);
            }
        });
    }

    async fn put_rate(&self, name: &str, per_second: Option<f64>, at_ms: i64) {
        let rate = per_second.map(|rate| RateLimit::try_new(rate, RATE_BURST).expect("a rate"));
        self.watch.audit(|audit| audit.set_rate(name, rate, at_ms));
        let change = |endpoint: &Endpoint| Endpoint {
            rate_limit: rate,
            ..endpoint.clone()
        };
        self.update(name, change).await;
    }

    /// Whatever was matched until now is not to be delivered any more.
    async fn discard(&self, name: &str) {
        let position = self.registry.position();
        let change = |endpoint: &Endpoint| Endpoint {
            discard_matched_before: position,
            ..endpoint.clone()
        };
        self.update(name, change).await;
    }

    fn is_enabled(&self, name: &str) -> bool {
        match self.registry.endpoint(&endpoint_id(name)) {
            Lookup::Found(endpoint) => endpoint.value.state == EndpointState::Enabled,
            Lookup::Deleted | Lookup::Unknown => false,
        }
    }

    async fn put_state(&self, name: &str, state: EndpointState) {
        let change = |endpoint: &Endpoint| Endpoint {
            state: state.clone(),
            ..endpoint.clone()
        };
        self.update(name, change).await;
    }

    async fn update(&self, name: &str, change: impl Fn(&Endpoint) -> Endpoint) {
        let id = endpoint_id(name);
        let changed = self.registry.update_endpoint(&id, None, change);
        changed.await.expect("the registry is spared");
    }

    async fn delete(&mut self, name: &str, at_ms: i64) {
        let id = endpoint_id(name);
        let deleted = self.registry.delete_endpoint(&id, None);
        deleted.await.expect("the registry is spared");
        self.endpoints.remove(name);
        self.watch.audit(|audit| audit.silence(name, at_ms));
    }

    async fn create(&mut self, name: &str, tenant: &str) {
        let tenant = tenant_id(tenant);
        let endpoint = fixtures::endpoint(&format!("ep_{name}"));
        let secret = SigningSecret::generate(&[7; 32]);
        let wanted = [format!("to.{name}"), "thing.*".to_owned()];
        let url = format!("https://example.com/{name}");
        let ordered = match self.order.below(6) {
            0 => Some(WhenBlocked::DeadLetter),
            1 => Some(WhenBlocked::Wait),
            _ => None,
        };
        let endpoint = Endpoint {
            tenant: tenant.clone(),
            url: url.parse().expect("a url"),
            event_types: EventTypeFilter::try_new(wanted.to_vec()).expect("a filter"),
            retry_schedule: Some(schedule()),
            attempt_timeout_ms: Some(ATTEMPT_TIMEOUT_MS),
            ordered,
            secrets: vec![self.registry.seal(&endpoint.id, &secret)],
            ..endpoint
        };
        let created = self.registry.create_endpoint(endpoint).await;
        created.expect("the registry is spared");
        self.watch
            .audit(|audit| audit.belongs(name, tenant.as_str()));
        self.endpoints.insert(name.to_owned(), tenant);
    }
}

fn endpoint_id(name: &str) -> EndpointId {
    EndpointId::try_new(&format!("ep_{name}")).expect("an id")
}

fn tenant_id(name: &str) -> TenantId {
    TenantId::try_new(name).expect("an id")
}
