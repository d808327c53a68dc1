//! The handle that every role holds: reading the view, and waiting for it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use postrider_log::{Clock, Log, LogError, Producer, ProducerOptions};
use postrider_model::api_key::{ApiKey, ApiKeyHash};
use postrider_model::endpoint::{Endpoint, EndpointState, SealedSecret};
use postrider_model::event::Event;
use postrider_model::filter::EventTypeName;
use postrider_model::identity::{Identity, RegistryLoss, RegistryStamp};
use postrider_model::ids::{ApiKeyId, EndpointId, TenantId};
use postrider_model::signature::SigningSecret;
use postrider_model::tenant::{Installation, Tenant};
use postrider_model::{operational, topics};
use ring::rand::SystemRandom;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::follower::Follower;
use crate::keyring::{Keyring, OpenError, hex, random_bytes};
use crate::numbers::{Counters, Numbers};
use crate::view::{Gate, Lookup, Matched, Versioned, View};

/// Name of the topic, without prefix.
pub(crate) const TOPIC: &str = topics::REGISTRY;
/// Its only partition.
pub(crate) const PARTITION: i32 = 0;

/// How the registry behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryOptions {
    /// How long a write may take. Must be below the topic's `min.compaction.lag.ms`.
    pub write_deadline: Duration,
    /// How long superseded records wait to be removed, so that one round removes those of many
    /// writes.
    pub cleanup_delay: Duration,
    /// Tenants at most.
    pub tenants_max: usize,
    /// Endpoints of one tenant at most.
    pub endpoints_per_tenant_max: usize,
    /// Keys of one tenant at most, and of all operators.
    pub api_keys_per_holder_max: usize,
    /// Bytes read at once, at most.
    pub read_bytes_max: usize,
    /// Bytes written but not yet acknowledged, at most.
    pub write_bytes_max: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            write_deadline: Duration::from_secs(10),
            cleanup_delay: Duration::from_secs(1),
            tenants_max: 100_000,
            endpoints_per_tenant_max: 1_000,
            api_keys_per_holder_max: 100,
            read_bytes_max: 1 << 20,
            write_bytes_max: 16 << 20,
        }
    }
}

/// Why the registry could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The log did not answer.
    #[error("read the registry topic")]
    Log(#[from] LogError),
    /// The topic has another number of partitions, so its records have no one order.
    #[error("the registry topic must have 1 partition, not {0}")]
    Partitions(i32),
}

/// Tenants and endpoints. Clones share one view, which its [`Follower`] keeps.
#[derive(Debug, Clone)]
pub struct Registry {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) options: RegistryOptions,
    pub(crate) counters: Counters,
    /// Wakes the follower when there is something to tombstone.
    pub(crate) cleaning: Notify,
    view: RwLock<View>,
    progress: Mutex<Progress>,
    /// Told when it changes. Not a watch channel, which wakes those who wait in an order of its own
    /// each time.
    moved: Notify,
    /// What the view must reach before it is ready.
    end_at_open: AtomicU64,
    /// Whether the view is whole: from when it was read to the end until it turns out to be of
    /// another log.
    caught_up: AtomicBool,
    /// Whether this process takes part in the installation, see [`Registry::join`].
    pub(crate) joined: AtomicBool,
    /// A loss that this process found and that is not written down yet.
    pub(crate) found_loss: Mutex<Option<RegistryLoss>>,
    /// Wakes the follower when there is a loss to write down.
    pub(crate) losing: Notify,
    /// Endpoints of which a secret does not open.
    pub(crate) sealed_off: Mutex<BTreeSet<EndpointId>>,
    producer: Mutex<Option<Arc<dyn Producer>>>,
    /// Decrypted secrets, beside what they were decrypted from.
    opened: Mutex<BTreeMap<EndpointId, Vec<(SealedSecret, SigningSecret)>>>,
    instance: String,
    writes: AtomicU64,
}

/// How far the follower is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    /// Next offset to read.
    pub(crate) position: u64,
    /// When the end of the topic was last reached.
    pub(crate) current_at: Instant,
}

