//! `up --demo`: Postrider shows itself.
//!
//! A stream of events is published through the API like anybody would, to three endpoints on a
//! receiver in this process: one healthy, one that fails half the time, one that is gone. Nothing
//! of it is simulated. Two books are kept and compared at the end: the [`Ledger`] of what the API
//! accepted and what the receiver in fact received, and the [`Audit`] of what the log says became
//! of every delivery.

mod audit;
mod events;
mod ledger;
mod publisher;
mod receiver;
mod setup;
mod view;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use postrider_daemon::CancellationToken;
use postrider_daemon::tasks::{TaskFailure, Tasks};
use postrider_daemon::telemetry::TelemetryConfig;
use postrider_log::Log;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::client::Client;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::output;
use crate::roles::Process;
use audit::Audit;
use ledger::Ledger;
use view::View;

/// The tenant of the demo.
pub(crate) const TENANT: &str = "demo";
/// The only address that the demo opens.
const LOOPBACK: &str = "127.0.0.1/32";
/// What is logged beside the view: nothing of what the demo does on purpose.
const LOG: &str = "warn,postrider_delivery::dead_letter=error";
/// How long everything that was accepted may take to be settled at the end.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// How long the publisher may need to learn the fate of its last event.
const PUBLISHER_STOP: Duration = Duration::from_secs(15);
const SETTLED_CHECK: Duration = Duration::from_millis(100);

/// One of the demo's endpoints: how its path of the receiver behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Healthy,
    Flaky,
    Gone,
}

impl Behaviour {
    pub(crate) const ALL: [Self; 3] = [Self::Healthy, Self::Flaky, Self::Gone];

    /// Its path at the receiver.
    fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Flaky => "flaky",
            Self::Gone => "gone",
        }
    }

    /// The id of its endpoint.
    fn endpoint(self) -> String {
        format!("ep_demo_{}", self.name())
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Healthy => "answers 200",
            Self::Flaky => "fails half the time",
            Self::Gone => "answers 410",
        }
    }
}

/// What the demo needs of the configuration: a way to its receiver, and a terminal that logs do not
/// scroll away.
pub(crate) fn adapt(config: &mut Config) {
    config.egress.allow_cidrs.push(LOOPBACK.to_owned());
    if config.telemetry == TelemetryConfig::default() {
        config.telemetry.log = LOG.to_owned();
    }
}

/// The demo, ready to run.
#[derive(Debug)]
pub(crate) struct Demo {
    client: Client,
    url: String,
    ledger: Arc<Ledger>,
    audit: Arc<Audit>,
    publishing: Tasks,
}

/// Why the demo stopped publishing.
enum Ended {
    TimeIsUp,
    Stopped(Result<(), TaskFailure>),
}

impl Demo {
    /// Starts the receiver and sees to it that tenant and endpoints are there and enabled.
    pub(crate) async fn prepare(
        process: &mut Process,
        url: &str,
        operator_key: String,
        log: Arc<dyn Log>,
        data_dir: &DataDir,
    ) -> anyhow::Result<Self> {
        let client = Client::new(url, operator_key)?;
        let ledger = Arc::new(Ledger::default());
        let secrets = setup::secrets(data_dir)?;
        let receiver = receiver::spawn(&mut process.base, secrets.clone(), ledger.clone()).await?;
        setup::endpoints(&client, receiver, &secrets).await?;
        let audit = audit::spawn(&mut process.base, log, ledger.clone()).await?;
        let publishing = Tasks::new(CancellationToken::new());
        Ok(Self {
            client,
            url: url.to_owned(),
            ledger,
            audit,
            publishing,
        })
    }

