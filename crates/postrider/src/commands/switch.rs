//! `postrider pause` and `postrider resume`: the switch for the worst hour.

use clap::Args;
use reqwest::Method;
use serde_json::Value;

use crate::cli::{ApiArgs, ConfirmArgs};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::output;

/// `postrider pause` and `postrider resume`
#[derive(Debug, Args)]
pub(crate) struct SwitchArgs {
    /// Only show whether deliveries are paused.
    #[arg(long)]
    show: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// Sends nothing to anybody until [`resume`].
pub(crate) async fn pause(args: SwitchArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let question = "Send nothing to any endpoint of any tenant until `postrider resume`?";
    turn(args, "v1/pause", question, data_dir).await
}

/// Sends again, to what is not paused by itself.
pub(crate) async fn resume(args: SwitchArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let question = "Send everything that waits?";
    turn(args, "v1/resume", question, data_dir).await
}

async fn turn(
    args: SwitchArgs,
    path: &str,
    question: &str,
    data_dir: &DataDir,
) -> anyhow::Result<()> {
    let client = Client::from_args(&args.api, data_dir)?;
    let answer = if args.show {
        client.get("v1/installation", &[]).await?
    } else {
        output::confirm(question, args.confirm.yes)?;
        client.send(Method::POST, path, None).await?
    };
    if args.api.json {
        output::json(&answer);
    } else if answer["deliveries_paused"] == Value::Bool(true) {
        output::data("deliveries are paused: events are accepted and wait");
    } else {
        output::data("deliveries are not paused");
    }
    Ok(())
}
