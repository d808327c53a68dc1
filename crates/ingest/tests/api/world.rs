//! A log in memory, a registry on it, and the API on both.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, StatusCode};
use postrider_daemon::config::Secret;
use postrider_daemon::http::NotBefore;
use postrider_ingest::{Api, ApiContext, Entrance, IngestConfig};
use postrider_log::memory::{Faults, MemoryLog};
use postrider_log::{
    Clock, Log, NewRecord, Position, Producer, ProducerOptions, Record, Target, TopicSpec,
};
use postrider_model::address::AddressPolicy;
use postrider_model::operational::PROOF_HEADER;
use postrider_model::topics::TopicLayout;
use postrider_registry::{Keyring, Registry, RegistryOptions};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub(crate) const KEY: &str = "operator-key-of-the-tests";
pub(crate) const PARTITIONS: i32 = 3;
pub(crate) const START_MS: i64 = 1_795_237_200_000;

/// A clock that goes when it is told to.
#[derive(Debug)]
pub(crate) struct ManualClock(AtomicI64);

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl ManualClock {
    pub(crate) fn advance(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) registry: Registry,
    pub(crate) router: Router,
    pub(crate) metrics: prometheus::Registry,
    producer: Box<dyn Producer>,
    _tasks: JoinSet<()>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// A world with other limits.
    pub(crate) async fn with(limits: impl FnOnce(&mut IngestConfig)) -> Self {
        let clock = Arc::new(ManualClock(AtomicI64::new(START_MS)));
        let log = MemoryLog::new(clock.clone(), 1);
        create_topics(&log).await;
        let keyring = Arc::new(Keyring::from_bytes([7; 32], vec![]));
        let options = RegistryOptions::default();
        let (registry, follower) = Registry::open(log.clone(), clock.clone(), keyring, options)
            .await
            .unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run(CancellationToken::new()));
        registry.caught_up().await;
        let mut config = IngestConfig {
            operator_key: Some(Secret::from(KEY.to_owned())),
            ..IngestConfig::default()
        };
        limits(&mut config);
        let metrics = prometheus::Registry::new();
        let entrance = Entrance::new(&config, &metrics).unwrap();
        let context = ApiContext {
            log: log.clone(),
            registry: registry.clone(),
            clock: clock.clone(),
            config,
            policy: AddressPolicy::try_new(&["10.1.0.0/16".to_owned()]).unwrap(),
            metrics: entrance.metrics().clone(),
            halt: CancellationToken::new(),
        };
        entrance.open(Api::new(context).await.unwrap()).unwrap();
        let router = entrance.router();
        let options = ProducerOptions {
            name: "test",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 64 << 20,
        };
        let producer = log.producer(options).await.unwrap();
        Self {
            clock,
            log,
            registry,
            router,
            metrics,
            producer,
            _tasks: tasks,
        }
    }

    /// A world with the tenant `acme`.
    pub(crate) async fn with_tenant() -> Self {
        Self::with_tenant_and(|_| ()).await
    }

    /// A world with that tenant and other limits.
    pub(crate) async fn with_tenant_and(limits: impl FnOnce(&mut IngestConfig)) -> Self {
        let world = Self::with(limits).await;
        world
            .put("/v1/tenants/acme", "")
            .await
            .expect(StatusCode::CREATED);
        world
    }

    pub(crate) fn faults(&self) -> Faults {
        self.log.faults()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body)
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body)
            .await
    }

    /// Sends a request with the operator key, unless the headers have another.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {KEY}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        self.ask(request).await
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 64 << 20).await.unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            not_before: parts.extensions.get().copied(),
            body,
        }
    }

    /// Sends a request that bears this key.
    pub(crate) async fn send_as(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let key = format!("Bearer {key}");
        let json = ("content-type", "application/json");
        self.send(method, path, &[("authorization", &key), json], body)
            .await
    }

    /// The same from this address.
    pub(crate) async fn get_from(&self, address: &str, key: &str, path: &str) -> Answer {
        let peer: SocketAddr = format!("{address}:4000").parse().unwrap();
        let request = Request::get(path)
            .header("authorization", format!("Bearer {key}"))
            .extension(ConnectInfo(peer))
            .body(Body::empty());
        self.ask(request.unwrap()).await
    }

    /// Appends a record as a stage would.
    pub(crate) async fn append(&self, topic: &str, key: &str, value: Bytes) -> Position {
        self.append_to(topic, Target::Key, key, value).await
    }

    /// Appends a record to a partition that its key does not say.
    pub(crate) async fn append_to(
        &self,
        topic: &str,
        target: Target,
        key: &str,
        value: Bytes,
    ) -> Position {
        let record = NewRecord {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Some(value),
            headers: Vec::new(),
        };
        self.producer.append(topic, target, record).await.unwrap()
    }

    /// Appends a record of which it proves that Postrider itself wrote it.
    pub(crate) async fn append_proven(&self, topic: &str, key: &str, value: Bytes) -> Position {
        let proof = self.registry.vouch(&value);
        let record = NewRecord {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Some(value),
            headers: vec![(PROOF_HEADER.to_owned(), proof.into())],
        };
        let appended = self.producer.append(topic, Target::Key, record);
        appended.await.unwrap()
    }

    pub(crate) fn records(&self, topic: &str) -> Vec<Record> {
        self.log.snapshot(topic)
    }

    /// The value of a metric without, or with exactly these, labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&self.metrics.gather())
            .unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Reads a list page by page to its end. A cursor in the path comes last.
    pub(crate) async fn all_pages(&self, path: &str) -> Pages {
        let mut pages = Pages {
            data: Vec::new(),
            requests: 0,
            cut: 0,
        };
        let base = path
            .split("&cursor=")
            .next()
            .unwrap()
            .split("?cursor=")
            .next()
            .unwrap();
        let separator = if base.contains('?') { '&' } else { '?' };
        let mut next = path.to_owned();
        loop {
            let page = self.get(&next).await.expect(StatusCode::OK).json();
            pages.requests += 1;
            pages.cut += usize::from(page["complete"] == false);
            pages
                .data
                .extend(page["data"].as_array().unwrap().iter().cloned());
            let Some(cursor) = page["next_cursor"].as_str() else {
                return pages;
            };
            assert!(pages.requests < 1_000, "the list has no end");
            next = format!("{base}{separator}cursor={cursor}");
        }
    }
}

