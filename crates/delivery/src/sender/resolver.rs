//! Names of receivers to addresses, without a thread that waits.
//!
//! Names are absolute: a search domain of the cluster must not turn a customer's name into a host
//! of ours. Answers are kept as long as they say, within bounds, so that a change of DNS is
//! followed. What one tenant's names take of time keeps nobody else waiting: each may look up only
//! so many at once.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use postrider_model::ids::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::Failure;
use super::failure::is_ours;
use crate::config::EgressConfig;

/// A question is asked once more before its time is over.
const TRIES: u32 = 2;
/// How long IPv4 addresses that are there wait for IPv6 ones. Those are dialled first, so that they
/// are waited for longer.
const V6_WAIT: Duration = Duration::from_millis(50);
/// However long an answer says that it holds.
const KEPT_MAX: Duration = Duration::from_secs(60);
const NOT_THERE_KEPT_MAX: Duration = Duration::from_secs(10);

pub(super) struct Resolver {
    names: TokioResolver,
    timeout: Duration,
    addresses_max: usize,
    lookups_max: usize,
    /// Of tenants that look something up now.
    tenants: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

impl Resolver {
    /// Asks the servers that the system names.
    pub(super) fn new(config: &EgressConfig) -> Result<Self, String> {
        let (servers, options) = match hickory_resolver::system_conf::read_system_conf() {
            Ok((found, options)) => (found.name_servers().to_vec(), options),
            // As resolv.conf(5) says of a system without that file.
            Err(_) => {
                let local = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
                (vec![local], ResolverOpts::default())
            }
        };
        Self::asking(servers, options, config)
    }

    fn asking(
        servers: Vec<NameServerConfig>,
        mut options: ResolverOpts,
        config: &EgressConfig,
    ) -> Result<Self, String> {
        let within = Duration::from_millis(config.dns_timeout_ms);
        options.timeout = within / TRIES;
        options.attempts = TRIES as usize - 1;
        options.cache_size = config.dns_cache_answers_max;
        // Per server; how many there are each tenant's limit says.
        options.max_active_requests = usize::from(u16::MAX);
        options.use_hosts_file = ResolveHosts::Always;
        options.positive_max_ttl = Some(KEPT_MAX);
        options.negative_max_ttl = Some(NOT_THERE_KEPT_MAX);
        let servers = ResolverConfig::from_parts(None, Vec::new(), servers);
        let names = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            names,
            timeout: within,
            addresses_max: config.dns_addresses_max,
            lookups_max: config.dns_lookups_per_tenant_max,
            tenants: Mutex::default(),
        })
    }

    /// The addresses of a name, at least one.
    pub(super) async fn resolve(
        &self,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Vec<IpAddr>, Failure> {
        let found = self.resolve_by(Instant::now() + self.timeout, tenant, name);
        let found = found.await;
        self.forget_idle();
        found
    }

    async fn resolve_by(
        &self,
        deadline: Instant,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Vec<IpAddr>, Failure> {
        let admitted = timeout_at(deadline, self.admit(tenant)).await;
        let _permit = admitted.map_err(|_| {
            Failure::Ours(io::Error::other(
                "as many names of the tenant as `egress.dns_lookups_per_tenant_max` permits are being resolved",
            ))
        })?;
        let found = timeout_at(deadline, self.look_up(name)).await;
        found.unwrap_or_else(|_| {
            Err(Failure::Unresolved(format!(
                "no answer within {} ms",
                self.timeout.as_millis()
            )))
        })
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let mut absolute =
            Name::from_ascii(name).map_err(|error| Failure::Unresolved(error.to_string()))?;
        absolute.set_fqdn(true);
        let answer = async |kind| match self.names.lookup(absolute.clone(), kind).await {
            Ok(found) => Ok(addresses(&found)),
            Err(NetError::Io(error)) if is_ours(&error, true) => {
                Err(Failure::Ours(io::Error::other(error)))
            }
            Err(error) if error.is_nx_domain() => {
                Err(Failure::Unresolved("there is no such name".to_owned()))
            }
            Err(error) if error.is_no_records_found() => Ok(Vec::new()),
            Err(error) => Err(Failure::Unresolved(error.to_string())),
        };
        let (v4, v6) = (pin!(answer(RecordType::A)), pin!(answer(RecordType::AAAA)));
        let answered = select(v4, v6).await;
        let other_wait = match &answered {
            Either::Left(_) => V6_WAIT,
            Either::Right(_) => self.timeout / 2,
        };
        let (first, other) = answered.factor_first();
        let other = match &first {
            Ok(found) if !found.is_empty() => timeout(other_wait, other).await.ok(),
            _ => Some(other.await),
        };
        let found: Vec<IpAddr> = [Some(&first), other.as_ref()]
            .into_iter()
            .flatten()
            .flatten()
            .flatten()
            .copied()
            .collect();
        match (found.is_empty(), first) {
            (false, _) => Ok(alternating(&found, self.addresses_max)),
            (true, Err(error)) => Err(error),
            (true, Ok(_)) => Err(Failure::Unresolved("it has no addresses".to_owned())),
        }
    }

    async fn admit(&self, tenant: &TenantId) -> Option<OwnedSemaphorePermit> {
        let lookups = Arc::clone(
            self.tenants
                .lock()
                .entry(tenant.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(self.lookups_max))),
        );
        // It is never closed.
        lookups.acquire_owned().await.ok()
    }

    fn forget_idle(&self) {
        self.tenants
            .lock()
            .retain(|_, lookups| Arc::strong_count(lookups) > 1);
    }
}

fn addresses(found: &Lookup) -> Vec<IpAddr> {
    let records = found.answers().iter();
    records.filter_map(|record| record.data.ip_addr()).collect()
}

/// So many addresses, of both families in turn (RFC 8305, section 4).
fn alternating(found: &[IpAddr], at_most: usize) -> Vec<IpAddr> {
    let mut v4 = found.iter().filter(|address| address.is_ipv4());
    let mut v6 = found.iter().filter(|address| address.is_ipv6());
    let turns = std::iter::from_fn(|| match (v4.next(), v6.next()) {
        (None, None) => None,
        pair => Some([pair.0, pair.1]),
    });
    turns.flatten().flatten().take(at_most).copied().collect()
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Resolver").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
