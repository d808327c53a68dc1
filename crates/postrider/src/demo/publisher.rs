//! Publishes a steady stream of events through the API, as a customer's service would: with an id
//! of its own, so that repeating a request after a failure publishes nothing twice.

use std::sync::Arc;
use std::time::Duration;

use postrider_daemon::CancellationToken;
use postrider_daemon::tasks::Tasks;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::ledger::Ledger;
use super::{TENANT, events};
use crate::client::{CallError, Client};
use crate::data_dir::random_bytes;

/// Twenty events a second.
const PERIOD: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_secs(1);

/// Starts publishing, until the tasks are asked to end.
pub(crate) fn spawn(tasks: &mut Tasks, client: Client, ledger: Arc<Ledger>) {
    let stop = tasks.token().clone();
    tasks.critical("demo-publisher", async move {
        publish(&client, &ledger, &stop).await
    });
}

async fn publish(
    client: &Client,
    ledger: &Ledger,
    stop: &CancellationToken,
) -> Result<(), CallError> {
    let start = u32::from_be_bytes(random_bytes());
    let path = format!("v1/tenants/{TENANT}/events");
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0_u64.. {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let (event_type, data) = events::event(u64::from(start).wrapping_add(number));
        let id = format!("demo_{start:08x}_{number}");
        let body = json!({ "id": id, "type": event_type, "data": data }).to_string();
        ledger.publishing(&id);
        match accepted(client, &path, &body, stop).await {
            Ok(true) => ledger.event_accepted(&id),
            Ok(false) => ledger.event_not_accepted(&id),
            Err(error) => {
                ledger.event_not_accepted(&id);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Publishes one event, again and again while the API asks for patience; whether it was accepted
/// before the stop.
async fn accepted(
    client: &Client,
    path: &str,
    body: &str,
    stop: &CancellationToken,
) -> Result<bool, CallError> {
    loop {
        let pause = match client.post_raw_json(path, body.to_owned()).await {
            Ok(_) => return Ok(true),
            Err(CallError::Refused(refusal)) if refusal.retry_after.is_some() => {
                refusal.retry_after.unwrap_or(PAUSE)
            }
            Err(error @ (CallError::Refused(_) | CallError::Unreadable { .. })) => {
                return Err(error);
            }
            Err(CallError::Unreachable { .. }) => PAUSE,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(false),
            () = sleep(pause) => {}
        }
    }
}
