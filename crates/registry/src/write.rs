//! Writes: append the next version, read on, see who won.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use postrider_log::{AppendError, NewRecord, Target};
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::tenant::Tenant;
use tokio::time::{Instant, sleep, timeout_at};

use crate::record::{self, Content, EntityId, RecordKey};
use crate::registry::{PARTITION, Registry, Shared, TOPIC};
use crate::view::{Lookup, Verdict, Versioned, View};

/// Writes of an import under way at once, at most.
const IMPORT_CHUNK: usize = 1_000;
const BACKOFF: Duration = Duration::from_millis(50);

/// Why a write was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// There is no such endpoint.
    #[error("does not exist")]
    NotFound,
    /// The id is taken.
    #[error("exists already")]
    Exists,
    /// The id belonged to an endpoint that was deleted, and is never used again.
    #[error("was deleted")]
    Deleted,
    /// It was changed since; the present version is given.
    #[error("is at version {present}, not at the one expected")]
    Conflict {
        /// The version it is at.
        present: u64,
    },
    /// There is no such tenant.
    #[error("the tenant does not exist")]
    TenantUnknown,
    /// There are too many already.
    #[error("there are {max} {of} already, no more are allowed")]
    Limit {
        /// Of what: `tenants`, `endpoints of the tenant`.
        of: &'static str,
        /// How many are allowed.
        max: usize,
    },
    /// It is larger than the registry topic takes.
    #[error("is larger than the registry topic takes")]
    TooLarge,
    /// It could not be read back: it is not as the model demands.
    #[error("is not valid: {0}")]
    Invalid(String),
    /// The deadline passed. Asking again later may help.
    #[error("the registry could not be written in time{}", if *.may_have_been_written {
        "; the change may have been made, or come to be made"
    } else {
        ""
    })]
    Unavailable {
        /// The fate of the write is unknown: it may count already or later. Otherwise it was not made.
        may_have_been_written: bool,
    },
}

/// Why retry delays were not recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetryDelaysError {
    /// A partition of the retry topic that is not known to be empty would wait another time.
    #[error(
        "partition {partition} of the retry topic waits {delay_ms} ms and may hold deliveries, \
         so its delay cannot be changed or removed"
    )]
    InUse {
        /// The partition.
        partition: i32,
        /// The delay recorded for it.
        delay_ms: i64,
    },
    /// The write was not made.
    #[error("record the retry delays")]
    Write(#[from] WriteError),
}

const NOT_WRITTEN: WriteError = WriteError::Unavailable {
    may_have_been_written: false,
};

impl Registry {
    /// Creates or updates a tenant; what is so already is not written again. An update keeps the time of creation.
    ///
    /// # Errors
    /// When there are too many tenants or the deadline passes.
    pub async fn put_tenant(&self, tenant: Tenant) -> Result<Versioned<Tenant>, WriteError> {
        let deadline = self.ready_by_deadline().await?;
        let mut tenant = tenant;
        loop {
            let present = self.tenant(&tenant.id);
            if let Some(present) = &present {
                tenant.created_at_ms = present.value.created_at_ms;
                if *present.value == tenant {
                    return Ok(present.clone());
                }
            } else {
                let max = self.shared.options.tenants_max;
                if self.shared.view().tenants().len() >= max {
                    return Err(WriteError::Limit { of: "tenants", max });
                }
            }
            let entity = EntityId::Tenant(tenant.id.clone());
            let (seen, deleted) = self.shared.view().taken(&entity);
            if deleted {
                return Err(WriteError::Deleted);
            }
            let content = Content::Tenant(tenant.clone());
            if self.write(&entity, seen, &content, deadline).await? == Verdict::Won {
                return Ok(Versioned {
                    value: Arc::new(tenant),
                    version: seen + 1,
                });
            }
            self.lost(deadline)?;
        }
    }

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

    /// Creates many endpoints, written together and awaited together. Each succeeds or fails alone; results come in
    /// the order of the endpoints. The deadline counts for each thousand.
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

    /// Changes an endpoint; its id and tenant stay. With an expected version only if it is at that one; without, the
    /// change is repeated on whatever another writer made of it meanwhile, so it must do the same each time. A change
    /// that changes nothing is not written.
    ///
    /// # Errors
    /// When there is no such endpoint, it is at another version than expected, or the deadline passes.
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
    /// When there is no such endpoint, it is at another version than expected, or the deadline passes.
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

