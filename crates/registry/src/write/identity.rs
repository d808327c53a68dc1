//! Which registry this is: joining it, and what is said of its loss.

use std::sync::atomic::Ordering;

use postrider_model::identity::{Identity, RegistryLoss};
use ring::rand::SystemRandom;

use super::WriteError;
use crate::keyring::random_bytes;
use crate::record::{Content, EntityId};
use crate::registry::Registry;
use crate::view::Verdict;

/// Names of keys, and ids of former registries, that an identity keeps at most; the oldest go
/// first.
const NAMES_MAX: usize = 64;

/// Why a process may not take part in an installation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Its keys open nothing that the installation sealed.
    #[error(
        "none of the keys in `keys.encryption` ({ours}) is one of the installation's ({theirs}), so no signing secret would \
         open and nothing would be sent. Either the key is wrong: set the one that the other processes have. Or this is \
         another installation: give it a `kafka.prefix` of its own. If the installation's keys are lost for good, \
         `postrider recover --registry --accept-keys` lets it go on with this one"
    )]
    OtherKeys {
        /// Names of this process's keys.
        ours: String,
        /// Names of the keys that the installation has sealed with.
        theirs: String,
    },
    /// The identity could not be written.
    #[error("write the registry's identity")]
    Write(#[from] WriteError),
}

/// What to make of the present identity: `None` leaves it as it is.
type Change<'a> = &'a (dyn Fn(Option<&Identity>) -> Result<Option<Identity>, JoinError> + Sync);

impl Registry {
    /// Takes part in the installation: checks that this process's keys are among those that it
    /// seals with, and writes the registry's identity if it has none. From then on a loss that this
    /// process finds is written down too.
    ///
    /// An installation of an earlier release has no identity: then the keys must be among those
    /// that its secrets name. A key that is new here is added, so keys are rotated by starting each
    /// process with the new and the old ones.
    ///
    /// # Errors
    /// When the keys are those of another installation, or the deadline of a write passes.
    pub async fn join(&self) -> Result<(), JoinError> {
        let primary = self.shared.keyring.primary();
        self.change_identity(&|present| {
            self.may_join()?;
            Ok(match present {
                Some(identity) => with_key(identity, primary),
                None => Some(self.founded(None)),
            })
        })
        .await?;
        self.shared.joined.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether this process's keys are among those that the installation seals with, as far as the
    /// view shows.
    ///
    /// # Errors
    /// When they are those of another.
    pub fn may_join(&self) -> Result<(), JoinError> {
        let keyring = &self.shared.keyring;
        let view = self.shared.view();
        let theirs = match view.identity() {
            Some(identity) => identity.value.key_ids.clone(),
            None => view.key_ids(),
        };
        if theirs.is_empty() || theirs.iter().any(|id| keyring.has(id)) {
            return Ok(());
        }
        Err(JoinError::OtherKeys {
            ours: keyring.ids().join(", "),
            theirs: theirs.join(", "),
        })
    }

    /// Lets the installation go on with this process's keys, whatever it sealed with before.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn accept_keys(&self) -> Result<(), JoinError> {
        let primary = self.shared.keyring.primary();
        self.change_identity(&|present| {
            Ok(match present {
                Some(identity) => with_key(identity, primary),
                None => Some(self.founded(None)),
            })
        })
        .await
    }

    /// Accepts that records of the registry were lost: it gets a new id, and positions of the
    /// former ones mean nothing any more. What waited is judged by the registry as it is now.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn accept_loss(&self) -> Result<(), JoinError> {
        let id = new_id();
        self.change_identity(&|present| {
            Ok(present.filter(|present| present.id != id).map(|present| {
                let lost = present.loss.as_ref().map(|loss| loss.lost_id);
                let mut former_ids = present.former_ids.clone();
                former_ids.push(present.id);
                former_ids.extend(lost.filter(|lost| *lost != present.id));
                Identity {
                    id,
                    key_ids: present.key_ids.clone(),
                    former_ids: newest(former_ids),
                    loss: None,
                }
            }))
        })
        .await?;
        *self.shared.found_loss.lock() = None;
        Ok(())
    }

    /// Writes down that records were lost, so that every process knows, also one that starts later.
    pub(crate) async fn record_loss(&self, found: &RegistryLoss) -> Result<(), JoinError> {
        self.change_identity(&|present| {
            Ok(match present {
                None => Some(self.founded(Some(found.clone()))),
                Some(present) if present.loss.is_some() || is_settled(present, found) => None,
                Some(present) => Some(Identity {
                    loss: Some(found.clone()),
                    ..present.clone()
                }),
            })
        })
        .await
    }

    fn founded(&self, loss: Option<RegistryLoss>) -> Identity {
        let primary = self.shared.keyring.primary();
        let mut key_ids = self.shared.view().key_ids();
        key_ids.retain(|id| id != primary);
        key_ids.push(primary.to_owned());
        Identity {
            id: new_id(),
            key_ids: newest(key_ids),
            former_ids: Vec::new(),
            loss,
        }
    }

    async fn change_identity(&self, change: Change<'_>) -> Result<(), JoinError> {
        let deadline = self.ready_by_deadline().await?;
        self.look_again(deadline).await?;
        loop {
            let entity = EntityId::Identity;
            let (present, seen) = {
                let view = self.shared.view();
                (view.identity().cloned(), view.taken(&entity).0)
            };
            let present = present.as_ref().map(|present| &*present.value);
            let Some(changed) = change(present)? else {
                return Ok(());
            };
            let content = Content::Identity(changed);
            if self.write(&entity, seen, &content, deadline).await? == Verdict::Won {
                return Ok(());
            }
            self.lost(deadline)?;
        }
    }
}

/// Whether an operator has accepted since that this registry was lost.
pub(crate) fn is_settled(present: &Identity, found: &RegistryLoss) -> bool {
    present.former_ids.contains(&found.lost_id)
}

fn with_key(identity: &Identity, key: &str) -> Option<Identity> {
    if identity.key_ids.iter().any(|id| id == key) {
        return None;
    }
    let mut key_ids = identity.key_ids.clone();
    key_ids.push(key.to_owned());
    Some(Identity {
        key_ids: newest(key_ids),
        ..identity.clone()
    })
}

fn newest<T>(mut names: Vec<T>) -> Vec<T> {
    let surplus = names.len().saturating_sub(NAMES_MAX);
    names.drain(..surplus);
    names
}

fn new_id() -> u64 {
    u64::from_le_bytes(random_bytes(&SystemRandom::new())).max(1)
}
