//! `postrider tenant`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use postrider_model::ids::TenantId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::{ApiArgs, PageArgs, pair};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::output;

/// Tenants: the accounts that endpoints and events belong to.
#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Create a tenant, or change the one there is.
    Create(CreateArgs),
    /// List the tenants.
    List {
        #[command(flatten)]
        page: PageArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show a tenant.
    Show(OneArgs),
    /// Send nothing to a tenant's endpoints. Events are accepted and wait.
    Pause(OneArgs),
    /// Send to a tenant's endpoints again.
    Resume(OneArgs),
}

/// Which tenant.
#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// Its id.
    tenant: TenantId,
    #[command(flatten)]
    api: ApiArgs,
}

/// `postrider tenant create`
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its id, your own: letters, digits, `_` and `-`.
    tenant: TenantId,
    /// A name for people.
    #[arg(long)]
    name: Option<String>,
    /// A pair to keep with it; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub(crate) async fn run(command: TenantCommand, data_dir: &DataDir) -> anyhow::Result<()> {
    match command {
        TenantCommand::Create(args) => {
            let mut body = json!({});
            if let Some(name) = args.name {
                body["name"] = name.into();
            }
            if !args.metadata.is_empty() {
                body["metadata"] = json!(args.metadata.into_iter().collect::<BTreeMap<_, _>>());
            }
            let client = Client::from_args(&args.api, data_dir)?;
            let path = format!("v1/tenants/{}", args.tenant);
            show(
                &client.send(Method::PUT, &path, Some(&body)).await?,
                args.api.json,
            );
        }
        TenantCommand::List { page, api } => {
            let client = Client::from_args(&api, data_dir)?;
            let answer = client.get("v1/tenants", &page.query()).await?;
            output::list(&answer, api.json, &["id", "name", "paused", "created_at"]);
        }
        TenantCommand::Show(OneArgs { tenant, api }) => {
            let client = Client::from_args(&api, data_dir)?;
            show(
                &client.get(&format!("v1/tenants/{tenant}"), &[]).await?,
                api.json,
            );
        }
        TenantCommand::Pause(one) => act(one, "pause", data_dir).await?,
        TenantCommand::Resume(one) => act(one, "resume", data_dir).await?,
    }
    Ok(())
}

async fn act(one: OneArgs, verb: &str, data_dir: &DataDir) -> anyhow::Result<()> {
    let client = Client::from_args(&one.api, data_dir)?;
    let path = format!("v1/tenants/{}/{verb}", one.tenant);
    show(&client.send(Method::POST, &path, None).await?, one.api.json);
    Ok(())
}

fn show(tenant: &Value, json: bool) {
    output::one(
        tenant,
        json,
        &["id", "name", "paused", "metadata", "created_at", "version"],
    );
}
