//! How what the topics hold is shown.

use std::collections::BTreeMap;

use bytes::Bytes;
use postrider_model::delivery::{
    Attempt, AttemptOutcome, DeadLetter, DeadLetterContent, RawRecord, Route, Settlement,
};
use postrider_model::event::Event;
use postrider_model::ids::{EndpointId, EventId, TenantId};
use postrider_model::payload::rfc3339;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::encoding::base64;

/// An event, its data as it came.
#[derive(Debug, Serialize)]
pub(crate) struct EventView {
    id: EventId,
    tenant: TenantId,
    r#type: String,
    occurred_at: String,
    accepted_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    ordering_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    /// Instead of `data` if that is no JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl EventView {
    pub(crate) fn of(event: &Event) -> Self {
        let data: Option<Box<RawValue>> = serde_json::from_slice(&event.data).ok();
        let data_base64 = data.is_none().then(|| base64(&event.data));
        Self {
            id: event.id.clone(),
            tenant: event.tenant.clone(),
            r#type: event.event_type.to_string(),
            occurred_at: rfc3339(event.occurred_at_ms),
            accepted_at: rfc3339(event.accepted_at_ms),
            ordering_key: event.ordering_key.clone(),
            data,
            data_base64,
        }
    }
}

pub(crate) fn route(route: &Route) -> Value {
    json!({
        "endpoints": route.endpoints,
        "routed_at": rfc3339(route.routed_at_ms),
        "registry_position": route.registry_position,
        "repeated_event": route.repeated_event,
    })
}

/// Runs are 64 bits, more than many readers of JSON keep: they are shown in hexadecimal.
pub(crate) fn run(run: u64) -> String {
    format!("{run:x}")
}

pub(crate) fn attempt(attempt: &Attempt) -> Value {
    let outcome = match attempt.outcome {
        AttemptOutcome::Succeeded => "succeeded",
        AttemptOutcome::Failed => "failed",
        AttemptOutcome::Interrupted => "interrupted",
        AttemptOutcome::None => "none",
    };
    let settlement = attempt.settlement.map(Settlement::as_str);
    json!({
        "event_id": attempt.event_id,
        "event_type": attempt.event_type,
        "endpoint_id": attempt.work.endpoint,
        "run": run(attempt.work.run),
        "attempt": attempt.number,
        "started_at": rfc3339(attempt.started_at_ms),
        "duration_ms": attempt.duration_ms,
        "outcome": outcome,
        "reason": attempt.reason.as_str(),
        "status": attempt.status,
        "detail": attempt.detail,
        "response_excerpt": String::from_utf8_lossy(&attempt.response_excerpt),
        "settlement": settlement,
        "next_attempt_at": next_attempt_at(attempt.settlement),
    })
}

fn next_attempt_at(settlement: Option<Settlement>) -> Option<String> {
    match settlement {
        Some(Settlement::RetryScheduled { due_at_ms }) => Some(rfc3339(due_at_ms)),
        Some(Settlement::Delivered | Settlement::DeadLettered | Settlement::Dropped) | None => None,
    }
}

/// What became of an event at each endpoint, from the attempts seen.
#[derive(Debug, Default)]
pub(crate) struct Deliveries(BTreeMap<(EndpointId, u64), DeliveryView>);

#[derive(Debug, Serialize)]
struct DeliveryView {
    endpoint_id: EndpointId,
    run: String,
    state: &'static str,
    next_attempt_at: Option<String>,
    attempts: Vec<Value>,
    #[serde(skip)]
    settled: u32,
}

impl Deliveries {
    /// Those that a route began: `pending` until an attempt says more.
    pub(crate) fn of(route: &Route) -> Self {
        let mut deliveries = Self::default();
        if !route.repeated_event {
            for endpoint in &route.endpoints {
                deliveries.entry(endpoint, 0);
            }
        }
        deliveries
    }

    pub(crate) fn add(&mut self, attempt: &Attempt) {
        let delivery = self.entry(&attempt.work.endpoint, attempt.work.run);
        delivery.attempts.push(self::attempt(attempt));
        if let Some(settlement) = attempt.settlement
            && attempt.number >= delivery.settled
        {
            delivery.settled = attempt.number;
            delivery.next_attempt_at = next_attempt_at(attempt.settlement);
            delivery.state = match settlement {
                Settlement::Delivered => "delivered",
                Settlement::RetryScheduled { .. } => "retrying",
                Settlement::DeadLettered => "dead_lettered",
                Settlement::Dropped => "dropped",
            };
        }
    }

    fn entry(&mut self, endpoint: &EndpointId, run: u64) -> &mut DeliveryView {
        self.0
            .entry((endpoint.clone(), run))
            .or_insert_with(|| DeliveryView {
                endpoint_id: endpoint.clone(),
                run: self::run(run),
                state: "pending",
                next_attempt_at: None,
                attempts: Vec::new(),
                settled: 0,
            })
    }

    pub(crate) fn to_json(&self) -> Value {
        json!(self.0.values().collect::<Vec<_>>())
    }
}

/// A dead letter in a list, without what it holds.
pub(crate) fn dead_letter(letter: &DeadLetter) -> Value {
    let mut shown = json!({
        "id": letter.id,
        "reason": letter.reason.as_str(),
        "detail": letter.detail,
        "dead_lettered_at": rfc3339(letter.dead_lettered_at_ms),
    });
    let more = match &letter.content {
        DeadLetterContent::Delivery(delivery) => json!({
            "last_status": letter.last_status,
            "endpoint_id": delivery.endpoint,
            "event_id": delivery.event.id,
            "event_type": delivery.event.event_type,
            "run": run(delivery.run),
            "attempt": delivery.attempt,
        }),
        DeadLetterContent::Raw(raw) => json!({
            "topic": raw.topic,
            "partition": raw.partition,
            "offset": raw.offset,
            "value_bytes": raw.value_bytes,
        }),
    };
    if let (Value::Object(shown), Value::Object(more)) = (&mut shown, more) {
        shown.extend(more);
    }
    shown
}

/// A dead letter with what it holds.
#[derive(Debug, Serialize)]
pub(crate) struct DeadLetterView {
    #[serde(flatten)]
    summary: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// Cut, if shorter than `value_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

impl DeadLetterView {
    pub(crate) fn of(letter: &DeadLetter) -> (Self, Option<EventView>) {
        let summary = dead_letter(letter);
        let base64_of = |bytes: &Bytes| Some(base64(bytes));
        match &letter.content {
            DeadLetterContent::Delivery(delivery) => (
                Self {
                    summary,
                    key_base64: None,
                    value_base64: None,
                },
                Some(EventView::of(&delivery.event)),
            ),
            DeadLetterContent::Raw(RawRecord { key, value, .. }) => (
                Self {
                    summary,
                    key_base64: base64_of(key),
                    value_base64: base64_of(value),
                },
                None,
            ),
        }
    }
}
