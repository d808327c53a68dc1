//! Records of releases as they were written, kept as bytes: this release must read them, and one
//! that knows less than the writer must not misread it.
//!
//! A folder in `golden` holds what a release wrote. Its files never change. Before a release whose
//! records have changed, name the next folder in `WRITES`, run this test with
//! `POSTRIDER_GENERATE=1`, and say here what is read from the former.
//! `crates/delivery/tests/golden.rs` carries the records of every folder from their topics to the
//! endpoint.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use postrider_model::api_key::{ApiKey, Holder, Scope};
use postrider_model::audit::{Actor, ActorKind, AuditEntry};
use postrider_model::commit_note::{CommitNote, Mark};
use postrider_model::delivery::{
    Attempt, AttemptOutcome, BlockedKey, Cursor, DeadLetter, DeadLetterContent, Delivery,
    LaneState, RawRecord, Route, Settlement,
};
use postrider_model::endpoint::{
    Endpoint, EndpointState, PayloadFormat, RateLimit, SealedSecret, WhenBlocked,
};
use postrider_model::event::{Event, EventPosition, TraceContext};
use postrider_model::filter::{EventTypeFilter, EventTypeName};
use postrider_model::identity::RegistryStamp;
use postrider_model::ids::{ApiKeyId, EndpointId, EventId, TenantId};
use postrider_model::lane_states::{LaneStates, StateRecord};
use postrider_model::outcome::Reason;
use postrider_model::retry::RetrySchedule;
use postrider_model::tenant::Tenant;
use postrider_model::wire::{EventContext, proto};
use postrider_model::work::WorkId;
use prost::Message;
use proto::registry_record::Entity;

/// The folder that this release's records are in.
const WRITES: &str = "v1";

/// Field 100 with a text, as a later release may write one.
const LATER: &[u8] = b"\xa2\x06\x05later";

/// The bytes of a record as a release wrote them.
fn kept(name: &str) -> Bytes {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    fs::read(all.join(WRITES).join(name)).unwrap().into()
}

/// The same, and that this release still writes it so.
fn golden(name: &str, written: &Bytes) -> Bytes {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = all.join(WRITES).join(name);
    let generate = std::env::var_os("POSTRIDER_GENERATE").is_some_and(|value| value == "1");
    if generate && !path.exists() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, written).unwrap();
    }
    let kept = kept(name);
    assert!(
        kept == *written,
        "{name} is written in another way: put this release's records into a folder of their own and go on reading this one"
    );
    kept
}

/// Reads it as it was kept, and with a field that this release does not know.
fn reads_as<T: PartialEq + Debug>(
    name: &str,
    written: &Bytes,
    value: &T,
    read: impl Fn(&Bytes) -> T,
) {
    let kept = golden(name, written);
    assert_eq!(read(&kept), *value, "{name}");
    let later = Bytes::from([&kept[..], LATER].concat());
    assert_eq!(read(&later), *value, "{name} with a later field");
}

/// As releases wrote it that did not note the time.
const POSITION: EventPosition = EventPosition {
    partition: 3,
    offset: 70_000,
    appended_at_ms: 0,
};

