//! `postrider deliver`: the delivery stages, on Kafka. Any number of them may run.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use super::{Process, log, registry, stages, topics};
use crate::cli::DeliverArgs;
use crate::config::Config;

/// Runs the role until a signal or a failure.
pub(crate) async fn run(args: &DeliverArgs, config: Config) -> anyhow::Result<ExitCode> {
    let keyring = config.keyring()?;
    let mut process = Process::start(&config, "deliver", Ipv4Addr::UNSPECIFIED)?;
    let log = log::kafka_of(&mut process, &config)?;
    topics::ensure(&process, &log, &config).await?;
    topics::watch(&mut process, log.clone(), config.topics.clone())?;
    let registry = registry::open(&mut process, &config, log.clone(), keyring).await?;
    registry::join(&process, &registry).await?;
    registry::record_retry_delays(&process, &registry, &log, &config.topics).await?;
    stages::spawn(&mut process, &config, log, &registry, &args.stages)?;
    tracing::info!(health = %process.health_address(), stages = ?args.stages, "delivering");
    let waited = process.wait().await;
    Ok(process.finish(waited).await)
}
