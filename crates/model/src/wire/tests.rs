use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use url::Url;

use super::*;
use crate::api_key::{ApiKey, Holder, Scope};
use crate::audit::{Actor, ActorKind, AuditEntry};
use crate::delivery::{
    Attempt, AttemptOutcome, BlockedKey, Cursor, DeadLetter, DeadLetterContent, Delivery,
    LaneState, RawRecord, Route, Settlement,
};
use crate::endpoint::{
    Endpoint, EndpointState, PayloadFormat, RateLimit, SealedSecret, WhenBlocked,
};
use crate::event::{Event, TraceContext};
use crate::filter::{EventTypeFilter, EventTypeName};
use crate::identity::RegistryStamp;
use crate::ids::{ApiKeyId, EndpointId, EventId, TenantId};
use crate::lane_states::LaneStates;
use crate::retry::RetrySchedule;
use crate::tenant::Tenant;
use crate::work::WorkId;

mod refusals;
mod sizes;

const CONTEXT: EventContext<'static> = EventContext {
    position: EventPosition {
        partition: 3,
        offset: 42,
        appended_at_ms: 1_700_000_000_000,
    },
    traceparent: Some("00-aaaabbbbccccddddaaaabbbbccccdddd-aaaabbbbccccdddd-01"),
};

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
}

fn event_id() -> impl Strategy<Value = EventId> {
    "[A-Za-z0-9_-]{1,64}".prop_map(|text| EventId::try_new(&text).unwrap())
}

fn tenant_id() -> impl Strategy<Value = TenantId> {
    "[A-Za-z0-9_-]{1,64}".prop_map(|text| TenantId::try_new(&text).unwrap())
}

fn endpoint_id() -> impl Strategy<Value = EndpointId> {
    "ep_[A-Za-z0-9_-]{1,61}".prop_map(|text| EndpointId::try_new(&text).unwrap())
}

fn event_type() -> impl Strategy<Value = EventTypeName> {
    "[a-z_]{1,9}(\\.[a-z0-9]{1,9}){0,3}".prop_map(|text| EventTypeName::try_new(&text).unwrap())
}

fn position() -> impl Strategy<Value = EventPosition> {
    (0..=i32::MAX, 0..=i64::MAX, 0..=i64::MAX).prop_map(|(partition, offset, appended_at_ms)| {
        EventPosition {
            partition,
            offset,
            appended_at_ms,
        }
    })
}

fn reason() -> impl Strategy<Value = Reason> {
    prop::sample::select(Reason::ALL)
}

fn status() -> impl Strategy<Value = Option<u16>> {
    prop::option::of(1..=u16::MAX)
}

prop_compose! {
    fn registry_stamp()(registry_id: u64, position: u64) -> RegistryStamp {
        RegistryStamp { registry_id, position }
    }
}

prop_compose! {
    /// 0 means "not set" on the wire, so times here are never 0.
    fn event()(
        id in event_id(),
        tenant in tenant_id(),
        event_type in event_type(),
        occurred_at_ms in 1..=200_000_000_000_000_i64,
        data in bytes(),
        ordering_key in "\\PC{0,30}",
        registry in registry_stamp(),
        accepted_at_ms in 1..=i64::MAX,
        traceparent in "[0-9a-f-]{1,55}",
        tracestate in "[ -~]{0,512}",
    ) -> Event {
        let trace = TraceContext { traceparent, tracestate };
        Event {
            id, tenant, event_type, occurred_at_ms, data, ordering_key, registry,
            accepted_at_ms, trace,
        }
    }
}

prop_compose! {
    fn delivery()(
        event in event(),
        endpoint in endpoint_id(),
        position in position(),
        run: u64,
        attempt in 1..=u32::MAX,
        registry in registry_stamp(),
        due_at_ms: i64,
        ordered: bool,
    ) -> Delivery {
        Delivery { event, endpoint, position, run, attempt, registry, due_at_ms, ordered }
    }
}

