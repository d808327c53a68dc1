//! Tenants, their endpoints, and what they change while everything runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use postrider_log::memory::SplitMix64;
use postrider_model::endpoint::{Endpoint, EndpointState, PayloadFormat};
use postrider_model::filter::{EventTypeFilter, EventTypeName};
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::retry::RetrySchedule;
use postrider_model::signature::SigningSecret;
use postrider_model::tenant::Tenant;
use postrider_registry::{Lookup, Registry};

use super::network::BEHAVIOURS;
use super::watch::Watch;

pub(crate) const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
const SCHEDULE_MS: [i64; 3] = [1_000, 3_000, 8_000];
const ATTEMPT_TIMEOUT_MS: u32 = 2_500;

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
}

impl Tenants {
    pub(crate) async fn register(registry: Registry, watch: Arc<Watch>) -> Self {
        let mut tenants = Self {
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
        (matched.position, endpoints)
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
        match random.below(6) {
            0 => {
                self.delete(&name, at_ms).await;
                format!("{name} is deleted")
            }
            1..3 if self.is_enabled(&name) => {
                let reason = "manual".to_owned();
                self.put(
                    &name,
                    EndpointState::Disabled {
                        reason,
                        since_ms: 1,
                    },
                )
                .await;
                self.watch.audit(|audit| audit.silence(&name, at_ms));
                format!("{name} is disabled")
            }
            _ => {
                self.enable(&name).await;
                format!("{name} is enabled")
            }
        }
    }

    /// Enables what is disabled, or deletes it if it would only be disabled again.
    pub(crate) async fn make_peace(&mut self, at_ms: i64) {
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
        self.put(name, EndpointState::Enabled).await;
    }

    fn is_enabled(&self, name: &str) -> bool {
        match self.registry.endpoint(&endpoint_id(name)) {
            Lookup::Found(endpoint) => endpoint.value.state == EndpointState::Enabled,
            Lookup::Deleted | Lookup::Unknown => false,
        }
    }

    async fn put(&self, name: &str, state: EndpointState) {
        let change = |endpoint: &Endpoint| Endpoint {
            state: state.clone(),
            ..endpoint.clone()
        };
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
        let id = endpoint_id(name);
        let tenant = tenant_id(tenant);
        let secret = self.registry.seal(&id, &SigningSecret::generate(&[7; 32]));
        let wanted = [format!("to.{name}"), "thing.*".to_owned()];
        let url = format!("https://example.com/{name}");
        let endpoint = Endpoint {
            id,
            tenant: tenant.clone(),
            url: url.parse().expect("a url"),
            description: String::new(),
            metadata: [].into(),
            event_types: EventTypeFilter::try_new(wanted.to_vec()).expect("a filter"),
            format: PayloadFormat::Standard,
            retry_schedule: Some(schedule()),
            attempt_timeout_ms: Some(ATTEMPT_TIMEOUT_MS),
            rate_limit: None,
            ordered: false,
            secrets: vec![secret],
            state: EndpointState::Enabled,
            discard_matched_before: 0,
            created_at_ms: 1,
        };
        let created = self.registry.create_endpoint(endpoint).await;
        created.expect("the registry is spared");
        self.endpoints.insert(name.to_owned(), tenant);
    }
}

fn endpoint_id(name: &str) -> EndpointId {
    EndpointId::try_new(&format!("ep_{name}")).expect("an id")
}

fn tenant_id(name: &str) -> TenantId {
    TenantId::try_new(name).expect("an id")
}
