//! Keys for the API: created, revoked, their use noted.

use std::sync::Arc;

use postrider_model::api_key::ApiKey;
use postrider_model::ids::{ApiKeyId, TenantId};
use tokio::time::Instant;

use super::WriteError;
use crate::record::{Content, EntityId};
use crate::registry::Registry;
use crate::view::{Verdict, Versioned};

impl Registry {
    /// Creates a key.
    ///
    /// # Errors
    /// When its id is or was taken, its tenant is unknown, the tenant or the operators have too
    /// many, or the deadline passes.
    pub async fn create_api_key(&self, key: ApiKey) -> Result<Versioned<ApiKey>, WriteError> {
        let deadline = self.ready_by_deadline().await?;
        if key
            .holder
            .tenant()
            .is_some_and(|id| self.tenant(id).is_none())
        {
            self.look_again(deadline).await?;
        }
        let entity = EntityId::ApiKey(key.id.clone());
        self.admit_api_key(&key, &entity)?;
        let content = Content::ApiKey(key.clone());
        match self.write(&entity, 0, &content, deadline).await? {
            Verdict::Won => Ok(Versioned {
                value: Arc::new(key),
                version: 1,
            }),
            Verdict::Lost => {
                self.count_conflict();
                Err(WriteError::Exists)
            }
        }
    }

    fn admit_api_key(&self, key: &ApiKey, entity: &EntityId) -> Result<(), WriteError> {
        let view = self.shared.view();
        match view.taken(entity) {
            (_, true) => return Err(WriteError::Deleted),
            (0, false) => {}
            (_, false) => return Err(WriteError::Exists),
        }
        let holder = key.holder.tenant();
        if holder.is_some_and(|id| !view.tenants().contains_key(id)) {
            return Err(WriteError::TenantUnknown);
        }
        let max = self.shared.options.api_keys_per_holder_max;
        if view.api_keys().count(holder) >= max {
            let of = match holder {
                Some(_) => "keys of the tenant",
                None => "operator keys",
            };
            return Err(WriteError::Limit { of, max });
        }
        Ok(())
    }

    /// Revokes a key of this holder, a tenant or the operators, for ever.
    ///
    /// # Errors
    /// When the holder has no such key, or the deadline passes.
    pub async fn revoke_api_key(
        &self,
        holder: Option<&TenantId>,
        id: &ApiKeyId,
    ) -> Result<(), WriteError> {
        let deadline = self.ready_by_deadline().await?;
        let entity = EntityId::ApiKey(id.clone());
        loop {
            let present = self.present_api_key(holder, id, deadline).await?;
            let written = self.write(&entity, present.version, &Content::Deleted, deadline);
            if written.await? == Verdict::Won {
                return Ok(());
            }
            self.lost(deadline)?;
        }
    }

    /// The key as a view knows it that is as new as the request.
    async fn present_api_key(
        &self,
        holder: Option<&TenantId>,
        id: &ApiKeyId,
        deadline: Instant,
    ) -> Result<Versioned<ApiKey>, WriteError> {
        let mut found = self.api_key(holder, id);
        if found.is_none() {
            self.look_again(deadline).await?;
            found = self.api_key(holder, id);
        }
        found.ok_or(WriteError::NotFound)
    }

    /// Notes that a key was used. Whoever writes the key meanwhile knows better, and so does one
    /// who revokes it: then nothing is written.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn note_api_key_use(&self, id: &ApiKeyId, used_at_ms: i64) -> Result<(), WriteError> {
        let deadline = self.ready_by_deadline().await?;
        let Some(present) = self.shared.view().api_keys().get(id).cloned() else {
            return Ok(());
        };
        if present
            .value
            .last_used_at_ms
            .is_some_and(|last| last >= used_at_ms)
        {
            return Ok(());
        }
        let used = ApiKey {
            last_used_at_ms: Some(used_at_ms),
            ..ApiKey::clone(&present.value)
        };
        let entity = EntityId::ApiKey(id.clone());
        let content = Content::ApiKey(used);
        self.write(&entity, present.version, &content, deadline)
            .await
            .map(drop)
    }
}