prop_compose! {
    fn route()(
        event_id in event_id(),
        tenant in tenant_id(),
        event_type in event_type(),
        position in position(),
        registry_position: u64,
        endpoints in prop::collection::vec(endpoint_id(), 0..4),
        accepted_at_ms: i64,
        routed_at_ms: i64,
        repeated_event: bool,
        traceparent in "[0-9a-f-]{0,55}",
    ) -> Route {
        Route {
            event_id, tenant, event_type, position, registry_position, endpoints, accepted_at_ms,
            routed_at_ms, repeated_event, traceparent,
        }
    }
}

fn settlement() -> impl Strategy<Value = Option<Settlement>> {
    prop_oneof![
        Just(None),
        Just(Some(Settlement::Delivered)),
        any::<i64>().prop_map(|due_at_ms| Some(Settlement::RetryScheduled { due_at_ms })),
        Just(Some(Settlement::DeadLettered)),
        Just(Some(Settlement::Dropped)),
    ]
}

fn outcome() -> impl Strategy<Value = AttemptOutcome> {
    prop::sample::select(vec![
        AttemptOutcome::Succeeded,
        AttemptOutcome::Failed,
        AttemptOutcome::Interrupted,
        AttemptOutcome::None,
    ])
}

prop_compose! {
    fn attempt()(
        (event_id, tenant, event_type) in (event_id(), tenant_id(), event_type()),
        (position, endpoint, run) in (position(), endpoint_id(), any::<u64>()),
        number in 1..=u32::MAX,
        (started_at_ms, duration_ms, accepted_at_ms) in any::<(i64, u32, i64)>(),
        (outcome, reason, status) in (outcome(), reason(), status()),
        (detail, traceparent) in any::<(String, String)>(),
        response_excerpt in bytes(),
        settlement in settlement(),
        delivery_offset: Option<i64>,
    ) -> Attempt {
        let work = WorkId { position, endpoint, run };
        Attempt {
            event_id, tenant, event_type, work, number, started_at_ms, duration_ms, outcome,
            reason, status, detail, response_excerpt, settlement, accepted_at_ms, traceparent,
            delivery_offset,
        }
    }
}

prop_compose! {
    fn blocked_key()(
        ordering_key in "\\PC{0,30}",
        cursor: i64,
        attempt: u32,
        due_at_ms: i64,
        failed_at_ms in prop::option::of(1..i64::MAX),
    ) -> BlockedKey {
        BlockedKey { ordering_key, cursor, attempt, due_at_ms, failed_at_ms }
    }
}

prop_compose! {
    fn lane_state()(
        endpoint in endpoint_id(),
        state_id: i64,
        cursor in prop::option::of((any::<i64>(), prop::collection::btree_set(any::<i64>(), 0..9), any::<i64>())),
        failing_since_ms in prop::option::of(1..i64::MAX),
        breaker_openings: u32,
        breaker_open_until_ms: i64,
        blocked in prop::collection::vec(blocked_key(), 0..4),
    ) -> LaneState {
        let cursor = cursor.map(|(lowest_unsettled, settled, behind_since_ms)| Cursor { lowest_unsettled, settled, behind_since_ms });
        LaneState { endpoint, state_id, cursor, failing_since_ms, breaker_openings, breaker_open_until_ms, blocked }
    }
}

prop_compose! {
    fn raw_record()(
        topic: String, partition: i32, offset: i64, key in bytes(), value in bytes(),
        value_bytes: u64,
    ) -> RawRecord {
        RawRecord { topic, partition, offset, key, value, value_bytes }
    }
}

prop_compose! {
    fn dead_letter()(
        id in "dl_[0-9a-f]{1,32}",
        reason in reason(),
        detail: String,
        dead_lettered_at_ms: i64,
        last_status in status(),
        content in prop_oneof![
            delivery().prop_map(|delivery| DeadLetterContent::Delivery(Box::new(delivery))),
            raw_record().prop_map(DeadLetterContent::Raw),
        ],
    ) -> DeadLetter {
        DeadLetter { id, reason, detail, dead_lettered_at_ms, last_status, content }
    }
}

