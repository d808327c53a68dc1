//! Endpoints as a script, and everything they were asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use postrider_delivery::sender::{Sender, WebhookRequest, WebhookResponse};
use postrider_log::Clock;
use postrider_log::memory::SplitMix64;
use postrider_model::outcome::{Outcome, Reason};
use tokio::time::sleep;

/// How an endpoint behaves, by the last part of its URL.
pub(crate) const BEHAVIOURS: [&str; 6] = ["healthy", "flaky", "slow", "dead", "broken", "gone"];

/// A request that reached the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) at_ms: i64,
    /// Which life of which worker sent it.
    pub(crate) life: usize,
    pub(crate) event_id: String,
    pub(crate) endpoint: String,
    pub(crate) attempt: u32,
}

#[derive(Debug)]
pub(crate) struct Network {
    random: Mutex<SplitMix64>,
    sent: Mutex<Vec<Sent>>,
    is_healed: AtomicBool,
    clock: Arc<dyn Clock>,
}

impl Network {
    pub(crate) fn new(seed: u64, clock: Arc<dyn Clock>) -> Arc<Self> {
        let random = Mutex::new(SplitMix64::new(seed ^ 0xe7a9));
        Arc::new(Self {
            random,
            sent: Mutex::default(),
            is_healed: AtomicBool::new(false),
            clock,
        })
    }

    /// From now on everybody answers well.
    pub(crate) fn heal(&self) {
        self.is_healed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().expect("no panic").clone()
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.lock().expect("no panic").below(bound)
    }
}

/// The network as one life of a worker uses it.
#[derive(Debug)]
pub(crate) struct ScriptedSender {
    pub(crate) network: Arc<Network>,
    pub(crate) life: usize,
}

impl Sender for ScriptedSender {
    async fn send(&self, request: WebhookRequest) -> WebhookResponse {
        let path = request.url.path().trim_start_matches('/').to_owned();
        self.network.sent.lock().expect("no panic").push(Sent {
            at_ms: self.network.clock.now_ms(),
            life: self.life,
            event_id: request.id.clone(),
            endpoint: path.clone(),
            attempt: request.attempt,
        });
        let is_healed = self.network.is_healed.load(Ordering::Relaxed);
        let status = match path.as_str() {
            _ if is_healed => 200,
            "healthy" => 200,
            "flaky" if self.network.below(2) == 0 => 200,
            "flaky" => 503,
            "slow" => {
                sleep(Duration::from_millis(self.network.below(4_000))).await;
                200
            }
            "dead" => {
                sleep(request.timeout).await;
                return unanswered(Reason::Timeout);
            }
            "gone" => 410,
            _ => 500,
        };
        sleep(Duration::from_millis(1 + self.network.below(50))).await;
        let outcome = Outcome::Answered {
            status,
            retry_after_ms: None,
        };
        WebhookResponse {
            outcome,
            detail: String::new(),
            excerpt: Bytes::new(),
        }
    }
}

fn unanswered(reason: Reason) -> WebhookResponse {
    WebhookResponse {
        outcome: Outcome::Unanswered(reason),
        detail: "no answer".to_owned(),
        excerpt: Bytes::new(),
    }
}
