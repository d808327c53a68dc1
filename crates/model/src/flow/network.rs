//! Whether our own network is down: then nobody's endpoint is to blame, and no attempt is to be
//! spent.
//!
//! It is down when endpoints that worked a moment ago cannot be connected to or resolved any more,
//! almost all of them, of several tenants on several hosts, and none works. What a tenant does must
//! not stop the others: each tenant weighs the same however many endpoints it has, and leaving out
//! any one tenant, at least two tenants and two hosts still fail.

use std::collections::{BTreeMap, BTreeSet};

use crate::hash::StableHash;
use crate::outcome::Reason;

/// An endpoint counts for this long after it last succeeded.
const RECENT_MS: i64 = 5 * 60 * 1000;
/// While anything succeeded within this time, the network is up.
const SILENCE_MS: i64 = 5_000;
/// Tenants, and hosts, that must be failing.
const FAILING_MIN: usize = 3;
/// Endpoints that are remembered.
const ENDPOINTS_MAX: usize = 4096;
/// A tenant's whole weight.
const WEIGHT: usize = 1_000_000;

/// What endpoints answered lately.
#[derive(Debug, Clone)]
pub struct NetworkHealth<E, T> {
    endpoints: BTreeMap<E, Seen<T>>,
    /// By last success, to forget the oldest.
    ages: BTreeSet<(i64, E)>,
    tenants: BTreeMap<T, Tenant<E>>,
    /// By number of endpoints, to make room where there are most.
    sizes: BTreeSet<(usize, T)>,
    /// The hosts that fail, and for whom how many endpoints on them.
    failing_hosts: BTreeMap<u64, BTreeMap<T, usize>>,
    failing_tenants: usize,
    /// The sum over all tenants of the failing part of their endpoints.
    failing_weight: usize,
    succeeded_at_ms: Option<i64>,
    /// Whether the rule holds, but for the time since the last success.
    nearly_all_fail: bool,
}

#[derive(Debug, Clone)]
struct Seen<T> {
    tenant: T,
    /// A hash, since names are long and all that matters is whether they differ.
    host: u64,
    succeeded_at_ms: i64,
    is_failing: bool,
}

#[derive(Debug, Clone)]
struct Tenant<E> {
    endpoints: BTreeSet<E>,
    failing: usize,
}

impl<E> Tenant<E> {
    fn failing_weight(&self) -> usize {
        let whole = self.endpoints.len().max(1);
        self.failing * WEIGHT / whole
    }
}

impl<E, T> Default for NetworkHealth<E, T> {
    fn default() -> Self {
        Self {
            endpoints: BTreeMap::new(),
            ages: BTreeSet::new(),
            tenants: BTreeMap::new(),
            sizes: BTreeSet::new(),
            failing_hosts: BTreeMap::new(),
            failing_tenants: 0,
            failing_weight: 0,
            succeeded_at_ms: None,
            nearly_all_fail: false,
        }
    }
}

impl<E: Ord + Clone, T: Ord + Clone> NetworkHealth<E, T> {
    /// An endpoint took a webhook.
    pub fn succeeded(&mut self, endpoint: &E, tenant: &T, host: &str, now_ms: i64) {
        self.succeeded_at_ms = self.succeeded_at_ms.max(Some(now_ms));
        self.forget_old(now_ms);
        self.remove(endpoint);
        if self.makes_room_for(tenant) {
            let seen = Seen {
                tenant: tenant.clone(),
                host: StableHash::new().with(host.as_bytes()).finish(),
                succeeded_at_ms: now_ms,
                is_failing: false,
            };
            self.insert(endpoint, seen);
        }
        self.reassess();
    }

    /// An endpoint did not take a webhook. If it could be connected to, it was reached; one that
    /// only did not answer in time was perhaps connected to long before.
    pub fn failed(&mut self, endpoint: &E, reason: Reason) {
        match reason {
            Reason::Connect | Reason::Dns => self.mark(endpoint, true),
            Reason::Timeout => {}
            _ => self.mark(endpoint, false),
        }
    }

    /// Whether our own network is down, as far as is known.
    pub fn is_down(&mut self, now_ms: i64) -> bool {
        if !self.is_known_down(now_ms) {
            self.forget_old(now_ms);
            self.reassess();
        }
        self.is_known_down(now_ms)
    }

    fn is_known_down(&self, now_ms: i64) -> bool {
        let is_silent = self
            .succeeded_at_ms
            .is_none_or(|at_ms| now_ms.saturating_sub(at_ms) >= SILENCE_MS);
        self.nearly_all_fail && is_silent
    }

