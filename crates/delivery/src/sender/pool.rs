//! Connections that are kept for the next webhook to the same place, by tenant.
//!
//! How many there are in all is bounded, since each takes a descriptor: for a new one, the one that
//! was idle longest goes. How many are kept for one place follows how many it needed at once
//! lately: the one that was used last is used next, and what is not needed is idle until it goes.
//! None is used when it was idle for longer than its receiver keeps it, nor when it is older than
//! `egress.connection_age_max_ms`, so that a change of DNS is followed under traffic.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::connection::{Http1, Http2};
use super::dial::{Dialer, Origin, Protocol};
use super::failure::Failure;
use crate::config::EgressConfig;

/// How often it is looked for connections that were idle too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A request that leaves just before a receiver closes meets the end: a connection is left so much
/// before.
const LEFT_BEFORE: Duration = Duration::from_millis(500);
/// While somebody makes a new one in place of one that is too old, others go on with that for so
/// long.
const RENEWED_WITHIN: Duration = Duration::from_secs(5);

/// An exchange that is under way.
pub(super) struct Exchanging<'a>(&'a Notify);

impl Drop for Exchanging<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A connection to make an exchange on.
pub(super) enum Connection {
    Http1(Box<Http1>),
    Http2(Arc<Http2>),
}

#[derive(Debug)]
pub(super) struct Pool {
    dialer: Dialer,
    config: EgressConfig,
    free: Arc<Semaphore>,
    /// Somebody waits for one to be free, and one has become idle.
    idle: Notify,
    kept: Arc<Mutex<Kept>>,
    _sweeper: JoinSet<()>,
}

impl Pool {
    pub(super) fn new(dialer: Dialer, config: &EgressConfig) -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let mut sweeper = JoinSet::new();
        sweeper.spawn(sweep(
            Arc::downgrade(&kept),
            Duration::from_millis(config.idle_connection_ms),
        ));
        Self {
            dialer,
            config: config.clone(),
            free: Arc::new(Semaphore::new(config.connections_max)),
            idle: Notify::new(),
            kept,
            _sweeper: sweeper,
        }
    }

    /// One that was used before and still seems good.
    pub(super) fn used(&self, origin: &Origin) -> Option<Connection> {
        let idle_max = Duration::from_millis(self.config.idle_connection_ms);
        let mut left = Vec::new();
        let mut kept = self.kept();
        if let Some(shared) = kept.shared(origin, self.age_max()) {
            return Some(Connection::Http2(shared));
        }
        let used = loop {
            let Some((idle_since, mut connection)) = kept.take(origin) else {
                break None;
            };
            let idle_max = match connection.kept_for {
                Some(by_receiver) => by_receiver.saturating_sub(LEFT_BEFORE).min(idle_max),
                None => idle_max,
            };
            let young = connection.made_at.elapsed() < self.age_max();
            if young && idle_since.elapsed() < idle_max && connection.is_usable() {
                break Some(Connection::Http1(connection));
            }
            left.push(connection);
        };
        drop(kept);
        used
    }

    /// A new one, which must be there by the deadline.
    pub(super) async fn fresh(
        &self,
        origin: &Origin,
        only_http1: bool,
        deadline: Instant,
    ) -> Result<Connection, Failure> {
        let permit = self.permit(deadline).await?;
        let made = self.make(origin, only_http1, permit);
        let made = timeout_at(deadline, made).await;
        made.unwrap_or(Err(Failure::ConnectTimeout))
    }

    async fn make(
        &self,
        origin: &Origin,
        only_http1: bool,
        permit: OwnedSemaphorePermit,
    ) -> Result<Connection, Failure> {
        let (stream, protocol) = self.dialer.dial(origin, only_http1).await?;
        Ok(match protocol {
            Protocol::Http1 => Connection::Http1(Box::new(Http1::new(stream, permit).await?)),
            Protocol::Http2 => {
                let made = Http2::new(stream, permit, &self.config).await?;
                let made = Arc::new(made);
                let left = self.share(origin, &made);
                drop(left);
                Connection::Http2(made)
            }
        })
    }

    /// Keeps one whose exchange is over.
    pub(super) fn keep(&self, origin: &Origin, connection: Box<Http1>) {
        self.kept().put(origin, connection);
    }

    /// Uses one no more that was shared; exchanges on it go on.
    pub(super) fn leave(&self, origin: &Origin, connection: &Arc<Http2>) {
        let left = self.kept().leave(origin, connection);
        drop(left);
    }

    /// Tells who waits for a place, when this is dropped, that an exchange is over, however it
    /// ended.
    pub(super) fn exchanging(&self) -> Exchanging<'_> {
        Exchanging(&self.idle)
    }

    /// Of several that were made at once the first is shared.
    fn share(&self, origin: &Origin, made: &Arc<Http2>) -> Option<Connection> {
        let mut kept = self.kept();
        let present = kept.origins.get(origin);
        let present = present.and_then(|of_origin| of_origin.shared.as_ref());
        let is_good = present.is_some_and(|shared| {
            shared.connection.is_usable() && shared.connection.made_at.elapsed() < self.age_max()
        });
        match is_good {
            true => None,
            false => kept.share(origin, Arc::clone(made)),
        }
    }

    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, Failure> {
        let limit = Duration::from_millis(self.config.connect_timeout_ms);
        let waited = timeout_at(deadline.min(Instant::now() + limit), async {
            loop {
                let mut exchange_over = pin!(self.idle.notified());
                if exchange_over.as_mut().enable() {
                    // One that was over before says nothing of those that are idle now.
                    continue;
                }
                if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                    return Ok(permit);
                }
                drop(self.kept().longest_idle(Duration::ZERO));
                // The place of one of HTTP/2 is free when its task has ended; who waited longest
                // gets it.
                tokio::select! {
                    biased;
                    permit = Arc::clone(&self.free).acquire_owned() => return permit,
                    () = exchange_over => {}
                }
            }
        });
        match waited.await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Failure::Ours(io::Error::other(
                "as many connections as `egress.connections_max` permits are in use",
            ))),
        }
    }

    fn age_max(&self) -> Duration {
        Duration::from_millis(self.config.connection_age_max_ms)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }
}

