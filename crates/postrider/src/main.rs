//! Postrider: events in, webhooks out.
//!
//! `up`, `ingest`, `deliver` and `exporter` are roles, in [`roles`]; everything else is a command
//! of an operator, in [`commands`]. The library crates do the work; here they are put together.

mod cli;
mod client;
mod commands;
mod config;
mod data_dir;
mod demo;
mod output;
mod roles;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use postrider_daemon::telemetry;

use crate::cli::{Cli, Command};
use crate::config::{Config, Sum};
use crate::data_dir::DataDir;

/// Memory is taken in one thread and given back in another all day, which glibc's allocator does
/// with locks. It also serves librdkafka.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long a process that ended its work waits for questions that are not answered yet.
const UNANSWERED_MAX: Duration = Duration::from_secs(1);
/// How long the last lines of the log may take to be written.
const LOG_FLUSH_MAX: Duration = Duration::from_secs(1);
/// The exit code of a wrong command line or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match configuration(&cli) {
        Ok(config) => config,
        Err(error) => {
            output::talk(format!("error: {error}"));
            return ExitCode::from(USAGE);
        }
    };
    if cli.check_config {
        output::data(postrider_daemon::config::render(&config).trim_end());
        if matches!(cli.command, Some(Command::Deliver(_))) {
            output::data(format!("\n{}", Sum::of(&config)));
        }
        return ExitCode::SUCCESS;
    }
    let Some(command) = cli.command else {
        Cli::command()
            .error(
                clap::error::ErrorKind::MissingSubcommand,
                "a command is needed; --help lists them",
            )
            .exit()
    };
    let code = match run(command, config) {
        Ok(code) => code,
        Err(error) if error.is::<roles::Stopped>() => {
            tracing::info!("{error:#}");
            ExitCode::SUCCESS
        }
        // What reads the log of a role expects no other lines between.
        Err(error) if telemetry::is_started() => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            output::talk(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    };
    telemetry::flush_log(LOG_FLUSH_MAX);
    output::flush();
    code
}

/// The configuration as file, environment and flags make it, checked.
fn configuration(cli: &Cli) -> Result<Config, String> {
    let mut config = Config::load(cli.config.as_deref())
        .map_err(|error| postrider_daemon::errors::chain(&error))?;
    if let Some(data_dir) = &cli.data_dir {
        config.embedded.data_dir.clone_from(data_dir);
    }
    match &cli.command {
        Some(Command::Up(args)) => {
            if let Some(data) = &args.data {
                config.embedded.data_dir.clone_from(data);
            }
            config.listen(&args.listen);
        }
        Some(Command::Ingest(args)) => config.listen(&args.listen),
        Some(Command::Deliver(args)) => config.listen_health(&args.health),
        Some(Command::Exporter(args)) => config.listen_health(&args.health),
        Some(_) | None => {}
    }
    config.check()?;
    let is_role = matches!(
        cli.command,
        Some(Command::Ingest(_) | Command::Deliver(_) | Command::Exporter(_))
    );
    if is_role || config.kafka.has_address() {
        config.check_kafka()?;
    }
    if matches!(cli.command, Some(Command::Deliver(_))) {
        config.check_memory()?;
    }
    Ok(config)
}

fn run(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    telemetry::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let data_dir = DataDir::at(&config.embedded.data_dir);
    let done = |()| ExitCode::SUCCESS;
    let ended = runtime.block_on(async {
        match command {
            Command::Up(args) => roles::up::run(&args, config).await,
            Command::Ingest(_) => roles::ingest::run(config).await,
            Command::Deliver(args) => roles::deliver::run(&args, config).await,
            Command::Exporter(_) => roles::exporter::run(config).await,
            Command::Check(args) => commands::check::run(&args, &config).await,
            Command::ExportData(args) => commands::data::export(&args, &config).await,
            Command::ImportData(args) => commands::data::import(&args, &config).await,
            Command::Topic(command) => commands::topic::run(&command, &config).await,
            Command::Recover(args) => commands::recover::run(&args, &config).await,
            Command::Tenant(command) => commands::tenant::run(command, &data_dir).await.map(done),
            Command::Endpoint(command) => {
                commands::endpoint::run(command, &data_dir).await.map(done)
            }
            Command::Event(command) => commands::event::run(command, &data_dir).await,
            Command::DeadLetter(command) => commands::dead_letter::run(command, &data_dir)
                .await
                .map(done),
            Command::Pause(args) => commands::switch::pause(args, &data_dir).await.map(done),
            Command::Resume(args) => commands::switch::resume(args, &data_dir).await.map(done),
            Command::Key(command) => commands::key::run(command, &data_dir).await.map(done),
            Command::PortalToken(command) => commands::portal_token::run(command, &data_dir)
                .await
                .map(done),
            Command::Audit(args) => commands::audit::run(args, &data_dir).await.map(done),
        }
    });
    // A question to a broker that does not answer holds a thread of the runtime for as long as it
    // may take.
    runtime.shutdown_timeout(UNANSWERED_MAX);
    ended
}
