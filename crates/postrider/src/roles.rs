//! The roles: each builds its parts, runs them until a signal or a failure, and lets them end in
//! order.

pub(crate) mod deliver;
pub(crate) mod exporter;
pub(crate) mod ingest;
pub(crate) mod log;
pub(crate) mod topics;
pub(crate) mod up;

mod api;
mod clock;
mod connections;
mod registry;
mod stages;

use std::convert::Infallible;
use std::fmt::{Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use postrider_daemon::CancellationToken;
use postrider_daemon::files;
use postrider_daemon::health::{Health, HealthServer};
use postrider_daemon::metrics::Metrics;
use postrider_daemon::tasks::{TaskFailure, Tasks};
use postrider_daemon::telemetry::{self, TelemetryConfig, TelemetryGuard};
use postrider_delivery::lane_status::{LaneAnswers, LaneQuestions, NoAnswer, lane_questions};
use postrider_model::ids::EndpointId;

use crate::config::Config;
use crate::output;
use connections::Connections;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const HEALTH_PORT: u16 = 9464;
/// The condition of readiness that every part was started.
const STARTED: &str = "started";
/// What ends last has little left to do.
const BASE_DRAIN: Duration = Duration::from_secs(5);
/// Beyond what a part may drain by itself: it has to notice, too.
const DRAIN_SLACK: Duration = Duration::from_secs(2);

/// Everything that runs in the process, in the order in which it has to end: first nothing new is
/// accepted, then what is under way is settled, then what both stand on goes.
#[derive(Debug)]
pub(crate) struct Process {
    /// Cancelled by a signal.
    pub(crate) stop: CancellationToken,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    pub(crate) api: Tasks,
    pub(crate) stages: Tasks,
    pub(crate) base: Tasks,
    /// Cancelled when what the stages and the API count on has changed: they do nothing more, and
    /// the process stays to say why.
    pub(crate) halt: CancellationToken,
    /// How many connections it may have.
    pub(crate) connections: Connections,
    /// What deliver is asked about its lanes, until it takes this.
    pub(crate) lane_answers: Option<LaneAnswers>,
    stages_drain: Duration,
    health_server: HealthServer,
    telemetry: TelemetryGuard,
}

/// `/lanes/{endpoint}`: what the owner of a lane knows of it.
fn lanes(questions: LaneQuestions) -> Router {
    let answer = async |State(questions): State<LaneQuestions>, Path(id): Path<String>| {
        let endpoint = EndpointId::try_new(&id).map_err(|_| StatusCode::NOT_FOUND)?;
        let known = questions.ask(endpoint).await;
        let known = known.map_err(|NoAnswer| StatusCode::SERVICE_UNAVAILABLE)?;
        known.map(Json).ok_or(StatusCode::NOT_FOUND)
    };
    Router::new().route("/lanes/{endpoint}", get(answer).with_state(questions))
}

fn watch_event_loop(tasks: &mut Tasks, metrics: Metrics) {
    let stop = tasks.token().clone();
    tasks.background("event-loop", async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = metrics.watch_event_loop() => {}
        }
        Ok::<(), Infallible>(())
    });
}

/// The process was asked to end before it had begun its work, which is no failure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped(&'static str);

impl Display for Stopped {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "stopped while {}", self.0)
    }
}

impl Process {
    /// Starts telemetry, signals, health and metrics.
    pub(crate) fn start(
        config: &Config,
        role: &'static str,
        host: Ipv4Addr,
    ) -> anyhow::Result<Self> {
        output::never_wait().context("take standard output and standard error")?;
        // What librdkafka says comes with the lines of our own. Its wrapper adds, as an error, that
        // a consumer that was closed is closed.
        let log = format!("rdkafka=off,{}", config.telemetry.log);
        let telemetry = TelemetryConfig {
            log,
            ..config.telemetry.clone()
        };
        let telemetry = telemetry::init(&telemetry, &format!("postrider-{role}"), VERSION)?;
        let connections = Connections::of(config, role, files::raise_limit());
        let stop = CancellationToken::new();
        postrider_daemon::signals::listen(stop.clone()).context("listen for signals")?;
        let metrics = Metrics::new(VERSION, role);
        let health = Health::new();
        // Until the role's own conditions are there it would be ready.
        health.condition(STARTED);
        let address = config
            .health
            .listen
            .unwrap_or(SocketAddr::new(IpAddr::V4(host), HEALTH_PORT));
        let (questions, lane_answers) = lane_questions();
        let health_server = health.serve(address, metrics.clone(), lanes(questions)).with_context(|| {
            format!(
                "listen at {address} for health and metrics; --health-listen names another address"
            )
        })?;
        let mut base = Tasks::new(CancellationToken::new());
        watch_event_loop(&mut base, metrics.clone());
        let stages = Tasks::new(CancellationToken::new());
        Ok(Self {
            stop,
            connections,
            health,
            metrics,
            api: Tasks::new(CancellationToken::new()),
            halt: stages.token().child_token(),
            stages,
            base,
            stages_drain: Duration::from_millis(config.delivery.stage.stop_drain_ms) + DRAIN_SLACK,
            health_server,
            lane_answers: Some(lane_answers),
            telemetry,
        })
    }

    /// Where health and metrics are.
    pub(crate) fn health_address(&self) -> SocketAddr {
        self.health_server.address()
    }

    /// Waits, when all was started, for a signal, or for a part without which the process is of no
    /// use to end.
    pub(crate) async fn wait(&mut self) -> Result<(), TaskFailure> {
        self.health.condition(STARTED).set(true);
        tokio::select! {
            biased;
            failed = self.base.wait() => failed,
            failed = self.stages.wait() => failed,
            failed = self.api.wait() => failed,
            () = self.stop.cancelled() => Ok(()),
        }
    }

    /// Lets everything end in order; whether all ended in time and `waited` was no failure.
    pub(crate) async fn finish(self, waited: Result<(), TaskFailure>) -> ExitCode {
        // From here on a signal ends the process at once.
        self.stop.cancel();
        let mut code = ExitCode::SUCCESS;
        if let Err(failure) = waited {
            tracing::error!(
                error = postrider_daemon::errors::chain(&failure),
                "a task failed, shutting down"
            );
            code = ExitCode::FAILURE;
        }
        let api_drain = api::DRAIN + api::FLUSH + DRAIN_SLACK;
        let phases = [
            (self.api, api_drain),
            (self.stages, self.stages_drain),
            (self.base, BASE_DRAIN),
        ];
        for (tasks, deadline) in phases {
            if let Err(unfinished) = tasks.shutdown(deadline).await {
                tracing::error!(error = %unfinished, "shutdown took too long");
                code = ExitCode::FAILURE;
            }
        }
        tracing::info!("stopped");
        self.health_server.stop();
        drop(self.telemetry);
        code
    }
}
