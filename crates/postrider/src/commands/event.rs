//! `postrider event`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand};
use postrider_model::ids::{EventId, TenantId};
use reqwest::StatusCode;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use super::endpoint::TenantArgs;
use super::{attempts, input};
use crate::cli::{ApiArgs, PointInTime, duration};
use crate::client::{CallError, Client};
use crate::data_dir::DataDir;
use crate::output;

const WAIT_POLL: Duration = Duration::from_millis(200);
/// A retry that is so late waits for something else than its time.
const OVERDUE: Duration = Duration::from_secs(10);

/// Publish events and see what became of them.
#[derive(Debug, Subcommand)]
pub(crate) enum EventCommand {
    /// Publish one event, or many from a file.
    Publish(PublishArgs),
    /// Show an event, whom it was delivered to, and the attempts.
    Show(ShowArgs),
}

/// `postrider event publish`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["data", "file"])))]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    tenant: TenantArgs,
    /// What kind of event, such as `invoice.paid`.
    #[arg(long = "type", value_name = "TYPE", required_unless_present = "file")]
    event_type: Option<String>,
    /// What happened, as JSON. It is delivered as it is written here.
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// A file, or `-` for standard input, with one JSON value after the other: each an event,
    /// `{"type": …, "data": …}`, or with --type the data of one.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Its id, your own; one is made up if there is none.
    #[arg(long, conflicts_with = "file")]
    id: Option<EventId>,
    /// When it happened, such as `2026-01-31T12:00:00Z`; now if not said.
    #[arg(long, value_name = "TIME", conflicts_with = "file")]
    occurred_at: Option<String>,
    /// Events of one tenant and key are kept in order.
    #[arg(long, value_name = "KEY", conflicts_with = "file")]
    ordering_key: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

/// `postrider event show`
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Its id.
    event: EventId,
    #[command(flatten)]
    tenant: TenantArgs,
    /// From when on it may have been published: so long ago, such as `2h`, or a time as RFC 3339; a
    /// day ago if not said. Ids that Postrider made say it themselves.
    #[arg(long, value_name = "TIME")]
    since: Option<PointInTime>,
    /// Wait until every delivery was attempted, at most this long.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub(crate) async fn run(command: EventCommand, data_dir: &DataDir) -> anyhow::Result<ExitCode> {
    match command {
        EventCommand::Publish(args) => publish(&args, data_dir).await,
        EventCommand::Show(args) => show(&args, data_dir).await.map(|()| ExitCode::SUCCESS),
    }
}

/// An event as it is published: its data stays as it is written.
#[derive(Serialize)]
struct NewEvent<'a> {
    r#type: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    occurred_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ordering_key: Option<&'a str>,
}

impl PublishArgs {
    fn event(&self, event_type: &str, data: &RawValue) -> anyhow::Result<String> {
        let event = NewEvent {
            r#type: event_type,
            data,
            id: self.id.as_ref(),
            occurred_at: self.occurred_at.as_deref(),
            ordering_key: self.ordering_key.as_deref(),
        };
        Ok(serde_json::to_string(&event)?)
    }
}

