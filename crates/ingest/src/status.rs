//! How an endpoint is doing, for the worst hour: what the log says, and what the process that owns
//! it says itself.
//!
//! The log is asked first and always answers: who owns the endpoint's partition and how far it is,
//! what it wrote down of the lane, and the last attempts. The owner knows the rest (queue, attempts
//! under way, learned concurrency), and may be the very process that is in trouble: if it does not
//! answer, that is part of the answer.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::{Extension, Json};
use postrider_log::{Offset, Partition, Record, partition_for};
use postrider_model::api_key::Holder;
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::{Attempt, AttemptOutcome, LaneState, Settlement};
use postrider_model::endpoint::{Endpoint, EndpointState};
use postrider_model::ids::EndpointId;
use postrider_model::lane_states::LaneStates;
use postrider_model::payload::rfc3339;
use postrider_model::topics::{ATTEMPTS, DELIVERIES, ENDPOINT_STATE, GROUP_DELIVER};
use postrider_registry::Gate;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::problem::Problem;
use crate::reading::{Backward, Budget, Forward, Found, Step};
use crate::request::Segments;
use crate::shared::{ApiState, Shared};
use crate::{endpoints, lists, owner, views};

/// The newest attempts that are looked at.
const ATTEMPTS_MAX: usize = 100;

/// `GET /v1/tenants/{tenant}/endpoints/{endpoint}/status`
pub(crate) async fn show(
    State(api): ApiState,
    Extension(caller): Extension<Caller>,
    Segments((tenant, id)): Segments<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let found = endpoints::find(&api, &tenant, &id).await?;
    let endpoint = &*found.value;
    let mut budget = api.readers.admit(Some(&endpoint.tenant))?;
    let group = api.readers.committed(GROUP_DELIVER, DELIVERIES).await?;
    let partitions = api.readers.key_partitions(DELIVERIES).await?;
    let partition = partition_for(endpoint.id.as_str().as_bytes(), partitions);
    let committed = usize::try_from(partition)
        .ok()
        .and_then(|index| group.get(index));
    let committed = committed.and_then(Option::as_ref);
    let offset = committed.map(|committed| committed.offset);
    let metadata = committed.map_or("", |committed| &committed.metadata);
    let note = CommitNote::decode(metadata);
    let owner = Some(&note.owner).filter(|owner| !owner.is_empty());
    let end = api.readers.end(DELIVERIES, partition).await?;
    let states_end = api.readers.end(ENDPOINT_STATE, partition).await?;
    let stopped = stopped(offset, end, &note, states_end);

    let (states, lane_read) = read_states(&api, partition, &endpoint.id, &mut budget).await?;
    let lane = states.counting(offset.unwrap_or(0), &note, end).next();
    let (attempts, attempts_read) =
        read_attempts(&api, partition, &endpoint.id, &mut budget).await?;
    // Waiting for the owner is no reading: others may read meanwhile.
    drop(budget);
    let (live, live_error) = match owner {
        None => (
            None,
            Some("no process says that it owns the partition".to_owned()),
        ),
        Some(owner) => match owner::ask(owner, &endpoint.id).await {
            Ok(live) => (Some(live), None),
            Err(silence) => (None, Some(silence.to_string())),
        },
    };
    let (disabled_reason, disabled_since) = match &endpoint.state {
        EndpointState::Disabled { reason, since_ms } => (Some(reason), Some(rfc3339(*since_ms))),
        EndpointState::Enabled | EndpointState::Paused => (None, None),
    };
    let failed = |attempt: &&Attempt| attempt.outcome == AttemptOutcome::Failed;
    let mut status = json!({
        "endpoint_id": endpoint.id,
        "gate": gate_name(api.registry.gate(endpoint)),
        "obstacles": obstacles(&api, endpoint, stopped),
        "disabled_reason": disabled_reason,
        "disabled_since": disabled_since,
        "partition": partition,
        "owner": owner,
        "committed_offset": offset,
        "end_offset": end,
        "partition_lag": offset.map(|offset| (end - offset).max(0)),
        "lane": lane.as_ref().map(|lane| lane_view(lane, end)),
        "last_attempt": attempts.first().map(views::attempt),
        "last_error": attempts.iter().find(failed).map(views::attempt),
        "next_retry_at": next_retry_ms(&attempts, lane.as_ref()).map(rfc3339),
        "live": live,
        "live_error": live_error,
        "complete": lane_read && attempts_read,
    });
    if caller.holder != Holder::Operator {
        hide_the_installation(&mut status);
    }
    Ok(Json(status))
}

/// Takes out what tells of the installation and of other tenants: processes, keys, and how much is
/// in partitions that many share.
fn hide_the_installation(status: &mut Value) {
    const OPERATORS: [&str; 8] = [
        "partition",
        "owner",
        "committed_offset",
        "end_offset",
        "partition_lag",
        "live",
        "live_error",
        "obstacles",
    ];
    let Some(fields) = status.as_object_mut() else {
        return;
    };
    for name in OPERATORS {
        fields.remove(name);
    }
    let lane = fields.get_mut("lane").and_then(Value::as_object_mut);
    let behind = lane.and_then(|lane| lane.get_mut("behind")?.as_object_mut());
    if let Some(behind) = behind {
        behind.retain(|name, _| name == "since");
    }
}

