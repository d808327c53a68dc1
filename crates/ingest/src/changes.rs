//! Changes that are under way. They go on although their callers leave: nobody changes anything
//! without leaving an entry in the audit by hanging up in between.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use parking_lot::Mutex;
use postrider_model::ids::TenantId;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use crate::problem::Problem;
use crate::shares::Shares;

/// One tenant may have this part of them.
const SHARES: usize = 4;
/// Changes with large bodies at a time, of each tenant one.
const LARGE_MAX: usize = 4;

#[derive(Debug)]
pub(crate) struct Changes {
    permits: Arc<Shares>,
    large: Arc<Shares>,
    tasks: Mutex<JoinSet<()>>,
}

impl Changes {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            permits: Shares::new(max, max / SHARES),
            large: Shares::new(LARGE_MAX, 1),
            tasks: Mutex::default(),
        }
    }

    /// Makes a change to its end, whoever waits for it. `tenant` is whose key asks for it, none if
    /// it is an operator's.
    pub(crate) async fn make(
        &self,
        tenant: Option<&TenantId>,
        is_large: bool,
        change: impl Future<Output = Response> + Send + 'static,
    ) -> Result<Response, Problem> {
        const BUSY: Problem = Problem::Busy { again_after_s: 1 };
        let permit = self.permits.take(tenant).ok_or(BUSY)?;
        let large = if is_large {
            Some(self.large.take(tenant).ok_or(BUSY)?)
        } else {
            None
        };
        let (tell, told) = oneshot::channel();
        let change = async move {
            let response = change.await;
            drop((permit, large));
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
        let left = changes.make(None, false, slow(done.clone()));
        assert!(left.now_or_never().is_none());
        let refused = changes.make(None, false, slow(done)).await;
        assert!(matches!(refused, Err(Problem::Busy { .. })));
        changes.finish(Duration::from_secs(2)).await;
        assert!(is_done.recv().await.is_some());
        assert!(is_done.recv().await.is_none(), "the other one was not made");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_process_waits_no_longer_than_it_may() {
        let changes = Changes::new(1);
        let (done, mut is_done) = mpsc::channel(2);
        let left = changes.make(None, false, slow(done));
        assert!(left.now_or_never().is_none());
        changes.finish(Duration::from_millis(10)).await;
        assert!(is_done.recv().await.is_none(), "it was cut");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_leaves_room_for_others() {
        let changes = Changes::new(8);
        let (done, _is_done) = mpsc::channel(9);
        let [a, b] = ["a", "b"].map(|id| TenantId::try_new(id).unwrap());
        let make = |tenant, is_large| {
            let made = changes.make(tenant, is_large, slow(done.clone()));
            made.now_or_never().is_none()
        };
        assert!(make(Some(&a), false) && make(Some(&a), false));
        assert!(!make(Some(&a), false));
        assert!(make(Some(&b), false) && make(None, false));
        assert!(make(Some(&b), true) && !make(Some(&b), true));
        assert!(make(None, true));
    }
}
