//! `postrider endpoint pause`, `resume`, `disable`, `enable` and `replay`: whether an endpoint is
//! delivered to, and what it missed.

use anyhow::bail;
use clap::Args;
use postrider_model::ids::EventId;
use reqwest::Method;
use serde_json::{Value, json};

use super::{OneArgs, SHOWN};
use crate::cli::{ConfirmArgs, PointInTime};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::output;

/// `postrider endpoint enable`
#[derive(Debug, Args)]
pub(crate) struct EnableArgs {
    #[command(flatten)]
    one: OneArgs,
    /// Drop what waits for it since before it was disabled, instead of delivering it.
    #[arg(long)]
    discard_backlog: bool,
    /// Deliver also what happened since then: so long ago, such as `2h`, or a time as RFC 3339.
    #[arg(long, value_name = "TIME")]
    replay_since: Option<PointInTime>,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// `postrider endpoint replay`
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    one: OneArgs,
    /// From when on: so long ago, such as `2h`, or a time as RFC 3339.
    #[arg(long, value_name = "TIME")]
    since: PointInTime,
    /// Up to when; now if not said.
    #[arg(long, value_name = "TIME")]
    until: Option<PointInTime>,
    /// Names this replay: repeating it under the same name delivers nothing twice.
    #[arg(long, value_name = "ID")]
    command_id: Option<EventId>,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// Posts to one of the endpoint's verbs, which needs no more words.
pub(super) async fn set(one: OneArgs, verb: &str, data_dir: &DataDir) -> anyhow::Result<()> {
    let client = Client::from_args(&one.api, data_dir)?;
    let answer = client
        .send(Method::POST, &format!("{}/{verb}", one.path()), None)
        .await?;
    output::one(&answer, one.api.json, &SHOWN);
    Ok(())
}

pub(super) async fn enable(args: EnableArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let EnableArgs {
        one,
        discard_backlog,
        replay_since,
        confirm,
    } = args;
    let client = Client::from_args(&one.api, data_dir)?;
    let mut body = json!({});
    if discard_backlog {
        output::confirm(
            &format!("Drop what waits for {}?", one.endpoint),
            confirm.yes,
        )?;
        body["backlog"] = "discard".into();
    }
    let path = format!("{}/enable", one.path());
    let mut enabled = client.send(Method::POST, &path, Some(&body)).await?;
    let disabled_since = enabled["disabled_since"].take();
    if let Some(since) = &replay_since {
        let mut body = json!({ "since": since.to_string() });
        enabled["replay"] = replay_to_the_end(&client, &one, &mut body).await?;
    }
    if one.api.json {
        enabled["disabled_since"] = disabled_since;
        output::json(&enabled);
        return Ok(());
    }
    output::one(&enabled, false, &SHOWN);
    if replay_since.is_some() {
        say_replayed(&enabled["replay"]);
    } else if let Some(since) = disabled_since.as_str() {
        output::talk(format!(
            "It was disabled since {since}. What happened meanwhile is not delivered unless you ask for it:\n  \
             postrider endpoint replay --tenant {} {} --since {since}",
            one.tenant.tenant, one.endpoint
        ));
    }
    Ok(())
}

pub(super) async fn replay(args: ReplayArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let one = &args.one;
    let client = Client::from_args(&one.api, data_dir)?;
    output::confirm(
        &format!(
            "Deliver to {} again what it wants of this time?",
            one.endpoint
        ),
        args.confirm.yes,
    )?;
    let mut body = json!({ "since": args.since.to_string() });
    if let Some(until) = &args.until {
        body["until"] = until.to_string().into();
    }
    if let Some(command_id) = &args.command_id {
        body["command_id"] = command_id.as_str().into();
    }
    let replayed = replay_to_the_end(&client, one, &mut body).await?;
    if one.api.json {
        output::json(&replayed);
    } else {
        say_replayed(&replayed);
    }
    Ok(())
}

/// Goes on where each answer was cut. Under one name the parts are one replay.
async fn replay_to_the_end(
    client: &Client,
    one: &OneArgs,
    body: &mut Value,
) -> anyhow::Result<Value> {
    let path = format!("{}/replay", one.path());
    let (mut replayed, mut skipped) = (0, Vec::new());
    loop {
        let mut answer = match client.send(Method::POST, &path, Some(body)).await {
            Ok(answer) => answer,
            Err(error) if replayed > 0 => bail!(
                "{replayed} replayed as {}, then: {error}; repeat it with --command-id",
                output::cell(&body["command_id"])
            ),
            Err(error) => return Err(error.into()),
        };
        replayed += answer["replayed"].as_u64().unwrap_or(0);
        skipped.append(answer["skipped"].as_array_mut().unwrap_or(&mut Vec::new()));
        body["command_id"] = answer["command_id"].take();
        body["cursor"] = answer["next_cursor"].take();
        if body["cursor"].is_null() {
            let command_id = &body["command_id"];
            return Ok(
                json!({ "command_id": command_id, "replayed": replayed, "skipped": skipped }),
            );
        }
    }
}

fn say_replayed(replayed: &Value) {
    let skipped = replayed["skipped"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    output::data(format!(
        "{} replayed, {} skipped, as {}",
        replayed["replayed"],
        skipped.len(),
        output::cell(&replayed["command_id"])
    ));
    for skipped in skipped {
        output::talk(format!("skipped: {skipped}"));
    }
}