    /// Disables an endpoint that was judged at a version; whether it did. A newer version voids the judgement: who
    /// changed or enabled it meanwhile knew better.
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
        };
        let change = |endpoint: &Endpoint| Endpoint {
            state: disabled.clone(),
            ..endpoint.clone()
        };
        match self.update_endpoint(id, Some(judged_version), change).await {
            Ok(_) => Ok(true),
            Err(WriteError::NotFound | WriteError::Deleted | WriteError::Conflict { .. }) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Records which delay each partition of the retry topic waits. A partition whose delay changes or goes must be
    /// among those that the caller says are empty: what is in it was put there for the old one.
    ///
    /// # Errors
    /// When such a partition is not said to be empty, or the deadline passes.
    pub async fn record_retry_delays(
        &self,
        delays_ms: &[i64],
        empty_partitions: &[i32],
    ) -> Result<Versioned<Vec<i64>>, RetryDelaysError> {
        let deadline = self.ready_by_deadline().await?;
        loop {
            let present = self.retry_delays();
            if let Some(present) = &present {
                if *present.value == delays_ms {
                    return Ok(present.clone());
                }
                check_delays(&present.value, delays_ms, empty_partitions)?;
            }
            let entity = EntityId::RetryDelays;
            let seen = self.shared.view().taken(&entity).0;
            let content = Content::RetryDelays(delays_ms.to_vec());
            if self.write(&entity, seen, &content, deadline).await? == Verdict::Won {
                return Ok(Versioned {
                    value: Arc::new(delays_ms.to_vec()),
                    version: seen + 1,
                });
            }
            self.lost(deadline)?;
        }
    }

    /// The endpoint to write on, at the version expected. What this view has not got may only not have reached it.
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

    async fn look_again(&self, deadline: Instant) -> Result<(), WriteError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if self.refresh(left).await {
            Ok(())
        } else {
            Err(NOT_WRITTEN)
        }
    }

    /// Waits until the view is whole; writes on half of one would find nothing there.
    async fn ready_by_deadline(&self) -> Result<Instant, WriteError> {
        let deadline = Instant::now() + self.shared.options.write_deadline;
        timeout_at(deadline, self.caught_up())
            .await
            .map_err(|_| NOT_WRITTEN)?;
        Ok(deadline)
    }

    /// Another writer got ahead: whether there is time to try again.
    fn lost(&self, deadline: Instant) -> Result<(), WriteError> {
        self.count_conflict();
        if Instant::now() < deadline {
            Ok(())
        } else {
            Err(NOT_WRITTEN)
        }
    }

    fn count_conflict(&self) {
        self.shared
            .counters
            .conflicts
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Appends the version after the one seen and waits for the verdict. It comes from the follower alone, so an append
    /// of unknown fate is decided as well once it, or another of its version, is read.
    async fn write(
        &self,
        entity: &EntityId,
        seen: u64,
        content: &Content,
        deadline: Instant,
    ) -> Result<Verdict, WriteError> {
        let shared = &*self.shared;
        let key = RecordKey {
            entity: entity.clone(),
            version: seen + 1,
            nonce: shared.nonce(),
        };
        let record = record::encode(&key, content, shared.clock.now_ms());
        record::check(&key, &record).map_err(|error| WriteError::Invalid(error.to_string()))?;
        let Some(told) = shared.view_mut().await_verdict(&key) else {
            return Ok(Verdict::Lost);
        };
        let _waiting = Waiting { shared, key };
        let mut may_have_been_written = false;
        let decided = async {
            tokio::select! {
                biased;
                verdict = told => Ok(verdict.expect("the view holds the sender until it has told")),
                error = append(shared, record, &mut may_have_been_written) => Err(error),
            }
        };
        let decided = timeout_at(deadline, decided).await;
        decided.unwrap_or(Err(WriteError::Unavailable {
            may_have_been_written,
        }))
    }
}

/// A write that is registered with the view until it is decided or given up.
struct Waiting<'a> {
    shared: &'a Shared,
    key: RecordKey,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.view_mut().stop_waiting(&self.key);
    }
}

/// Appends a record, again if it is certain that it is not there. Returns only when it never can be: what became of it
/// otherwise is for the follower to see.
async fn append(shared: &Shared, record: NewRecord, may_be_there: &mut bool) -> WriteError {
    loop {
        if let Ok(producer) = shared.producer().await {
            *may_be_there = true;
            let target = Target::Partition(PARTITION);
            match producer.append(TOPIC, target, record.clone()).await {
                Ok(_) => std::future::pending().await,
                Err(AppendError::Unknown(detail)) => {
                    tracing::warn!(detail, "fate of a registry write is unknown");
                    shared.give_up_producer(&producer);
                    std::future::pending().await
                }
                Err(AppendError::TooLarge) => return WriteError::TooLarge,
                Err(AppendError::QueueFull) => *may_be_there = false,
                Err(AppendError::Failed(detail)) => {
                    tracing::warn!(detail, "registry write failed, trying again");
                    *may_be_there = false;
                    shared.give_up_producer(&producer);
                }
            }
        }
        sleep(BACKOFF).await;
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

fn check_delays(
    recorded: &[i64],
    wanted: &[i64],
    empty_partitions: &[i32],
) -> Result<(), RetryDelaysError> {
    for (partition, delay_ms) in (0..).zip(recorded.iter().copied()) {
        let index = usize::try_from(partition).unwrap_or(usize::MAX);
        let stays = wanted.get(index) == Some(&delay_ms);
        if !stays && !empty_partitions.contains(&partition) {
            return Err(RetryDelaysError::InUse {
                partition,
                delay_ms,
            });
        }
    }
    Ok(())
}
