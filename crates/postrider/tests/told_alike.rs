//! Whoever is asked says the same of an endpoint: the API from the log, the worker that owns it,
//! and the exporter.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, StatusCode};
use postrider_daemon::config::Secret;
use postrider_delivery::config::DeliveryConfig;
use postrider_delivery::deliver::DeliverContext;
use postrider_delivery::lane_status::{LaneQuestions, lane_questions};
use postrider_delivery::sender::{MayLeave, Sender, WebhookRequest, WebhookResponse};
use postrider_delivery::standing::found;
use postrider_delivery::{DeliveryMetrics, StageContext, deliver};
use postrider_exporter::{Exporter, ExporterConfig, ExporterContext};
use postrider_ingest::{Api, ApiContext, Entrance, IngestConfig};
use postrider_log::memory::MemoryLog;
use postrider_log::{Clock, Log, NewRecord, ProducerOptions, Target, TopicSpec};
use postrider_model::address::AddressPolicy;
use postrider_model::delivery::Delivery;
use postrider_model::endpoint::{Endpoint, EndpointState, WhenBlocked};
use postrider_model::event::{Event, EventPosition, TraceContext};
use postrider_model::identity::RegistryStamp;
use postrider_model::outcome::Outcome;
use postrider_model::retry::{DelayLadder, RetrySchedule};
use postrider_model::signature::SigningSecret;
use postrider_model::tenant::Tenant;
use postrider_model::topics::{DELIVERIES, TopicLayout};
use postrider_registry::{Keyring, Registry, RegistryOptions};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const START_MS: i64 = 1_795_237_200_000;
const OPERATOR_KEY: &str = "operator-key-of-the-tests";
const HOUR_MS: i64 = 3_600_000;
/// Deliveries, and those of them that wait behind one that fails.
const DELIVERED: i64 = 40;
const BLOCKED: i64 = 5;

#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now_ms(&self) -> i64 {
        START_MS + i64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

/// Refuses the events that say so.
#[derive(Debug, Clone)]
struct Choosy;

impl Sender for Choosy {
    async fn send(&self, request: WebhookRequest, _: MayLeave) -> Option<WebhookResponse> {
        let refuses = String::from_utf8_lossy(&request.body).contains("refused");
        Some(WebhookResponse {
            outcome: Outcome::Answered {
                status: if refuses { 503 } else { 200 },
                retry_after_ms: None,
            },
            detail: String::new(),
            excerpt: Bytes::new(),
        })
    }
}

/// What everything here stands on.
struct World {
    log: Arc<MemoryLog>,
    clock: Arc<dyn Clock>,
    registry: Registry,
    tasks: JoinSet<()>,
}

impl World {
    /// With an ordered endpoint that is tried again after an hour.
    async fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(PausedClock(Instant::now()));
        let log = MemoryLog::new(clock.clone(), 1);
        let layout = TopicLayout {
            partitions: 1,
            ..TopicLayout::default()
        };
        let topics = layout.topics().into_iter().map(|plan| TopicSpec {
            name: plan.name.to_owned(),
            partitions: plan.partitions,
            retention: None,
            message_bytes_max: plan.message_bytes_max,
            settings: Vec::new(),
        });
        let created = log.create_topics(&topics.collect::<Vec<_>>()).await;
        found(&*log, &created.unwrap()).await.unwrap();
        let keyring = Arc::new(Keyring::from_bytes([7; 32], Vec::new()));
        let options = RegistryOptions::default();
        let opened = Registry::open(log.clone(), clock.clone(), keyring, options).await;
        let (registry, follower) = opened.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run(CancellationToken::new()));
        registry.caught_up().await;
        registry.put_tenant(tenant()).await.unwrap();
        let endpoint = endpoint(&registry);
        registry.create_endpoint(endpoint).await.unwrap();
        Self {
            log,
            clock,
            registry,
            tasks,
        }
    }

    /// One ordering key is refused, the deliveries of another come among its own and after them.
    async fn deliveries(&self) {
        let options = ProducerOptions {
            name: "test",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 20,
        };
        let producer = self.log.producer(options).await.unwrap();
        for number in 0..DELIVERED + BLOCKED {
            let key = if number < BLOCKED { "refused" } else { "taken" };
            let record = NewRecord {
                key: Bytes::from_static(b"ep_a"),
                value: Some(delivery(number, key).encode()),
                headers: Vec::new(),
            };
            let append = producer.append(DELIVERIES, Target::Key, record);
            append.await.unwrap();
        }
    }

    /// Starts the worker that owns the endpoint.
    fn deliver(&mut self) -> LaneQuestions {
        let (config, metrics) = (DeliveryConfig::default(), DeliveryMetrics::detached());
        let stage = StageContext {
            log: self.log.process("worker"),
            config: config.stage.clone(),
            lease_term: Duration::from_millis(config.deliver.lease_ms),
            metrics: metrics.clone(),
        };
        let (registry, clock) = (self.registry.clone(), self.clock.clone());
        let carry = move |producers| DeliverContext {
            registry: registry.clone(),
            sender: Choosy,
            clock: clock.clone(),
            producers,
            ladder: DelayLadder::default(),
            default_schedule: RetrySchedule::standard(),
            config: config.deliver.clone(),
            metrics: metrics.clone(),
        };
        let (questions, answers) = lane_questions();
        let stop = CancellationToken::new();
        self.tasks.spawn(deliver::run(stage, carry, answers, stop));
        questions
    }

    /// What `postrider endpoint status` is told.
    async fn status(&self) -> Value {
        let config = IngestConfig {
            operator_key: Some(Secret::from(OPERATOR_KEY.to_owned())),
            ..IngestConfig::default()
        };
        let entrance = Entrance::new(&config, &prometheus::Registry::new()).unwrap();
        let context = ApiContext {
            log: self.log.clone(),
            registry: self.registry.clone(),
            clock: self.clock.clone(),
            config,
            policy: AddressPolicy::try_new(&[]).unwrap(),
            metrics: entrance.metrics().clone(),
            halt: CancellationToken::new(),
        };
        entrance.open(Api::new(context).await.unwrap()).unwrap();
        let request = Request::get("/v1/tenants/acme/endpoints/ep_a/status")
            .header("authorization", format!("Bearer {OPERATOR_KEY}"))
            .body(Body::empty())
            .unwrap();
        let response = entrance.router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// By how many offsets the exporter says that the lane is behind.
    async fn exported(&self) -> f64 {
        let metrics = prometheus::Registry::new();
        let context = ExporterContext {
            log: self.log.clone(),
            registry: self.registry.clone(),
            clock: self.clock.clone(),
            ladder: DelayLadder::default(),
            config: ExporterConfig::default(),
            metrics: &metrics,
        };
        Exporter::new(context).unwrap().gather().await.unwrap();
        let families = metrics.gather();
        let behind = families
            .iter()
            .find(|family| family.name() == "postrider_lanes_behind_offsets")
            .unwrap();
        let causes = behind.get_metric().iter();
        causes.map(|cause| cause.get_gauge().get_value()).sum()
    }
}

