//! The API's place in a process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postrider_daemon::http::{self, Limits};
use postrider_daemon::tasks::Tasks;
use postrider_ingest::{Api, ApiContext};
use postrider_log::{Log, SystemClock};
use postrider_registry::Registry;
use tokio::net::TcpListener;

use super::Process;
use crate::config::Config;

/// Port of the API, unless configured.
pub(crate) const PORT: u16 = 8080;
/// How long open requests may go on when the process ends.
pub(crate) const DRAIN: Duration = Duration::from_secs(15);
/// How long events taken by then may need to be acknowledged.
pub(crate) const FLUSH: Duration = Duration::from_secs(5);

/// Takes the address, so that a taken one is known before anything else starts.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen at {address} for the API; --listen names another address"))
}

/// Builds the API.
pub(crate) async fn open(
    process: &Process,
    config: &Config,
    log: Arc<dyn Log>,
    registry: Registry,
) -> anyhow::Result<Api> {
    let context = ApiContext {
        log,
        registry,
        clock: Arc::new(SystemClock),
        config: config.ingest.clone(),
        metrics: process.metrics.registry(),
    };
    Api::new(context).await.context("build the API")
}

/// Serves the API until asked to end, then drains it.
pub(crate) fn spawn(tasks: &mut Tasks, listener: TcpListener, api: Api) {
    let stop = tasks.token().clone();
    tasks.critical("api", async move {
        let drained = http::serve(listener, api.router(), stop, Limits::from(DRAIN)).await;
        if drained.cut > 0 {
            tracing::warn!(connections = drained.cut, "requests were cut");
        }
        api.flush(FLUSH).await;
        Ok::<(), Infallible>(())
    });
}