fn event() -> Event {
    Event {
        id: EventId::try_new("evt_golden").unwrap(),
        tenant: TenantId::try_new("acme").unwrap(),
        event_type: EventTypeName::try_new("invoice.paid").unwrap(),
        occurred_at_ms: 1_700_000_000_001,
        data: Bytes::from_static(br#"{"amount": 4200, "note": "\u00fc"}"#),
        ordering_key: "order-7".to_owned(),
        registry: RegistryStamp::of_unknown(42),
        accepted_at_ms: 1_700_000_000_002,
        trace: TraceContext {
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            tracestate: "a=1".to_owned(),
        },
    }
}

fn delivery(run: u64, attempt: u32, due_at_ms: i64) -> Delivery {
    Delivery {
        ordered: false,
        event: event(),
        endpoint: endpoint_id(),
        position: POSITION,
        run,
        attempt,
        registry: RegistryStamp::of_unknown(43),
        due_at_ms,
    }
}

fn endpoint_id() -> EndpointId {
    EndpointId::try_new("ep_golden").unwrap()
}

fn attempt(outcome: AttemptOutcome, settlement: Option<Settlement>) -> Attempt {
    Attempt {
        event_id: event().id,
        tenant: event().tenant,
        event_type: event().event_type,
        work: WorkId {
            position: POSITION,
            endpoint: endpoint_id(),
            run: 9,
        },
        number: 2,
        started_at_ms: 1_700_000_000_100,
        duration_ms: 250,
        outcome,
        reason: Reason::ServerError,
        status: Some(500),
        detail: "no".to_owned(),
        response_excerpt: Bytes::from_static(b"\xfftry later"),
        settlement,
        accepted_at_ms: 1_700_000_000_002,
        traceparent: event().trace.traceparent,
        delivery_offset: Some(0),
    }
}

fn read_event(value: &Bytes) -> Event {
    let context = EventContext {
        position: POSITION,
        traceparent: None,
    };
    Event::decode(value, context).unwrap()
}

#[test]
fn events_routes_and_deliveries_are_read_as_they_were_written() {
    reads_as("event", &event().encode(), &event(), read_event);
    let mut produced = proto::Event::decode(event().encode()).unwrap();
    produced.data_content_type = "application/json".to_owned();
    let produced = produced.encode_to_vec().into();
    reads_as("event-of-producer", &produced, &event(), read_event);
    let route = Route {
        event_id: event().id,
        tenant: event().tenant,
        event_type: event().event_type,
        position: POSITION,
        registry_position: 43,
        endpoints: vec![endpoint_id(), EndpointId::try_new("ep_other").unwrap()],
        accepted_at_ms: 6,
        routed_at_ms: 7,
        repeated_event: true,
        traceparent: "t".to_owned(),
    };
    reads_as("route", &route.encode(), &route, |value| {
        Route::decode(value).unwrap()
    });
    let ordered = Delivery {
        ordered: true,
        ..delivery(0, 1, 0)
    };
    let of_a_time = Delivery {
        position: EventPosition {
            appended_at_ms: 1_700_000_000_003,
            ..POSITION
        },
        ..delivery(9, 1, 0)
    };
    for (name, delivery) in [
        ("delivery", delivery(9, 1, 0)),
        ("delivery-of-a-time", of_a_time),
        ("delivery-ordered", ordered),
        ("retry", delivery(0, 4, 1_700_000_360_000)),
    ] {
        reads_as(name, &delivery.encode(), &delivery, |value| {
            Delivery::decode(value).unwrap()
        });
    }
}

#[test]
fn attempts_of_every_kind_are_read_as_they_were_written() {
    let retry = Settlement::RetryScheduled { due_at_ms: 8 };
    for (name, attempt) in [
        (
            "attempt-delivered",
            attempt(AttemptOutcome::Succeeded, Some(Settlement::Delivered)),
        ),
        (
            "attempt-retry",
            attempt(AttemptOutcome::Failed, Some(retry)),
        ),
        (
            "attempt-dead",
            attempt(AttemptOutcome::Failed, Some(Settlement::DeadLettered)),
        ),
        (
            "attempt-dropped",
            attempt(AttemptOutcome::None, Some(Settlement::Dropped)),
        ),
        (
            "attempt-interrupted",
            attempt(AttemptOutcome::Interrupted, None),
        ),
    ] {
        reads_as(name, &attempt.encode(), &attempt, |value| {
            Attempt::decode(value).unwrap()
        });
    }
}

#[test]
fn dead_letters_are_read_as_they_were_written() {
    let letter = |content| DeadLetter {
        id: "dl_golden".to_owned(),
        reason: Reason::ClientError,
        detail: "gave up".to_owned(),
        dead_lettered_at_ms: 9,
        last_status: Some(404),
        content,
    };
    let raw = RawRecord {
        topic: "events".to_owned(),
        partition: 1,
        offset: 2,
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"\xff\x00"),
        value_bytes: 900,
    };
    for (name, letter) in [
        (
            "dead-letter-delivery",
            letter(DeadLetterContent::Delivery(Box::new(delivery(9, 10, 0)))),
        ),
        ("dead-letter-raw", letter(DeadLetterContent::Raw(raw))),
    ] {
        reads_as(name, &letter.encode(), &letter, |value| {
            DeadLetter::decode(value).unwrap()
        });
    }
}