async fn sweep(kept: Weak<Mutex<Kept>>, idle_max: Duration) {
    loop {
        sleep(SWEEP_EVERY).await;
        let Some(kept) = kept.upgrade() else { return };
        let idle = || {
            let mut kept = kept.lock();
            kept.longest_idle(idle_max)
        };
        while idle().is_some() {}
    }
}

/// Kept connections, and the order in which they were used last.
#[derive(Default)]
struct Kept {
    origins: HashMap<Origin, KeptFor>,
    used: BTreeMap<u64, (Instant, Origin)>,
    next: u64,
}

#[derive(Default)]
struct KeptFor {
    /// By use, the last one at the end.
    idle: VecDeque<(u64, Box<Http1>)>,
    shared: Option<Shared>,
}

struct Shared {
    used: u64,
    renewed_by: Option<Instant>,
    connection: Arc<Http2>,
}

impl Kept {
    fn note_use(&mut self, origin: &Origin) -> u64 {
        self.next += 1;
        self.used
            .insert(self.next, (Instant::now(), origin.clone()));
        self.next
    }

    fn put(&mut self, origin: &Origin, connection: Box<Http1>) {
        let used = self.note_use(origin);
        let of_origin = self.origins.entry(origin.clone()).or_default();
        of_origin.idle.push_back((used, connection));
    }

    /// The one that was used last, and since when it is idle.
    fn take(&mut self, origin: &Origin) -> Option<(Instant, Box<Http1>)> {
        let of_origin = self.origins.get_mut(origin)?;
        let (used, connection) = of_origin.idle.pop_back()?;
        self.forget_empty(origin);
        let (idle_since, _) = self.used.remove(&used)?;
        Some((idle_since, connection))
    }

    fn share(&mut self, origin: &Origin, connection: Arc<Http2>) -> Option<Connection> {
        let used = self.note_use(origin);
        let of_origin = self.origins.entry(origin.clone()).or_default();
        let former = of_origin.shared.replace(Shared {
            used,
            renewed_by: None,
            connection,
        })?;
        self.used.remove(&former.used);
        Some(Connection::Http2(former.connection))
    }

    /// The shared one, unless it has ended or is so old that whoever asks should make the next one.
    fn shared(&mut self, origin: &Origin, age_max: Duration) -> Option<Arc<Http2>> {
        let shared = self.origins.get_mut(origin)?.shared.as_mut()?;
        let now = Instant::now();
        let renewed = shared.renewed_by.is_some_and(|by| now < by);
        if shared.connection.made_at.elapsed() >= age_max && !renewed {
            shared.renewed_by = Some(now + RENEWED_WITHIN);
            return None;
        }
        let connection = Arc::clone(&shared.connection);
        if !connection.is_usable() {
            self.leave(origin, &connection);
            return None;
        }
        let former = shared.used;
        self.used.remove(&former);
        let used = self.note_use(origin);
        if let Some(shared) = self.origins.get_mut(origin)?.shared.as_mut() {
            shared.used = used;
        }
        Some(connection)
    }

    fn leave(&mut self, origin: &Origin, connection: &Arc<Http2>) -> Option<Connection> {
        let of_origin = self.origins.get_mut(origin)?;
        let left = of_origin
            .shared
            .take_if(|shared| Arc::ptr_eq(&shared.connection, connection))?;
        self.used.remove(&left.used);
        self.forget_empty(origin);
        Some(Connection::Http2(left.connection))
    }

    /// Takes the one out that was idle longest, if any is and was for so long.
    fn longest_idle(&mut self, at_least: Duration) -> Option<Connection> {
        let (&used, (_, origin)) = self
            .used
            .iter()
            .take_while(|(_, (since, _))| since.elapsed() >= at_least)
            .find(|(used, (_, origin))| self.is_idle(**used, origin))?;
        let origin = origin.clone();
        let of_origin = self.origins.get_mut(&origin)?;
        let left = match of_origin.shared.take_if(|shared| shared.used == used) {
            Some(shared) => Connection::Http2(shared.connection),
            None => Connection::Http1(of_origin.idle.pop_front()?.1),
        };
        self.used.remove(&used);
        self.forget_empty(&origin);
        Some(left)
    }

    /// Whether no exchange is under way on the one that was used last at this place in the order.
    fn is_idle(&self, used: u64, origin: &Origin) -> bool {
        let of_origin = self.origins.get(origin);
        match of_origin.and_then(|of_origin| of_origin.shared.as_ref()) {
            Some(shared) if shared.used == used => Arc::strong_count(&shared.connection) == 1,
            _ => true,
        }
    }

    fn forget_empty(&mut self, origin: &Origin) {
        if let Some(of_origin) = self.origins.get(origin)
            && of_origin.idle.is_empty()
            && of_origin.shared.is_none()
        {
            self.origins.remove(origin);
        }
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Kept")
            .field("connections", &self.used.len())
            .finish_non_exhaustive()
    }
}
