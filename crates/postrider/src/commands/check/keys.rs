//! The keys: whether they are there, and whether they open what the registry holds.

use std::sync::Arc;
use std::time::Duration;

use postrider_daemon::CancellationToken;
use postrider_log::{Clock, Log, SystemClock};
use postrider_model::endpoint::Endpoint;
use postrider_model::topics::REGISTRY;
use postrider_registry::Registry;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::commands::finding::{Finding, Level};
use crate::commands::topic::Topic;
use crate::config::Config;

/// How long reading the registry may take.
const READ_WITHIN: Duration = Duration::from_secs(60);
const PAGE: usize = 250;

/// Whether the keys are configured; that they are keys was checked with the configuration.
pub(super) fn configured(config: &Config) -> Vec<Finding> {
    let finding = |subject, level, detail: &str| Finding::new("keys", subject, level, detail);
    let encryption = match config.keyring() {
        Ok(_) => finding("keys.encryption", Level::Ok, "is set"),
        Err(error) => finding("keys.encryption", Level::Error, &format!("{error:#}")),
    };
    let operator = match &config.ingest.operator_key {
        Some(key) if key.expose().len() >= 16 => {
            finding("ingest.operator_key", Level::Ok, "is set")
        }
        Some(_) => finding(
            "ingest.operator_key",
            Level::Error,
            "is shorter than 16 bytes; generate one by `postrider key generate operator`",
        ),
        None => finding(
            "ingest.operator_key",
            Level::Error,
            "is not set, and `postrider ingest` does not start without unless there is an operator key already \
             (`postrider key create`): generate one by `postrider key generate operator`; a process that only delivers \
             needs none",
        ),
    };
    vec![encryption, operator]
}

/// Whether every signing secret opens, and the longest wait in the endpoints' own schedules.
pub(super) async fn in_registry(
    log: &Arc<impl Log>,
    config: &Config,
    topics: &[Topic],
) -> (Vec<Finding>, Option<i64>) {
    let finding = |level, detail: String| vec![Finding::new("keys", "secrets", level, detail)];
    let is_there = |(plan, present): &Topic| plan.name == REGISTRY && present.is_some();
    let skip = |reason: &str| (finding(Level::Skip, reason.to_owned()), None);
    if !topics.iter().any(is_there) {
        return skip("there is no registry yet");
    }
    let Ok(keyring) = config.keyring() else {
        return skip("no key to open them with");
    };
    let log: Arc<dyn Log> = Arc::clone(log) as _;
    let opened = Registry::open(
        log,
        Arc::new(SystemClock),
        Arc::new(keyring),
        config.registry.options(),
    );
    let (registry, follower) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            let text = postrider_daemon::errors::chain(&error);
            return (finding(Level::Error, text), None);
        }
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run(CancellationToken::new()));
    if timeout(READ_WITHIN, registry.caught_up()).await.is_err() {
        let detail = format!("the registry could not be read within {READ_WITHIN:?}");
        return (finding(Level::Error, detail), None);
    }
    let survey = Survey::of(&registry);
    let identity = identity_of(&registry);
    let unreadable = registry.counts().unreadable_total;
    let mut findings = finding_of(&survey);
    findings.extend(identity);
    if unreadable > 0 {
        let detail = format!(
            "{unreadable} registry records are not understood, as of a later release: run that release, or see who \
             writes there"
        );
        findings.extend(finding(Level::Error, detail));
    }
    (findings, survey.wait_ms_max)
}

/// Whether this process would be let into the installation, and whether the registry is whole.
fn identity_of(registry: &Registry) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = registry.may_join() {
        let detail = format!("no role starts with this configuration: {error}");
        findings.push(Finding::new("keys", "installation", Level::Error, detail));
    }
    if let Some(loss) = registry.loss() {
        let detail = format!(
            "lost records: {}; nothing is matched until an operator decides: see `postrider recover --registry`",
            loss.detail
        );
        findings.push(Finding::new("keys", "registry", Level::Error, detail));
    }
    findings
}

/// What the registry holds, as far as it is of interest here.
#[derive(Debug, Default)]
struct Survey {
    endpoints: usize,
    wait_ms_max: Option<i64>,
    closed: usize,
    /// The first that does not open, and why.
    first_closed: Option<String>,
}

impl Survey {
    fn of(registry: &Registry) -> Self {
        let mut survey = Self::default();
        let mut tenants = registry.tenants(None, PAGE);
        while let Some(last) = tenants.last() {
            let next = registry.tenants(Some(&last.value.id), PAGE);
            for tenant in &tenants {
                let mut endpoints = registry.endpoints(&tenant.value.id, None, PAGE);
                while let Some(last) = endpoints.last() {
                    let next = registry.endpoints(&tenant.value.id, Some(&last.value.id), PAGE);
                    for endpoint in &endpoints {
                        survey.note(registry, &endpoint.value);
                    }
                    endpoints = next;
                }
            }
            tenants = next;
        }
        survey
    }

    fn note(&mut self, registry: &Registry, endpoint: &Endpoint) {
        self.endpoints += 1;
        let waits = endpoint.retry_schedule.iter();
        let longest = waits.flat_map(|schedule| schedule.delays_ms()).max();
        self.wait_ms_max = self.wait_ms_max.max(longest.copied());
        if let Err(error) = registry.signing_secrets(endpoint, SystemClock.now_ms()) {
            self.closed += 1;
            let first = || format!("{}: {error}", endpoint.id);
            self.first_closed.get_or_insert_with(first);
        }
    }
}

fn finding_of(survey: &Survey) -> Vec<Finding> {
    let (level, detail) = match &survey.first_closed {
        None => (
            Level::Ok,
            format!("those of {} endpoints open", survey.endpoints),
        ),
        Some(first) => (
            Level::Error,
            format!(
                "those of {} of {} endpoints do not open ({first}), so nothing is sent to them; add the key that sealed \
                 them to `keys.encryption`, below the first",
                survey.closed, survey.endpoints
            ),
        ),
    };
    vec![Finding::new("keys", "secrets", level, detail)]
}
