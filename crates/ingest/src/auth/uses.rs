//! When each key was used last, noted in the registry by the hour.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use postrider_model::api_key::ApiKey;
use postrider_model::ids::ApiKeyId;
use postrider_registry::Registry;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// A use is noted when the last one that was noted is so old.
const NOTED_EVERY_MS: i64 = 60 * 60 * 1000;
/// Keys that wait to be noted; further ones are noted when they are used again.
const WAITING_MAX: usize = 1_000;

/// Writes one after the other, so that no crowd of keys keeps others from writing.
#[derive(Debug)]
pub(super) struct Uses {
    waiting: Arc<Waiting>,
    _writing: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    keys: Mutex<BTreeMap<ApiKeyId, i64>>,
    more: Notify,
}

impl Uses {
    pub(super) fn new(registry: Registry) -> Self {
        let waiting = Arc::<Waiting>::default();
        let mut writing = JoinSet::new();
        writing.spawn(write(registry, Arc::clone(&waiting)));
        Self {
            waiting,
            _writing: writing,
        }
    }

    /// The key was used.
    pub(super) fn note(&self, key: &ApiKey, now_ms: i64) {
        let is_noted = |noted_ms: i64| now_ms.saturating_sub(noted_ms) < NOTED_EVERY_MS;
        if key.last_used_at_ms.is_some_and(is_noted) {
            return;
        }
        let mut keys = self.waiting.keys.lock();
        if keys.len() < WAITING_MAX && !keys.contains_key(&key.id) {
            keys.insert(key.id.clone(), now_ms);
            self.waiting.more.notify_one();
        }
    }
}

async fn write(registry: Registry, waiting: Arc<Waiting>) {
    loop {
        waiting.more.notified().await;
        loop {
            let first = waiting
                .keys
                .lock()
                .first_key_value()
                .map(|(id, at)| (id.clone(), *at));
            let Some((id, used_at_ms)) = first else { break };
            if let Err(error) = registry.note_api_key_use(&id, used_at_ms).await {
                tracing::debug!(%id, %error, "the use of a key was not noted");
            }
            waiting.keys.lock().remove(&id);
        }
    }
}