/// Of an ordered endpoint that is behind.
fn lane_state() -> LaneState {
    LaneState {
        blocked: vec![BlockedKey {
            ordering_key: event().ordering_key,
            cursor: 3,
            attempt: 2,
            due_at_ms: 20,
            failed_at_ms: Some(21),
        }],
        endpoint: endpoint_id(),
        state_id: 17,
        cursor: Some(Cursor {
            lowest_unsettled: 0,
            settled: [5, 900].into(),
            behind_since_ms: 11,
        }),
        failing_since_ms: Some(12),
        breaker_openings: 3,
        breaker_open_until_ms: 13,
    }
}

#[test]
fn lane_states_are_read_as_they_were_written() {
    let unordered = LaneState {
        blocked: Vec::new(),
        ..lane_state()
    };
    let live = LaneState {
        cursor: None,
        ..unordered.clone()
    };
    for (name, state) in [
        ("lane-state", lane_state()),
        ("lane-state-unordered", unordered),
        ("lane-state-live", live),
    ] {
        reads_as(name, &state.encode(), &state, |value| {
            LaneState::decode(value).unwrap()
        });
    }
}

#[test]
fn the_states_that_count_are_found_among_the_records_as_they_were_written() {
    let another = StateRecord::of(&LaneState {
        state_id: 16,
        ..lane_state()
    });
    let mut states = LaneStates::<LaneState>::default();
    let mut read = |key: Bytes, value: Option<Bytes>| {
        states.read(&key, value.as_deref(), 0).unwrap();
    };
    read(another.key, another.value);
    for (key, value, record) in [
        ("claim-key", "claim", StateRecord::claim()),
        (
            "lane-state-key",
            "lane-state",
            StateRecord::of(&lane_state()),
        ),
        ("ready-key", "ready", StateRecord::ready(17)),
    ] {
        let value = golden(value, &record.value.unwrap());
        read(golden(key, &record.key), Some(value));
    }
    let counting =
        |note: &CommitNote| -> Vec<LaneState> { states.counting(0, note, 1_000).collect() };
    let named = CommitNote::decode("2 attempts=42 state=17");
    assert_eq!(counting(&named), [lane_state()]);
    assert_eq!(counting(&CommitNote::default()), [lane_state()]);
    states.read(&kept("lane-state-key"), None, 0).unwrap();
    assert_eq!(states.counting(0, &named, 1_000).count(), 0, "removed");
}

/// What releases noted in their commits, the oldest first. Only the last is still written so.
#[test]
fn the_notes_of_commits_are_read_as_they_were_written() {
    let read = |name: &str| CommitNote::decode(std::str::from_utf8(&kept(name)).unwrap());
    let first = CommitNote {
        rebuild_from: Some(42),
        ..CommitNote::default()
    };
    assert_eq!(read("commit-note-first"), first);
    let with_states = CommitNote {
        state_id: Some(17),
        ..first
    };
    assert_eq!(read("commit-note-states"), with_states);
    let with_owner = CommitNote {
        owner: "10.0.0.5:9464".to_owned(),
        ..with_states
    };
    assert_eq!(read("commit-note-owner"), with_owner);
    let mark = |offset| Mark {
        offset,
        appended_at_ms: 1_700_000_000_000 + offset,
    };
    let of_marks = CommitNote {
        last: Some(mark(57)),
        verified: Some(mark(50)),
        ..CommitNote::default()
    };
    let present = CommitNote {
        state_written: Some(19),
        behind_from: Some(3),
        last: of_marks.last,
        verified: of_marks.verified,
        ..with_owner
    };
    for (name, note) in [
        ("commit-note", present),
        ("commit-note-of-marks", of_marks),
        ("commit-note-void-past", CommitNote::void_past()),
        ("commit-note-made-again", CommitNote::of_made_again()),
    ] {
        let later = [&golden(name, &note.encode().into())[..], b" later=x"].concat();
        assert_eq!(read(name), note, "{name}");
        let later = std::str::from_utf8(&later).unwrap();
        assert_eq!(CommitNote::decode(later), note, "{name} with a later word");
    }
}

