//! How new a registry view must be before anything is concluded from it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use postrider_model::event::Event;
use postrider_model::identity::RegistryStamp;
use postrider_registry::Registry;
use tokio::time::{Instant, sleep};

const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);
const REFRESH_PAUSE: Duration = Duration::from_millis(200);
/// A stamp beyond the registry's end proves a loss only if the end stays: right after it was
/// elected, a leader of Kafka may name an end too low.
const BEYOND_END_FOR: Duration = Duration::from_secs(10);

/// Waits until the view is as new as a record's stamp, so that an endpoint created before an event
/// was published is matched, and one deleted meanwhile is known to be.
///
/// A position past the end of this registry proves that it lost records, and is reported. One of
/// another registry, or of none, proves nothing and holds nothing up. While the registry cannot be
/// read, nothing is concluded and the record waits.
pub(crate) async fn as_new_as(registry: &Registry, stamp: RegistryStamp) {
    let mut beyond = BeyondEnd::default();
    while let Some(position) = registry.position_of(stamp)
        && registry.position() < position
    {
        refreshed(registry).await;
        if registry.position() >= position || beyond.is_settled(registry, position) {
            return;
        }
        sleep(REFRESH_PAUSE).await;
    }
}

/// Waits until the view has everything that is in the registry now, however long that takes.
pub(crate) async fn refreshed(registry: &Registry) {
    while !registry.refresh(REFRESH_TIMEOUT).await {
        tracing::warn!("registry cannot be read up to its end, waiting");
        sleep(REFRESH_PAUSE).await;
    }
}

/// What to make of a position past the registry's end.
#[derive(Debug, Default)]
struct BeyondEnd {
    since: Option<Instant>,
}

impl BeyondEnd {
    /// Whether it is known what to make of it. Where the registry has an identity it proves a loss,
    /// which is reported; where it has none the position is somebody's mistake, and is taken as the
    /// end.
    fn is_settled(&mut self, registry: &Registry, position: u64) -> bool {
        let here = registry.stamp();
        if here.registry_id == 0 {
            tracing::warn!(
                position,
                "registry position is past the registry's end, taken as the end"
            );
            return true;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < BEYOND_END_FOR {
            return false;
        }
        let end = here.position;
        let detail =
            format!("a record was stamped at position {position} of it, but it ends at {end}");
        registry.report_loss(here.registry_id, detail);
        true
    }
}

/// Which view an event may be judged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needed {
    /// Any that is at this position: ingest knew a view that far when it accepted the event.
    Position(u64),
    /// One that has whatever was in the registry when the event was received, which is after the
    /// log got it.
    AsReceived,
}

impl Needed {
    /// The one place where this is decided.
    pub(crate) fn for_event(event: &Event, registry: &Registry) -> Self {
        // A stamp of another registry says nothing of this one.
        match registry.position_of(event.registry) {
            Some(position @ 1..) => Self::Position(position),
            Some(0) | None => Self::AsReceived,
        }
    }
}

/// A view, and which of the received records it is known to be newer than.
///
/// Records are numbered as they are received. The view covers one when the registry was asked for
/// its end after that and the view has come up to that end: then it has whatever was there when the
/// log got the record.
pub(crate) struct CurrentView {
    registry: Registry,
    received: u64,
    covered: u64,
    refreshing: Option<(u64, BoxFuture<'static, ()>)>,
    beyond_end: BeyondEnd,
}

impl CurrentView {
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            registry,
            received: 0,
            covered: 0,
            refreshing: None,
            beyond_end: BeyondEnd::default(),
        }
    }

    /// A record was received; answers with its number.
    pub(crate) fn receive(&mut self) -> u64 {
        self.received += 1;
        self.received
    }

    /// Whether a record of this number may be judged: never while records of the registry are known
    /// to be lost, or it might be matched with nobody.
    pub(crate) fn suffices(&mut self, needed: Needed, received: u64) -> bool {
        if self.registry.loss().is_some() || !self.registry.ready() {
            return false;
        }
        let covered = self.covered >= received;
        let Needed::Position(position) = needed else {
            return covered;
        };
        if self.registry.position() >= position {
            self.beyond_end = BeyondEnd::default();
            return true;
        }
        covered
            && self.beyond_end.is_settled(&self.registry, position)
            && self.registry.loss().is_none()
    }

    /// Waits until the view covers what was received before this was called first. While the
    /// registry cannot be read, that goes on. Cancel-safe: the next call goes on with the same
    /// question.
    pub(crate) async fn refreshed(&mut self) {
        let (covers, refreshing) = self.refreshing.get_or_insert_with(|| {
            let registry = self.registry.clone();
            let again = self.beyond_end.since.is_some();
            let refreshing = async move {
                while registry.loss().is_some() {
                    sleep(REFRESH_PAUSE).await;
                }
                if again {
                    sleep(REFRESH_PAUSE).await;
                }
                refreshed(&registry).await;
            };
            (self.received, Box::pin(refreshing))
        });
        refreshing.await;
        self.covered = *covers;
        self.refreshing = None;
    }
}

#[cfg(test)]
mod tests;
