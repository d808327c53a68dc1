//! How an endpoint is doing, from the log and from its owner.

use axum::http::StatusCode;
use bytes::Bytes;
use postrider_log::{Committed, Log, Target, partition_for};
use postrider_model::delivery::{
    Attempt, AttemptOutcome, BlockedKey, Cursor, LaneState, Settlement,
};
use postrider_model::event::EventPosition;
use postrider_model::lane_states::StateRecord;
use postrider_model::outcome::Reason;
use postrider_model::payload::rfc3339;
use postrider_model::topics::{ATTEMPTS, DELIVERIES, ENDPOINT_STATE, GROUP_DELIVER};
use postrider_model::work::WorkId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::world::{PARTITIONS, START_MS, World};

const STATUS: &str = "/v1/tenants/acme/endpoints/ep_a/status";

fn partition() -> i32 {
    partition_for(b"ep_a", PARTITIONS)
}

async fn with_endpoint() -> World {
    let world = World::with_tenant().await;
    let body = json!({"id": "ep_a", "url": "https://example.com/hooks"}).to_string();
    world
        .post("/v1/tenants/acme/endpoints", body)
        .await
        .expect(StatusCode::CREATED);
    world
}

async fn status(world: &World) -> Value {
    world.get(STATUS).await.expect(StatusCode::OK).json()
}

async fn commit(world: &World, offset: i64, metadata: &str) {
    let committed = Committed {
        offset,
        metadata: metadata.to_owned(),
    };
    let commits = [(partition(), committed)];
    world
        .log
        .set_committed(GROUP_DELIVER, DELIVERIES, &commits)
        .await
        .unwrap();
}

/// Appends what an owner would to `endpoint-state`.
async fn put_state(world: &World, record: StateRecord) {
    let key = std::str::from_utf8(&record.key).unwrap();
    let target = Target::Partition(partition());
    let value = record.value.unwrap();
    world.append_to(ENDPOINT_STATE, target, key, value).await;
}

fn lane(endpoint: &str, state_id: i64, lowest_unsettled: i64) -> LaneState {
    LaneState {
        blocked: Vec::new(),
        endpoint: endpoint.parse().unwrap(),
        state_id,
        cursor: Some(Cursor {
            lowest_unsettled,
            settled: [lowest_unsettled + 1].into(),
            behind_since_ms: START_MS + 1_000,
        }),
        failing_since_ms: Some(START_MS + 2_000),
        breaker_openings: 3,
        breaker_open_until_ms: START_MS + 3_000,
    }
}

async fn put_lane(world: &World, endpoint: &str, state_id: i64, lowest_unsettled: i64) {
    let state = lane(endpoint, state_id, lowest_unsettled);
    put_state(world, StateRecord::of(&state)).await;
}

/// Appends deliveries of other endpoints, so that the partition ends there.
async fn put_deliveries(world: &World, end: usize) {
    for _ in 0..end {
        let target = Target::Partition(partition());
        world
            .append_to(DELIVERIES, target, "ep_a", Bytes::new())
            .await;
    }
}

async fn put_attempt(world: &World, offset: i64, number: u32, settlement: Settlement) {
    put_attempt_at(world, offset, number, settlement, None).await;
}

/// The same of a delivery at an offset.
async fn put_attempt_at(
    world: &World,
    offset: i64,
    number: u32,
    settlement: Settlement,
    delivery_offset: Option<i64>,
) {
    let failed = settlement != Settlement::Delivered;
    let attempt = Attempt {
        event_id: format!("evt-{offset}").parse().unwrap(),
        tenant: "acme".parse().unwrap(),
        event_type: "invoice.paid".parse().unwrap(),
        work: WorkId {
            position: EventPosition {
                partition: 0,
                offset,
                appended_at_ms: 5,
            },
            endpoint: "ep_a".parse().unwrap(),
            run: 0,
        },
        number,
        started_at_ms: START_MS,
        duration_ms: 12,
        outcome: if failed {
            AttemptOutcome::Failed
        } else {
            AttemptOutcome::Succeeded
        },
        reason: if failed {
            Reason::ServerError
        } else {
            Reason::Ok
        },
        status: Some(if failed { 500 } else { 200 }),
        detail: String::new(),
        response_excerpt: Bytes::new(),
        settlement: Some(settlement),
        accepted_at_ms: START_MS,
        traceparent: String::new(),
        delivery_offset,
    };
    let target = Target::Partition(partition());
    world
        .append_to(ATTEMPTS, target, "ep_a", attempt.encode())
        .await;
}