/// Sealed by a key of 32 times 7.
const SEALED: &[u8] = b"\x59\x1e\x96\xd6\x9f\xf4\xa9\xf6\x9c\x7b\xd9\x70\x98\x48\xb5\x18\xd9\xfb\x51\x8c\x42\x1c\
    \xbf\x64\xe4\x38\x46\x26\xe0\xae\xbe\x7b\x02\xa3\xe1\x4d\x04\xfe\xde\x2a\xc4\x58\x4b\xc2\x23\xe6\x2a\xbc\
    \x9c\xc1\x6a\x88\x84\xf6\xf5\xe1\xa1\xe6\x45\x43\x09\x21\x51\xfd\x9e\x5f\x98\x7c\xdf\x09\xb7\x8c\x3e\x12\
    \xc1\xa8\x9d\x27";

fn endpoint() -> Endpoint {
    Endpoint {
        id: endpoint_id(),
        tenant: event().tenant,
        url: "https://example.com/hooks?a=1".parse().unwrap(),
        description: "the first".to_owned(),
        metadata: [("team".to_owned(), "billing".to_owned())].into(),
        event_types: EventTypeFilter::try_new(vec!["invoice.*".to_owned()]).unwrap(),
        format: PayloadFormat::Standard,
        retry_schedule: Some(RetrySchedule::try_new(vec![5_000, 300_000]).unwrap()),
        attempt_timeout_ms: Some(7_000),
        rate_limit: Some(RateLimit::try_new(2.5, 10).unwrap()),
        ordered: None,
        secrets: vec![SealedSecret {
            key_id: "4bb06f8e".to_owned(),
            sealed: SEALED.to_vec(),
            expires_at_ms: None,
        }],
        state: EndpointState::Enabled,
        discard_matched_before: 0,
        created_at_ms: 17,
    }
}

/// With what the other one does not have.
fn disabled() -> Endpoint {
    let mut endpoint = Endpoint {
        format: PayloadFormat::Raw,
        ordered: Some(WhenBlocked::Wait),
        state: EndpointState::Disabled {
            reason: "failing".to_owned(),
            since_ms: 15,
        },
        discard_matched_before: 16,
        ..endpoint()
    };
    endpoint.secrets[0].expires_at_ms = Some(14);
    endpoint
}

/// The entity of a registry record.
fn registry(name: &str, version: u64, entity: Option<Entity>) -> Option<Entity> {
    let record = proto::RegistryRecord {
        version,
        nonce: "n-0".to_owned(),
        written_at_ms: 18,
        deleted: entity.is_none(),
        entity,
    };
    let written = Bytes::from(record.encode_to_vec());
    let read = |value: &Bytes| proto::RegistryRecord::decode(value.as_ref()).unwrap();
    reads_as(name, &written, &record, read);
    read(&golden(name, &written)).entity
}

#[test]
fn tenants_and_endpoints_are_read_as_they_were_written() {
    let tenant = Tenant {
        id: event().tenant,
        name: "Acme".to_owned(),
        metadata: [("plan".to_owned(), "gold".to_owned())].into(),
        paused: false,
        created_at_ms: 19,
        portal_token_generation: 0,
    };
    let paused = Tenant {
        paused: true,
        ..tenant.clone()
    };
    for (name, version, tenant) in [
        ("registry-tenant", 1, tenant),
        ("registry-tenant-paused", 2, paused),
    ] {
        let entity = registry(name, version, Some(Entity::Tenant(tenant.to_proto())));
        let Some(Entity::Tenant(kept)) = entity else {
            panic!("no tenant");
        };
        assert_eq!(Tenant::try_from(kept).unwrap(), tenant);
    }
    for (name, version, endpoint) in [
        ("registry-endpoint", 7, endpoint()),
        ("registry-endpoint-disabled", 8, disabled()),
    ] {
        let entity = registry(name, version, Some(Entity::Endpoint(endpoint.to_proto())));
        let Some(Entity::Endpoint(kept)) = entity else {
            panic!("no endpoint");
        };
        assert_eq!(Endpoint::try_from(kept).unwrap(), endpoint);
    }
}