fn metadata() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(any::<String>(), any::<String>(), 0..3)
}

prop_compose! {
    fn tenant()(
        id in tenant_id(), name: String, metadata in metadata(), paused: bool, created_at_ms: i64,
        portal_token_generation: u64,
    ) -> Tenant {
        Tenant { id, name, metadata, paused, created_at_ms, portal_token_generation }
    }
}

fn api_key_id() -> impl Strategy<Value = ApiKeyId> {
    "key_[A-Za-z0-9_-]{1,60}".prop_map(|text| ApiKeyId::try_new(&text).unwrap())
}

fn holder() -> impl Strategy<Value = Holder> {
    let scopes = prop::sample::subsequence(&Scope::ALL, 0..=Scope::ALL.len());
    let of_tenant = (tenant_id(), scopes).prop_map(|(tenant, scopes)| Holder::Tenant {
        tenant,
        scopes: scopes.into_iter().collect(),
    });
    prop_oneof![Just(Holder::Operator), of_tenant]
}

prop_compose! {
    fn api_key()(
        (id, holder) in (api_key_id(), holder()), name: String, hash: [u8; 32], prefix: String,
        created_at_ms: i64, expires_at_ms in prop::option::of(1..=i64::MAX),
        last_used_at_ms in prop::option::of(1..=i64::MAX),
    ) -> ApiKey {
        ApiKey { id, name, holder, hash, prefix, created_at_ms, expires_at_ms, last_used_at_ms }
    }
}

fn actor() -> impl Strategy<Value = Actor> {
    let kind = prop::sample::select(vec![
        ActorKind::ConfiguredKey,
        ActorKind::OperatorKey,
        ActorKind::TenantKey,
        ActorKind::PortalToken,
    ]);
    (kind, prop::option::of(api_key_id()), any::<String>()).prop_map(|(kind, key_id, name)| Actor {
        kind,
        key_id,
        name,
    })
}

prop_compose! {
    fn audit_entry()(
        (id, action, subject) in any::<(String, String, String)>(), asked_at_ms: i64,
        (actor, tenant) in (actor(), prop::option::of(tenant_id())),
        status: u16, (address, trace_id) in any::<(String, String)>(),
    ) -> AuditEntry {
        AuditEntry { id, asked_at_ms, actor, tenant, action, subject, status, address, trace_id }
    }
}

prop_compose! {
    fn sealed_secret()(
        key_id: String,
        sealed: Vec<u8>,
        expires_at_ms in prop::option::of(1..=i64::MAX),
    ) -> SealedSecret {
        SealedSecret { key_id, sealed, expires_at_ms }
    }
}

fn endpoint_state() -> impl Strategy<Value = EndpointState> {
    prop_oneof![
        Just(EndpointState::Enabled),
        Just(EndpointState::Paused),
        (any::<String>(), any::<i64>())
            .prop_map(|(reason, since_ms)| EndpointState::Disabled { reason, since_ms }),
    ]
}

fn when_blocked() -> impl Strategy<Value = WhenBlocked> {
    prop_oneof![Just(WhenBlocked::DeadLetter), Just(WhenBlocked::Wait)]
}

fn rate_limit() -> impl Strategy<Value = RateLimit> {
    (0.001..=100_000.0, 1..=100_000_u32)
        .prop_map(|(per_second, burst)| RateLimit::try_new(per_second, burst).unwrap())
}