fn tenant() -> Tenant {
    Tenant {
        id: "acme".parse().unwrap(),
        name: String::new(),
        metadata: [].into(),
        paused: false,
        created_at_ms: START_MS,
        portal_token_generation: 0,
    }
}

fn endpoint(registry: &Registry) -> Endpoint {
    let id = "ep_a".parse().unwrap();
    let secret = registry.seal(&id, &SigningSecret::generate(&[7; 32]));
    Endpoint {
        id,
        tenant: "acme".parse().unwrap(),
        url: "https://example.com/".parse().unwrap(),
        description: String::new(),
        metadata: [].into(),
        event_types: Default::default(),
        format: Default::default(),
        retry_schedule: Some(RetrySchedule::try_new(vec![HOUR_MS]).unwrap()),
        attempt_timeout_ms: None,
        rate_limit: None,
        ordered: Some(WhenBlocked::Wait),
        secrets: vec![secret],
        state: EndpointState::Enabled,
        discard_matched_before: 0,
        created_at_ms: START_MS,
    }
}

fn delivery(number: i64, ordering_key: &str) -> Delivery {
    Delivery {
        ordered: true,
        event: Event {
            id: format!("evt_{number}").parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            event_type: "a.b".parse().unwrap(),
            occurred_at_ms: START_MS,
            data: format!("{{\"key\":\"{ordering_key}\"}}").into(),
            ordering_key: ordering_key.to_owned(),
            registry: RegistryStamp::of_unknown(0),
            accepted_at_ms: START_MS,
            trace: TraceContext::default(),
        },
        endpoint: "ep_a".parse().unwrap(),
        position: EventPosition {
            partition: 0,
            offset: number,
            appended_at_ms: START_MS,
        },
        run: 0,
        attempt: 1,
        registry: RegistryStamp::of_unknown(0),
        due_at_ms: 0,
    }
}

#[tokio::test(start_paused = true)]
async fn an_ordered_endpoint_with_a_blocked_key_is_behind_by_the_same_for_everybody() {
    let mut world = World::new().await;
    world.deliveries().await;
    let questions = world.deliver();
    // Long enough for everything but the next attempt.
    sleep(Duration::from_secs(60)).await;

    let live = questions
        .ask("ep_a".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((live.blocked_keys, live.queued, live.in_flight), (1, 0, 0));
    let live = serde_json::to_value(&live).unwrap();
    assert_eq!(live["behind_by_offsets"], DELIVERED + BLOCKED);
    let status = world.status().await;
    let behind = &status["lane"]["behind"];
    assert_eq!(behind["records_at_most"], live["behind_by_offsets"]);
    assert_eq!(behind["offset"], live["lowest_unsettled"]);
    assert_eq!(behind["since"], live["behind_since"]);
    assert_eq!(status["next_retry_at"], live["next_attempt_at"]);
    let exported = world.exported().await;
    assert_eq!(live["behind_by_offsets"].as_f64(), Some(exported));
}
