//! `postrider export-data` and `import-data`: what is registered and not yet done, from one log
//! into another.
//!
//! Of the log are taken: the registry as it is, deliveries that are not settled, retries that wait,
//! events that were not fanned out, and dead letters. Left behind is what only tells of the past or
//! was learned on the way: routes, attempts, how an endpoint was doing.
//!
//! In another log positions begin anew, and the identity of a delivery names one. So that none is
//! taken for another's copy, a moved delivery gets a run of its own: a hash of the export's id and
//! its former run. The same file imported twice gives the same runs.

mod export;
mod file;
mod import;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use clap::{Args, ValueEnum};
use postrider_log::Log;

use crate::config::Config;
use crate::output;
use crate::roles::log;

/// Write what is registered and not yet done into a file.
///
/// From the embedded log everything, while `postrider up` does not run; from Kafka the registry
/// alone, while anything runs. The signing secrets in the file are encrypted as they are in the
/// log; events are not.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The file to write; it must not exist.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The log to read.
    #[arg(long, value_enum, default_value_t = Place::Embedded)]
    from: Place,
    /// Tenants, endpoints and settings only: a backup of the registry.
    #[arg(long)]
    registry_only: bool,
}

/// Read such a file into a log that is empty.
///
/// When it fails half-way, or a delivery is in doubt, import the same file again.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The file to read.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The log to write.
    #[arg(long, value_enum, default_value_t = Place::Kafka)]
    into: Place,
    /// Tenants, endpoints and settings only.
    #[arg(long)]
    registry_only: bool,
    /// Only read the file from beginning to end, look whether the log there would take it, and say
    /// what is in it.
    #[arg(long)]
    dry_run: bool,
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    /// That in the data directory.
    Embedded,
    /// That of the section `kafka` of the configuration.
    Kafka,
}

/// Runs `export-data`.
pub(crate) async fn export(args: &ExportArgs, config: &Config) -> anyhow::Result<ExitCode> {
    if args.from == Place::Kafka && !args.registry_only {
        bail!(
            "from Kafka only the registry can be exported: say --registry-only, and copy topics between clusters by \
             Kafka's own means"
        );
    }
    let data_dir = &config.embedded.data_dir;
    if args.from == Place::Embedded && !data_dir.exists() {
        bail!(
            "there is no data directory {}; --data-dir names another",
            data_dir.display()
        );
    }
    let log = open(args.from, config).await?;
    let counts = export::run(log, config, &args.file, args.registry_only).await?;
    output::talk(format!("{counts}\nin {}", args.file.display()));
    Ok(ExitCode::SUCCESS)
}

/// Runs `import-data`.
pub(crate) async fn import(args: &ImportArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let survey = import::survey(&args.file, config, args.registry_only).await?;
    let log = open(args.into, config).await?;
    import::refuse_another_registry(&*log, &survey).await?;
    if args.dry_run {
        output::talk(format!("{}", survey.counts));
        return Ok(ExitCode::SUCCESS);
    }
    let counts = import::run(&*log, config, &args.file, args.registry_only).await?;
    output::talk(format!("{counts}\nimported"));
    Ok(ExitCode::SUCCESS)
}

async fn open(place: Place, config: &Config) -> anyhow::Result<Arc<dyn Log>> {
    match place {
        Place::Embedded => Ok(log::open_embedded(config).await?),
        Place::Kafka => log::kafka(config),
    }
}