prop_compose! {
    fn endpoint()(
        (id, tenant) in (endpoint_id(), tenant_id()),
        path in "[a-z0-9/]{0,20}",
        (description, metadata) in (any::<String>(), metadata()),
        patterns in prop::collection::vec("[a-z]{1,5}(\\.\\*)?", 0..4),
        format in prop::sample::select(vec![PayloadFormat::Standard, PayloadFormat::Raw]),
        delays_ms in prop::option::of(prop::collection::vec(1_000..=86_400_000_i64, 0..5)),
        attempt_timeout_ms in prop::option::of(1..=u32::MAX),
        secrets in prop::collection::vec(sealed_secret(), 0..3),
        (rate_limit, ordered, discard_matched_before) in
            (prop::option::of(rate_limit()), prop::option::of(when_blocked()), any::<u64>()),
        state in endpoint_state(),
        created_at_ms: i64,
    ) -> Endpoint {
        Endpoint {
            id, tenant, description, metadata, format, attempt_timeout_ms, secrets, state,
            rate_limit, ordered, discard_matched_before, created_at_ms,
            url: Url::parse(&format!("https://example.com/{path}")).unwrap(),
            event_types: EventTypeFilter::try_new(patterns).unwrap(),
            retry_schedule: delays_ms.map(|delays_ms| RetrySchedule::try_new(delays_ms).unwrap()),
        }
    }
}

proptest! {
    #[test]
    fn events_survive_the_wire(event in event()) {
        prop_assert_eq!(Event::decode(&event.encode(), CONTEXT).unwrap(), event);
    }

    #[test]
    fn deliveries_survive_the_wire(delivery in delivery()) {
        prop_assert_eq!(Delivery::decode(&delivery.encode()).unwrap(), delivery);
    }

    #[test]
    fn routes_survive_the_wire(route in route()) {
        prop_assert_eq!(Route::decode(&route.encode()).unwrap(), route);
    }

    #[test]
    fn lane_states_survive_the_wire(state in lane_state()) {
        prop_assert_eq!(LaneState::decode(&state.encode()).unwrap(), state);
    }

    #[test]
    fn attempts_survive_the_wire(attempt in attempt()) {
        prop_assert_eq!(Attempt::decode(&attempt.encode()).unwrap(), attempt);
    }

    #[test]
    fn dead_letters_survive_the_wire(letter in dead_letter()) {
        prop_assert_eq!(DeadLetter::decode(&letter.encode()).unwrap(), letter);
    }

    #[test]
    fn tenants_survive_the_wire(tenant in tenant()) {
        prop_assert_eq!(Tenant::try_from(tenant.to_proto()).unwrap(), tenant);
    }

    #[test]
    fn keys_survive_the_wire(key in api_key()) {
        prop_assert_eq!(ApiKey::try_from(key.to_proto()).unwrap(), key);
    }

    #[test]
    fn audit_entries_survive_the_wire(entry in audit_entry()) {
        prop_assert_eq!(AuditEntry::decode(&entry.encode()).unwrap(), entry);
    }

    #[test]
    fn endpoints_survive_the_wire(endpoint in endpoint()) {
        prop_assert_eq!(Endpoint::try_from(endpoint.to_proto()).unwrap(), endpoint);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(value in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_as_everything(&value);
    }

    /// Reaches deeper than arbitrary bytes, which are rarely a message.
    #[test]
    fn damaged_records_are_decoded_or_refused(
        letter in dead_letter(),
        at in any::<prop::sample::Index>(),
        byte: u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut value = letter.encode().to_vec();
        let index = at.index(value.len());
        value[index] = byte;
        decode_as_everything(&value);
        value.truncate(cut.index(value.len()));
        decode_as_everything(&value);
    }
}

fn decode_as_everything(value: &[u8]) {
    drop(Event::decode(&Bytes::copy_from_slice(value), CONTEXT));
    drop(Delivery::decode(value));
    drop(Route::decode(value));
    drop(Attempt::decode(value));
    drop(LaneState::decode(value));
    drop(LaneStates::<LaneState>::default().read(value, Some(value), 0));
    drop(LaneStates::<LaneState>::default().read(b"lane/ep_a/1", Some(value), 0));
    drop(DeadLetter::decode(value));
    drop(proto::Endpoint::decode(value).map(Endpoint::try_from));
    drop(proto::Tenant::decode(value).map(Tenant::try_from));
    drop(proto::ApiKey::decode(value).map(ApiKey::try_from));
    drop(AuditEntry::decode(&Bytes::copy_from_slice(value)));
}