    fn mark(&mut self, endpoint: &E, is_failing: bool) {
        let seen = self.endpoints.get(endpoint);
        if let Some(seen) = seen.filter(|seen| seen.is_failing != is_failing).cloned() {
            self.remove(endpoint);
            self.insert(endpoint, Seen { is_failing, ..seen });
            self.reassess();
        }
    }

    /// Forgets what did not succeed lately. Not while the network is down: else after some minutes
    /// without any success nothing would be left to say that it is.
    fn forget_old(&mut self, now_ms: i64) {
        if self.is_known_down(now_ms) {
            return;
        }
        let from_ms = now_ms.saturating_sub(RECENT_MS);
        while let Some((succeeded_at_ms, endpoint)) = self.ages.first()
            && *succeeded_at_ms < from_ms
        {
            let endpoint = endpoint.clone();
            self.remove(&endpoint);
        }
    }

    /// When all places are taken, a newcomer gets one from the tenant that has most, if it has
    /// more. So a tenant with thousands of endpoints does not drive out the others.
    fn makes_room_for(&mut self, tenant: &T) -> bool {
        if self.endpoints.len() < ENDPOINTS_MAX {
            return true;
        }
        let endpoints_of = |tenant: &T| self.tenants.get(tenant).map(|known| &known.endpoints);
        let own = endpoints_of(tenant).map_or(0, BTreeSet::len);
        let largest = self.sizes.last().filter(|(most, _)| *most > own + 1);
        let victim = largest.and_then(|(_, largest)| endpoints_of(largest)?.first().cloned());
        if let Some(victim) = &victim {
            self.remove(victim);
        }
        victim.is_some()
    }

    fn insert(&mut self, endpoint: &E, seen: Seen<T>) {
        let tenant = &seen.tenant;
        self.change(tenant, |known| {
            known.endpoints.insert(endpoint.clone());
            known.failing += usize::from(seen.is_failing);
        });
        if seen.is_failing {
            let on_host = self.failing_hosts.entry(seen.host).or_default();
            *on_host.entry(tenant.clone()).or_default() += 1;
        }
        self.ages.insert((seen.succeeded_at_ms, endpoint.clone()));
        self.endpoints.insert(endpoint.clone(), seen);
    }

    fn remove(&mut self, endpoint: &E) {
        let Some(seen) = self.endpoints.remove(endpoint) else {
            return;
        };
        self.ages.remove(&(seen.succeeded_at_ms, endpoint.clone()));
        self.change(&seen.tenant, |known| {
            known.endpoints.remove(endpoint);
            known.failing -= usize::from(seen.is_failing);
        });
        if seen.is_failing {
            self.leave_failing_host(&seen);
        }
    }

    fn leave_failing_host(&mut self, seen: &Seen<T>) {
        let Some(on_host) = self.failing_hosts.get_mut(&seen.host) else {
            return;
        };
        if let Some(endpoints) = on_host.get_mut(&seen.tenant) {
            *endpoints -= 1;
            if *endpoints == 0 {
                on_host.remove(&seen.tenant);
            }
        }
        if on_host.is_empty() {
            self.failing_hosts.remove(&seen.host);
        }
    }

    /// Changes what is known of a tenant, and the sums with it.
    fn change(&mut self, tenant: &T, change: impl FnOnce(&mut Tenant<E>)) {
        let mut known = self.tenants.remove(tenant).unwrap_or_else(|| Tenant {
            endpoints: BTreeSet::new(),
            failing: 0,
        });
        self.failing_tenants -= usize::from(known.failing > 0);
        self.failing_weight -= known.failing_weight();
        self.sizes.remove(&(known.endpoints.len(), tenant.clone()));
        change(&mut known);
        self.failing_tenants += usize::from(known.failing > 0);
        self.failing_weight += known.failing_weight();
        if !known.endpoints.is_empty() {
            self.sizes.insert((known.endpoints.len(), tenant.clone()));
            self.tenants.insert(tenant.clone(), known);
        }
    }

    fn reassess(&mut self) {
        self.nearly_all_fail = self.failing_tenants >= FAILING_MIN
            && self.failing_hosts.len() >= FAILING_MIN
            && self.failing_weight * 10 >= self.tenants.len() * WEIGHT * 9
            && self.hosts_failing_without_any_one_tenant() >= FAILING_MIN - 1;
    }

    /// The hosts that still fail when that tenant is left out with whom the most go.
    fn hosts_failing_without_any_one_tenant(&self) -> usize {
        let mut alone: BTreeMap<&T, usize> = BTreeMap::new();
        for on_host in self.failing_hosts.values() {
            if let Some((tenant, _)) = on_host.first_key_value()
                && on_host.len() == 1
            {
                *alone.entry(tenant).or_default() += 1;
            }
        }
        let most = alone.values().max().copied().unwrap_or(0);
        self.failing_hosts.len() - most
    }
}

#[cfg(test)]
mod tests;
