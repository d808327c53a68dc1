//! Tenants, what holds for the installation, and the delays of the retry topic.

use std::sync::Arc;

use postrider_model::ids::TenantId;
use postrider_model::tenant::{Installation, Tenant};

use super::WriteError;
use crate::record::{Content, EntityId};
use crate::registry::Registry;
use crate::view::{Verdict, Versioned};

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

impl Registry {
    /// Creates or updates a tenant; what is so already is not written again. An update keeps the
    /// time of creation and whether the tenant is paused.
    ///
    /// # Errors
    /// When there are too many tenants or the deadline passes.
    pub async fn put_tenant(&self, tenant: Tenant) -> Result<Versioned<Tenant>, WriteError> {
        let change = |present: &Tenant| Tenant {
            name: tenant.name.clone(),
            metadata: tenant.metadata.clone(),
            ..present.clone()
        };
        self.change_tenant(&tenant, change).await
    }

    /// Changes a tenant as it is when the change is written, or creates it of this new one; what is
    /// so already is not written again.
    ///
    /// # Errors
    /// When there are too many tenants or the deadline passes.
    pub async fn change_tenant(
        &self,
        new: &Tenant,
        change: impl Fn(&Tenant) -> Tenant,
    ) -> Result<Versioned<Tenant>, WriteError> {
        let deadline = self.ready_by_deadline().await?;
        loop {
            let present = self.tenant(&new.id);
            let tenant = change(present.as_ref().map_or(new, |present| &present.value));
            if let Some(present) = &present {
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

    /// Pauses or resumes all endpoints of a tenant. What is so already is not written again, which
    /// is concluded from a fresh view only: a stale one may not know that somebody resumed.
    ///
    /// # Errors
    /// When there is no such tenant or the deadline passes.
    pub async fn pause_tenant(
        &self,
        id: &TenantId,
        paused: bool,
    ) -> Result<Versioned<Tenant>, WriteError> {
        let deadline = self.ready_by_deadline().await?;
        self.look_again(deadline).await?;
        loop {
            let present = self.tenant(id).ok_or(WriteError::NotFound)?;
            if present.value.paused == paused {
                return Ok(present);
            }
            let tenant = Tenant {
                paused,
                ..Tenant::clone(&present.value)
            };
            let entity = EntityId::Tenant(id.clone());
            let content = Content::Tenant(tenant.clone());
            if self
                .write(&entity, present.version, &content, deadline)
                .await?
                == Verdict::Won
            {
                return Ok(Versioned {
                    value: Arc::new(tenant),
                    version: present.version + 1,
                });
            }
            self.lost(deadline)?;
        }
    }

    /// Revokes the portal tokens of a tenant that were issued so far.
    ///
    /// # Errors
    /// When there is no such tenant or the deadline passes.
    pub async fn revoke_portal_tokens(
        &self,
        id: &TenantId,
    ) -> Result<Versioned<Tenant>, WriteError> {
        let present = self.tenant(id).ok_or(WriteError::NotFound)?;
        let change = |present: &Tenant| Tenant {
            portal_token_generation: present.portal_token_generation + 1,
            ..present.clone()
        };
        self.change_tenant(&present.value, change).await
    }

    /// Writes what holds for the whole installation. What is so already in a fresh view is not
    /// written again.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn put_installation(
        &self,
        installation: Installation,
    ) -> Result<Versioned<Installation>, WriteError> {
        let deadline = self.ready_by_deadline().await?;
        self.look_again(deadline).await?;
        loop {
            let present = self.installation();
            if *present.value == installation {
                return Ok(present);
            }
            let content = Content::Installation(installation);
            let entity = EntityId::Installation;
            if self
                .write(&entity, present.version, &content, deadline)
                .await?
                == Verdict::Won
            {
                return Ok(Versioned {
                    value: Arc::new(installation),
                    version: present.version + 1,
                });
            }
            self.lost(deadline)?;
        }
    }

    /// Records which delay each partition of the retry topic waits. A partition whose delay changes
    /// or goes must be among those that the caller says are empty: what is in it was put there for
    /// the old one.
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
            let (seen, deleted) = self.shared.view().taken(&entity);
            if deleted {
                return Err(WriteError::Deleted.into());
            }
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
