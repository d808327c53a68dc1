//! `postrider recover --registry`: which registry it is, and what an operator accepts.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use postrider_daemon::CancellationToken;
use postrider_log::{Log, SystemClock};
use postrider_model::payload::rfc3339;
use postrider_registry::{Keyring, Registry};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cli::ConfirmArgs;
use crate::config::Config;
use crate::output;

/// How long reading the registry may take.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// What is decided about the registry.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Look at the registry instead of a stage: which it is, whose keys it seals with, whether it
    /// lost records.
    #[arg(long, conflicts_with_all = ["stage", "partition", "from", "skip_all"])]
    pub(super) registry: bool,
    /// With --registry: go on with the tenants and endpoints that it has now, though it lost some.
    #[arg(long, requires = "registry", conflicts_with = "accept_keys")]
    accept_loss: bool,
    /// With --registry: let processes in that have the configured encryption key, though nothing
    /// was sealed with it.
    #[arg(long, requires = "registry")]
    accept_keys: bool,
}

pub(super) async fn run(
    args: &RegistryArgs,
    confirm: &ConfirmArgs,
    log: Arc<dyn Log>,
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let keyring = if args.accept_keys {
        config.keyring()?
    } else {
        Keyring::from_text(&Keyring::generate_text()).context("make a key")?
    };
    let options = config.registry.options();
    let (registry, follower) =
        Registry::open(log, Arc::new(SystemClock), Arc::new(keyring), options).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run(CancellationToken::new()));
    if timeout(READ_WITHIN, registry.caught_up()).await.is_err() {
        bail!("the registry could not be read within {READ_WITHIN:?}");
    }
    show(&registry);
    if args.accept_keys {
        output::confirm(
            "Let processes with this encryption key take part?",
            confirm.yes,
        )?;
        registry.accept_keys().await?;
        output::data("processes with this key may start");
    } else if args.accept_loss {
        ensure!(
            registry.loss().is_some(),
            "the registry is not known to have lost anything"
        );
        output::confirm(
            "Match what waits with the tenants and endpoints that are there now?",
            confirm.yes,
        )?;
        registry.accept_loss().await?;
        output::data("the loss is accepted, everything goes on");
    } else if registry.loss().is_some() {
        output::talk(
            "Restore what is missing, then say --accept-loss: what waits is matched with what is there by then.",
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn show(registry: &Registry) {
    let numbers = registry.counts();
    let endpoints =
        numbers.endpoints_enabled + numbers.endpoints_paused + numbers.endpoints_disabled;
    let mut facts = vec![
        ("tenants".to_owned(), numbers.tenants.to_string()),
        ("endpoints".to_owned(), endpoints.to_string()),
    ];
    let Some(identity) = registry.identity() else {
        facts.push(("identity".to_owned(), "none yet".to_owned()));
        output::facts(&facts);
        return;
    };
    let identity = identity.value;
    facts.push(("identity".to_owned(), format!("{:016x}", identity.id)));
    facts.push(("keys".to_owned(), identity.key_ids.join(", ")));
    let lost = match &identity.loss {
        Some(loss) => format!("{}, found {}", loss.detail, rfc3339(loss.found_at_ms)),
        None => "nothing known".to_owned(),
    };
    facts.push(("lost".to_owned(), lost));
    output::facts(&facts);
}
