//! Records as a release wrote them are carried by this one, from the registry to the request; the
//! bytes are those of `crates/model/tests/golden.rs`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use postrider_delivery::config::DeliveryConfig;
use postrider_delivery::deliver::DeliverContext;
use postrider_delivery::fan_out::FanOutContext;
use postrider_delivery::lane_status::lane_questions;
use postrider_delivery::scheduler::SchedulerContext;
use postrider_delivery::sender::{MayLeave, Sender, WebhookRequest, WebhookResponse};
use postrider_delivery::standing::found;
use postrider_delivery::{DeliveryMetrics, StageContext, deliver, fan_out, scheduler};
use postrider_log::memory::MemoryLog;
use postrider_log::{Clock, Log, NewRecord, ProducerOptions, Target, TopicSpec};
use postrider_model::delivery::{Attempt, Settlement};
use postrider_model::outcome::Outcome;
use postrider_model::retry::RetrySchedule;
use postrider_model::signature::{SigningSecret, sign};
use postrider_model::topics::{DEAD_LETTERS, DELIVERIES, EVENTS, REGISTRY, RETRY, TopicLayout};
use postrider_registry::{Keyring, Registry, RegistryOptions};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const RELEASES: [&str; 1] = ["v1"];
const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDazVmOB8HjEs=";
const STARTED_AT_MS: i64 = 1_700_000_000_000;
/// When the golden retry is due.
const RETRY_DUE_AT_MS: i64 = STARTED_AT_MS + 360_000;

#[derive(Debug, Clone, Copy)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now_ms(&self) -> i64 {
        STARTED_AT_MS + i64::try_from(self.0.elapsed().as_millis()).expect("short")
    }
}

/// Answers 200, and keeps what came and when.
#[derive(Debug, Clone)]
struct Kept {
    clock: PausedClock,
    requests: Arc<Mutex<Vec<(i64, WebhookRequest)>>>,
}

impl Sender for Kept {
    async fn send(&self, request: WebhookRequest, _: MayLeave) -> Option<WebhookResponse> {
        let mut requests = self.requests.lock();
        requests.push((self.clock.now_ms(), request));
        Some(WebhookResponse {
            outcome: Outcome::Answered {
                status: 200,
                retry_after_ms: None,
            },
            detail: String::new(),
            excerpt: Bytes::new(),
        })
    }
}

/// A log with the golden records in their topics.
async fn log_of(release: &str, clock: PausedClock) -> Arc<MemoryLog> {
    let log = MemoryLog::new(Arc::new(clock), 1);
    let topics = TopicLayout::default().topics().into_iter();
    let topics: Vec<TopicSpec> = topics
        .map(|plan| TopicSpec {
            name: plan.name.to_owned(),
            partitions: plan.partitions,
            retention: None,
            message_bytes_max: plan.message_bytes_max,
            settings: Vec::new(),
        })
        .collect();
    let created = log.create_topics(&topics).await.expect("topics");
    found(&*log, &created).await.expect("founded");
    let options = ProducerOptions {
        name: "former",
        append_timeout: None,
        linger: Duration::ZERO,
        queue_bytes_max: 1 << 20,
    };
    let producer = log.producer(options).await.expect("a producer");
    for (topic, key, name) in [
        (REGISTRY, "tenant/acme/1/n-0", "registry-tenant"),
        (REGISTRY, "endpoint/ep_golden/7/n-0", "registry-endpoint"),
        (EVENTS, "acme/order-7", "event"),
        (DELIVERIES, "ep_golden", "delivery"),
        (RETRY, "ep_golden", "retry"),
    ] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden");
        let value = fs::read(golden.join(release).join(name)).expect("a golden record");
        let record = NewRecord {
            key: key.into(),
            value: Some(value.into()),
            headers: Vec::new(),
        };
        let target = if topic == RETRY {
            Target::Partition(0)
        } else {
            Target::Key
        };
        let append = producer.append(topic, target, record);
        append.await.expect("appended");
    }
    log
}

/// Runs the three stages over the log until the retry was due for a while.
async fn carry(log: Arc<MemoryLog>, sender: Kept) {
    let clock: Arc<dyn Clock> = Arc::new(sender.clock);
    let (config, metrics) = (DeliveryConfig::default(), DeliveryMetrics::detached());
    let keyring = Arc::new(Keyring::from_bytes([7; 32], Vec::new()));
    let process = log.process("this release");
    let (registry, follower) = Registry::open(
        process.clone(),
        clock.clone(),
        keyring,
        RegistryOptions::default(),
    )
    .await
    .expect("the registry opens");
    let stop = CancellationToken::new();
    let ladder = TopicLayout::default().retry_delays_ms;
    let stage = StageContext {
        log: process,
        config: config.stage.clone(),
        lease_term: Duration::from_millis(config.deliver.lease_ms),
        metrics: metrics.clone(),
    };
    let fan_out = FanOutContext {
        registry: registry.clone(),
        clock: clock.clone(),
        config: config.fan_out.clone(),
        raw_record_bytes_max: config.stage.raw_record_bytes_max,
        metrics: metrics.clone(),
    };
    let scheduler = SchedulerContext {
        clock: clock.clone(),
        ladder: ladder.clone(),
        config: config.scheduler.clone(),
        raw_record_bytes_max: config.stage.raw_record_bytes_max,
        metrics: metrics.clone(),
    };
    let carry = move |producers| DeliverContext {
        registry: registry.clone(),
        sender: sender.clone(),
        clock: clock.clone(),
        producers,
        ladder: ladder.clone(),
        default_schedule: RetrySchedule::standard(),
        config: config.deliver.clone(),
        metrics: metrics.clone(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run(stop.clone()));
    tasks.spawn(fan_out::run(stage.clone(), fan_out, stop.clone()));
    tasks.spawn(scheduler::run(stage.clone(), scheduler, stop.clone()));
    let (_asks, questions) = lane_questions();
    tasks.spawn(deliver::run(stage, carry, questions, stop.clone()));
    sleep(Duration::from_secs(400)).await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn what_a_former_release_left_is_delivered_signed_and_when_due() {
    for release in RELEASES {
        let clock = PausedClock(Instant::now());
        let sender = Kept {
            clock,
            requests: Arc::default(),
        };
        let log = log_of(release, clock).await;
        carry(log.clone(), sender.clone()).await;

        let requests = sender.requests.lock();
        let attempts: Vec<u32> = requests
            .iter()
            .map(|(_, request)| request.attempt)
            .collect();
        assert_eq!(attempts, [1, 1, 4], "the event, the delivery and the retry");
        let (sent_at_ms, _) = requests[2];
        let late_ms = sent_at_ms - RETRY_DUE_AT_MS;
        assert!((0..=1_000).contains(&late_ms), "{late_ms}");
        let secret = [SigningSecret::parse(SECRET).expect("a secret")];
        for (_, request) in requests.iter() {
            assert_eq!(request.url.as_str(), "https://example.com/hooks?a=1");
            let body = String::from_utf8_lossy(&request.body);
            let data = r#"{"amount": 4200, "note": "\u00fc"}"#;
            assert!(body.contains(data), "{body}");
            let signature = sign(&secret, "evt_golden", request.timestamp_s, &request.body);
            assert_eq!(request.signature, signature);
        }
        assert!(log.snapshot(DEAD_LETTERS).is_empty());
        let settled = log.snapshot("attempts").into_iter().map(|record| {
            let value = record.value.expect("a value");
            Attempt::decode(&value).expect("an attempt").settlement
        });
        assert_eq!(
            settled.collect::<Vec<_>>(),
            [Some(Settlement::Delivered); 3]
        );
    }
}