fn retry(due_in_ms: i64) -> Settlement {
    let due_at_ms = START_MS + due_in_ms;
    Settlement::RetryScheduled { due_at_ms }
}

#[tokio::test]
async fn an_endpoint_that_nobody_owns_yet_says_so() {
    let world = with_endpoint().await;
    let status = status(&world).await;
    let expected = json!({
        "endpoint_id": "ep_a", "gate": "open", "obstacles": [], "disabled_reason": null, "disabled_since": null,
        "partition": partition(), "owner": null, "committed_offset": null, "end_offset": 0,
        "partition_lag": null, "lane": null, "last_attempt": null, "last_error": null,
        "next_retry_at": null, "live": null,
        "live_error": "no process says that it owns the partition", "complete": true,
    });
    assert_eq!(status, expected);
    world
        .get("/v1/tenants/acme/endpoints/ep_none/status")
        .await
        .expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_log_tells_how_far_the_lane_is_and_what_failed_last() {
    let world = with_endpoint().await;
    put_deliveries(&world, 10).await;
    // Only the state that the commit names counts, and only that of this endpoint.
    put_lane(&world, "ep_a", 4, 2).await;
    put_lane(&world, "ep_a", 5, 3).await;
    put_lane(&world, "ep_b", 5, 9).await;
    put_lane(&world, "ep_a", 6, 7).await;
    commit(&world, 8, "2 attempts=1 state=5").await;
    put_attempt(&world, 1, 1, retry(9_000)).await;
    put_attempt(&world, 2, 1, retry(5_000)).await;
    put_attempt(&world, 3, 1, retry(6_000)).await;
    put_attempt(&world, 2, 2, Settlement::Delivered).await;
    let status = status(&world).await;
    assert_eq!(
        (
            &status["committed_offset"],
            &status["end_offset"],
            &status["partition_lag"]
        ),
        (&json!(8), &json!(10), &json!(2))
    );
    let lane = json!({
        "behind": {"since": rfc3339(START_MS + 1_000), "offset": 3, "records_at_most": 7},
        "breaker": {"openings": 3, "open_until": rfc3339(START_MS + 3_000)},
        "failing_since": rfc3339(START_MS + 2_000),
    });
    assert_eq!(status["lane"], lane);
    assert_eq!(
        (
            &status["last_attempt"]["event_id"],
            &status["last_attempt"]["outcome"]
        ),
        (&json!("evt-2"), &json!("succeeded"))
    );
    assert_eq!(
        (
            &status["last_error"]["event_id"],
            &status["last_error"]["status"]
        ),
        (&json!("evt-3"), &json!(500))
    );
    // The retry of the second delivery was made, and it was delivered.
    assert_eq!(status["next_retry_at"], rfc3339(START_MS + 6_000));
}

#[tokio::test]
async fn a_blocked_ordering_key_says_where_the_lane_is_and_what_is_due() {
    let world = with_endpoint().await;
    put_deliveries(&world, 10).await;
    let blocked = |ordering_key: &str, cursor, due_in_ms| BlockedKey {
        ordering_key: ordering_key.to_owned(),
        cursor,
        attempt: 2,
        due_at_ms: START_MS + due_in_ms,
        failed_at_ms: Some(START_MS),
    };
    let state = LaneState {
        // The head at offset 3 was attempted again since the state was written.
        blocked: vec![blocked("a", 3, 1_000), blocked("b", 5, 7_000)],
        ..lane("ep_a", 1, 9)
    };
    put_state(&world, StateRecord::of(&state)).await;
    commit(&world, 10, "2 attempts=1 state=1").await;
    put_attempt_at(&world, 3, 2, retry(9_000), Some(3)).await;
    let status = status(&world).await;
    let behind = json!({"since": rfc3339(START_MS + 1_000), "offset": 3, "records_at_most": 7});
    assert_eq!(status["lane"]["behind"], behind);
    assert_eq!(status["next_retry_at"], rfc3339(START_MS + 7_000));
}

#[tokio::test]
async fn where_the_commit_names_no_states_those_count_that_were_written_completely_last() {
    let world = with_endpoint().await;
    put_deliveries(&world, 10).await;
    put_lane(&world, "ep_a", 4, 2).await;
    put_state(&world, StateRecord::ready(4)).await;
    put_lane(&world, "ep_a", 5, 3).await;
    commit(&world, 8, "").await;
    assert_eq!(status(&world).await["lane"]["behind"]["offset"], 2);
}

#[tokio::test]
async fn a_state_that_is_not_understood_is_told_as_a_lane_that_is_behind() {
    let world = with_endpoint().await;
    put_deliveries(&world, 10).await;
    let damaged = StateRecord {
        value: Some(Bytes::from_static(b"\xff")),
        ..StateRecord::of(&lane("ep_a", 1, 9))
    };
    put_state(&world, damaged).await;
    commit(&world, 8, "2 attempts=1 state=1 written=1 behind=6").await;
    let behind = json!({"since": rfc3339(START_MS), "offset": 6, "records_at_most": 4});
    assert_eq!(status(&world).await["lane"]["behind"], behind);
}

#[tokio::test]
async fn what_the_owner_knows_is_passed_on() {
    let world = with_endpoint().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let owner = listener.local_addr().unwrap().to_string();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        let answer =
            b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n{\"queued\": 7, \"in_flight\": 12}";
        stream.write_all(answer).await.unwrap();
        request.truncate(length);
        String::from_utf8(request).unwrap()
    });
    commit(&world, 0, &format!("2 state=5 owner={owner}")).await;
    let told = status(&world).await;
    assert_eq!(told["owner"], json!(owner));
    assert_eq!(told["live"], json!({"queued": 7, "in_flight": 12}));
    assert_eq!(told["live_error"], json!(null));
    let request = server.join_next().await.unwrap().unwrap();
    assert!(request.starts_with("GET /lanes/ep_a "), "{request}");

    // Nobody listens there any more, which is part of the answer.
    let told = status(&world).await;
    assert_eq!(
        (&told["owner"], &told["live"]),
        (&json!(owner), &json!(null))
    );
    let error = told["live_error"].as_str().unwrap();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn why_nothing_is_sent_is_said_at_once() {
    let world = with_endpoint().await;
    for (path, gate) in [
        ("/v1/tenants/acme/endpoints/ep_a/pause", "endpoint_paused"),
        ("/v1/tenants/acme/pause", "tenant_paused"),
        ("/v1/pause", "installation_paused"),
        (
            "/v1/tenants/acme/endpoints/ep_a/disable",
            "endpoint_disabled",
        ),
    ] {
        world.post(path, "").await.expect(StatusCode::OK);
        assert_eq!(status(&world).await["gate"], gate);
    }
    assert_eq!(status(&world).await["disabled_reason"], "manual");
    assert_eq!(status(&world).await["disabled_since"], rfc3339(START_MS));
}

#[tokio::test]
async fn a_status_that_could_not_be_read_to_the_end_says_so() {
    let world = World::with_tenant_and(|limits| limits.read_bytes_max = 200).await;
    let body = json!({"id": "ep_a", "url": "https://example.com/hooks"}).to_string();
    world
        .post("/v1/tenants/acme/endpoints", body)
        .await
        .expect(StatusCode::CREATED);
    for offset in 0..100 {
        put_attempt(&world, offset, 1, Settlement::Delivered).await;
    }
    let status = status(&world).await;
    assert_eq!(status["complete"], false);
    assert_eq!(status["last_attempt"]["event_id"], "evt-99");
}
