//! `postrider key`: keys for the API, and new keys of the installation.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use postrider_model::api_key::Scope;
use postrider_model::ids::{ApiKeyId, TenantId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::{ApiArgs, ConfirmArgs, PageArgs, duration};
use crate::client::Client;
use crate::commands::from_now;
use crate::data_dir::DataDir;
use crate::{data_dir, output};

const FIELDS: [&str; 8] = [
    "id",
    "name",
    "tenant",
    "scopes",
    "prefix",
    "created_at",
    "expires_at",
    "last_used_at",
];

/// Keys for the API, and new keys of the installation.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Create a key for the API: a tenant's, or without --tenant an operator's. It is shown once.
    Create(CreateArgs),
    /// List the keys of a tenant, or without --tenant those of operators.
    List {
        /// Whose.
        #[arg(long)]
        tenant: Option<TenantId>,
        #[command(flatten)]
        page: PageArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show a key, but not what it is.
    Show(OneArgs),
    /// Revoke a key: within 2 s it opens nothing any more.
    Revoke {
        #[command(flatten)]
        one: OneArgs,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Print a new key for the configuration, which is kept nowhere.
    Generate {
        /// What for.
        #[arg(value_enum)]
        kind: KeyKind,
    },
}

/// What a key is for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum KeyKind {
    /// By which an installation begins: `ingest.operator_key`.
    Operator,
    /// What signing secrets are encrypted with: `keys.encryption`.
    Encryption,
}

/// Which key.
#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// Its id.
    key: ApiKeyId,
    /// Whose it is; an operator's without.
    #[arg(long)]
    tenant: Option<TenantId>,
    #[command(flatten)]
    api: ApiArgs,
}

/// `postrider key create`
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What it is for.
    #[arg(long)]
    name: String,
    /// Whose it is; an operator's, which opens everything, without.
    #[arg(long, requires = "scope")]
    tenant: Option<TenantId>,
    /// What it opens of what is the tenant's: `publish`, `endpoints`, `read` or `repair`; may be
    /// repeated.
    #[arg(long, requires = "tenant")]
    scope: Vec<Scope>,
    /// How long it is good, such as `90d`; for ever without.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires_in: Option<Duration>,
    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub(crate) async fn run(command: KeyCommand, data_dir: &DataDir) -> anyhow::Result<()> {
    match command {
        KeyCommand::Create(args) => create(args, data_dir).await?,
        KeyCommand::List { tenant, page, api } => {
            let client = Client::from_args(&api, data_dir)?;
            let keys = client.get(&path(tenant.as_ref()), &page.query()).await?;
            let columns = ["id", "name", "scopes", "prefix", "last_used_at"];
            output::list(&keys, api.json, &columns);
        }
        KeyCommand::Show(one) => {
            let client = Client::from_args(&one.api, data_dir)?;
            let key = client.get(&one.path(), &[]).await?;
            output::one(&key, one.api.json, &FIELDS);
        }
        KeyCommand::Revoke { one, confirm } => {
            let question = format!("Revoke the key {} for ever?", one.key);
            output::confirm(&question, confirm.yes)?;
            let client = Client::from_args(&one.api, data_dir)?;
            client.send(Method::DELETE, &one.path(), None).await?;
            output::talk("Revoked.");
        }
        KeyCommand::Generate { kind } => output::data(match kind {
            KeyKind::Operator => data_dir::generate_operator_key(),
            KeyKind::Encryption => data_dir::generate_encryption_key(),
        }),
    }
    Ok(())
}

async fn create(args: CreateArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let mut body = json!({ "name": args.name });
    if args.tenant.is_some() {
        let scopes = args.scope.iter().map(|scope| scope.as_str());
        body["scopes"] = scopes.collect::<Vec<_>>().into();
    }
    if let Some(expires_in) = args.expires_in {
        body["expires_at"] = from_now(expires_in).into();
    }
    let client = Client::from_args(&args.api, data_dir)?;
    let path = path(args.tenant.as_ref());
    let created: Value = client.send(Method::POST, &path, Some(&body)).await?;
    let fields: Vec<_> = ["key"].into_iter().chain(FIELDS).collect();
    output::one(&created, args.api.json, &fields);
    output::talk("Keep the key now: it is not shown again.");
    Ok(())
}

/// Where the keys of a tenant are, or those of operators.
fn path(tenant: Option<&TenantId>) -> String {
    match tenant {
        Some(tenant) => format!("v1/tenants/{tenant}/keys"),
        None => "v1/keys".to_owned(),
    }
}

impl OneArgs {
    fn path(&self) -> String {
        format!("{}/{}", path(self.tenant.as_ref()), self.key)
    }
}
