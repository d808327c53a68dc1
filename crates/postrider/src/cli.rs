//! The command line: what can be asked for, as clap reads it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::SpanRelativeTo;
use jiff::fmt::friendly::SpanParser;
use postrider_model::payload::parse_rfc3339;

use crate::commands::ago;
use crate::commands::audit::AuditArgs;
use crate::commands::check::CheckArgs;
use crate::commands::data::{ExportArgs, ImportArgs};
use crate::commands::dead_letter::DeadLetterCommand;
use crate::commands::endpoint::EndpointCommand;
use crate::commands::event::EventCommand;
use crate::commands::key::KeyCommand;
use crate::commands::portal_token::PortalTokenCommand;
use crate::commands::recover::RecoverArgs;
use crate::commands::switch::SwitchArgs;
use crate::commands::tenant::TenantCommand;
use crate::commands::topic::TopicCommand;

/// Delivers events as webhooks: signed, retried for days, never lost once accepted.
#[derive(Debug, Parser)]
#[command(name = "postrider", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Configuration, as TOML.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "POSTRIDER_CONFIG",
        help_heading = "Configuration"
    )]
    pub(crate) config: Option<PathBuf>,
    /// Print the configuration as it is understood, without secrets, and exit.
    #[arg(long, global = true, help_heading = "Configuration")]
    pub(crate) check_config: bool,
    /// Data directory of `postrider up`, by default ./postrider-data.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Configuration"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process on a log in one directory.
    Up(UpArgs),
    /// Run the API, on Kafka.
    Ingest(IngestArgs),
    /// Run the delivery stages, on Kafka.
    Deliver(DeliverArgs),
    /// Run the metrics exporter, on Kafka: what the topics look like from outside. One is enough.
    Exporter(ExporterArgs),
    /// Say what is wrong with the environment: brokers, topics, rights, clock, keys, the way out.
    Check(CheckArgs),
    /// Create and check the topics in Kafka.
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Decide where partitions go on that were stopped because their committed offsets were lost.
    Recover(RecoverArgs),
    /// Write what is registered and not yet done into a file.
    ExportData(ExportArgs),
    /// Read such a file into a log that is empty.
    ImportData(ImportArgs),
    /// Tenants: the accounts that endpoints and events belong to.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Endpoints: the URLs that events are delivered to.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Publish events and see what became of them.
    #[command(subcommand)]
    Event(EventCommand),
    /// Deliveries given up, and records that could not be understood.
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
    /// Send nothing to anybody: the switch for the worst hour. Events are accepted and wait.
    Pause(SwitchArgs),
    /// Send again, after `pause`.
    Resume(SwitchArgs),
    /// Keys for the API, and new keys of the installation.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Short-lived keys for a customer's browser.
    #[command(subcommand)]
    PortalToken(PortalTokenCommand),
    /// Who changed what.
    Audit(AuditArgs),
}

/// Where a role listens.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ListenArgs {
    /// Address and port of the API.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) health: HealthArgs,
}

/// Where health and metrics listen.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HealthArgs {
    /// Address and port of health and metrics.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) health_listen: Option<SocketAddr>,
}

/// `postrider up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Data directory: another name for --data-dir.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    /// Show what it does: a tenant, endpoints on a receiver of its own, a stream of events and a
    /// live view.
    #[arg(long)]
    pub(crate) demo: bool,
    /// End after this time. With --demo: drain, print totals, and fail if anything was lost.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) run_for: Option<Duration>,
}

/// `postrider ingest`.
#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
}

/// `postrider deliver`.
#[derive(Debug, Args)]
pub(crate) struct DeliverArgs {
    #[command(flatten)]
    pub(crate) health: HealthArgs,
    /// The stages to run in this process.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Stage::ALL)]
    pub(crate) stages: Vec<Stage>,
}

/// `postrider exporter`.
#[derive(Debug, Args)]
pub(crate) struct ExporterArgs {
    #[command(flatten)]
    pub(crate) health: HealthArgs,
}

/// A stage of delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// Events become deliveries.
    FanOut,
    /// Deliveries are attempted.
    Deliver,
    /// Retries wait until they are due.
    Scheduler,
}

impl Stage {
    pub(crate) const ALL: [Self; 3] = [Self::FanOut, Self::Deliver, Self::Scheduler];
}

/// How a command reaches the API, and how it answers.
#[derive(Debug, Clone, Args)]
pub(crate) struct ApiArgs {
    /// Where the API is; by default that of `postrider up` in the data directory, else
    /// http://127.0.0.1:8080.
    #[arg(long, value_name = "URL", env = "POSTRIDER_URL", help_heading = "API")]
    pub(crate) api_url: Option<String>,
    /// The key; by default the operator key in the data directory.
    #[arg(
        long,
        value_name = "KEY",
        env = "POSTRIDER_API_KEY",
        hide_env_values = true,
        help_heading = "API"
    )]
    pub(crate) api_key: Option<String>,
    /// Answer in JSON.
    #[arg(long, help_heading = "API")]
    pub(crate) json: bool,
}

/// One page of a list.
#[derive(Debug, Clone, Args)]
pub(crate) struct PageArgs {
    /// How many at most, up to 250.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,
    /// Go on where the page before ended.
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

impl PageArgs {
    /// As query parameters.
    pub(crate) fn query(&self) -> Vec<(&'static str, String)> {
        let limit = self.limit.map(|limit| ("limit", limit.to_string()));
        let cursor = self.cursor.clone().map(|cursor| ("cursor", cursor));
        limit.into_iter().chain(cursor).collect()
    }
}

/// Whether to ask before something that cannot be undone.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ConfirmArgs {
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// Reads `90`, which are seconds, `500ms`, `1h 30m`, `2 hours` or `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let span = SpanParser::new().parse_span(text);
    let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    let duration = duration.ok().and_then(|duration| duration.try_into().ok());
    duration.ok_or_else(|| "must be a time, such as `90s`, `1h 30m` or `7d`".to_owned())
}

/// A point in time: so long ago, such as `2h`, or as RFC 3339. Written as RFC 3339.
#[derive(Debug, Clone)]
pub(crate) struct PointInTime(String);

impl FromStr for PointInTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if parse_rfc3339(text).is_some() {
            return Ok(Self(text.to_owned()));
        }
        let since = duration(text)
            .map_err(|_| "must be so long ago, such as `2h`, or a time as RFC 3339 writes it")?;
        Ok(Self(ago(since)))
    }
}

impl fmt::Display for PointInTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Reads `name=value`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be `name=value`")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_point_in_time_is_so_long_ago_or_named() {
        let named = "2026-01-31T12:00:00Z";
        assert_eq!(PointInTime::from_str(named).unwrap().to_string(), named);
        let hour = PointInTime::from_str("1h").unwrap().to_string();
        let minute = PointInTime::from_str("1m").unwrap().to_string();
        assert!(parse_rfc3339(&hour) < parse_rfc3339(&minute));
        assert!(PointInTime::from_str("yesterday").is_err());
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("48h"), Ok(Duration::from_secs(48 * 3_600)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("400d"), Ok(Duration::from_secs(400 * 86_400)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("1.5 seconds"), Ok(Duration::from_millis(1_500)));
        for wrong in [
            "",
            "s",
            "-1s",
            "1h ago",
            "1month",
            "0.5d",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
