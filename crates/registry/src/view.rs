//! The view: what the records of the topic, in their order, make of tenants and endpoints. Pure.
//!
//! Two layers. Claims say, for every entity, which record took its present version; they know
//! nothing of what is inside. The contents are what the winning records hold, indexed for reading.

mod api_keys;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::filter::EventTypeName;
use postrider_model::identity::{Identity, RegistryStamp};
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::tenant::{Installation, Tenant};
use tokio::sync::oneshot;

use self::api_keys::ApiKeys;
use crate::record::{Content, EntityId, Read, RecordKey, Unreadable};

/// An entity and the version it is at.
#[derive(Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The entity.
    pub value: Arc<T>,
    /// Its version, from 1.
    pub version: u64,
}

/// What was never written.
impl<T: Default> Default for Versioned<T> {
    fn default() -> Self {
        Self {
            value: Arc::default(),
            version: 0,
        }
    }
}

impl<T> Clone for Versioned<T> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            version: self.version,
        }
    }
}

/// What the registry knows of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// It exists, enabled or not.
    Found(Versioned<Endpoint>),
    /// It was deleted; its id is never used again.
    Deleted,
    /// No record names it, up to this view's position.
    Unknown,
}

/// Who wants an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// The view that was asked.
    pub registry: RegistryStamp,
    /// The endpoints that want it and are not disabled, by id.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Whether deliveries to an endpoint may be sent, or what they wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// The endpoint is paused.
    PausedEndpoint,
    /// Its tenant is paused.
    PausedTenant,
    /// Everything is paused.
    PausedInstallation,
    /// The endpoint is disabled, whatever else is paused.
    Disabled,
}

/// How many endpoints are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct EndpointCounts {
    pub(crate) enabled: usize,
    pub(crate) paused: usize,
    pub(crate) disabled: usize,
}

/// Whether a record took the version it was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Won,
    Lost,
}

/// What a record did to the view, for the follower to log and to act on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    Counted,
    /// It lost, was repeated, or removed another.
    Passed,
    /// It took its version, but nobody here understands it.
    Unreadable(EntityId, Unreadable),
    /// Its key is not ours.
    Foreign,
    /// Somebody removed the record that counts. It goes on counting here, but not after compaction.
    WinnerTombstoned(EntityId),
}

#[derive(Debug, Default)]
pub(crate) struct View {
    position: u64,
    claims: BTreeMap<EntityId, Claim>,
    tenants: BTreeMap<TenantId, Versioned<Tenant>>,
    endpoints: BTreeMap<EndpointId, Versioned<Endpoint>>,
    by_tenant: BTreeMap<TenantId, BTreeMap<EndpointId, Versioned<Endpoint>>>,
    counts: EndpointCounts,
    api_keys: ApiKeys,
    retry_delays: Option<Versioned<Vec<i64>>>,
    installation: Versioned<Installation>,
    identity: Option<Versioned<Identity>>,
    waiters: BTreeMap<EntityId, Vec<Waiter>>,
    to_clean: Vec<EntityId>,
}

/// Who took an entity's present version.
#[derive(Debug)]
struct Claim {
    key: RecordKey,
    deleted: bool,
    /// This process wrote it, and so cleans up behind it.
    ours: bool,
    /// Keys in the topic that count no more, in the order they were read.
    stale: Vec<RecordKey>,
}

/// A write that waits to hear whether it won.
#[derive(Debug)]
struct Waiter {
    version: u64,
    nonce: String,
    tell: oneshot::Sender<Verdict>,
}

impl EndpointCounts {
    fn of(&mut self, state: &EndpointState) -> &mut usize {
        match state {
            EndpointState::Enabled => &mut self.enabled,
            EndpointState::Paused => &mut self.paused,
            EndpointState::Disabled { .. } => &mut self.disabled,
        }
    }
}

impl View {
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Moves past records that were all applied.
    pub(crate) fn advance(&mut self, position: u64) {
        self.position = self.position.max(position);
    }

