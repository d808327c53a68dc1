//! Events that are published all the time, whatever happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use parking_lot::Mutex;
use postrider_tests::Api;
use serde_json::json;
use tokio::task::JoinSet;

const PUBLISHERS: usize = 8;

/// What publishers were told.
#[derive(Debug, Default, Clone)]
pub(crate) struct Told {
    /// Events that were accepted, and when.
    pub(crate) accepted: Vec<(String, Instant)>,
    /// Events that were refused: status, `Retry-After`, when.
    pub(crate) refused: Vec<(u16, String, Instant)>,
    /// Events with no answer.
    pub(crate) unanswered: usize,
}

/// Publishers at work.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    publishers: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    apis: Vec<Api>,
    endpoints: usize,
    next: AtomicUsize,
    stop: AtomicBool,
    told: Mutex<Told>,
}

/// The type of event that an endpoint wants.
pub(crate) fn event_type(endpoint: usize) -> String {
    format!("load.n{endpoint}")
}

impl Load {
    /// Starts publishing, about so many events per second, spread over the endpoints.
    pub(crate) fn start(apis: Vec<Api>, endpoints: usize, per_second: f64) -> Self {
        let shared = Arc::new(Shared {
            apis,
            endpoints,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            told: Mutex::default(),
        });
        let every = Duration::from_secs_f64(1.0 / per_second);
        let mut publishers = JoinSet::new();
        for publisher in 0..PUBLISHERS {
            let shared = Arc::clone(&shared);
            publishers.spawn(async move { shared.publish_on(publisher, every).await });
        }
        Self { shared, publishers }
    }

    /// What publishers were told so far.
    pub(crate) fn told(&self) -> Told {
        self.shared.told().clone()
    }

    /// Stops publishing and tells what was answered.
    pub(crate) async fn stop(mut self) -> Told {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.publishers.join_next().await {
            ended.unwrap();
        }
        self.told()
    }
}

impl Shared {
    async fn publish_on(&self, publisher: usize, every: Duration) {
        let publishers = u32::try_from(PUBLISHERS).unwrap();
        let mut ticks = tokio::time::interval(every * publishers);
        while !self.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let id = format!("evt_{number}");
            let event_type = event_type(number % self.endpoints);
            let event = json!({ "id": id, "type": event_type, "data": { "number": number } });
            let api = &self.apis[publisher % self.apis.len()];
            let answer = api.json(Method::POST, "/events", &event).await;
            let mut told = self.told();
            match answer {
                Ok(answer) if answer.status == 202 => told.accepted.push((id, Instant::now())),
                Ok(answer) => {
                    let retry_after = answer.header("retry-after").to_owned();
                    told.refused
                        .push((answer.status, retry_after, Instant::now()));
                }
                Err(_) => told.unanswered += 1,
            }
        }
    }

    fn told(&self) -> parking_lot::MutexGuard<'_, Told> {
        self.told.lock()
    }
}
