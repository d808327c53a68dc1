//! `postrider dead-letter`

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use postrider_model::ids::{EndpointId, EventId, TenantId};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::endpoint::TenantArgs;
use crate::cli::{ApiArgs, ConfirmArgs, PageArgs, PointInTime};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::output;

/// Deliveries given up, and records that could not be understood.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetterCommand {
    /// List dead letters, newest first.
    List {
        #[command(flatten)]
        owner: OwnerArgs,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        page: PageArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show a dead letter and what it holds.
    Show {
        /// Its id.
        id: String,
        #[command(flatten)]
        owner: OwnerArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Deliver again what was given up, by ids or by time.
    Redrive(RedriveArgs),
}

/// Whose dead letters.
#[derive(Debug, Args)]
pub(crate) struct OwnerArgs {
    /// The tenant whose deliveries they are; without one, the records that could not be understood.
    #[arg(long, short, value_name = "ID", env = "POSTRIDER_TENANT")]
    tenant: Option<TenantId>,
}

impl OwnerArgs {
    fn path(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("v1/tenants/{tenant}/dead-letters"),
            None => "v1/dead-letters".to_owned(),
        }
    }
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Of this endpoint.
    #[arg(long, value_name = "ID")]
    endpoint: Option<EndpointId>,
    /// Given up for this reason, such as `endpoint_gone`.
    #[arg(long)]
    reason: Option<String>,
    /// From when on: so long ago, such as `2h`, or a time as RFC 3339. A list begins a day ago if
    /// not said.
    #[arg(long, value_name = "TIME")]
    since: Option<PointInTime>,
    /// Up to when; now if not said.
    #[arg(long, value_name = "TIME")]
    until: Option<PointInTime>,
}

impl FilterArgs {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let fields = [
            ("endpoint", self.endpoint.as_ref().map(ToString::to_string)),
            ("reason", self.reason.clone()),
            ("since", self.since.as_ref().map(ToString::to_string)),
            ("until", self.until.as_ref().map(ToString::to_string)),
        ];
        fields
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// `postrider dead-letter redrive`
#[derive(Debug, Args)]
pub(crate) struct RedriveArgs {
    /// Their ids; or name a time with --since.
    #[arg(conflicts_with_all = ["endpoint", "reason", "since", "until"])]
    ids: Vec<String>,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Names this redrive: repeating it under the same name delivers nothing twice.
    #[arg(long, value_name = "ID")]
    command_id: Option<EventId>,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub(crate) async fn run(command: DeadLetterCommand, data_dir: &DataDir) -> anyhow::Result<()> {
    match command {
        DeadLetterCommand::List {
            owner,
            filter,
            page,
            api,
        } => {
            let client = Client::from_args(&api, data_dir)?;
            let query: Vec<_> = filter.fields().into_iter().chain(page.query()).collect();
            let answer = client.get(&owner.path(), &query).await?;
            let fields: &[&str] = match owner.tenant {
                Some(_) => &[
                    "id",
                    "dead_lettered_at",
                    "reason",
                    "last_status",
                    "endpoint_id",
                    "event_id",
                    "event_type",
                ],
                None => &[
                    "id",
                    "dead_lettered_at",
                    "reason",
                    "topic",
                    "partition",
                    "offset",
                    "detail",
                ],
            };
            output::list(&answer, api.json, fields);
            Ok(())
        }
        DeadLetterCommand::Show { id, owner, api } => show(&id, &owner, &api, data_dir).await,
        DeadLetterCommand::Redrive(args) => redrive(args, data_dir).await,
    }
}

async fn show(
    id: &str,
    owner: &OwnerArgs,
    api: &ApiArgs,
    data_dir: &DataDir,
) -> anyhow::Result<()> {
    // An id is part of a path, and this one is whatever was typed.
    if EventId::try_new(id).is_err() {
        bail!("{id:?} is no id of a dead letter");
    }
    let client = Client::from_args(api, data_dir)?;
    let path = format!("{}/{id}", owner.path());
    let mut letter = client.get(&path, &[]).await?;
    while let Some(cursor) = letter["next_cursor"].as_str().map(str::to_owned) {
        letter = client.get(&path, &[("cursor", cursor)]).await?;
    }
    if api.json {
        output::json(&letter);
        return Ok(());
    }
    let fields = [
        "id",
        "dead_lettered_at",
        "reason",
        "detail",
        "last_status",
        "endpoint_id",
        "run",
        "attempt",
        "topic",
        "partition",
        "offset",
        "value_bytes",
        "key_base64",
        "value_base64",
    ];
    output::one(&letter, false, &fields);
    if !letter["event"].is_null() {
        output::data("");
        output::one(
            &letter["event"],
            false,
            &[
                "id",
                "type",
                "occurred_at",
                "accepted_at",
                "data",
                "data_base64",
            ],
        );
    }
    Ok(())
}

async fn redrive(args: RedriveArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    if args.ids.is_empty() && args.filter.since.is_none() {
        bail!("name what to redrive: the ids of dead letters, or from when on with --since");
    }
    let client = Client::from_args(&args.api, data_dir)?;
    let mut body: Map<String, Value> = args
        .filter
        .fields()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    if args.ids.is_empty() {
        // A range has an end, or it would grow while it is worked through.
        body.entry("until")
            .or_insert_with(|| super::ago(Duration::ZERO).into());
        output::confirm(
            "Deliver again everything given up in this time?",
            args.confirm.yes,
        )?;
    } else {
        body.insert("ids".to_owned(), json!(args.ids));
    }
    if let Some(command_id) = &args.command_id {
        body.insert("command_id".to_owned(), command_id.as_str().into());
    }
    let path = format!("v1/tenants/{}/dead-letters/redrive", args.tenant.tenant);
    let (mut redriven, mut skipped) = (0, Vec::new());
    let command_id = loop {
        let mut answer = client
            .send(Method::POST, &path, Some(&Value::Object(body.clone())))
            .await?;
        redriven += answer["redriven"].as_u64().unwrap_or(0);
        skipped.append(answer["skipped"].as_array_mut().unwrap_or(&mut Vec::new()));
        // Going on under the same name, the parts are one redrive.
        body.insert("command_id".to_owned(), answer["command_id"].clone());
        match answer["next_cursor"].take() {
            Value::Null => break answer["command_id"].take(),
            cursor => body.insert("cursor".to_owned(), cursor),
        };
    };
    if args.api.json {
        output::json(
            &json!({ "command_id": command_id, "redriven": redriven, "skipped": skipped }),
        );
    } else {
        output::data(format!(
            "{redriven} redriven, {} skipped, as {}",
            skipped.len(),
            output::cell(&command_id)
        ));
        for skipped in &skipped {
            output::talk(format!("skipped: {skipped}"));
        }
    }
    Ok(())
}