    pub(crate) fn apply(&mut self, read: Read) -> Applied {
        match read {
            Read::Foreign => Applied::Foreign,
            Read::Tombstone(key) => self.remove(&key),
            Read::Version { key, content } => {
                if self.take(&key, content == Ok(Content::Deleted)) {
                    self.hold(&key, content)
                } else {
                    Applied::Passed
                }
            }
        }
    }

    /// Whether the record takes its version: the highest counts, of one version the first. A
    /// deletion needs no rule of its own, since nobody writes a version after one. So the outcome
    /// depends only on the winner being there, not on which of the others compaction has left.
    fn take(&mut self, key: &RecordKey, deletes: bool) -> bool {
        let mut stale = Vec::new();
        if let Some(claim) = self.claims.get_mut(&key.entity) {
            if key.version <= claim.key.version {
                if claim.key != *key && !claim.stale.contains(key) {
                    claim.stale.push(key.clone());
                    if claim.ours {
                        self.to_clean.push(key.entity.clone());
                    }
                }
                return false;
            }
            stale = std::mem::take(&mut claim.stale);
            stale.push(claim.key.clone());
        }
        let ours = self.tell(key);
        if ours && !stale.is_empty() {
            self.to_clean.push(key.entity.clone());
        }
        let claim = Claim {
            key: key.clone(),
            deleted: deletes,
            ours,
            stale,
        };
        self.claims.insert(key.entity.clone(), claim);
        true
    }

    /// Tells the writes that this record decides; whether it is one of them.
    fn tell(&mut self, key: &RecordKey) -> bool {
        let Some(waiters) = self.waiters.get_mut(&key.entity) else {
            return false;
        };
        let mut ours = false;
        for waiter in waiters.extract_if(.., |waiter| waiter.version <= key.version) {
            let won = waiter.version == key.version && waiter.nonce == key.nonce;
            ours |= won;
            // A writer that gave up waiting does not hear it.
            waiter
                .tell
                .send(if won { Verdict::Won } else { Verdict::Lost })
                .ok();
        }
        if waiters.is_empty() {
            self.waiters.remove(&key.entity);
        }
        ours
    }

    fn hold(&mut self, key: &RecordKey, content: Result<Content, Unreadable>) -> Applied {
        let version = key.version;
        match content {
            Ok(Content::Tenant(tenant)) => {
                let versioned = Versioned {
                    value: Arc::new(tenant),
                    version,
                };
                self.tenants.insert(versioned.value.id.clone(), versioned);
            }
            Ok(Content::Endpoint(endpoint)) => {
                self.forget_endpoint(&endpoint.id);
                self.index_endpoint(Versioned {
                    value: Arc::from(endpoint),
                    version,
                });
            }
            Ok(Content::ApiKey(api_key)) => self.api_keys.insert(Versioned {
                value: Arc::new(api_key),
                version,
            }),
            Ok(Content::RetryDelays(delays)) => {
                self.retry_delays = Some(Versioned {
                    value: Arc::new(delays),
                    version,
                });
            }
            Ok(Content::Installation(installation)) => {
                self.installation = Versioned {
                    value: Arc::new(installation),
                    version,
                };
            }
            Ok(Content::Identity(identity)) => {
                self.identity = Some(Versioned {
                    value: Arc::new(identity),
                    version,
                });
            }
            Ok(Content::Deleted) => match &key.entity {
                EntityId::Tenant(id) => drop(self.tenants.remove(id)),
                EntityId::Endpoint(id) => drop(self.forget_endpoint(id)),
                EntityId::ApiKey(id) => self.api_keys.remove(id),
                EntityId::RetryDelays => self.retry_delays = None,
                EntityId::Identity => self.identity = None,
                EntityId::Installation => {
                    self.installation = Versioned {
                        value: Arc::default(),
                        version,
                    }
                }
            },
            Err(unreadable) => {
                self.keep_as_version(key);
                return Applied::Unreadable(key.entity.clone(), unreadable);
            }
        }
        Applied::Counted
    }