async fn publish(args: &PublishArgs, data_dir: &DataDir) -> anyhow::Result<ExitCode> {
    let client = Client::from_args(&args.api, data_dir)?;
    let path = format!("v1/tenants/{}/events", args.tenant.tenant);
    let Some(file) = &args.file else {
        let event_type = args.event_type.as_deref().context("--type is needed")?;
        let data: Box<RawValue> = serde_json::from_str(args.data.as_deref().unwrap_or_default())
            .context("--data must be JSON; a text needs double quotes inside the shell's")?;
        accepted(
            &client
                .post_raw_json(&path, args.event(event_type, &data)?)
                .await?,
            args.api.json,
        );
        return Ok(ExitCode::SUCCESS);
    };
    let (mut taken, mut refused) = (0_u64, 0_u64);
    for (index, value) in input::json_values(file)?.enumerate() {
        let number = index + 1;
        let value = value.with_context(|| {
            format!(
                "read JSON value {number} of {}; {taken} events before it were accepted",
                file.display()
            )
        })?;
        let event = match &args.event_type {
            Some(event_type) => args.event(event_type, &value)?,
            None => value.get().to_owned(),
        };
        match client.post_raw_json(&path, event).await {
            Ok(answer) => {
                accepted(&answer, args.api.json);
                taken += 1;
            }
            Err(error @ (CallError::Unreachable { .. } | CallError::Unreadable { .. })) => {
                return Err(error).with_context(|| {
                    format!("publish event {number}; {taken} before it were accepted")
                });
            }
            Err(CallError::Refused(refusal)) => {
                output::talk(format!("event {number} was refused: {refusal}"));
                refused += 1;
            }
        }
    }
    output::talk(format!("{taken} events accepted, {refused} refused"));
    Ok(if refused == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn accepted(answer: &Value, as_json: bool) {
    output::data(if as_json {
        answer.to_string()
    } else {
        output::cell(&answer["id"])
    });
}

async fn show(args: &ShowArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let client = Client::from_args(&args.api, data_dir)?;
    let deadline = args.wait.map(|wait| Instant::now() + wait);
    loop {
        let read = whole(
            &client,
            &args.tenant.tenant,
            &args.event,
            args.since.as_ref(),
        )
        .await;
        let done = match &read {
            Ok(event) => is_attempted(event),
            Err(error) => !error.is_status(StatusCode::NOT_FOUND),
        };
        if done || deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            let event = read?;
            print(&event, args.api.json);
            if !done && deadline.is_some() {
                bail!("not every delivery was attempted in the time to wait");
            }
            return Ok(());
        }
        sleep(WAIT_POLL).await;
    }
}

/// The event with everything about it: an answer that was cut is gone on with.
async fn whole(
    client: &Client,
    tenant: &TenantId,
    event: &EventId,
    since: Option<&PointInTime>,
) -> Result<Value, CallError> {
    let path = format!("v1/tenants/{tenant}/events/{event}");
    let mut query: Vec<_> = since
        .map(|since| ("since", since.to_string()))
        .into_iter()
        .collect();
    let mut whole = client.get(&path, &query).await?;
    while let Some(cursor) = whole["next_cursor"].as_str().map(str::to_owned) {
        query.retain(|(name, _)| *name != "cursor");
        query.push(("cursor", cursor));
        let mut part = client.get(&path, &query).await?;
        merge(&mut whole, &mut part);
    }
    Ok(whole)
}

fn merge(whole: &mut Value, part: &mut Value) {
    for name in ["event", "route"] {
        if whole[name].is_null() {
            whole[name] = part[name].take();
        }
    }
    for name in ["complete", "next_cursor"] {
        whole[name] = part[name].take();
    }
    let Some(parts) = part["deliveries"].as_array_mut() else {
        return;
    };
    let Some(deliveries) = whole["deliveries"].as_array_mut() else {
        return;
    };
    for mut part in parts.drain(..) {
        let same = |delivery: &&mut Value| {
            delivery["endpoint_id"] == part["endpoint_id"] && delivery["run"] == part["run"]
        };
        let Some(known) = deliveries.iter_mut().find(same) else {
            deliveries.push(part);
            continue;
        };
        let more = part["attempts"]
            .as_array()
            .is_some_and(|attempts| !attempts.is_empty());
        if more {
            known["state"] = part["state"].take();
            known["next_attempt_at"] = part["next_attempt_at"].take();
        }
        if let (Some(known), Some(more)) = (
            known["attempts"].as_array_mut(),
            part["attempts"].as_array_mut(),
        ) {
            known.append(more);
        }
    }
}

/// Whether it was routed, and each of its deliveries attempted.
fn is_attempted(event: &Value) -> bool {
    let deliveries = event["deliveries"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    !event["route"].is_null()
        && deliveries
            .iter()
            .all(|delivery| delivery["state"] != "pending")
}

fn print(event: &Value, as_json: bool) {
    if as_json {
        return output::json(event);
    }
    output::one(
        &event["event"],
        false,
        &[
            "id",
            "tenant",
            "type",
            "occurred_at",
            "accepted_at",
            "ordering_key",
            "data",
            "data_base64",
        ],
    );
    let route = &event["route"];
    if route.is_null() {
        return output::talk("It has not been routed yet.");
    }
    if route["repeated_event"] == Value::Bool(true) {
        return output::talk("Its id came before, so it was not delivered again.");
    }
    let deliveries = event["deliveries"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if deliveries.is_empty() {
        return output::talk("No endpoint wanted it.");
    }
    let overdue = super::ago(OVERDUE);
    for delivery in deliveries {
        output::data("");
        output::one(
            delivery,
            false,
            &["endpoint_id", "state", "next_attempt_at"],
        );
        if is_due_by(delivery, &overdue) {
            output::talk(
                "Its next attempt is overdue: `postrider endpoint status` says what holds it back.",
            );
        }
        attempts::of_delivery(delivery);
    }
}

/// Whether the next attempt was to begin by then. Times are written alike, so that they compare as
/// texts.
fn is_due_by(delivery: &Value, time: &str) -> bool {
    delivery["next_attempt_at"]
        .as_str()
        .is_some_and(|at| at <= time)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_due_is_told_from_what_waits_for_its_time() {
        let now = "2026-11-28T21:12:07.000Z";
        let due = |at: Value| is_due_by(&json!({ "next_attempt_at": at }), now);
        assert!(due(json!("2026-11-28T21:11:56.570Z")));
        assert!(!due(json!("2026-11-28T21:12:07.001Z")));
        assert!(!due(Value::Null));
    }

    #[test]
    fn a_cut_answer_is_put_together() {
        let mut whole = json!({
            "event": {"id": "a"}, "route": {}, "complete": false, "next_cursor": "x",
            "deliveries": [
                {"endpoint_id": "ep_1", "run": "0", "state": "retrying", "next_attempt_at": "t", "attempts": [1]},
                {"endpoint_id": "ep_2", "run": "0", "state": "delivered", "next_attempt_at": null, "attempts": [1]},
            ],
        });
        let mut part = json!({
            "event": null, "route": {}, "complete": true, "next_cursor": null,
            "deliveries": [
                {"endpoint_id": "ep_1", "run": "0", "state": "delivered", "next_attempt_at": null, "attempts": [2]},
                {"endpoint_id": "ep_2", "run": "0", "state": "pending", "next_attempt_at": null, "attempts": []},
                {"endpoint_id": "ep_1", "run": "f", "state": "delivered", "next_attempt_at": null, "attempts": [1]},
            ],
        });
        merge(&mut whole, &mut part);
        let states: Vec<_> = whole["deliveries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["state"].as_str().unwrap())
            .collect();
        assert_eq!(states, ["delivered", "delivered", "delivered"]);
        assert_eq!(whole["deliveries"][0]["attempts"], json!([1, 2]));
        assert_eq!(
            (whole["complete"].clone(), whole["next_cursor"].clone()),
            (json!(true), Value::Null)
        );
        assert_eq!(whole["event"]["id"], "a");
    }
}