/// A list read to its end.
pub(crate) struct Pages {
    pub(crate) data: Vec<Value>,
    pub(crate) requests: usize,
    pub(crate) cut: usize,
}

impl Pages {
    pub(crate) fn field(&self, name: &str) -> Vec<String> {
        self.data
            .iter()
            .map(|item| item[name].as_str().unwrap().to_owned())
            .collect()
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// How long the server keeps back a refusal that comes next, if this is one.
    pub(crate) not_before: Option<NotBefore>,
    pub(crate) body: Bytes,
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(self, status: StatusCode) -> Self {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The problem, which must be one in form and of this kind.
    #[track_caller]
    pub(crate) fn problem(&self, kind: &str) -> Value {
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(
            problem["type"],
            format!("urn:postrider:problem:{kind}"),
            "{problem}"
        );
        assert_eq!(problem["status"], self.status.as_u16());
        assert!(
            problem["title"].is_string() && problem["detail"].is_string(),
            "{problem}"
        );
        problem
    }

    /// The fields that are wrong.
    #[track_caller]
    pub(crate) fn wrong_fields(&self) -> Vec<String> {
        let problem = self.problem("invalid");
        let errors = problem["errors"].as_array().unwrap();
        errors
            .iter()
            .map(|error| error["field"].as_str().unwrap().to_owned())
            .collect()
    }
}

async fn create_topics(log: &MemoryLog) {
    let layout = TopicLayout {
        partitions: PARTITIONS,
        ..TopicLayout::default()
    };
    let specs: Vec<_> = layout
        .topics()
        .into_iter()
        .map(|plan| TopicSpec {
            name: plan.name.to_owned(),
            partitions: plan.partitions,
            retention: plan
                .retention_ms
                .map(|ms| Duration::from_millis(ms.unsigned_abs())),
            message_bytes_max: plan.message_bytes_max,
            settings: plan.settings,
        })
        .collect();
    log.create_topics(&specs).await.unwrap();
}
