//! A log, and processes with a registry each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postrider_log::memory::MemoryLog;
use postrider_log::{Clock, Log, NewRecord, ProducerOptions, Target, TopicSpec};
use postrider_model::endpoint::Endpoint;
use postrider_model::fixtures;
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::tenant::Tenant;
use postrider_registry::{Keyring, Lookup, Registry, RegistryOptions, Versioned};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const TOPIC: &str = "registry";
pub(crate) const LONG: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct StoppedClock;

impl Clock for StoppedClock {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000
    }
}

/// A log with the registry's topic.
pub(crate) struct World {
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) options: RegistryOptions,
}

impl World {
    pub(crate) async fn new(seed: u64) -> Self {
        let log = MemoryLog::new(Arc::new(StoppedClock), seed);
        create_topic(&*log, 1).await;
        Self {
            log,
            options: RegistryOptions::default(),
        }
    }

    /// A process whose registry has caught up.
    pub(crate) async fn join(&self, name: &str) -> Process {
        self.join_with(self.log.process(name), keyring(1)).await
    }

    pub(crate) async fn join_with(&self, log: Arc<dyn Log>, keyring: Keyring) -> Process {
        let clock = Arc::new(StoppedClock);
        let options = self.options.clone();
        let (registry, follower) = Registry::open(log, clock, Arc::new(keyring), options)
            .await
            .expect("opens");
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run(stop.clone()));
        tokio::time::timeout(LONG, registry.caught_up())
            .await
            .expect("catches up");
        Process {
            registry,
            stop,
            tasks,
        }
    }

    /// Appends a record as it is, past every registry.
    pub(crate) async fn append(&self, key: &str, value: Option<Vec<u8>>) {
        let options = ProducerOptions {
            name: "by hand",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 20,
        };
        let producer = self.log.producer(options).await.unwrap();
        let record = NewRecord {
            key: key.to_owned().into(),
            value: value.map(Into::into),
            headers: vec![],
        };
        producer
            .append(TOPIC, Target::Partition(0), record)
            .await
            .unwrap();
    }

    /// Keys of the records that are no tombstones.
    pub(crate) fn live_keys(&self) -> Vec<String> {
        let records = self.log.snapshot(TOPIC).into_iter();
        let live = records.filter(|record| record.value.is_some());
        live.map(|record| String::from_utf8(record.key.to_vec()).unwrap())
            .collect()
    }
}

pub(crate) async fn create_topic(log: &dyn Log, partitions: i32) {
    let topic = TopicSpec {
        name: TOPIC.into(),
        partitions,
        retention: None,
        message_bytes_max: 1 << 20,
        settings: vec![],
    };
    log.create_topics(&[topic]).await.unwrap();
}

pub(crate) fn keyring(byte: u8) -> Keyring {
    Keyring::from_bytes([byte; 32], vec![])
}

/// A registry with its follower.
pub(crate) struct Process {
    pub(crate) registry: Registry,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Process {
    /// Stops the follower, which must end by itself.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(LONG, self.tasks.join_next()).await;
        ended
            .expect("ends in time")
            .expect("was running")
            .expect("did not panic");
    }
}

impl std::ops::Deref for Process {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

pub(crate) fn tenant_id(id: &str) -> TenantId {
    TenantId::try_new(id).unwrap()
}

pub(crate) fn endpoint_id(id: &str) -> EndpointId {
    EndpointId::try_new(id).unwrap()
}

pub(crate) fn tenant(id: &str) -> Tenant {
    Tenant {
        id: tenant_id(id),
        name: id.to_uppercase(),
        metadata: BTreeMap::new(),
        paused: false,
        created_at_ms: 5,
        portal_token_generation: 0,
    }
}

pub(crate) fn endpoint(id: &str, tenant: &str) -> Endpoint {
    Endpoint {
        tenant: tenant_id(tenant),
        created_at_ms: 7,
        ..fixtures::endpoint(id)
    }
}

pub(crate) fn described(endpoint: &Endpoint, description: &str) -> Endpoint {
    Endpoint {
        description: description.to_owned(),
        ..endpoint.clone()
    }
}

pub(crate) fn found(registry: &Registry, id: &str) -> Versioned<Endpoint> {
    match registry.endpoint(&endpoint_id(id)) {
        Lookup::Found(found) => found,
        other => panic!("{id} is {other:?}"),
    }
}

/// Everything a registry says, as of the topic's present end.
pub(crate) async fn all(
    registry: &Registry,
) -> (
    Vec<Versioned<Tenant>>,
    Vec<Versioned<Endpoint>>,
    Option<Versioned<Vec<i64>>>,
) {
    assert!(registry.refresh(LONG).await, "reaches the end");
    let tenants = registry.tenants(None, usize::MAX);
    let endpoints = tenants
        .iter()
        .flat_map(|tenant| registry.endpoints(&tenant.value.id, None, usize::MAX))
        .collect();
    (tenants, endpoints, registry.retry_delays())
}

/// Polls until it holds, in the time of the runtime.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not happen in a minute: {what}");
}