    /// Publishes and shows what happens until the time is up or the process has to end. Then, if
    /// the time is up, waits until everything is settled that will be, and compares the books; the
    /// exit code says whether they agree.
    pub(crate) async fn run(
        mut self,
        mut process: Process,
        run_for: Option<Duration>,
    ) -> anyhow::Result<ExitCode> {
        publisher::spawn(
            &mut self.publishing,
            self.client.clone(),
            self.ledger.clone(),
        );
        let mut view = View::new(&self.url);
        let ended = self.show(&mut process, &mut view, run_for).await;
        if let Err(unfinished) = self.publishing.shutdown(PUBLISHER_STOP).await {
            tracing::warn!(error = %unfinished, "the demo's publisher did not stop in time");
        }
        let waited = match ended {
            Ended::Stopped(waited) => {
                let code = process.finish(waited).await;
                view.end(&self.ledger, &self.audit);
                output::talk(
                    "Stopped. What waits goes on with the next `up --demo` on the same directory.",
                );
                return Ok(code);
            }
            Ended::TimeIsUp => drain(&mut process, &mut view, &self.ledger, &self.audit).await,
        };
        view.end(&self.ledger, &self.audit);
        let code = process.finish(waited).await;
        let faults = faults(&self.ledger, &self.audit);
        if faults.is_empty() {
            output::data(settled(&self.audit));
            return Ok(code);
        }
        for fault in faults {
            output::talk(format!("error: {fault}"));
        }
        Ok(ExitCode::FAILURE)
    }

    async fn show(
        &mut self,
        process: &mut Process,
        view: &mut View,
        run_for: Option<Duration>,
    ) -> Ended {
        let time_is_up = run_for.map(|time| Instant::now() + time);
        let mut ticks = interval(view.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                waited = process.wait() => return Ended::Stopped(waited),
                failed = self.publishing.wait() => return Ended::Stopped(failed),
                () = sleep_until(time_is_up.unwrap_or_else(Instant::now)), if time_is_up.is_some() => {
                    return Ended::TimeIsUp;
                }
                _ = ticks.tick() => view.show(&self.ledger, &self.audit),
            }
        }
    }
}

/// Waits until nothing is open any more, in either book.
async fn drain(
    process: &mut Process,
    view: &mut View,
    ledger: &Ledger,
    audit: &Audit,
) -> Result<(), TaskFailure> {
    let deadline = Instant::now() + DRAIN_MAX;
    let mut checks = interval(SETTLED_CHECK);
    let mut shown_at = Instant::now();
    loop {
        let all_routed = audit.events_routed() >= ledger.accepted();
        let settled = all_routed && ledger.open() == 0 && audit.unsettled() == 0;
        if settled || Instant::now() >= deadline {
            return Ok(());
        }
        if shown_at.elapsed() >= view.interval() {
            view.show(ledger, audit);
            shown_at = Instant::now();
        }
        tokio::select! {
            biased;
            waited = process.wait() => return waited,
            _ = checks.tick() => {}
        }
    }
}

fn settled(audit: &Audit) -> String {
    let waiting = match audit.tally(Behaviour::Gone).pending {
        0 => String::new(),
        pending => format!(
            "; {pending} wait until {} is enabled",
            Behaviour::Gone.endpoint()
        ),
    };
    format!("Everything that was accepted is settled{waiting}; nothing was lost.")
}

/// What must not be, in words.
fn faults(ledger: &Ledger, audit: &Audit) -> Vec<String> {
    let mut faults = Vec::new();
    let (open, unsettled, forged) = (ledger.open(), audit.unsettled(), ledger.forged());
    if ledger.accepted() == 0 {
        faults.push("no event was accepted".to_owned());
    }
    if open > 0 {
        faults.push(format!(
            "{open} accepted events did not arrive everywhere, and the log does not say why"
        ));
    }
    if unsettled > 0 {
        faults.push(format!(
            "{unsettled} deliveries were not settled within {} s",
            DRAIN_MAX.as_secs()
        ));
    }
    if forged > 0 {
        faults.push(format!(
            "{forged} requests reached the receiver with a wrong signature"
        ));
    }
    faults
}
