//! Deliveries, attempts and dead letters, as the stages write them for each other.

use bytes::Bytes;
use prost::Message;

use super::event::{event_from_proto, event_to_proto};
use super::{
    InvalidRecord, field, message, position_from_proto, position_to_proto, proto,
    registry_id_to_proto, registry_stamp, status_from_proto,
};
use crate::delivery::{
    Attempt, AttemptOutcome, BlockedKey, Cursor, DeadLetter, DeadLetterContent, Delivery,
    LaneState, RawRecord, Settlement,
};
use crate::filter::EventTypeName;
use crate::ids::{EndpointId, EventId, TenantId};
use crate::work::WorkId;

impl Delivery {
    /// The value of its record in `deliveries` or `retry`.
    pub fn encode(&self) -> Bytes {
        delivery_to_proto(self).encode_to_vec().into()
    }

    /// Reads the value of a record in `deliveries` or `retry`.
    ///
    /// # Errors
    /// When it is malformed or asks for something that is not supported.
    pub fn decode(value: &[u8]) -> Result<Self, InvalidRecord> {
        delivery_from_proto(message("delivery", value)?)
    }
}

fn delivery_to_proto(delivery: &Delivery) -> proto::Delivery {
    proto::Delivery {
        event: Some(event_to_proto(&delivery.event)),
        endpoint_id: delivery.endpoint.as_str().to_owned(),
        position: Some(position_to_proto(delivery.position)),
        run: delivery.run,
        attempt: delivery.attempt,
        registry_position: delivery.registry.position,
        registry_id: registry_id_to_proto(delivery.registry),
        due_at_ms: delivery.due_at_ms,
        ordered: delivery.ordered,
    }
}

fn delivery_from_proto(delivery: proto::Delivery) -> Result<Delivery, InvalidRecord> {
    if delivery.attempt == 0 {
        return Err(InvalidRecord::malformed("attempt", "must be at least 1"));
    }
    let event = delivery
        .event
        .ok_or_else(|| InvalidRecord::missing("event"))?;
    Ok(Delivery {
        event: event_from_proto(event)?,
        endpoint: field("endpoint_id", EndpointId::try_new(&delivery.endpoint_id))?,
        position: position_from_proto(delivery.position)?,
        run: delivery.run,
        attempt: delivery.attempt,
        registry: registry_stamp(delivery.registry_id, delivery.registry_position),
        due_at_ms: delivery.due_at_ms,
        ordered: delivery.ordered,
    })
}

impl Attempt {
    /// The value of its record in `attempts`.
    pub fn encode(&self) -> Bytes {
        let (settlement, next_due_at_ms) = settlement_to_proto(self.settlement);
        let attempt = proto::Attempt {
            event_id: self.event_id.as_str().to_owned(),
            tenant: self.tenant.as_str().to_owned(),
            event_type: self.event_type.as_str().to_owned(),
            endpoint_id: self.work.endpoint.as_str().to_owned(),
            position: Some(position_to_proto(self.work.position)),
            run: self.work.run,
            attempt: self.number,
            started_at_ms: self.started_at_ms,
            duration_ms: self.duration_ms,
            outcome: outcome_to_proto(self.outcome).into(),
            reason: self.reason.as_str().to_owned(),
            status: self.status.map_or(0, u32::from),
            detail: self.detail.clone(),
            response_excerpt: self.response_excerpt.clone(),
            settlement: settlement.into(),
            next_due_at_ms,
            accepted_at_ms: self.accepted_at_ms,
            traceparent: self.traceparent.clone(),
            delivery_offset: self.delivery_offset,
        };
        attempt.encode_to_vec().into()
    }

