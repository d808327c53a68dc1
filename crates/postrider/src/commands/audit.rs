//! `postrider audit`

use clap::Args;
use postrider_model::ids::TenantId;
use serde_json::{Value, json};

use crate::cli::{ApiArgs, PageArgs, PointInTime};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::output;

/// `postrider audit`
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Changes of this tenant only.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// By whom: the id or the name of a key, or the user of a portal token.
    #[arg(long)]
    actor: Option<String>,
    /// By what kind of key: `configured_key`, `operator_key`, `tenant_key` or `portal_token`.
    #[arg(long)]
    kind: Option<String>,
    /// What was done, such as `endpoint.delete`.
    #[arg(long)]
    action: Option<String>,
    /// From when on: so long ago, such as `2h`, or a time; a day ago without.
    #[arg(long, value_name = "TIME")]
    since: Option<PointInTime>,
    /// Until when.
    #[arg(long, value_name = "TIME")]
    until: Option<PointInTime>,
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub(crate) async fn run(args: AuditArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let mut query = args.page.query();
    let said = [
        ("tenant", args.tenant.map(|tenant| tenant.to_string())),
        ("actor", args.actor),
        ("kind", args.kind),
        ("action", args.action),
        ("since", args.since.map(|since| since.to_string())),
        ("until", args.until.map(|until| until.to_string())),
    ];
    query.extend(
        said.into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let client = Client::from_args(&args.api, data_dir)?;
    let mut answer = client.get("v1/audit", &query).await?;
    if !args.api.json {
        for entry in answer["data"].as_array_mut().into_iter().flatten() {
            entry["by"] = who(&entry["actor"]);
        }
    }
    output::list(
        &answer,
        args.api.json,
        &["at", "by", "tenant", "action", "subject"],
    );
    Ok(())
}

/// The kind of key, which nobody chooses, and the name, or else the id of the key.
fn who(actor: &Value) -> Value {
    let said = [&actor["name"], &actor["key_id"]];
    let said = said.into_iter().find_map(Value::as_str).unwrap_or_default();
    let kind = actor["kind"].as_str().unwrap_or_default();
    json!(format!("{kind} {said}").trim_end())
}