impl Registry {
    /// Opens the registry. The view is empty until the follower runs, see [`Registry::caught_up`].
    ///
    /// # Errors
    /// When the log does not answer, or the topic is missing or has not exactly one partition.
    pub async fn open(
        log: Arc<dyn Log>,
        clock: Arc<dyn Clock>,
        keyring: Arc<Keyring>,
        options: RegistryOptions,
    ) -> Result<(Self, Follower), RegistryError> {
        let partitions = log.partition_count(TOPIC).await?;
        if partitions != 1 {
            return Err(RegistryError::Partitions(partitions));
        }
        let end = log.bounds(TOPIC, PARTITION).await?.end;
        let reader = log.reader(TOPIC).await?;
        let progress = Progress {
            position: 0,
            current_at: Instant::now(),
        };
        let shared = Arc::new(Shared {
            log,
            clock,
            keyring,
            options,
            counters: Counters::default(),
            cleaning: Notify::new(),
            view: RwLock::default(),
            progress: Mutex::new(progress),
            moved: Notify::new(),
            end_at_open: AtomicU64::new(end.unsigned_abs()),
            caught_up: AtomicBool::new(false),
            joined: AtomicBool::new(false),
            found_loss: Mutex::default(),
            losing: Notify::new(),
            sealed_off: Mutex::default(),
            producer: Mutex::default(),
            opened: Mutex::default(),
            instance: hex(&random_bytes::<8>(&SystemRandom::new())),
            writes: AtomicU64::new(0),
        });
        Ok((
            Self {
                shared: Arc::clone(&shared),
            },
            Follower::new(shared, reader),
        ))
    }

    /// The next offset that the view reads.
    pub fn position(&self) -> u64 {
        self.shared.view().position()
    }

    /// Which registry this is and where the view is in it: what an event is stamped with.
    pub fn stamp(&self) -> RegistryStamp {
        self.shared.view().stamp()
    }

    /// Which registry this is, once a process has [joined](Registry::join) it.
    pub fn identity(&self) -> Option<Versioned<Identity>> {
        self.shared.view().identity().cloned()
    }

    /// That records of the registry were lost, from when it is known until an operator
    /// [accepts](Registry::accept_loss) it. Until then the view may lack what was acknowledged.
    pub fn loss(&self) -> Option<RegistryLoss> {
        let found = self.shared.found_loss.lock().clone();
        found.or_else(|| self.shared.view().identity()?.value.loss.clone())
    }

    /// The position in this registry that a stamp names. `None`: it names another registry, or
    /// none, and says nothing.
    pub fn position_of(&self, stamp: RegistryStamp) -> Option<u64> {
        (self.stamp().registry_id == stamp.registry_id).then_some(stamp.position)
    }

    /// Whether a stamp names a registry of which nothing is known here: the topic was made again
    /// since, and no operator has accepted that.
    pub fn is_of_a_lost_registry(&self, stamp: RegistryStamp) -> bool {
        let view = self.shared.view();
        let Some(identity) = view.identity().map(|identity| &identity.value) else {
            return false;
        };
        let id = stamp.registry_id;
        id != 0 && id != identity.id && !identity.former_ids.contains(&id)
    }

    /// Says that records of the registry were lost: what carries this stamp proves it.
    pub fn report_loss(&self, lost_id: u64, detail: String) {
        self.shared.lose(RegistryLoss {
            found_at_ms: self.shared.clock.now_ms(),
            detail,
            lost_id,
        });
    }

    /// Waits until the view is at this position; whether it got there in time.
    pub async fn wait_for(&self, position: u64, at_most: Duration) -> bool {
        let reached = self.shared.reached(position);
        timeout(at_most, reached).await.is_ok()
    }