fn api_key() -> ApiKey {
    ApiKey {
        id: ApiKeyId::try_new("key_a").unwrap(),
        name: "ci".to_owned(),
        holder: Holder::Tenant {
            tenant: event().tenant,
            scopes: [Scope::Publish, Scope::Repair].into_iter().collect(),
        },
        hash: [20; 32],
        prefix: "prt_AbCdEfGh".to_owned(),
        created_at_ms: 21,
        expires_at_ms: Some(22),
        last_used_at_ms: None,
    }
}

#[test]
fn keys_and_what_was_done_with_them_are_read_as_they_were_written() {
    let operator = ApiKey {
        holder: Holder::Operator,
        expires_at_ms: None,
        last_used_at_ms: Some(23),
        ..api_key()
    };
    for (name, key) in [
        ("registry-api-key", api_key()),
        ("registry-api-key-operator", operator),
    ] {
        let entity = registry(name, 1, Some(Entity::ApiKey(key.to_proto())));
        let Some(Entity::ApiKey(kept)) = entity else {
            panic!("no key");
        };
        assert_eq!(ApiKey::try_from(kept).unwrap(), key);
    }
    let entry = AuditEntry {
        id: "aud_a".to_owned(),
        asked_at_ms: 24,
        actor: Actor {
            kind: ActorKind::PortalToken,
            key_id: Some(api_key().id),
            name: "ann".to_owned(),
        },
        tenant: Some(event().tenant),
        action: "endpoint.create".to_owned(),
        subject: "ep_a".to_owned(),
        status: 201,
        address: "192.0.2.1".to_owned(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
    };
    let read = |value: &Bytes| AuditEntry::decode(value).unwrap();
    reads_as("audit", &entry.encode(), &entry, read);
}

#[test]
fn other_registry_records_are_read_as_they_were_written() {
    registry("registry-deleted", 9, None);
    let delays = proto::RetryDelays {
        delays_ms: vec![1_000, 2_000],
    };
    registry(
        "registry-retry-delays",
        1,
        Some(Entity::RetryDelays(delays)),
    );
    let installation = proto::Installation {
        deliveries_paused: true,
    };
    let installation = Some(Entity::Installation(installation));
    registry("registry-installation", 2, installation);
}

#[test]
fn a_value_that_only_a_later_release_knows_is_refused_and_never_taken_for_another() {
    let mut later =
        proto::Attempt::decode(attempt(AttemptOutcome::Failed, Some(Settlement::Dropped)).encode())
            .unwrap();
    let refused = |attempt: &proto::Attempt| Attempt::decode(&attempt.encode_to_vec()).is_err();
    assert!(!refused(&later));
    later.settlement = 99;
    assert!(refused(&later));
    later.settlement = proto::Settlement::Dropped.into();
    later.outcome = 99;
    assert!(refused(&later));
    later.outcome = proto::AttemptOutcome::Failed.into();
    later.reason = "of_a_later_release".to_owned();
    assert!(refused(&later));

    let mut later = endpoint().to_proto();
    later.state = 99;
    assert!(Endpoint::try_from(later.clone()).is_err());
    later.state = proto::EndpointState::Paused.into();
    assert!(Endpoint::try_from(later.clone()).is_ok());
    later.format = 99;
    assert!(Endpoint::try_from(later).is_err());
}

#[test]
fn what_is_redriven_is_not_part_of_a_backlog_that_was_discarded() {
    let discarding = |discard_matched_before| Endpoint {
        discard_matched_before,
        ..endpoint()
    };
    let (first, redriven) = (delivery(0, 1, 0), delivery(9, 1, 0));
    assert!(first.is_discarded_by(&discarding(first.registry.position + 1)));
    assert!(!first.is_discarded_by(&discarding(first.registry.position)));
    assert!(!redriven.is_discarded_by(&discarding(redriven.registry.position + 1)));
}
