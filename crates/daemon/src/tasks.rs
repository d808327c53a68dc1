//! Named tasks, with a policy for their failure.
//!
//! Cancellation flows down by one token; completion flows up: [`Tasks::wait`] says when the process
//! has to end, and [`Tasks::shutdown`] waits for the tasks, with a deadline. A panic is a failure
//! like any other.

use std::any::Any;
use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::errors::chain;

/// Why a task failed.
pub type TaskError = Box<dyn Error + Send + Sync>;

/// A critical task that ended although nobody had asked it to.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    /// It returned without an error.
    #[error("task {name} ended by itself")]
    Ended {
        /// Name of the task.
        name: &'static str,
    },
    /// It failed or panicked.
    #[error("task {name} failed")]
    Failed {
        /// Name of the task.
        name: &'static str,
        /// Why.
        source: TaskError,
    },
}

/// Tasks that were not done at the deadline, and were cut.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("tasks not done in time: {}", .0.join(", "))]
pub struct Unfinished(pub Vec<&'static str>);

#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
struct Panicked(String);

/// The tasks of the process. Dropping it cuts them all.
#[derive(Debug)]
pub struct Tasks {
    token: CancellationToken,
    set: JoinSet<Result<(), TaskFailure>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// No tasks yet. The token is what asks them to end.
    pub fn new(token: CancellationToken) -> Self {
        Self {
            token,
            set: JoinSet::new(),
            names: HashMap::new(),
        }
    }

    /// The token that asks the tasks to end.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Starts a task without which the process is of no use: if it ends before the token is
    /// cancelled, or fails, [`Tasks::wait`] returns that.
    pub fn critical<E: Into<TaskError>>(
        &mut self,
        name: &'static str,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let token = self.token.clone();
        self.spawn(name, async move {
            match caught(future).await {
                Ok(()) if token.is_cancelled() => Ok(()),
                Ok(()) => Err(TaskFailure::Ended { name }),
                Err(source) => Err(TaskFailure::Failed { name, source }),
            }
        });
    }

    /// Starts a task whose failure is logged and changes nothing else.
    pub fn background<E: Into<TaskError>>(
        &mut self,
        name: &'static str,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.spawn(name, async move {
            if let Err(error) = caught(future).await {
                tracing::error!(
                    task = name,
                    error = chain(&*error),
                    "background task failed"
                );
            }
            Ok(())
        });
    }

    /// Waits until the process has to end: until the token is cancelled, or a critical task ends or
    /// fails, which cancels the token and is returned. Cancel-safe.
    ///
    /// # Errors
    /// The critical task that ended.
    pub async fn wait(&mut self) -> Result<(), TaskFailure> {
        let token = self.token.clone();
        loop {
            let joined = tokio::select! {
                biased;
                joined = self.set.join_next_with_id(), if !self.set.is_empty() => joined,
                () = token.cancelled() => return Ok(()),
            };
            let Some(joined) = joined else { continue };
            if let Err(failure) = self.ended(joined) {
                token.cancel();
                return Err(failure);
            }
        }
    }

    /// Cancels the token and waits for all tasks, at most this long; then cuts the rest. A failure
    /// on the way is logged. A task that never awaits cannot be cut and ends with the process.
    ///
    /// # Errors
    /// The tasks that had to be cut.
    pub async fn shutdown(mut self, deadline: Duration) -> Result<(), Unfinished> {
        self.token.cancel();
        let deadline = Instant::now() + deadline;
        while let Ok(Some(joined)) = timeout_at(deadline, self.set.join_next_with_id()).await {
            if let Err(failure) = self.ended(joined) {
                tracing::error!(error = chain(&failure), "task failed while shutting down");
            }
        }
        if self.names.is_empty() {
            return Ok(());
        }
        let mut unfinished: Vec<_> = self.names.values().copied().collect();
        unfinished.sort_unstable();
        Err(Unfinished(unfinished))
    }

    fn spawn(
        &mut self,
        name: &'static str,
        future: impl Future<Output = Result<(), TaskFailure>> + Send + 'static,
    ) {
        let id = self.set.spawn(future).id();
        self.names.insert(id, name);
    }

    fn ended(
        &mut self,
        joined: Result<(Id, Result<(), TaskFailure>), JoinError>,
    ) -> Result<(), TaskFailure> {
        match joined {
            Ok((id, result)) => {
                self.names.remove(&id);
                result
            }
            // Panics of the task are caught inside; this is one of the wrapper or a runtime that is
            // shut down.
            Err(error) => {
                let name = self.names.remove(&error.id()).unwrap_or("unknown");
                Err(TaskFailure::Failed {
                    name,
                    source: error.into(),
                })
            }
        }
    }
}

/// Runs the future and turns a panic into an error.
async fn caught<E: Into<TaskError>>(
    future: impl Future<Output = Result<(), E>>,
) -> Result<(), TaskError> {
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(result) => result.map_err(Into::into),
        Err(panic) => Err(Panicked(panic_text(&*panic)).into()),
    }
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}
