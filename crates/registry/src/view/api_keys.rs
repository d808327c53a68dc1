//! The keys for the API, found by what is presented and by whose they are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use postrider_model::api_key::{ApiKey, ApiKeyHash};
use postrider_model::ids::{ApiKeyId, TenantId};

use super::Versioned;

#[derive(Debug, Default)]
pub(crate) struct ApiKeys {
    by_id: BTreeMap<ApiKeyId, Versioned<ApiKey>>,
    by_hash: BTreeMap<ApiKeyHash, ApiKeyId>,
    /// By tenant; those of operators by none.
    by_holder: BTreeMap<Option<TenantId>, BTreeSet<ApiKeyId>>,
}

impl ApiKeys {
    pub(super) fn insert(&mut self, key: Versioned<ApiKey>) {
        let (id, hash) = (key.value.id.clone(), key.value.hash);
        let holder = key.value.holder.tenant().cloned();
        self.remove(&id);
        self.by_holder.entry(holder).or_default().insert(id.clone());
        self.by_hash.insert(hash, id.clone());
        self.by_id.insert(id, key);
    }

    pub(super) fn remove(&mut self, id: &ApiKeyId) {
        let Some(key) = self.by_id.remove(id) else {
            return;
        };
        self.by_hash.remove(&key.value.hash);
        let holder = key.value.holder.tenant().cloned();
        if let Some(siblings) = self.by_holder.get_mut(&holder) {
            siblings.remove(id);
            if siblings.is_empty() {
                self.by_holder.remove(&holder);
            }
        }
    }

    pub(super) fn keep_as_version(&mut self, id: &ApiKeyId, version: u64) {
        if let Some(key) = self.by_id.get_mut(id) {
            key.version = version;
        }
    }

    pub(crate) fn get(&self, id: &ApiKeyId) -> Option<&Versioned<ApiKey>> {
        self.by_id.get(id)
    }

    pub(crate) fn with_hash(&self, hash: &ApiKeyHash) -> Option<&Arc<ApiKey>> {
        let id = self.by_hash.get(hash)?;
        self.by_id.get(id).map(|key| &key.value)
    }

    pub(crate) fn count(&self, holder: Option<&TenantId>) -> usize {
        self.by_holder
            .get(&holder.cloned())
            .map_or(0, BTreeSet::len)
    }

    /// By id, from the one after `after`.
    pub(crate) fn page(
        &self,
        holder: Option<&TenantId>,
        after: Option<&ApiKeyId>,
        limit: usize,
    ) -> Vec<Versioned<ApiKey>> {
        let Some(ids) = self.by_holder.get(&holder.cloned()) else {
            return Vec::new();
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        ids.range::<ApiKeyId, _>((from, Bound::Unbounded))
            .take(limit)
            .filter_map(|id| self.by_id.get(id).cloned())
            .collect()
    }
}