    /// Waits until the view has everything that is in the topic now; whether it got there in time.
    /// For answers that must not come from a view that lags behind another process's writes.
    pub async fn refresh(&self, at_most: Duration) -> bool {
        let (started, position) = (Instant::now(), self.position());
        match timeout(at_most, self.shared.log.bounds(TOPIC, PARTITION)).await {
            // A view beyond the end is one of another log.
            Ok(Ok(bounds)) if bounds.end.unsigned_abs() < position => false,
            Ok(Ok(bounds)) => {
                let left = at_most.saturating_sub(started.elapsed());
                self.wait_for(bounds.end.unsigned_abs(), left).await && self.ready()
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Whether the view has everything that was in the topic when it was opened, and is of the log
    /// that is there.
    pub fn ready(&self) -> bool {
        self.shared.caught_up.load(Ordering::Acquire)
    }

    /// Waits until the registry is [ready](Registry::ready).
    pub async fn caught_up(&self) {
        self.shared.until(|| self.ready()).await;
    }

    /// How long ago the view was last known to be current. Grows while the log cannot be read.
    pub fn age(&self) -> Duration {
        self.shared.progress().current_at.elapsed()
    }

    /// Whether deliveries to this endpoint may be sent now. Cheap enough to be asked before each.
    pub fn gate(&self, endpoint: &Endpoint) -> Gate {
        self.shared.view().gate(endpoint)
    }

    /// What holds for the whole installation; version 0 if nothing was ever written.
    pub fn installation(&self) -> Versioned<Installation> {
        self.shared.view().installation().clone()
    }

    /// Proof that Postrider itself wrote the value of an operational event's record, for its header
    /// [`operational::PROOF_HEADER`].
    pub fn vouch(&self, value: &[u8]) -> String {
        self.shared.keyring.vouch(value)
    }

    /// Proof that a process of this installation made this value.
    pub fn prove(&self, value: &[u8]) -> String {
        self.shared.keyring.prove(value)
    }

    /// Whether that is [`Registry::prove`] of this value, by whatever process.
    pub fn proves(&self, value: &[u8], proof: &str) -> bool {
        self.shared.keyring.proves(value, proof)
    }

    /// Whether an event of a reserved type is Postrider's own: its record has proof, or it tells
    /// what this view knows to hold.
    pub fn is_own(&self, event: &Event, value: &[u8], proof: Option<&str>) -> bool {
        if proof.is_some_and(|proof| self.shared.keyring.vouches(value, proof)) {
            return true;
        }
        let about = EndpointId::try_new(&event.ordering_key);
        match about.map(|endpoint| self.endpoint(&endpoint)) {
            Ok(Lookup::Found(found)) => operational::tells(event, &found.value, found.version),
            Ok(Lookup::Deleted | Lookup::Unknown) | Err(_) => false,
        }
    }

    /// The endpoints, enabled or paused, that want this event.
    pub fn wanting(&self, event: &Event) -> Matched {
        let mut matched = self.matching(&event.tenant, &event.event_type);
        matched
            .endpoints
            .retain(|endpoint| !operational::is_about(event, &endpoint.id));
        matched
    }

    /// The endpoints of the tenant, enabled or paused, that want events of this type.
    pub fn matching(&self, tenant: &TenantId, event_type: &EventTypeName) -> Matched {
        self.shared.view().matching(tenant, event_type)
    }

    /// What is known of the endpoint.
    pub fn endpoint(&self, id: &EndpointId) -> Lookup {
        self.shared.view().lookup(id)
    }

    /// The tenant, if there is one.
    pub fn tenant(&self, id: &TenantId) -> Option<Versioned<Tenant>> {
        self.shared.view().tenants().get(id).cloned()
    }

    /// Tenants by id, from the one after `after`.
    pub fn tenants(&self, after: Option<&TenantId>, limit: usize) -> Vec<Versioned<Tenant>> {
        page(self.shared.view().tenants(), after, limit)
    }

    /// Endpoints of a tenant by id, from the one after `after`.
    pub fn endpoints(
        &self,
        tenant: &TenantId,
        after: Option<&EndpointId>,
        limit: usize,
    ) -> Vec<Versioned<Endpoint>> {
        let view = self.shared.view();
        view.endpoints_of(tenant)
            .map_or_else(Vec::new, |all| page(all, after, limit))
    }

    /// The key for the API that has this hash. Whether it has expired, and whether its tenant is
    /// there, is for the caller to look at.
    pub fn api_key_with_hash(&self, hash: &ApiKeyHash) -> Option<Arc<ApiKey>> {
        self.shared.view().api_keys().with_hash(hash).cloned()
    }

    /// A key for the API of this holder, a tenant or the operators.
    pub fn api_key(&self, holder: Option<&TenantId>, id: &ApiKeyId) -> Option<Versioned<ApiKey>> {
        let found = self.shared.view().api_keys().get(id).cloned();
        found.filter(|key| key.value.holder.tenant() == holder)
    }

    /// Keys of this holder by id, from the one after `after`.
    pub fn api_keys(
        &self,
        holder: Option<&TenantId>,
        after: Option<&ApiKeyId>,
        limit: usize,
    ) -> Vec<Versioned<ApiKey>> {
        self.shared.view().api_keys().page(holder, after, limit)
    }

    /// The recorded delays of the retry topic's partitions, in milliseconds, if any were recorded.
    pub fn retry_delays(&self) -> Option<Versioned<Vec<i64>>> {
        self.shared.view().retry_delays().cloned()
    }

    /// Encrypts a secret for an endpoint that is about to be written.
    pub fn seal(&self, endpoint: &EndpointId, secret: &SigningSecret) -> SealedSecret {
        self.shared.keyring.seal(endpoint, secret)
    }

    /// The secrets that sign for an endpoint at this time, newest first. Decrypted ones are kept.
    ///
    /// # Errors
    /// When one of them does not open: to sign with the others alone would break receivers
    /// silently.
    pub fn signing_secrets(
        &self,
        endpoint: &Endpoint,
        now_ms: i64,
    ) -> Result<Vec<SigningSecret>, OpenError> {
        let mut opened = self.shared.opened.lock();
        let known = opened.get(&endpoint.id).map_or(&[][..], Vec::as_slice);
        let mut valid = Vec::with_capacity(endpoint.secrets.len());
        let mut all_known = true;
        for sealed in &endpoint.secrets {
            if is_over(sealed, now_ms) {
                continue;
            }
            let secret = match known.iter().find(|(known, _)| known == sealed) {
                Some((_, secret)) => secret.clone(),
                None => {
                    all_known = false;
                    self.shared.keyring.open(&endpoint.id, sealed)?
                }
            };
            valid.push((sealed.clone(), secret));
        }
        let secrets = valid.iter().map(|(_, secret)| secret.clone()).collect();
        if !all_known {
            if opened.len() >= OPENED_MAX {
                opened.clear();
            }
            opened.insert(endpoint.id.clone(), valid);
        }
        Ok(secrets)
    }

    /// The endpoints that are not disabled and of which a secret that signs does not open with this
    /// process's keys, and why the first does not.
    pub fn unsignable(&self) -> (usize, Option<(EndpointId, OpenError)>) {
        let ids: Vec<EndpointId> = self.shared.sealed_off.lock().iter().cloned().collect();
        let now_ms = self.shared.clock.now_ms();
        let view = self.shared.view();
        let mut closed = ids.into_iter().filter_map(|id| {
            let Lookup::Found(endpoint) = view.lookup(&id) else {
                return None;
            };
            if matches!(endpoint.value.state, EndpointState::Disabled { .. }) {
                return None;
            }
            let error = self.shared.first_closed(&endpoint.value, now_ms)?;
            Some((id, error))
        });
        let first = closed.next();
        (usize::from(first.is_some()) + closed.count(), first)
    }

    /// How many endpoints, tenants and so on there are.
    pub fn counts(&self) -> Numbers {
        let counters = &self.shared.counters;
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let age = self.age();
        let view = self.shared.view();
        let endpoints = view.endpoint_counts();
        Numbers {
            position: view.position(),
            age,
            tenants: view.tenants().len(),
            endpoints_enabled: endpoints.enabled,
            endpoints_paused: endpoints.paused,
            endpoints_disabled: endpoints.disabled,
            stale_records: view.stale_count(),
            unreadable_total: total(&counters.unreadable),
            read_failures_total: total(&counters.read_failures),
            conflicts_total: total(&counters.conflicts),
            tombstones_total: total(&counters.tombstones),
        }
    }
}

/// Endpoints whose secrets are kept decrypted, at most; beyond it all are decrypted anew.
const OPENED_MAX: usize = 100_000;

impl Shared {
    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read()
    }

    pub(crate) fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write()
    }

    /// Publishes how far the follower is.
    pub(crate) fn progressed(&self, position: u64, reached_end: bool) {
        let mut progress = self.progress();
        progress.position = position;
        if reached_end {
            progress.current_at = Instant::now();
        }
        drop(progress);
        if position >= self.end_at_open.load(Ordering::Acquire) {
            self.caught_up.store(true, Ordering::Release);
        }
        self.moved.notify_waiters();
    }

    /// The view is of another log than the one that is there: writes and answers wait until it is
    /// read anew.
    pub(crate) fn distrust_view(&self) {
        self.caught_up.store(false, Ordering::Release);
    }

    /// Takes over a view that was read anew, up to the end of the topic.
    pub(crate) fn replace_view(&self, fresh: View) {
        let position = fresh.position();
        let endpoints: Vec<_> = fresh.all_endpoints().map(|one| one.id.clone()).collect();
        self.view_mut().replace(fresh);
        self.sealed_off.lock().clear();
        self.note_secrets(&endpoints);
        self.end_at_open.store(position, Ordering::Release);
        self.progressed(position, true);
    }

    /// Notes of which of these endpoints a secret does not open.
    pub(crate) fn note_secrets(&self, endpoints: &[EndpointId]) {
        for id in endpoints {
            let closed = match self.view().lookup(id) {
                Lookup::Found(endpoint) => self.first_closed(&endpoint.value, i64::MIN).is_some(),
                Lookup::Deleted | Lookup::Unknown => false,
            };
            let mut sealed_off = self.sealed_off.lock();
            if closed {
                sealed_off.insert(id.clone());
            } else {
                sealed_off.remove(id);
            }
        }
    }

    /// Why the first of an endpoint's secrets that sign at this time does not open.
    fn first_closed(&self, endpoint: &Endpoint, now_ms: i64) -> Option<OpenError> {
        let signs = |secret: &&SealedSecret| !is_over(secret, now_ms);
        let mut signing = endpoint.secrets.iter().filter(signs);
        signing.find_map(|secret| self.keyring.open(&endpoint.id, secret).err())
    }

    /// Keeps that records were lost, and has it written down. A process that does not take part
    /// says nothing.
    pub(crate) fn lose(&self, loss: RegistryLoss) {
        if !self.joined.load(Ordering::Acquire) {
            return;
        }
        let mut found = self.found_loss.lock();
        if found.is_none() {
            let detail = &loss.detail;
            tracing::error!(
                detail,
                "registry lost records, nothing is matched until an operator decides"
            );
            *found = Some(loss);
            self.losing.notify_one();
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock()
    }

    /// Waits until the view is at this position. Who waited first goes on first.
    async fn reached(&self, position: u64) {
        self.until(|| self.progress().position >= position).await;
    }

    /// Waits until this is so; it is asked whenever the view moved.
    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let moved = self.moved.notified();
            if is_so() {
                return;
            }
            moved.await;
        }
    }