    /// What was last understood stays, under the version that was taken: the next write goes on
    /// from there.
    fn keep_as_version(&mut self, key: &RecordKey) {
        match &key.entity {
            EntityId::Tenant(id) => {
                if let Some(tenant) = self.tenants.get_mut(id) {
                    tenant.version = key.version;
                }
            }
            EntityId::Endpoint(id) => {
                if let Some(endpoint) = self.forget_endpoint(id) {
                    self.index_endpoint(Versioned {
                        version: key.version,
                        ..endpoint
                    });
                }
            }
            EntityId::ApiKey(id) => self.api_keys.keep_as_version(id, key.version),
            EntityId::RetryDelays => {
                if let Some(delays) = &mut self.retry_delays {
                    delays.version = key.version;
                }
            }
            EntityId::Installation => self.installation.version = key.version,
            EntityId::Identity => {
                if let Some(identity) = &mut self.identity {
                    identity.version = key.version;
                }
            }
        }
    }

    fn index_endpoint(&mut self, endpoint: Versioned<Endpoint>) {
        let (id, tenant) = (endpoint.value.id.clone(), endpoint.value.tenant.clone());
        *self.counts.of(&endpoint.value.state) += 1;
        self.by_tenant
            .entry(tenant)
            .or_default()
            .insert(id.clone(), endpoint.clone());
        self.endpoints.insert(id, endpoint);
    }

    fn forget_endpoint(&mut self, id: &EndpointId) -> Option<Versioned<Endpoint>> {
        let endpoint = self.endpoints.remove(id)?;
        *self.counts.of(&endpoint.value.state) -= 1;
        if let Some(siblings) = self.by_tenant.get_mut(&endpoint.value.tenant) {
            siblings.remove(id);
            if siblings.is_empty() {
                self.by_tenant.remove(&endpoint.value.tenant);
            }
        }
        Some(endpoint)
    }

    fn remove(&mut self, key: &RecordKey) -> Applied {
        match self.claims.get_mut(&key.entity) {
            Some(claim) if claim.key == *key => Applied::WinnerTombstoned(key.entity.clone()),
            Some(claim) => {
                claim.stale.retain(|stale| stale != key);
                Applied::Passed
            }
            None => Applied::Passed,
        }
    }

    /// Registers a write before it is appended. `None`: the version is taken already.
    pub(crate) fn await_verdict(&mut self, key: &RecordKey) -> Option<oneshot::Receiver<Verdict>> {
        let taken = self.claims.get(&key.entity);
        if taken.is_some_and(|claim| claim.deleted || claim.key.version >= key.version) {
            return None;
        }
        let (tell, told) = oneshot::channel();
        let waiter = Waiter {
            version: key.version,
            nonce: key.nonce.clone(),
            tell,
        };
        self.waiters
            .entry(key.entity.clone())
            .or_default()
            .push(waiter);
        Some(told)
    }

    /// Forgets a write whose caller no longer waits.
    pub(crate) fn stop_waiting(&mut self, key: &RecordKey) {
        if let Some(waiters) = self.waiters.get_mut(&key.entity) {
            waiters.retain(|waiter| waiter.nonce != key.nonce);
            if waiters.is_empty() {
                self.waiters.remove(&key.entity);
            }
        }
    }

    /// The stale keys that this process has to remove, and forgets about: they stay stale until
    /// their tombstones are read.
    pub(crate) fn take_stale(&mut self) -> Vec<RecordKey> {
        let mut entities = std::mem::take(&mut self.to_clean);
        entities.sort();
        entities.dedup();
        entities
            .iter()
            .filter_map(|entity| self.claims.get(entity))
            .filter(|claim| claim.ours)
            .flat_map(|claim| claim.stale.iter().cloned())
            .collect()
    }

    pub(crate) fn has_to_clean(&self) -> bool {
        !self.to_clean.is_empty()
    }

    /// The version an entity is at, 0 for none, and whether it is deleted.
    pub(crate) fn taken(&self, entity: &EntityId) -> (u64, bool) {
        self.claims
            .get(entity)
            .map_or((0, false), |claim| (claim.key.version, claim.deleted))
    }

