//! Creating, changing and deleting endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::ids::{EndpointId, TenantId};
use tokio::time::Instant;

use super::WriteError;
use crate::record::{Content, EntityId};
use crate::registry::Registry;
use crate::view::{Lookup, Verdict, Versioned, View};

/// Writes of an import under way at once, at most.
const IMPORT_CHUNK: usize = 1_000;

impl Registry {
    /// Creates an endpoint.
    ///
    /// # Errors
    /// When its id is or was taken, its tenant is unknown or has too many, or the deadline passes.
    pub async fn create_endpoint(
        &self,
        endpoint: Endpoint,
    ) -> Result<Versioned<Endpoint>, WriteError> {
        let results = self.import_endpoints(vec![endpoint]).await;
        results
            .into_iter()
            .next()
            .expect("one endpoint has one result")
    }

    /// Creates many endpoints, written together and awaited together. Each succeeds or fails alone;
    /// results come in the order of the endpoints. The deadline counts for each thousand.
    pub async fn import_endpoints(
        &self,
        endpoints: Vec<Endpoint>,
    ) -> Vec<Result<Versioned<Endpoint>, WriteError>> {
        let mut results = Vec::with_capacity(endpoints.len());
        let mut endpoints = endpoints.into_iter();
        loop {
            let chunk: Vec<_> = endpoints.by_ref().take(IMPORT_CHUNK).collect();
            if chunk.is_empty() {
                return results;
            }
            results.extend(self.import_chunk(chunk).await);
        }
    }

    async fn import_chunk(
        &self,
        endpoints: Vec<Endpoint>,
    ) -> Vec<Result<Versioned<Endpoint>, WriteError>> {
        let deadline = match self.ready_by_deadline().await {
            Ok(deadline) => deadline,
            Err(error) => return endpoints.iter().map(|_| Err(error.clone())).collect(),
        };
        if endpoints
            .iter()
            .any(|endpoint| self.tenant(&endpoint.tenant).is_none())
            && let Err(error) = self.look_again(deadline).await
        {
            return endpoints.iter().map(|_| Err(error.clone())).collect();
        }
        let mut admitted = BTreeMap::new();
        let checks: Vec<_> = endpoints
            .iter()
            .map(|endpoint| self.admit(endpoint, &mut admitted))
            .collect();
        let writes = endpoints
            .into_iter()
            .zip(checks)
            .map(|(endpoint, check)| async move {
                check?;
                let entity = EntityId::Endpoint(endpoint.id.clone());
                let content = Content::Endpoint(Box::new(endpoint.clone()));
                match self.write(&entity, 0, &content, deadline).await? {
                    Verdict::Won => Ok(Versioned {
                        value: Arc::new(endpoint),
                        version: 1,
                    }),
                    Verdict::Lost => {
                        self.count_conflict();
                        Err(taken(&self.shared.view(), &entity).unwrap_or(WriteError::Exists))
                    }
                }
            });
        join_all(writes).await
    }

    /// Whether an endpoint may be created, `admitted` counting those of the same import.
    fn admit(
        &self,
        endpoint: &Endpoint,
        admitted: &mut BTreeMap<TenantId, usize>,
    ) -> Result<(), WriteError> {
        let view = self.shared.view();
        if let Some(error) = taken(&view, &EntityId::Endpoint(endpoint.id.clone())) {
            return Err(error);
        }
        if !view.tenants().contains_key(&endpoint.tenant) {
            return Err(WriteError::TenantUnknown);
        }
        let max = self.shared.options.endpoints_per_tenant_max;
        let present = view.endpoints_of(&endpoint.tenant).map_or(0, BTreeMap::len);
        let admitted = admitted.entry(endpoint.tenant.clone()).or_default();
        if present + *admitted >= max {
            return Err(WriteError::Limit {
                of: "endpoints of the tenant",
                max,
            });
        }
        *admitted += 1;
        Ok(())
    }

