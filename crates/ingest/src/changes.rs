//! Changes that are under way. They go on although their callers leave: nobody changes anything
//! without leaving an entry in the audit by hanging up in between.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use crate::problem::Problem;

#[derive(Debug)]
pub(crate) struct Changes {
    permits: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
}

impl Changes {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))),
            tasks: Mutex::default(),
        }
    }

    /// Makes a change to its end, whoever waits for it.
    pub(crate) async fn make(
        &self,
        change: impl Future<Output = Response> + Send + 'static,
    ) -> Result<Response, Problem> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let permit = permit.map_err(|_| Problem::Busy { again_after_s: 1 })?;
        let (tell, told) = oneshot::channel();
        let change = async move {
            let response = change.await;
            drop(permit);
            // A caller that left does not hear it.
            tell.send(response).ok();
        };
        {
            let mut tasks = self.tasks.lock();
            while tasks.try_join_next().is_some() {}
            tasks.spawn(change.in_current_span());
        }
        told.await.map_err(|_| Problem::PerhapsWritten)
    }

    /// Waits for those under way, at most this long. For a stopping process.
    pub(crate) async fn finish(&self, at_most: Duration) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(at_most, all).await.is_err() {
            tracing::warn!(changes = tasks.len(), "changes were cut");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use futures_util::FutureExt;
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;

    /// A change that takes a second.
    async fn slow(done: mpsc::Sender<()>) -> Response {
        sleep(Duration::from_secs(1)).await;
        done.send(()).await.unwrap();
        StatusCode::OK.into_response()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_goes_on_although_its_caller_leaves() {
        let changes = Changes::new(1);
        let (done, mut is_done) = mpsc::channel(2);
        assert!(changes.make(slow(done.clone())).now_or_never().is_none());
        let refused = changes.make(slow(done)).await;
        assert!(matches!(refused, Err(Problem::Busy { .. })));
        changes.finish(Duration::from_secs(2)).await;
        assert!(is_done.recv().await.is_some());
        assert!(is_done.recv().await.is_none(), "the other one was not made");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_process_waits_no_longer_than_it_may() {
        let changes = Changes::new(1);
        let (done, mut is_done) = mpsc::channel(2);
        assert!(changes.make(slow(done)).now_or_never().is_none());
        changes.finish(Duration::from_millis(10)).await;
        assert!(is_done.recv().await.is_none(), "it was cut");
    }
}
