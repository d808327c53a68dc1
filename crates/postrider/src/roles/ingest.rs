//! `postrider ingest`: the API, on Kafka. Any number of them may run.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use super::{Process, api, log, registry, topics};
use crate::config::Config;

/// Runs the role until a signal or a failure.
pub(crate) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let keyring = config.keyring()?;
    let mut process = Process::start(&config, "ingest", Ipv4Addr::UNSPECIFIED)?;
    let address = config.api.listen.unwrap_or(SocketAddr::new(
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        api::PORT,
    ));
    let listener = api::bind(address).await?;
    let address = listener.local_addr()?;
    let entrance = api::spawn(&mut process, &config, listener)?;
    let log = log::kafka_of(&mut process, &config)?;
    topics::ensure(&process, &log, &config).await?;
    topics::watch(&mut process, log.clone(), config.topics.clone())?;
    let registry = registry::open(&mut process, &config, log.clone(), keyring).await?;
    registry::join(&process, &registry).await?;
    let halt = process.halt.clone();
    api::open(&entrance, &config, log, registry, halt).await?;
    tracing::info!(%address, health = %process.health_address(), "serving");
    let waited = process.wait().await;
    Ok(process.finish(waited).await)
}