    /// Changes an endpoint; its id and tenant stay. With an expected version only if it is at that
    /// one; without, the change is repeated on whatever another writer made of it meanwhile, so it
    /// must do the same each time. A change that changes nothing is not written.
    ///
    /// # Errors
    /// When there is no such endpoint, it is at another version than expected, or the deadline
    /// passes.
    pub async fn update_endpoint(
        &self,
        id: &EndpointId,
        expected: Option<u64>,
        change: impl Fn(&Endpoint) -> Endpoint,
    ) -> Result<Versioned<Endpoint>, WriteError> {
        let deadline = self.ready_by_deadline().await?;
        let entity = EntityId::Endpoint(id.clone());
        loop {
            let present = self.present(id, expected, deadline).await?;
            let tenant = present.value.tenant.clone();
            let changed = Endpoint {
                id: id.clone(),
                tenant,
                ..change(&present.value)
            };
            if changed == *present.value {
                return Ok(present);
            }
            let content = Content::Endpoint(Box::new(changed.clone()));
            if self
                .write(&entity, present.version, &content, deadline)
                .await?
                == Verdict::Won
            {
                let version = present.version + 1;
                return Ok(Versioned {
                    value: Arc::new(changed),
                    version,
                });
            }
            self.lost(deadline)?;
        }
    }

    /// Deletes an endpoint for ever, with an expected version only if it is at that one.
    ///
    /// # Errors
    /// When there is no such endpoint, it is at another version than expected, or the deadline
    /// passes.
    pub async fn delete_endpoint(
        &self,
        id: &EndpointId,
        expected: Option<u64>,
    ) -> Result<(), WriteError> {
        let deadline = self.ready_by_deadline().await?;
        let entity = EntityId::Endpoint(id.clone());
        loop {
            let seen = self.present(id, expected, deadline).await?.version;
            if self
                .write(&entity, seen, &Content::Deleted, deadline)
                .await?
                == Verdict::Won
            {
                return Ok(());
            }
            self.lost(deadline)?;
        }
    }

    /// Disables an endpoint that was judged at a version; whether it did. A newer version voids the
    /// judgement: who changed or enabled it meanwhile knew better. One that is disabled already
    /// keeps its reason and its time.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn disable_endpoint(
        &self,
        id: &EndpointId,
        judged_version: u64,
        reason: &str,
    ) -> Result<bool, WriteError> {
        let disabled = EndpointState::Disabled {
            reason: reason.to_owned(),
            since_ms: self.shared.clock.now_ms(),
        };
        let change = |endpoint: &Endpoint| match endpoint.state {
            EndpointState::Disabled { .. } => endpoint.clone(),
            EndpointState::Enabled | EndpointState::Paused => Endpoint {
                state: disabled.clone(),
                ..endpoint.clone()
            },
        };
        match self.update_endpoint(id, Some(judged_version), change).await {
            Ok(present) => Ok(present.version > judged_version),
            Err(WriteError::NotFound | WriteError::Deleted | WriteError::Conflict { .. }) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The endpoint to write on, at the version expected. What this view has not got may only not
    /// have reached it.
    async fn present(
        &self,
        id: &EndpointId,
        expected: Option<u64>,
        deadline: Instant,
    ) -> Result<Versioned<Endpoint>, WriteError> {
        let mut looked_again = false;
        loop {
            let found = self.endpoint(id);
            let may_lag = match &found {
                Lookup::Found(found) => expected.is_some_and(|expected| expected > found.version),
                Lookup::Unknown => true,
                Lookup::Deleted => false,
            };
            if may_lag && !looked_again {
                self.look_again(deadline).await?;
                looked_again = true;
                continue;
            }
            return match found {
                Lookup::Unknown => Err(WriteError::NotFound),
                Lookup::Deleted => Err(WriteError::Deleted),
                Lookup::Found(found)
                    if expected.is_none_or(|expected| expected == found.version) =>
                {
                    Ok(found)
                }
                Lookup::Found(found) => {
                    self.count_conflict();
                    Err(WriteError::Conflict {
                        present: found.version,
                    })
                }
            };
        }
    }
}

/// Why an entity cannot be created.
fn taken(view: &View, entity: &EntityId) -> Option<WriteError> {
    match view.taken(entity) {
        (_, true) => Some(WriteError::Deleted),
        (0, false) => None,
        (_, false) => Some(WriteError::Exists),
    }
}