/// What keeps deliveries from being sent that is neither the endpoint's fault nor anybody's wish,
/// as far as it shows from here. The owner's own obstacles are among what it says itself.
fn obstacles(api: &Shared, endpoint: &Endpoint, stopped: Option<String>) -> Vec<String> {
    let mut obstacles = Vec::new();
    let now_ms = api.clock.now_ms();
    if let Err(error) = api.registry.signing_secrets(endpoint, now_ms) {
        obstacles.push(format!(
            "a signing secret does not open with the keys of ingest: {error}"
        ));
    }
    if let Some(loss) = api.registry.loss() {
        obstacles.push(format!(
            "records of the registry were lost, and no event is matched until an operator decides \
             (`postrider recover --registry`): {}",
            loss.detail
        ));
    }
    obstacles.extend(stopped.map(|why| {
        format!("its partition is stopped until an operator decides (`postrider recover --stage deliver`): {why}")
    }));
    obstacles
}

/// Why the partition is stopped, as far as its commit and the ends of the topics tell. That a log
/// is another than it was, its owner looks at and says (`postrider_partitions_stopped`).
fn stopped(
    committed: Option<Offset>,
    end: Offset,
    note: &CommitNote,
    states_end: Offset,
) -> Option<String> {
    match committed {
        None if end > 0 => Some("its committed offset was lost".to_owned()),
        Some(offset) if offset > end => Some(format!(
            "{offset} is committed, beyond its end at {end}: its topic was made again or lost its \
             last records"
        )),
        Some(_) if note.made_again => Some("its topic was made again".to_owned()),
        Some(_) => note
            .last_state()
            .filter(|state| states_end <= *state)
            .map(|state| format!("offset {state} of endpoint-state was written and is gone")),
        None => None,
    }
}

/// The endpoint's states, and whether the topic was read to its end.
async fn read_states(
    api: &Shared,
    partition: Partition,
    endpoint: &EndpointId,
    budget: &mut Budget,
) -> Result<(LaneStates, bool), Problem> {
    let mut topic = api.readers.topic(ENDPOINT_STATE, budget).await?;
    let ranges = topic.ranges([partition], None, None).await?;
    let mut records = Forward::new(topic, ranges);
    let mut states = LaneStates::only_of(endpoint.clone());
    loop {
        match records.next(budget).await? {
            Step::Records(records) => {
                for record in records {
                    let value = record.value.as_deref();
                    let read = states.read(&record.key, value, record.timestamp_ms);
                    // Who owns the partition complains about what nobody understands.
                    drop(read);
                }
            }
            Step::Done => return Ok((states, true)),
            Step::Cut => return Ok((states, false)),
        }
    }
}

/// The newest attempts, newest first, and whether all that were asked for could be read.
async fn read_attempts(
    api: &Shared,
    partition: Partition,
    endpoint: &EndpointId,
    budget: &mut Budget,
) -> Result<(Vec<Attempt>, bool), Problem> {
    let mut topic = api.readers.topic(ATTEMPTS, budget).await?;
    let since_ms = lists::since_default_ms(api, api.clock.now_ms());
    let ranges = topic.ranges([partition], Some(since_ms), None).await?;
    let select = |record: &Record| {
        let attempt = Attempt::decode(record.value.as_ref()?).ok()?;
        (attempt.work.endpoint == *endpoint).then_some(attempt)
    };
    let mut newest = Backward::new(topic, ranges, ATTEMPTS_MAX, select);
    let mut attempts = Vec::new();
    while attempts.len() < ATTEMPTS_MAX {
        match newest.next(budget).await? {
            Found::Item(attempt) => attempts.push(attempt),
            Found::Done => break,
            Found::Cut => return Ok((attempts, false)),
        }
    }
    Ok((attempts, true))
}

/// When the first of the deliveries is due whose last attempt led to a retry. Of the heads of
/// blocked ordering keys the lane tells it, where the attempt is older than those that were read.
fn next_retry_ms(newest_first: &[Attempt], lane: Option<&LaneState>) -> Option<i64> {
    let mut seen = BTreeSet::new();
    let last_of_each = newest_first
        .iter()
        .filter(|attempt| seen.insert(&attempt.work));
    let due = last_of_each.filter_map(|attempt| match attempt.settlement {
        Some(Settlement::RetryScheduled { due_at_ms }) => Some(due_at_ms),
        Some(Settlement::Delivered | Settlement::DeadLettered | Settlement::Dropped) | None => None,
    });
    let attempted: BTreeSet<Offset> = newest_first
        .iter()
        .filter_map(|attempt| attempt.delivery_offset)
        .collect();
    let blocked = lane.map_or(&[][..], |lane| &lane.blocked).iter();
    let failed_before =
        blocked.filter(|key| key.failed_at_ms.is_some() && !attempted.contains(&key.cursor));
    due.chain(failed_before.map(|key| key.due_at_ms)).min()
}

fn lane_view(lane: &LaneState, end: Offset) -> Value {
    let behind = lane.behind().map(|behind| {
        json!({
            "since": rfc3339(behind.since_ms),
            "offset": behind.from,
            // Other endpoints share the partition, so these are not all its own.
            "records_at_most": behind.offsets(end),
        })
    });
    let breaker = json!({
        "openings": lane.breaker_openings,
        "open_until": (lane.breaker_openings > 0).then(|| rfc3339(lane.breaker_open_until_ms)),
    });
    json!({
        "behind": behind,
        "breaker": breaker,
        "failing_since": lane.failing_since_ms.map(rfc3339),
    })
}

fn gate_name(gate: Gate) -> &'static str {
    match gate {
        Gate::Open => "open",
        Gate::PausedEndpoint => "endpoint_paused",
        Gate::PausedTenant => "tenant_paused",
        Gate::PausedInstallation => "installation_paused",
        Gate::Disabled => "endpoint_disabled",
    }
}
