//! How new a registry view must be before anything is concluded from it.

use std::time::Duration;

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
    while registry.position() < position {
        if registry.refresh(REFRESH_TIMEOUT).await {
            if registry.position() < position {
                tracing::warn!(
                    position,
                    "registry position is past the registry's end, taken as the end"
                );
            }
            return;
        }
        tracing::warn!(
            position,
            "registry cannot be read up to a record's position, waiting"
        );
        sleep(REFRESH_PAUSE).await;
    }
}
