//! The exporter over the log in memory: what it shows of what the topics hold.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

#[path = "exporter/world.rs"]
mod world;

use postrider_model::delivery::{AttemptOutcome, Settlement};
use postrider_model::outcome::Reason;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER, GROUP_SCHEDULER, RETRY};

use world::{Made, World, partition_of};

const MINUTE_MS: i64 = 60_000;
const ATTEMPTED: &str = "postrider_recorded_attempts_total{outcome=\"succeeded\",reason=\"ok\"}";
const LATENCY: &str = "postrider_recorded_delivery_latency_seconds";

#[tokio::test(start_paused = true)]
async fn counters_go_on_across_restarts_with_nothing_skipped_or_repeated() {
    let world = World::new().await;
    let mut first = world.exporter();
    world.attempts("ep_a", 3).await;
    first.gather().await.unwrap();
    assert_eq!(first.value(ATTEMPTED), Some(3.0));
    world.attempts("ep_b", 4).await;
    // It ends without a word, between two gatherings.
    drop(first);
    world.attempts("ep_a", 5).await;
    let mut second = world.exporter();
    second.gather().await.unwrap();
    assert_eq!(second.value(ATTEMPTED), Some(12.0));
    assert_eq!(second.value(&format!("{LATENCY}_count")), Some(12.0));
    assert_eq!(second.value(&format!("{LATENCY}_sum")), Some(12.0 * 0.25));
    assert_eq!(
        second.value(&format!("{LATENCY}_bucket{{le=\"0.25\"}}")),
        Some(12.0)
    );
    assert_eq!(
        second.value(&format!("{LATENCY}_bucket{{le=\"0.1\"}}")),
        Some(0.0)
    );
    second.gather().await.unwrap();
    assert_eq!(second.value(ATTEMPTED), Some(12.0));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_committed_is_not_shown() {
    let world = World::new().await;
    let mut exporter = world.exporter();
    world.attempts("ep_a", 3).await;
    exporter.gather().await.unwrap();
    world.attempts("ep_a", 2).await;
    exporter.process.kill();
    exporter.gather().await.unwrap_err();
    assert_eq!(exporter.value(ATTEMPTED), Some(3.0), "older values stay");
    let failed = "postrider_exporter_collections_failed_total";
    assert_eq!(exporter.value(failed), Some(1.0));
    let mut next = world.exporter();
    next.gather().await.unwrap();
    assert_eq!(next.value(ATTEMPTED), Some(5.0));
}

/// What is shown after two failed attempts, the second of them the last, a redrive, and a delivery
/// that was dropped.
const COUNTED: [(&str, f64); 11] = [
    (
        "postrider_recorded_attempts_total{outcome=\"failed\",reason=\"server_error\"}",
        2.0,
    ),
    (
        "postrider_recorded_attempts_total{outcome=\"succeeded\",reason=\"ok\"}",
        1.0,
    ),
    (
        "postrider_recorded_attempts_total{outcome=\"failed\",reason=\"timeout\"}",
        0.0,
    ),
    (
        "postrider_recorded_deliveries_total{outcome=\"dead_lettered\",reason=\"server_error\"}",
        1.0,
    ),
    (
        "postrider_recorded_deliveries_total{outcome=\"delivered\",reason=\"ok\"}",
        1.0,
    ),
    (
        "postrider_recorded_deliveries_total{outcome=\"dropped\",reason=\"endpoint_deleted\"}",
        1.0,
    ),
    (
        "postrider_recorded_dead_letters_total{reason=\"exhausted\"}",
        1.0,
    ),
    ("postrider_recorded_delivery_latency_seconds_count", 0.0),
    ("postrider_recorded_first_attempt_delay_seconds_count", 1.0),
    (
        "postrider_worst_endpoint_failed_attempts{endpoint=\"ep_a\",tenant=\"acme\"}",
        2.0,
    ),
    ("postrider_busiest_tenant_attempts{tenant=\"acme\"}", 3.0),
];

#[tokio::test(start_paused = true)]
async fn deliveries_and_dead_letters_are_counted_by_reason() {
    let world = World::new().await;
    let mut exporter = world.exporter();
    let failed = Made {
        outcome: AttemptOutcome::Failed,
        reason: Reason::ServerError,
        settlement: Some(Settlement::RetryScheduled { due_at_ms: 1 }),
        ..Made::default()
    };
    world.attempt("ep_a", failed.clone()).await;
    let last = Made {
        number: 2,
        settlement: Some(Settlement::DeadLettered),
        ..failed
    };
    world.attempt("ep_a", last).await;
    world.dead_letter("ep_a", Reason::Exhausted).await;
    // A redrive is counted, but its latency says nothing of how fast events are delivered.
    world
        .attempt(
            "ep_a",
            Made {
                run: 7,
                ..Made::default()
            },
        )
        .await;
    world
        .attempt(
            "ep_a",
            Made {
                outcome: AttemptOutcome::None,
                reason: Reason::EndpointDeleted,
                settlement: Some(Settlement::Dropped),
                ..Made::default()
            },
        )
        .await;
    exporter.gather().await.unwrap();
    for (series, value) in COUNTED {
        assert_eq!(exporter.value(series), Some(value), "{series}");
    }
}

#[tokio::test(start_paused = true)]
async fn lag_and_ready_age_grow_while_nobody_delivers() {
    let world = World::new().await;
    world.endpoint("ep_a", false).await;
    let mut exporter = world.exporter();
    exporter.gather().await.unwrap();
    let partition = partition_of("ep_a");
    let ready = format!("postrider_deliveries_ready_age_seconds{{partition=\"{partition}\"}}");
    let labels = format!("{{group=\"deliver\",partition=\"{partition}\",topic=\"deliveries\"}}");
    let lag = |what: &str| format!("postrider_consumer_lag_{what}{labels}");
    assert_eq!(exporter.value(&ready), Some(0.0));
    assert_eq!(exporter.value(&lag("records")), Some(0.0));
    world.delivery("ep_a", 1).await;
    world.clock.advance(10_000);
    world.delivery("ep_a", 1).await;
    exporter.gather().await.unwrap();
    assert_eq!(exporter.value(&ready), Some(10.0));
    assert_eq!(exporter.value(&lag("records")), Some(2.0));
    assert_eq!(exporter.value(&lag("seconds")), Some(10.0));
    world.clock.advance(50_000);
    exporter.gather().await.unwrap();
    assert_eq!(exporter.value(&ready), Some(60.0));
    world
        .commit(GROUP_DELIVER, DELIVERIES, partition, 1, "")
        .await;
    exporter.gather().await.unwrap();
    assert_eq!(
        (exporter.value(&ready), exporter.value(&lag("records"))),
        (Some(50.0), Some(1.0))
    );
    // A new exporter sees the same at once.
    let mut other = world.exporter();
    other.gather().await.unwrap();
    assert_eq!(other.value(&ready), Some(50.0));
    world
        .commit(GROUP_DELIVER, DELIVERIES, partition, 2, "")
        .await;
    other.gather().await.unwrap();
    assert_eq!(
        (other.value(&ready), other.value(&lag("seconds"))),
        (Some(0.0), Some(0.0))
    );
}

#[tokio::test(start_paused = true)]
async fn paused_settled_and_retried_deliveries_are_not_ready_and_resuming_makes_them_so() {
    let world = World::new().await;
    world.endpoint("ep_a", true).await;
    let mut exporter = world.exporter();
    world.delivery("ep_a", 1).await;
    world.clock.advance(5_000);
    exporter.gather().await.unwrap();
    let oldest = "postrider_deliveries_ready_age_seconds";
    assert_eq!(exporter.most(oldest), 0.0);
    world.pause("ep_a", false).await;
    exporter.gather().await.unwrap();
    assert_eq!(exporter.most(oldest), 5.0);
    world.delivery("ep_a", 2).await;
    world.clock.advance(5_000);
    world
        .attempt(
            "ep_a",
            Made {
                delivery_offset: Some(0),
                ..Made::default()
            },
        )
        .await;
    exporter.gather().await.unwrap();
    assert_eq!(
        exporter.most(oldest),
        0.0,
        "the first is settled, the second a retry"
    );
    // What was settled before a restart, but not committed, is known again.
    let partition = partition_of("ep_a");
    world
        .commit(
            GROUP_DELIVER,
            DELIVERIES,
            partition,
            0,
            "2 attempts=0 state=0",
        )
        .await;
    let mut other = world.exporter();
    other.gather().await.unwrap();
    assert_eq!(other.most(oldest), 0.0);
}

#[tokio::test(start_paused = true)]
async fn lanes_behind_are_shown_by_cause_and_leave_the_ready_age_alone() {
    let world = World::new().await;
    for (endpoint, paused) in [
        ("ep_paused", true),
        ("ep_failing", false),
        ("ep_slow", false),
    ] {
        world.endpoint(endpoint, paused).await;
        world.delivery(endpoint, 1).await;
    }
    world.clock.advance(MINUTE_MS);
    for endpoint in ["ep_paused", "ep_failing", "ep_slow"] {
        world.behind(endpoint, endpoint == "ep_failing").await;
    }
    let mut exporter = world.exporter();
    exporter.gather().await.unwrap();
    for (cause, lanes) in [
        ("paused", 1.0),
        ("failing", 1.0),
        ("slow", 1.0),
        ("disabled", 0.0),
    ] {
        let of = |name: &str| {
            exporter
                .value(&format!("{name}{{cause=\"{cause}\"}}"))
                .unwrap()
        };
        assert_eq!(of("postrider_lanes_behind"), lanes, "{cause}");
        assert_eq!(
            of("postrider_lanes_behind_age_seconds"),
            60.0 * lanes,
            "{cause}"
        );
        assert!(of("postrider_lanes_behind_offsets") >= lanes, "{cause}");
    }
    assert_eq!(exporter.most("postrider_deliveries_ready_age_seconds"), 0.0);
    assert_eq!(
        exporter.value("postrider_endpoints_breaker_open"),
        Some(1.0)
    );
    assert_eq!(
        exporter.count("postrider_worst_endpoint_behind_seconds"),
        2,
        "no more than configured"
    );
    assert_eq!(
        exporter.value("postrider_endpoints{state=\"paused\"}"),
        Some(1.0)
    );
    assert_eq!(
        exporter.value("postrider_endpoints{state=\"enabled\"}"),
        Some(2.0)
    );
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_retry_is_shown_by_delay_and_due_time() {
    let world = World::new().await;
    for (partition, due_in_ms) in [
        (0, 30_000),
        (1, 4 * MINUTE_MS),
        (1, 30 * MINUTE_MS),
        (2, 3 * 60 * MINUTE_MS),
    ] {
        world.retry(partition, due_in_ms).await;
    }
    let mut exporter = world.exporter();
    exporter.gather().await.unwrap();
    let waiting = |delay: &str| {
        exporter.value(&format!(
            "postrider_retries_waiting{{delay_seconds=\"{delay}\"}}"
        ))
    };
    assert_eq!(["1", "60", "7200"].map(waiting), [1.0, 2.0, 1.0].map(Some));
    let due = |delay: &str, within: &str| {
        exporter.value(&format!(
            "postrider_retries_due{{delay_seconds=\"{delay}\",within_seconds=\"{within}\"}}"
        ))
    };
    for (delay, counts) in [
        ("1", [1.0, 1.0, 1.0]),
        ("60", [0.0, 1.0, 2.0]),
        ("7200", [0.0, 0.0, 0.0]),
    ] {
        assert_eq!(
            ["60", "300", "3600"].map(|within| due(delay, within)),
            counts.map(Some),
            "{delay}"
        );
    }
    let overdue = "postrider_retries_overdue_seconds";
    assert_eq!(exporter.value(overdue), Some(0.0));
    world.clock.advance(40_000);
    exporter.gather().await.unwrap();
    assert_eq!(exporter.value(overdue), Some(10.0));
    world.commit(GROUP_SCHEDULER, RETRY, 0, 1, "").await;
    exporter.gather().await.unwrap();
    assert_eq!(exporter.value(overdue), Some(0.0));
    assert_eq!(
        exporter.value("postrider_retries_waiting{delay_seconds=\"1\"}"),
        Some(0.0)
    );
}

#[tokio::test(start_paused = true)]
async fn retries_beyond_those_kept_are_estimated_by_when_they_leave() {
    let world = World::new().await;
    for _ in 0..50 {
        world.retry(1, 2 * MINUTE_MS).await;
    }
    let mut exporter = world.exporter_with(|config| {
        config.retries_max = 10;
        config.read_bytes_max = 1;
    });
    exporter.gather().await.unwrap();
    let due = "postrider_retries_due{delay_seconds=\"60\",within_seconds=\"300\"}";
    assert_eq!(exporter.value(due), Some(50.0));
}