    /// Reads the value of a record in `attempts`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(value: &[u8]) -> Result<Self, InvalidRecord> {
        let attempt: proto::Attempt = message("attempt", value)?;
        if attempt.attempt == 0 {
            return Err(InvalidRecord::malformed("attempt", "must be at least 1"));
        }
        Ok(Self {
            event_id: field("event_id", EventId::try_new(&attempt.event_id))?,
            tenant: field("tenant", TenantId::try_new(&attempt.tenant))?,
            event_type: field("event_type", EventTypeName::try_new(&attempt.event_type))?,
            work: WorkId {
                position: position_from_proto(attempt.position)?,
                endpoint: field("endpoint_id", EndpointId::try_new(&attempt.endpoint_id))?,
                run: attempt.run,
            },
            number: attempt.attempt,
            started_at_ms: attempt.started_at_ms,
            duration_ms: attempt.duration_ms,
            outcome: outcome_from_proto(attempt.outcome)?,
            reason: field("reason", attempt.reason.parse())?,
            status: status_from_proto("status", attempt.status)?,
            detail: attempt.detail,
            response_excerpt: attempt.response_excerpt,
            settlement: settlement_from_proto(attempt.settlement, attempt.next_due_at_ms)?,
            accepted_at_ms: attempt.accepted_at_ms,
            traceparent: attempt.traceparent,
            delivery_offset: attempt.delivery_offset,
        })
    }
}

impl LaneState {
    /// The value of its record in `endpoint-state`.
    pub fn encode(&self) -> Bytes {
        let cursor = self.cursor.as_ref();
        let state = proto::LaneState {
            endpoint_id: self.endpoint.as_str().to_owned(),
            state_id: self.state_id,
            cursor: cursor.map(|cursor| cursor.lowest_unsettled),
            settled: cursor
                .map_or_else(Vec::new, |cursor| cursor.settled.iter().copied().collect()),
            failing_since_ms: self.failing_since_ms.unwrap_or(0),
            breaker_openings: self.breaker_openings,
            breaker_open_until_ms: self.breaker_open_until_ms,
            behind_since_ms: cursor.map_or(0, |cursor| cursor.behind_since_ms),
            blocked: self.blocked.iter().map(blocked_to_proto).collect(),
        };
        state.encode_to_vec().into()
    }

    /// Reads the value of a record in `endpoint-state`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(value: &[u8]) -> Result<Self, InvalidRecord> {
        let state: proto::LaneState = message("lane_state", value)?;
        let settled = state.settled;
        let behind_since_ms = state.behind_since_ms;
        Ok(Self {
            endpoint: field("endpoint_id", EndpointId::try_new(&state.endpoint_id))?,
            state_id: state.state_id,
            cursor: state.cursor.map(|lowest_unsettled| Cursor {
                lowest_unsettled,
                settled: settled.into_iter().collect(),
                behind_since_ms,
            }),
            failing_since_ms: (state.failing_since_ms != 0).then_some(state.failing_since_ms),
            breaker_openings: state.breaker_openings,
            breaker_open_until_ms: state.breaker_open_until_ms,
            blocked: state.blocked.into_iter().map(blocked_from_proto).collect(),
        })
    }
}

fn blocked_to_proto(blocked: &BlockedKey) -> proto::BlockedKey {
    proto::BlockedKey {
        ordering_key: blocked.ordering_key.clone(),
        cursor: blocked.cursor,
        attempt: blocked.attempt,
        due_at_ms: blocked.due_at_ms,
        failed_at_ms: blocked.failed_at_ms.unwrap_or(0),
    }
}

fn blocked_from_proto(blocked: proto::BlockedKey) -> BlockedKey {
    BlockedKey {
        ordering_key: blocked.ordering_key,
        cursor: blocked.cursor,
        attempt: blocked.attempt,
        due_at_ms: blocked.due_at_ms,
        failed_at_ms: (blocked.failed_at_ms != 0).then_some(blocked.failed_at_ms),
    }
}

fn outcome_to_proto(outcome: AttemptOutcome) -> proto::AttemptOutcome {
    match outcome {
        AttemptOutcome::Succeeded => proto::AttemptOutcome::Succeeded,
        AttemptOutcome::Failed => proto::AttemptOutcome::Failed,
        AttemptOutcome::Interrupted => proto::AttemptOutcome::Interrupted,
        AttemptOutcome::None => proto::AttemptOutcome::None,
    }
}

