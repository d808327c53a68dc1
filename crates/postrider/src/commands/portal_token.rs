//! `postrider portal-token`

use std::time::Duration;

use clap::{Args, Subcommand};
use postrider_model::api_key::Scope;
use postrider_model::ids::TenantId;
use reqwest::Method;
use serde_json::json;

use crate::cli::{ApiArgs, ConfirmArgs, duration};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::output;

/// Short-lived keys for a customer's browser.
#[derive(Debug, Subcommand)]
pub(crate) enum PortalTokenCommand {
    /// Issue a token. It is shown once and kept nowhere.
    Issue(IssueArgs),
    /// Revoke all tokens of a tenant that were issued so far.
    Revoke {
        /// Whose.
        #[arg(long)]
        tenant: TenantId,
        #[command(flatten)]
        confirm: ConfirmArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
}

/// `postrider portal-token issue`
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// Whose it is.
    #[arg(long)]
    tenant: TenantId,
    /// What it opens: `publish`, `endpoints`, `read` or `repair`; may be repeated.
    #[arg(long, required = true)]
    scope: Vec<Scope>,
    /// For whom, as the audit shows it.
    #[arg(long)]
    user: Option<String>,
    /// How long it is good, at most a day; an hour without.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires_in: Option<Duration>,
    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub(crate) async fn run(command: PortalTokenCommand, data_dir: &DataDir) -> anyhow::Result<()> {
    match command {
        PortalTokenCommand::Issue(args) => {
            let scopes = args.scope.iter().map(|scope| scope.as_str());
            let mut body = json!({ "scopes": scopes.collect::<Vec<_>>() });
            if let Some(user) = args.user {
                body["user"] = user.into();
            }
            if let Some(expires_in) = args.expires_in {
                body["expires_in"] = expires_in.as_secs_f64().into();
            }
            let client = Client::from_args(&args.api, data_dir)?;
            let path = format!("v1/tenants/{}/portal-tokens", args.tenant);
            let issued = client.send(Method::POST, &path, Some(&body)).await?;
            output::one(&issued, args.api.json, &["token", "scopes", "expires_at"]);
        }
        PortalTokenCommand::Revoke {
            tenant,
            confirm,
            api,
        } => {
            let question = format!("End what the customers of {tenant} have open?");
            output::confirm(&question, confirm.yes)?;
            let client = Client::from_args(&api, data_dir)?;
            let path = format!("v1/tenants/{tenant}/portal-tokens/revoke");
            client.send(Method::POST, &path, None).await?;
            output::talk("Revoked.");
        }
    }
    Ok(())
}
