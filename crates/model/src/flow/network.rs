//! Whether it is our own network that is down.
//!
//! When every endpoint fails to connect at once, the endpoints are not to blame, and spending attempts on them would be our
//! fault. The rule: of the endpoints that succeeded in the last 5 minutes, over at least 3 tenants and 3 hosts, 90 % now
//! fail to connect or to resolve, and none succeeded for 5 s. A tenant weighs the same however many endpoints it has, and at
//! least 3 tenants and hosts must be failing, so no tenant can bring it about alone.

use std::collections::{BTreeMap, BTreeSet};

const RECENT_MS: i64 = 5 * 60 * 1000;
const SILENCE_MS: i64 = 5_000;
const TENANTS_MIN: usize = 3;
const HOSTS_MIN: usize = 3;
const FAILING_PERCENT: usize = 90;
/// More endpoints than this are not looked at; those seen longest ago are forgotten first.
const ENDPOINTS_MAX: usize = 4_096;

/// What endpoints answered lately.
#[derive(Debug, Clone)]
pub struct NetworkHealth<E, T> {
    endpoints: BTreeMap<E, Seen<T>>,
    succeeded_at_ms: Option<i64>,
    verdict: (i64, bool),
}

#[derive(Debug, Clone)]
struct Seen<T> {
    tenant: T,
    host: String,
    succeeded_at_ms: i64,
    is_unreachable: bool,
}

impl<E, T> Default for NetworkHealth<E, T> {
    fn default() -> Self {
        Self {
            endpoints: BTreeMap::new(),
            succeeded_at_ms: None,
            verdict: (i64::MIN, false),
        }
    }
}

impl<E: Ord + Clone, T: Ord + Clone> NetworkHealth<E, T> {
    /// An endpoint took a webhook.
    pub fn succeeded(&mut self, endpoint: &E, tenant: &T, host: &str, now_ms: i64) {
        self.succeeded_at_ms = Some(now_ms);
        self.verdict = (now_ms, false);
        if let Some(seen) = self.endpoints.get_mut(endpoint)
            && seen.host == host
        {
            seen.succeeded_at_ms = now_ms;
            seen.is_unreachable = false;
            return;
        }
        if self.endpoints.len() >= ENDPOINTS_MAX {
            self.forget(now_ms);
        }
        let seen = Seen {
            tenant: tenant.clone(),
            host: host.to_owned(),
            succeeded_at_ms: now_ms,
            is_unreachable: false,
        };
        self.endpoints.insert(endpoint.clone(), seen);
    }

    /// An endpoint could not be connected to, or its name not be resolved.
    pub fn unreachable(&mut self, endpoint: &E) {
        if let Some(seen) = self.endpoints.get_mut(endpoint) {
            seen.is_unreachable = true;
        }
    }

    /// An endpoint failed in another way, so it was reached.
    pub fn answered(&mut self, endpoint: &E) {
        if let Some(seen) = self.endpoints.get_mut(endpoint) {
            seen.is_unreachable = false;
        }
    }

    /// Whether our own network is down. Looks at the endpoints at most once a second.
    pub fn is_down(&mut self, now_ms: i64) -> bool {
        let (judged_at_ms, verdict) = self.verdict;
        if now_ms.saturating_sub(judged_at_ms) >= 1_000 {
            self.verdict = (now_ms, self.judge(now_ms));
            return self.verdict.1;
        }
        verdict
    }

    fn judge(&self, now_ms: i64) -> bool {
        let is_silent = self
            .succeeded_at_ms
            .is_some_and(|at_ms| now_ms.saturating_sub(at_ms) >= SILENCE_MS);
        if !is_silent {
            return false;
        }
        // While it lasts nothing can succeed, so what is recent is counted from the last success.
        let since_ms = self
            .succeeded_at_ms
            .unwrap_or(now_ms)
            .saturating_sub(RECENT_MS);
        let mut tenants: BTreeMap<&T, (usize, usize)> = BTreeMap::new();
        let mut hosts = BTreeSet::new();
        for seen in self
            .endpoints
            .values()
            .filter(|seen| seen.succeeded_at_ms >= since_ms)
        {
            let (failing, all) = tenants.entry(&seen.tenant).or_default();
            *all += 1;
            if seen.is_unreachable {
                *failing += 1;
                hosts.insert(&seen.host);
            }
        }
        let is_failing = |(failing, all): &(usize, usize)| failing * 100 >= all * FAILING_PERCENT;
        let failing = tenants.values().filter(|counts| is_failing(counts)).count();
        failing >= TENANTS_MIN
            && hosts.len() >= HOSTS_MIN
            && failing * 100 >= tenants.len() * FAILING_PERCENT
    }

    fn forget(&mut self, now_ms: i64) {
        let since_ms = now_ms.saturating_sub(RECENT_MS);
        self.endpoints
            .retain(|_, seen| seen.succeeded_at_ms >= since_ms);
        while self.endpoints.len() >= ENDPOINTS_MAX
            && let Some(oldest) = self
                .endpoints
                .iter()
                .min_by_key(|(_, seen)| seen.succeeded_at_ms)
                .map(|(endpoint, _)| endpoint.clone())
        {
            self.endpoints.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::NetworkHealth;

    fn healthy(tenants: u32, endpoints_each: u32) -> NetworkHealth<(u32, u32), u32> {
        let mut health = NetworkHealth::default();
        for tenant in 0..tenants {
            for endpoint in 0..endpoints_each {
                health.succeeded(
                    &(tenant, endpoint),
                    &tenant,
                    &format!("host-{tenant}-{endpoint}"),
                    0,
                );
            }
        }
        health
    }

    #[test]
    fn is_down_when_nobody_can_be_reached() {
        let mut health = healthy(4, 2);
        for tenant in 0..4 {
            health.unreachable(&(tenant, 0));
            health.unreachable(&(tenant, 1));
        }
        assert!(!health.is_down(4_000), "a success was less than 5 s ago");
        assert!(health.is_down(5_000));
        assert!(health.is_down(3_600_000), "it lasts");
        health.succeeded(&(0, 0), &0, "host-0-0", 3_600_001);
        assert!(!health.is_down(3_600_001), "one success ends it");
    }

    #[test]
    fn is_not_down_when_an_answer_comes_however_bad() {
        let mut health = healthy(3, 1);
        for tenant in 0..3 {
            health.unreachable(&(tenant, 0));
        }
        health.answered(&(1, 0));
        assert!(!health.is_down(10_000));
    }

    #[test]
    fn one_host_is_not_the_network() {
        let mut health = NetworkHealth::default();
        for tenant in 0..5_u32 {
            health.succeeded(&tenant, &tenant, "shared.example.com", 0);
            health.unreachable(&tenant);
        }
        assert!(!health.is_down(10_000));
    }

    #[test]
    fn memory_is_bounded() {
        let mut health = NetworkHealth::default();
        for endpoint in 0..10_000_i64 {
            health.succeeded(&endpoint, &0, "host", endpoint);
        }
        assert!(health.endpoints.len() <= super::ENDPOINTS_MAX);
    }

    proptest! {
        #[test]
        fn no_tenant_can_bring_it_about_alone(
            others in 0_u32..6, endpoints in 1_u32..60, failing in prop::collection::vec(any::<bool>(), 60),
        ) {
            let mut health = healthy(others, 1);
            for endpoint in 0..endpoints {
                let key = (99, endpoint);
                health.succeeded(&key, &99, &format!("evil-{endpoint}"), 0);
                if failing[endpoint as usize] {
                    health.unreachable(&key);
                }
            }
            prop_assert!(!health.is_down(60_000));
        }
    }
}
