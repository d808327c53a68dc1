//! `postrider endpoint`

mod state;
mod status;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use postrider_model::ids::{EndpointId, TenantId};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use self::state::{EnableArgs, ReplayArgs};
use super::{attempts, input};
use crate::cli::{ApiArgs, ConfirmArgs, PageArgs, PointInTime, duration, pair};
use crate::client::{CallError, Client};
use crate::data_dir::DataDir;
use crate::output;

/// What is shown of one endpoint.
const SHOWN: [&str; 18] = [
    "id",
    "tenant",
    "url",
    "state",
    "disabled_reason",
    "disabled_since",
    "event_types",
    "format",
    "retry_schedule",
    "attempt_timeout",
    "rate_limit",
    "ordered",
    "when_blocked",
    "public_key",
    "description",
    "metadata",
    "created_at",
    "version",
];

/// Endpoints: the URLs that events are delivered to.
#[derive(Debug, Subcommand)]
pub(crate) enum EndpointCommand {
    /// Create an endpoint, and its tenant if there is none. Its secret is shown now and never
    /// again.
    Create(CreateArgs),
    /// List the endpoints of a tenant.
    List {
        #[command(flatten)]
        tenant: TenantArgs,
        #[command(flatten)]
        page: PageArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show an endpoint.
    Show(OneArgs),
    /// Show how an endpoint is doing: its owner, what waits, what failed last.
    Status(OneArgs),
    /// Change an endpoint.
    Update(UpdateArgs),
    /// Delete an endpoint. What waits for it is dropped, and its id is never used again.
    Delete {
        #[command(flatten)]
        one: OneArgs,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Hold back what an endpoint is to get, and go on matching events for it.
    Pause(OneArgs),
    /// Deliver what waits for a paused endpoint, in order of acceptance.
    Resume(OneArgs),
    /// Deliver to a disabled endpoint again, what waits for it first.
    Enable(EnableArgs),
    /// Deliver to an endpoint no more, and match no events for it. What was matched stays until it
    /// is enabled.
    Disable {
        #[command(flatten)]
        one: OneArgs,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Deliver to an endpoint what it wants of a time, whether it was delivered before or not.
    Replay(ReplayArgs),
    /// Give an endpoint a new secret. Its old one goes on signing beside it for a time.
    RotateSecret(RotateArgs),
    /// Create many endpoints, from JSON lines: of each what the API takes, `url` and any setting,
    /// `id` and `secret` too.
    Import(ImportArgs),
    /// List the attempts made at an endpoint, newest first.
    Attempts {
        #[command(flatten)]
        one: OneArgs,
        #[command(flatten)]
        page: PageArgs,
        /// From when on: so long ago, such as `2h`, or a time as RFC 3339.
        #[arg(long, value_name = "TIME")]
        since: Option<PointInTime>,
    },
}

/// Which tenant.
#[derive(Debug, Args)]
pub(crate) struct TenantArgs {
    /// The tenant it belongs to.
    #[arg(long, short, value_name = "ID", env = "POSTRIDER_TENANT")]
    pub(crate) tenant: TenantId,
}

/// Which endpoint.
#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// Its id.
    endpoint: EndpointId,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    api: ApiArgs,
}

impl OneArgs {
    fn path(&self) -> String {
        format!("{}/{}", all(&self.tenant.tenant), self.endpoint)
    }
}

/// What can be said of an endpoint, new or not.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// Types of events it wants, such as `invoice.paid` or `invoice.*`; all if none is named.
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    event_types: Option<Vec<String>>,
    /// What the body looks like: `standard` or `raw`.
    #[arg(long)]
    format: Option<String>,
    /// Waits before the second, third, … attempt, such as `5s,5m,2h`.
    #[arg(long, value_name = "TIMES", value_delimiter = ',', value_parser = duration)]
    retry_schedule: Option<Vec<Duration>>,
    /// How long one attempt may take.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    attempt_timeout: Option<Duration>,
    /// How many requests per second it gets at most.
    #[arg(long, value_name = "PER_SECOND")]
    rate_limit: Option<f64>,
    /// How many of them may come at once after a rest; those of one second if not said.
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// What becomes of the deliveries behind one that failed, where they are ordered: `dead_letter`
    /// gives it up after some time, `wait` never.
    #[arg(long, value_name = "WHAT")]
    when_blocked: Option<String>,
    /// A text for people.
    #[arg(long)]
    description: Option<String>,
    /// A pair to keep with it; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
}

impl SettingsArgs {
    fn body(self, url: Option<String>) -> Map<String, Value> {
        let schedule = self
            .retry_schedule
            .map(|waits| json!(waits.iter().map(Duration::as_secs_f64).collect::<Vec<_>>()));
        let metadata: BTreeMap<_, _> = self.metadata.into_iter().collect();
        let rate_limit = [
            ("per_second", self.rate_limit.map(Value::from)),
            ("burst", self.burst.map(Value::from)),
        ];
        let rate_limit = present(rate_limit);
        let fields = [
            ("url", url.map(Value::from)),
            ("event_types", self.event_types.map(Value::from)),
            ("format", self.format.map(Value::from)),
            ("retry_schedule", schedule),
            (
                "attempt_timeout",
                self.attempt_timeout.map(|time| json!(time.as_secs_f64())),
            ),
            (
                "rate_limit",
                (!rate_limit.is_empty()).then(|| rate_limit.into()),
            ),
            ("when_blocked", self.when_blocked.map(Value::from)),
            ("description", self.description.map(Value::from)),
            ("metadata", (!metadata.is_empty()).then(|| json!(metadata))),
        ];
        present(fields)
    }
}

/// The fields that have a value.
fn present<const N: usize>(fields: [(&str, Option<Value>); N]) -> Map<String, Value> {
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// `postrider endpoint create`
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    tenant: TenantArgs,
    /// Where to POST.
    #[arg(long)]
    url: String,
    /// Its id, your own after `ep_`; one is made up if there is none.
    #[arg(long)]
    id: Option<EndpointId>,
    /// Deliver events of one ordering key one after the other. This cannot be changed later.
    #[arg(long)]
    ordered: bool,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// A secret that is brought along, from another system for example.
#[derive(Debug, Args)]
pub(crate) struct SecretArgs {
    /// A file with its secret, `whsec_…` or `whsk_…`, or `-` for standard input; one is made up if
    /// there is none.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl SecretArgs {
    fn read(&self) -> anyhow::Result<Option<Value>> {
        let text = self.secret_file.as_deref().map(input::text).transpose()?;
        Ok(text.map(|text| text.trim().into()))
    }
}

/// `postrider endpoint update`
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    one: OneArgs,
    /// Where to POST from now on.
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Take its rate limit away.
    #[arg(long, conflicts_with_all = ["rate_limit", "burst"])]
    no_rate_limit: bool,
    /// Only if it still is at this version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

/// `postrider endpoint rotate-secret`
#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    one: OneArgs,
    /// How long the old secret signs beside the new one; a day if not said.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    overlap: Option<Duration>,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// `postrider endpoint import`
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    tenant: TenantArgs,
    /// The file, or `-` for standard input.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    api: ApiArgs,
}

fn all(tenant: &TenantId) -> String {
    format!("v1/tenants/{tenant}/endpoints")
}

/// Runs the command.
pub(crate) async fn run(command: EndpointCommand, data_dir: &DataDir) -> anyhow::Result<()> {
    match command {
        EndpointCommand::Create(args) => create(args, data_dir).await,
        EndpointCommand::List { tenant, page, api } => {
            let client = Client::from_args(&api, data_dir)?;
            let answer = client.get(&all(&tenant.tenant), &page.query()).await?;
            output::list(
                &answer,
                api.json,
                &[
                    "id",
                    "url",
                    "state",
                    "disabled_reason",
                    "event_types",
                    "created_at",
                ],
            );
            Ok(())
        }
        EndpointCommand::Show(one) => {
            let client = Client::from_args(&one.api, data_dir)?;
            output::one(&client.get(&one.path(), &[]).await?, one.api.json, &SHOWN);
            Ok(())
        }
        EndpointCommand::Status(one) => status::show(one, data_dir).await,
        EndpointCommand::Update(args) => update(args, data_dir).await,
        EndpointCommand::Delete { one, confirm } => {
            let client = Client::from_args(&one.api, data_dir)?;
            output::confirm(
                &format!("Delete {}, and drop what waits for it?", one.endpoint),
                confirm.yes,
            )?;
            client.send(Method::DELETE, &one.path(), None).await?;
            output::talk(format!("{} is deleted", one.endpoint));
            Ok(())
        }
        EndpointCommand::Pause(one) => state::set(one, "pause", data_dir).await,
        EndpointCommand::Resume(one) => state::set(one, "resume", data_dir).await,
        EndpointCommand::Enable(args) => state::enable(args, data_dir).await,
        EndpointCommand::Replay(args) => state::replay(args, data_dir).await,
        EndpointCommand::Disable { one, confirm } => {
            output::confirm(
                &format!("Deliver nothing more to {}?", one.endpoint),
                confirm.yes,
            )?;
            state::set(one, "disable", data_dir).await
        }
        EndpointCommand::RotateSecret(args) => rotate_secret(args, data_dir).await,
        EndpointCommand::Import(args) => import(args, data_dir).await,
        EndpointCommand::Attempts { one, page, since } => {
            let client = Client::from_args(&one.api, data_dir)?;
            let mut query = page.query();
            query.extend(since.map(|since| ("since", since.to_string())));
            let answer = client
                .get(&format!("{}/attempts", one.path()), &query)
                .await?;
            attempts::list(&answer, one.api.json);
            Ok(())
        }
    }
}

async fn create(args: CreateArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let client = Client::from_args(&args.api, data_dir)?;
    let mut body = args.settings.body(Some(args.url));
    let more = [
        ("id", args.id.as_ref().map(|id| id.as_str().into())),
        ("ordered", args.ordered.then(|| true.into())),
        ("secret", args.secret.read()?),
    ];
    body.extend(present(more));
    let (path, body) = (all(&args.tenant.tenant), Value::Object(body));
    let create = || client.send(Method::POST, &path, Some(&body));
    let answer = match create().await {
        Err(error) if error.is_status(StatusCode::NOT_FOUND) => {
            see_to_tenant(&client, &args.tenant.tenant).await?;
            create().await?
        }
        created => created?,
    };
    show_with_secret(&answer, args.api.json);
    Ok(())
}

/// Sees to it that the tenant exists.
async fn see_to_tenant(client: &Client, tenant: &TenantId) -> Result<(), CallError> {
    let path = format!("v1/tenants/{tenant}");
    client.send(Method::PUT, &path, None).await.map(drop)
}

async fn update(args: UpdateArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let client = Client::from_args(&args.one.api, data_dir)?;
    let mut body = args.settings.body(args.url);
    if args.no_rate_limit {
        body.insert("rate_limit".to_owned(), Value::Null);
    }
    if body.is_empty() {
        bail!("nothing to change was named; --help lists what can be");
    }
    let etag = args.if_version.map(|version| format!("\"{version}\""));
    let answer = client
        .send_if(
            Method::PATCH,
            &args.one.path(),
            &Value::Object(body),
            etag.as_deref(),
        )
        .await?;
    output::one(&answer, args.one.api.json, &SHOWN);
    Ok(())
}

async fn rotate_secret(args: RotateArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let client = Client::from_args(&args.one.api, data_dir)?;
    output::confirm(
        &format!("Give {} a new secret?", args.one.endpoint),
        args.confirm.yes,
    )?;
    let overlap = args.overlap.map(|overlap| json!(overlap.as_secs_f64()));
    let body = present([("overlap", overlap), ("secret", args.secret.read()?)]);
    let path = format!("{}/secret/rotate", args.one.path());
    show_with_secret(
        &client
            .send(Method::POST, &path, Some(&Value::Object(body)))
            .await?,
        args.one.api.json,
    );
    Ok(())
}

fn show_with_secret(endpoint: &Value, json: bool) {
    let fields: Vec<&str> = SHOWN.into_iter().chain(["secret"]).collect();
    output::one(endpoint, json, &fields);
    output::talk("The secret is not shown again: its receiver needs it to verify what comes.");
}

async fn import(args: ImportArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let client = Client::from_args(&args.api, data_dir)?;
    let lines = input::text(&args.file)?;
    see_to_tenant(&client, &args.tenant.tenant).await?;
    let answer = client
        .post_lines(&format!("{}/import", all(&args.tenant.tenant)), lines)
        .await?;
    if args.api.json {
        output::json(&answer);
    } else {
        let results = answer["results"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let rows = results
            .iter()
            .map(|result| output::row(result, &["id", "status", "secret", "detail"]));
        output::table(
            &["ID", "STATUS", "SECRET", "DETAIL"],
            &rows.collect::<Vec<_>>(),
        );
    }
    output::talk(format!(
        "{} created, {} failed",
        answer["created"], answer["failed"]
    ));
    if answer["failed"].as_u64() != Some(0) {
        bail!("not every endpoint was created");
    }
    Ok(())
}
