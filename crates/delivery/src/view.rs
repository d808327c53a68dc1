//! How new a registry view must be before anything is concluded from it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use postrider_model::event::Event;
use postrider_registry::Registry;
use tokio::time::sleep;

const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);
const REFRESH_PAUSE: Duration = Duration::from_millis(200);

/// Waits until the view is as new as a record's position, so that an endpoint created before an event was published is
/// matched, and one deleted meanwhile is known to be.
///
/// A position past the registry's end is somebody's mistake: it is taken as the end, and holds nothing up. While the
/// registry cannot be read, nothing is concluded and the record waits.
pub(crate) async fn as_new_as(registry: &Registry, position: u64) {
    if registry.position() < position {
        refreshed(registry).await;
        note_past_end(registry, position);
    }
}

/// Waits until the view has everything that is in the registry now, however long that takes.
async fn refreshed(registry: &Registry) {
    while !registry.refresh(REFRESH_TIMEOUT).await {
        tracing::warn!("registry cannot be read up to its end, waiting");
        sleep(REFRESH_PAUSE).await;
    }
}

fn note_past_end(registry: &Registry, position: u64) {
    if registry.position() < position {
        tracing::warn!(
            position,
            "registry position is past the registry's end, taken as the end"
        );
    }
}

/// Which view an event may be judged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needed {
    /// Any that is at this position: ingest knew a view that far when it accepted the event.
    Position(u64),
    /// One that has whatever was in the registry when the event was received, which is after the log got it.
    AsReceived,
}

impl Needed {
    /// The one place where this is decided.
    pub(crate) fn for_event(event: &Event) -> Self {
        match event.registry_position {
            0 => Self::AsReceived,
            position => Self::Position(position),
        }
    }
}

/// A view, and which of the received records it is known to be newer than.
///
/// Records are numbered as they are received. The view covers one when the registry was asked for its end after that and
/// the view has come up to that end: then it has whatever was there when the log got the record.
pub(crate) struct CurrentView {
    registry: Registry,
    received: u64,
    covered: u64,
    refreshing: Option<(u64, BoxFuture<'static, ()>)>,
}

impl CurrentView {
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            registry,
            received: 0,
            covered: 0,
            refreshing: None,
        }
    }

    /// A record was received; answers with its number.
    pub(crate) fn receive(&mut self) -> u64 {
        self.received += 1;
        self.received
    }

    /// Whether a record of this number may be judged.
    pub(crate) fn suffices(&self, needed: Needed, received: u64) -> bool {
        let covered = self.covered >= received;
        let Needed::Position(position) = needed else {
            return covered;
        };
        if self.registry.position() >= position {
            return true;
        }
        if covered {
            note_past_end(&self.registry, position);
        }
        covered
    }

    /// Waits until the view covers what was received before this was called first. While the registry cannot be read, that
    /// goes on. Cancel-safe: the next call goes on with the same question.
    pub(crate) async fn refreshed(&mut self) {
        let (covers, refreshing) = self.refreshing.get_or_insert_with(|| {
            let registry = self.registry.clone();
            let refreshing = async move { refreshed(&registry).await };
            (self.received, Box::pin(refreshing))
        });
        refreshing.await;
        self.covered = *covers;
        self.refreshing = None;
    }
}