fn outcome_from_proto(outcome: i32) -> Result<AttemptOutcome, InvalidRecord> {
    match field("outcome", proto::AttemptOutcome::try_from(outcome))? {
        proto::AttemptOutcome::Unspecified => Err(InvalidRecord::missing("outcome")),
        proto::AttemptOutcome::Succeeded => Ok(AttemptOutcome::Succeeded),
        proto::AttemptOutcome::Failed => Ok(AttemptOutcome::Failed),
        proto::AttemptOutcome::Interrupted => Ok(AttemptOutcome::Interrupted),
        proto::AttemptOutcome::None => Ok(AttemptOutcome::None),
    }
}

/// The settlement, and when the next attempt is due if it says one is.
fn settlement_to_proto(settlement: Option<Settlement>) -> (proto::Settlement, i64) {
    match settlement {
        None => (proto::Settlement::Unspecified, 0),
        Some(Settlement::Delivered) => (proto::Settlement::Delivered, 0),
        Some(Settlement::RetryScheduled { due_at_ms }) => {
            (proto::Settlement::RetryScheduled, due_at_ms)
        }
        Some(Settlement::DeadLettered) => (proto::Settlement::DeadLettered, 0),
        Some(Settlement::Dropped) => (proto::Settlement::Dropped, 0),
    }
}

fn settlement_from_proto(
    settlement: i32,
    next_due_at_ms: i64,
) -> Result<Option<Settlement>, InvalidRecord> {
    Ok(
        match field("settlement", proto::Settlement::try_from(settlement))? {
            proto::Settlement::Unspecified => None,
            proto::Settlement::Delivered => Some(Settlement::Delivered),
            proto::Settlement::RetryScheduled => Some(Settlement::RetryScheduled {
                due_at_ms: next_due_at_ms,
            }),
            proto::Settlement::DeadLettered => Some(Settlement::DeadLettered),
            proto::Settlement::Dropped => Some(Settlement::Dropped),
        },
    )
}

impl DeadLetter {
    /// The value of its record in `dead-letters`.
    pub fn encode(&self) -> Bytes {
        let content = match &self.content {
            DeadLetterContent::Delivery(delivery) => {
                proto::dead_letter::Content::Delivery(delivery_to_proto(delivery))
            }
            DeadLetterContent::Raw(raw) => proto::dead_letter::Content::Raw(proto::RawRecord {
                topic: raw.topic.clone(),
                partition: raw.partition,
                offset: raw.offset,
                key: raw.key.clone(),
                value: raw.value.clone(),
                value_bytes: raw.value_bytes,
            }),
        };
        let letter = proto::DeadLetter {
            id: self.id.clone(),
            reason: self.reason.as_str().to_owned(),
            detail: self.detail.clone(),
            dead_lettered_at_ms: self.dead_lettered_at_ms,
            content: Some(content),
            last_status: self.last_status.map_or(0, u32::from),
        };
        letter.encode_to_vec().into()
    }

    /// Reads the value of a record in `dead-letters`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(value: &[u8]) -> Result<Self, InvalidRecord> {
        let letter: proto::DeadLetter = message("dead_letter", value)?;
        if letter.id.is_empty() {
            return Err(InvalidRecord::missing("id"));
        }
        let content = match letter
            .content
            .ok_or_else(|| InvalidRecord::missing("content"))?
        {
            proto::dead_letter::Content::Delivery(delivery) => {
                DeadLetterContent::Delivery(Box::new(delivery_from_proto(delivery)?))
            }
            proto::dead_letter::Content::Raw(raw) => DeadLetterContent::Raw(RawRecord {
                topic: raw.topic,
                partition: raw.partition,
                offset: raw.offset,
                key: raw.key,
                value: raw.value,
                value_bytes: raw.value_bytes,
            }),
        };
        Ok(Self {
            id: letter.id,
            reason: field("reason", letter.reason.parse())?,
            detail: letter.detail,
            dead_lettered_at_ms: letter.dead_lettered_at_ms,
            last_status: status_from_proto("last_status", letter.last_status)?,
            content,
        })
    }
}