    pub(crate) fn lookup(&self, id: &EndpointId) -> Lookup {
        if let Some(endpoint) = self.endpoints.get(id) {
            return Lookup::Found(endpoint.clone());
        }
        match self.taken(&EntityId::Endpoint(id.clone())) {
            (_, true) => Lookup::Deleted,
            (_, false) => Lookup::Unknown,
        }
    }

    pub(crate) fn matching(&self, tenant: &TenantId, event_type: &EventTypeName) -> Matched {
        let endpoints = self
            .by_tenant
            .get(tenant)
            .into_iter()
            .flat_map(BTreeMap::values);
        let wanting = endpoints
            .map(|endpoint| &endpoint.value)
            .filter(|endpoint| !matches!(endpoint.state, EndpointState::Disabled { .. }))
            .filter(|endpoint| endpoint.event_types.matches(event_type));
        Matched {
            registry: self.stamp(),
            endpoints: wanting.cloned().collect(),
        }
    }

    pub(crate) fn gate(&self, endpoint: &Endpoint) -> Gate {
        let tenant_paused = || {
            let tenant = self.tenants.get(&endpoint.tenant);
            tenant.is_some_and(|tenant| tenant.value.paused)
        };
        match endpoint.state {
            EndpointState::Disabled { .. } => Gate::Disabled,
            _ if self.installation.value.deliveries_paused => Gate::PausedInstallation,
            _ if tenant_paused() => Gate::PausedTenant,
            EndpointState::Paused => Gate::PausedEndpoint,
            EndpointState::Enabled => Gate::Open,
        }
    }

    pub(crate) fn installation(&self) -> &Versioned<Installation> {
        &self.installation
    }

    pub(crate) fn identity(&self) -> Option<&Versioned<Identity>> {
        self.identity.as_ref()
    }

    pub(crate) fn all_endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values().map(|endpoint| &*endpoint.value)
    }

    /// Names of the keys that sealed the endpoints' secrets.
    pub(crate) fn key_ids(&self) -> Vec<String> {
        let secrets = self.all_endpoints().flat_map(|endpoint| &endpoint.secrets);
        let ids: BTreeSet<_> = secrets.map(|secret| secret.key_id.clone()).collect();
        ids.into_iter().collect()
    }

    /// Which registry this is and where the view is in it.
    pub(crate) fn stamp(&self) -> RegistryStamp {
        RegistryStamp {
            registry_id: self
                .identity
                .as_ref()
                .map_or(0, |identity| identity.value.id),
            position: self.position,
        }
    }

    /// Becomes what was read anew. What is in the log now decides the writes that wait.
    pub(crate) fn replace(&mut self, fresh: Self) {
        let waiting = std::mem::replace(self, fresh).waiters;
        for (entity, waiters) in waiting {
            self.waiters.insert(entity.clone(), waiters);
            let Some(key) = self.claims.get(&entity).map(|claim| claim.key.clone()) else {
                continue;
            };
            let ours = self.tell(&key);
            if let Some(claim) = self.claims.get_mut(&entity) {
                claim.ours = ours;
            }
        }
    }

    pub(crate) fn tenants(&self) -> &BTreeMap<TenantId, Versioned<Tenant>> {
        &self.tenants
    }

    pub(crate) fn endpoints_of(
        &self,
        tenant: &TenantId,
    ) -> Option<&BTreeMap<EndpointId, Versioned<Endpoint>>> {
        self.by_tenant.get(tenant)
    }

    pub(crate) fn api_keys(&self) -> &ApiKeys {
        &self.api_keys
    }

    pub(crate) fn retry_delays(&self) -> Option<&Versioned<Vec<i64>>> {
        self.retry_delays.as_ref()
    }

    pub(crate) fn endpoint_counts(&self) -> EndpointCounts {
        self.counts
    }

    pub(crate) fn stale_count(&self) -> usize {
        self.claims.values().map(|claim| claim.stale.len()).sum()
    }
}

#[cfg(test)]
mod tests;
