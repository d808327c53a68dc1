//! The delivery stages' place in a process.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use postrider_delivery::config::{DeliverConfig, EgressConfig};
use postrider_delivery::deliver::DeliverContext;
use postrider_delivery::fan_out::FanOutContext;
use postrider_delivery::scheduler::SchedulerContext;
use postrider_delivery::sender::HttpSender;
use postrider_delivery::{DeliveryMetrics, Producers, StageContext, deliver, fan_out, scheduler};
use postrider_log::{Log, LogClock};
use postrider_model::retry::RetrySchedule;
use postrider_registry::Registry;

use super::{Process, clock};
use crate::cli::Stage;
use crate::config::Config;

/// Starts the stages. Each waits until the registry has caught up: before, every endpoint would be
/// unknown.
pub(crate) fn spawn(
    process: &mut Process,
    config: &Config,
    log: Arc<dyn Log>,
    registry: &Registry,
    stages: &[Stage],
) -> anyhow::Result<()> {
    let clock = clock::follow(process, config, log.clone())?;
    let metrics = DeliveryMetrics::new(process.metrics.registry()).context("declare metrics")?;
    let parts = Parts {
        stage: StageContext {
            log,
            config: config.delivery.stage.clone(),
            lease_term: Duration::from_millis(config.delivery.deliver.lease_ms),
            metrics: metrics.clone(),
        },
        registry: registry.clone(),
        clock,
        metrics,
    };
    for stage in Stage::ALL
        .into_iter()
        .filter(|stage| stages.contains(stage))
    {
        match stage {
            Stage::FanOut => parts.spawn_fan_out(process, config),
            Stage::Deliver => parts.spawn_deliver(process, config)?,
            Stage::Scheduler => parts.spawn_scheduler(process, config),
        }
    }
    Ok(())
}

/// What waits in the log is dead-lettered before retention takes it.
fn expires_after_ms(config: &Config) -> u64 {
    let retention_ms = u64::from(config.topics.deliveries_retention_hours) * 3_600_000;
    config
        .delivery
        .deliver
        .expires_after_ms
        .min(retention_ms / 10 * 9)
}

/// Where ingest finds the health server of this process: as configured, else where it listens or by
/// its machine's name.
fn advertised(process: &Process, config: &Config) -> String {
    let configured = &config.delivery.deliver.advertised_address;
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    advertised_at(configured, process.health_address(), &host)
}

/// A configured address without a port, as a pod knows its own, gets that of the server.
fn advertised_at(configured: &str, listening: SocketAddr, host: &str) -> String {
    if let Ok(address) = configured.parse::<IpAddr>() {
        return SocketAddr::new(address, listening.port()).to_string();
    }
    if !configured.is_empty() {
        return configured.to_owned();
    }
    match host {
        _ if !listening.ip().is_unspecified() => listening.to_string(),
        "" => format!("127.0.0.1:{}", listening.port()),
        host => format!("{host}:{}", listening.port()),
    }
}

/// What all stages share.
struct Parts {
    stage: StageContext,
    registry: Registry,
    clock: Arc<LogClock>,
    metrics: DeliveryMetrics,
}

impl Parts {
    fn spawn_fan_out(&self, process: &mut Process, config: &Config) {
        let context = FanOutContext {
            registry: self.registry.clone(),
            clock: self.clock.clone(),
            config: config.delivery.fan_out.clone(),
            raw_record_bytes_max: config.delivery.stage.raw_record_bytes_max,
            metrics: self.metrics.clone(),
        };
        let stage = self.stage.clone();
        let stop = process.halt.clone();
        self.spawn(process, "fan-out", async move {
            fan_out::run(stage, context, stop).await;
        });
    }

    fn spawn_deliver(&self, process: &mut Process, config: &Config) -> anyhow::Result<()> {
        let policy = config.egress.policy();
        let policy = policy.context("read `egress.allow_cidrs`")?;
        let egress = EgressConfig {
            connections_max: process.connections.egress,
            ..config.egress.clone()
        };
        let sender =
            HttpSender::new(policy, &egress, self.clock.clone()).context("open the way out")?;
        let default_schedule = RetrySchedule::try_new(config.retry.default_schedule_ms.clone())
            .context("read `retry.default_schedule_ms`")?;
        let (registry, clock, metrics) = (
            self.registry.clone(),
            self.clock.clone(),
            self.metrics.clone(),
        );
        let (ladder, limits) = (
            config.topics.retry_delays_ms.clone(),
            DeliverConfig {
                advertised_address: advertised(process, config),
                expires_after_ms: expires_after_ms(config),
                ..config.delivery.deliver.clone()
            },
        );
        let context = move |producers: Producers| DeliverContext {
            registry: registry.clone(),
            sender: sender.clone(),
            clock: clock.clone(),
            producers,
            ladder: ladder.clone(),
            default_schedule: default_schedule.clone(),
            config: limits.clone(),
            metrics: metrics.clone(),
        };
        let stage = self.stage.clone();
        let stop = process.halt.clone();
        let answers = process
            .lane_answers
            .take()
            .context("the stage was started before")?;
        self.spawn(process, "deliver", async move {
            deliver::run(stage, context, answers, stop).await;
        });
        Ok(())
    }

    fn spawn_scheduler(&self, process: &mut Process, config: &Config) {
        let context = SchedulerContext {
            clock: self.clock.clone(),
            ladder: config.topics.retry_delays_ms.clone(),
            config: config.delivery.scheduler.clone(),
            raw_record_bytes_max: config.delivery.stage.raw_record_bytes_max,
            metrics: self.metrics.clone(),
        };
        let stage = self.stage.clone();
        let stop = process.halt.clone();
        self.spawn(process, "scheduler", async move {
            scheduler::run(stage, context, stop).await;
        });
    }

    fn spawn(
        &self,
        process: &mut Process,
        name: &'static str,
        stage: impl Future<Output = ()> + Send + 'static,
    ) {
        let (registry, clock) = (self.registry.clone(), self.clock.clone());
        let (stop, halt) = (process.stages.token().clone(), process.halt.clone());
        process.stages.critical(name, async move {
            tokio::select! {
                biased;
                () = halt.cancelled() => {}
                () = async {
                    registry.caught_up().await;
                    clock.told().await;
                } => stage.await,
            }
            if halt.is_cancelled() {
                stop.cancelled().await;
            }
            Ok::<(), Infallible>(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_found_by_its_address_whatever_its_family() {
        let listening = "[::]:9464".parse().unwrap();
        let at = |configured| advertised_at(configured, listening, "pod-1");
        assert_eq!(at("10.1.2.3"), "10.1.2.3:9464");
        assert_eq!(at("fd00::7"), "[fd00::7]:9464");
        assert_eq!(at("worker.internal:80"), "worker.internal:80");
        assert_eq!(at(""), "pod-1:9464");
    }
}
