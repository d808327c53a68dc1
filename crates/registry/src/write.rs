//! Writes: append the next version, read on, see who won.

use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider_log::{AppendError, Backoff, NewRecord, Target};
use tokio::time::{Instant, sleep, timeout_at};

use crate::record::{self, Content, EntityId, RecordKey};
use crate::registry::{PARTITION, Registry, Shared, TOPIC};
use crate::view::Verdict;

mod api_keys;
mod endpoints;
mod identity;
mod settings;

pub use identity::JoinError;
pub(crate) use identity::is_settled;
pub use settings::RetryDelaysError;

const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(50),
    longest: Duration::from_secs(1),
};

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
        /// The fate of the write is unknown: it may count already or later. Otherwise it was not
        /// made.
        may_have_been_written: bool,
    },
}

const NOT_WRITTEN: WriteError = WriteError::Unavailable {
    may_have_been_written: false,
};

impl Registry {
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

    /// Appends the version after the one seen and waits for the verdict. It comes from the follower
    /// alone, so an append of unknown fate is decided as well once it, or another of its version,
    /// is read.
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

/// Appends a record, again if it is certain that it is not there. Returns only when it never can
/// be: what became of it otherwise is for the follower to see.
async fn append(shared: &Shared, record: NewRecord, may_be_there: &mut bool) -> WriteError {
    let mut failures = 0;
    loop {
        match shared.producer().await {
            Ok(producer) => {
                *may_be_there = true;
                let target = Target::Partition(PARTITION);
                match producer.append(TOPIC, target, record.clone()).await {
                    Ok(_) => break,
                    Err(AppendError::Unknown(detail)) => {
                        tracing::warn!(detail, "fate of a registry write is unknown");
                        shared.give_up_producer(&producer);
                        break;
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
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "registry has no producer, trying again");
            }
        }
        failures += 1;
        sleep(BACKOFF.pause(failures)).await;
    }
    std::future::pending().await
}
