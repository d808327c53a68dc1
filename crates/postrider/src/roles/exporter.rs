//! `postrider exporter`: the metrics of the whole installation, on Kafka; and the exporter's place
//! in a process.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use postrider_exporter::{Exporter, ExporterContext};
use postrider_log::{Log, SystemClock};
use postrider_registry::{Keyring, Registry};

use super::{Process, log, registry, topics};
use crate::config::Config;

/// Runs the role until a signal or a failure.
pub(crate) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let mut process = Process::start(&config, "exporter", Ipv4Addr::UNSPECIFIED)?;
    let log = log::kafka_of(&mut process, &config)?;
    // It goes on, whatever it finds, to show that.
    topics::watch(&mut process, log.clone(), config.topics.clone())?;
    // It sends nothing, so it needs no secret: with a key of its own it can open none.
    let no_key = Keyring::from_text(&Keyring::generate_text()).context("make a key")?;
    let registry = registry::open(&mut process, &config, log.clone(), no_key).await?;
    spawn(&mut process, &config, log, registry)?;
    tracing::info!(health = %process.health_address(), "exporting");
    let waited = process.wait().await;
    Ok(process.finish(waited).await)
}

/// Starts the exporter. The process is ready when everything was gathered once.
pub(crate) fn spawn(
    process: &mut Process,
    config: &Config,
    log: Arc<dyn Log>,
    registry: Registry,
) -> anyhow::Result<()> {
    let exporter = Exporter::new(ExporterContext {
        log,
        registry,
        clock: Arc::new(SystemClock),
        ladder: config.topics.retry_delays_ms.clone(),
        config: config.exporter.clone(),
        metrics: process.metrics.registry(),
    });
    let exporter = exporter.context("declare metrics")?;
    let gathered = process.health.condition("metrics_gathered");
    let stop = process.stages.token().clone();
    process.stages.critical("exporter", async move {
        // What was gathered once is shown from then on; how old it is, a metric tells.
        let ready = |success| {
            if success {
                gathered.set(true);
            }
        };
        exporter.run(stop, ready).await;
        Ok::<(), Infallible>(())
    });
    Ok(())
}
