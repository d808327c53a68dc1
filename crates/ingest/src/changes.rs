//! Changes that are under way. They go on although their callers leave: nobody changes anything
//! without leaving an entry in the audit by hanging up in between.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use axum::response::Response;
use parking_lot::Mutex;
use postrider_model::ids::TenantId;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use crate::config::IngestConfig;
use crate::problem::Problem;
use crate::request::content_length;
use crate::shares::Shares;

/// One tenant may have this part of them.
const SHARES: usize = 4;
/// Changes with large bodies at a time, of each tenant one.
const LARGE_MAX: usize = 4;

#[derive(Debug)]
pub(crate) struct Changes {
    permits: Arc<Shares>,
    large: Arc<Shares>,
    body_bytes_max: usize,
    tasks: Mutex<JoinSet<()>>,
}

impl Changes {
    pub(crate) fn new(config: &IngestConfig) -> Self {
        let max = config.changes_in_flight_max;
        Self {
            permits: Shares::new(max, max / SHARES),
            large: Shares::new(LARGE_MAX, 1),
            body_bytes_max: config.body_bytes_max,
            tasks: Mutex::default(),
        }
    }

    /// Makes a change to its end, whoever waits for it. `tenant` is whose key asks for it, none if
    /// it is an operator's.
    pub(crate) async fn make(
        &self,
        tenant: Option<&TenantId>,
        headers: &HeaderMap,
        change: impl Future<Output = Response> + Send + 'static,
    ) -> Result<Response, Problem> {
        const BUSY: Problem = Problem::Busy { again_after_s: 1 };
        let permit = self.permits.take(tenant).ok_or(BUSY)?;
        let large = if self.may_be_large(headers) {
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

    /// Whether the body may be larger than most.
    fn may_be_large(&self, headers: &HeaderMap) -> bool {
        let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
        let is_encoded = headers.contains_key(header::CONTENT_ENCODING);
        let announced = content_length(headers).unwrap_or(0);
        is_chunked || is_encoded || announced > self.body_bytes_max
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
    use axum::http::{HeaderValue, StatusCode};
    use axum::response::IntoResponse;
    use futures_util::FutureExt;
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;

    fn changes(max: usize) -> Changes {
        Changes::new(&IngestConfig {
            changes_in_flight_max: max,
            ..IngestConfig::default()
        })
    }

    /// A change that takes a second.
    async fn slow(done: mpsc::Sender<()>) -> Response {
        sleep(Duration::from_secs(1)).await;
        done.send(()).await.unwrap();
        StatusCode::OK.into_response()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_goes_on_although_its_caller_leaves() {
        let (changes, headers) = (changes(1), HeaderMap::new());
        let (done, mut is_done) = mpsc::channel(2);
        let left = changes.make(None, &headers, slow(done.clone()));
        assert!(left.now_or_never().is_none());
        let refused = changes.make(None, &headers, slow(done)).await;
        assert!(matches!(refused, Err(Problem::Busy { .. })));
        changes.finish(Duration::from_secs(2)).await;
        assert!(is_done.recv().await.is_some());
        assert!(is_done.recv().await.is_none(), "the other one was not made");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_process_waits_no_longer_than_it_may() {
        let (changes, headers) = (changes(1), HeaderMap::new());
        let (done, mut is_done) = mpsc::channel(2);
        let left = changes.make(None, &headers, slow(done));
        assert!(left.now_or_never().is_none());
        changes.finish(Duration::from_millis(10)).await;
        assert!(is_done.recv().await.is_none(), "it was cut");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_leaves_room_for_others() {
        let (changes, headers) = (changes(8), HeaderMap::new());
        let (done, _is_done) = mpsc::channel(9);
        let [a, b] = ["a", "b"].map(|id| TenantId::try_new(id).unwrap());
        let make = |tenant, headers| {
            let made = changes.make(tenant, headers, slow(done.clone()));
            made.now_or_never().is_none()
        };
        assert!(make(Some(&a), &headers) && make(Some(&a), &headers));
        assert!(!make(Some(&a), &headers));
        assert!(make(Some(&b), &headers) && make(None, &headers));
        let mut large = HeaderMap::new();
        large.insert(header::CONTENT_LENGTH, HeaderValue::from(100_000));
        assert!(make(Some(&b), &large) && !make(Some(&b), &large));
        assert!(make(None, &large));
    }
}
