//! The API's place in a process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postrider_daemon::CancellationToken;
use postrider_daemon::http;
use postrider_ingest::{Api, ApiContext, Entrance};
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

/// Serves what needs no log until asked to end: until [`open`] whoever asks is told to come again.
pub(crate) fn spawn(
    process: &mut Process,
    config: &Config,
    listener: TcpListener,
) -> anyhow::Result<Entrance> {
    let entrance =
        Entrance::new(&config.ingest, process.metrics.registry()).context("build the API")?;
    let (router, opened) = (entrance.router(), entrance.clone());
    let stop = process.api.token().clone();
    let limits = config.api.limits(process.connections.api, DRAIN);
    process.api.critical("api", async move {
        let drained = http::serve(listener, router, stop, limits).await;
        if drained.cut > 0 {
            tracing::warn!(connections = drained.cut, "requests were cut");
        }
        opened.flush(FLUSH).await;
        Ok::<(), Infallible>(())
    });
    Ok(entrance)
}

/// From now on requests are served.
pub(crate) async fn open(
    entrance: &Entrance,
    config: &Config,
    log: Arc<dyn Log>,
    registry: Registry,
    halt: CancellationToken,
) -> anyhow::Result<()> {
    let context = ApiContext {
        log,
        registry,
        clock: Arc::new(SystemClock),
        config: config.ingest.clone(),
        policy: config
            .egress
            .policy()
            .context("read `egress.allow_cidrs`")?,
        metrics: entrance.metrics().clone(),
        halt,
    };
    let api = Api::new(context).await.context("build the API")?;
    entrance.open(api).context("open the API")
}