    /// Tells this process's writes apart from all others.
    pub(crate) fn nonce(&self) -> String {
        format!(
            "{}-{}",
            self.instance,
            self.writes.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// The producer, a new one if there is none.
    pub(crate) async fn producer(&self) -> Result<Arc<dyn Producer>, LogError> {
        if let Some(producer) = &*self.producer.lock() {
            return Ok(Arc::clone(producer));
        }
        let options = ProducerOptions {
            name: "registry",
            append_timeout: Some(self.options.write_deadline),
            linger: Duration::from_millis(1),
            queue_bytes_max: self.options.write_bytes_max,
        };
        let made: Arc<dyn Producer> = Arc::from(self.log.producer(options).await?);
        // Another write may have made one meanwhile; then that one serves.
        Ok(Arc::clone(self.producer.lock().get_or_insert(made)))
    }

    /// Gives up a producer that lost track of an append, which may have been a fatal error. Order
    /// among producers does not matter here, and writes under way keep theirs.
    pub(crate) fn give_up_producer(&self, broken: &Arc<dyn Producer>) {
        let mut producer = self.producer.lock();
        if producer
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(present, broken))
        {
            *producer = None;
        }
    }
}

/// Whether it signs no more.
fn is_over(secret: &SealedSecret, now_ms: i64) -> bool {
    secret.expires_at_ms.is_some_and(|until| until <= now_ms)
}

fn page<K: Ord, V: Clone>(all: &BTreeMap<K, V>, after: Option<&K>, limit: usize) -> Vec<V> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    all.range((from, Bound::Unbounded))
        .take(limit)
        .map(|(_, value)| value.clone())
        .collect()
}
