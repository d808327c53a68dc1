//! Endpoints as a script, each behaving as its name says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use postrider_delivery::sender::{MayLeave, Sender, WebhookRequest, WebhookResponse};
use postrider_log::Clock;
use postrider_log::memory::SplitMix64;
use postrider_model::outcome::{Outcome, Reason, retry_after};
use tokio::time::{Instant, sleep};

use super::audit::Audit;
use super::chronicle::{Chronicle, Sent};
use super::clock::SimulatedClock;
use super::freeze::Gate;
use super::watch::Watch;

/// How an endpoint behaves: by the part of its name before the first `_`.
pub(crate) const BEHAVIOURS: [&str; 12] = [
    "healthy",
    "flaky",
    "slow",
    "dead",
    "broken",
    "gone",
    "hung",
    "flapping",
    "limited",
    "lying",
    "starting",
    "recovering",
];

/// An endpoint that flaps takes connections for so long, then refuses them for as long, and so on.
pub(crate) const FLAPS_MS: i64 = 30_000;
const LIMITED_PER_SECOND: usize = 4;
const SLOW_START_MS: i64 = 15_000;
/// How long a name and a connection may take, if they take long at all.
const CONNECT_MS_MAX: u64 = 3_000;
const RECOVERS_AT_MS: i64 = 30_000;
/// What a hostile endpoint asks for: nothing of it is a wait that anybody would want to keep.
const LIES: [&str; 8] = [
    "inf",
    "1e300",
    "-5",
    "99999999999999999999999999",
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "Thu, 01 Jan 1970 00:00:00 GMT",
    "soon",
    "",
];

#[derive(Debug)]
pub(crate) struct Network {
    random: Mutex<SplitMix64>,
    clock: Arc<SimulatedClock>,
    chronicle: Arc<Chronicle>,
    watch: Arc<Watch>,
    /// When each endpoint was called, in the last second at least.
    calls: Mutex<BTreeMap<String, Vec<i64>>>,
    healed: AtomicBool,
    connects_slowly: AtomicBool,
    down_until: Mutex<Instant>,
}

enum Script {
    Answer(u16, Option<i64>),
    Refuse(Reason),
}

impl Network {
    pub(crate) fn new(
        seed: u64,
        clock: Arc<SimulatedClock>,
        chronicle: Arc<Chronicle>,
        watch: Arc<Watch>,
    ) -> Arc<Self> {
        Arc::new(Self {
            random: Mutex::new(SplitMix64::new(seed ^ 0xe7a9)),
            clock,
            chronicle,
            watch,
            calls: Mutex::default(),
            healed: AtomicBool::new(false),
            connects_slowly: AtomicBool::new(false),
            down_until: Mutex::new(Instant::now()),
        })
    }

    /// From now on some connections take their time.
    pub(crate) fn connect_slowly(&self) {
        self.connects_slowly.store(true, Ordering::Relaxed);
    }

    /// From now on every endpoint answers as it should.
    pub(crate) fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
    }

    /// Nobody can be reached for a while.
    pub(crate) fn go_down(&self, time: Duration) {
        *self.down_until.lock() = Instant::now() + time;
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.lock().below(bound)
    }

    /// Notes a call, and says how many there were in the last second and how long the endpoint is
    /// in use.
    fn called(&self, endpoint: &str) -> (usize, i64) {
        let now_ms = self.clock.elapsed_ms();
        let mut calls = self.calls.lock();
        let calls = calls.entry(endpoint.to_owned()).or_default();
        calls.push(now_ms);
        let lately = calls.iter().rev();
        let lately = lately.take_while(|at_ms| **at_ms > now_ms - 1_000).count();
        (lately, now_ms - calls[0])
    }

    async fn play(&self, endpoint: &str, limit: Duration) -> Script {
        let (lately, in_use_ms) = self.called(endpoint);
        let behaviour = endpoint.split('_').next().unwrap_or_default();
        if self.healed.load(Ordering::Relaxed) {
            return Script::Answer(200, None);
        }
        if Instant::now() < *self.down_until.lock() {
            return Script::Refuse(Reason::Connect);
        }
        match behaviour {
            "flaky" if self.below(2) == 0 => Script::Answer(503, None),
            "slow" => {
                self.answer_within(Duration::from_millis(self.below(4_000)), limit)
                    .await
            }
            "starting" if in_use_ms < SLOW_START_MS => {
                self.answer_within(Duration::from_millis(1_800), limit)
                    .await
            }
            "dead" => Script::Refuse(Reason::Connect),
            "broken" => Script::Answer(500, None),
            "gone" => Script::Answer(410, None),
            "hung" => self.answer_within(Duration::MAX, limit).await,
            "flapping" if self.clock.elapsed_ms() / FLAPS_MS % 2 == 1 => {
                Script::Refuse(Reason::Connect)
            }
            "limited" if lately > LIMITED_PER_SECOND => Script::Answer(429, Some(2_000)),
            "lying" if self.below(3) == 0 => {
                let lie = LIES[usize::try_from(self.below(LIES.len() as u64)).expect("few")];
                Script::Answer(503, retry_after(lie, self.clock.now_ms()))
            }
            "recovering" if self.clock.elapsed_ms() < RECOVERS_AT_MS => Script::Answer(502, None),
            _ => Script::Answer(200, None),
        }
    }

    async fn answer_within(&self, takes: Duration, limit: Duration) -> Script {
        sleep(takes.min(limit)).await;
        if takes < limit {
            Script::Answer(200, None)
        } else {
            Script::Refuse(Reason::Timeout)
        }
    }
}

/// The network as one life of a worker uses it.
#[derive(Debug)]
pub(crate) struct ScriptedSender {
    pub(crate) network: Arc<Network>,
    pub(crate) life: usize,
    pub(crate) gate: Arc<Gate>,
}

/// A request until its answer is there or nobody waits for it.
struct UnderWay {
    watch: Arc<Watch>,
    sent: Sent,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.watch.audit_if_whole(|audit| audit.ended(&self.sent));
    }
}

impl Sender for ScriptedSender {
    async fn send(&self, request: WebhookRequest, may_leave: MayLeave) -> Option<WebhookResponse> {
        let network = &self.network;
        let begun_wall_ms = network.clock.now_ms();
        if network.connects_slowly.load(Ordering::Relaxed) && network.below(8) == 0 {
            sleep(Duration::from_millis(network.below(CONNECT_MS_MAX))).await;
            self.gate.passed().await;
        }
        if !may_leave() {
            return None;
        }
        let endpoint = request.url.path().trim_start_matches('/').to_owned();
        let (partition, tenure, foreign_ms) = network.watch.standing(self.life, &endpoint);
        let sent = Sent {
            at_ms: network.clock.elapsed_ms(),
            wall_ms: network.clock.now_ms(),
            begun_wall_ms,
            life: self.life,
            event_id: request.id.clone(),
            endpoint: endpoint.clone(),
            attempt: request.attempt,
            partition,
            tenure,
            foreign_ms,
            thawed_ms: i64::try_from(self.gate.since_thaw().as_millis()).expect("short"),
        };
        network.chronicle.sent(sent.clone());
        network.watch.audit(|audit| audit.check_request(&sent));
        let _under_way = UnderWay {
            watch: network.watch.clone(),
            sent: sent.clone(),
        };
        let script = network.play(&endpoint, request.timeout).await;
        sleep(Duration::from_millis(1 + network.below(50))).await;
        let (outcome, detail) = match script {
            Script::Answer(status, retry_after_ms) => {
                if status == 200 {
                    let has_it = |audit: &mut Audit| {
                        audit.succeeded(&sent, network.clock.elapsed_ms());
                    };
                    network.watch.audit(has_it);
                }
                let outcome = Outcome::Answered {
                    status,
                    retry_after_ms,
                };
                (outcome, String::new())
            }
            Script::Refuse(reason) => {
                if reason == Reason::Connect {
                    network.watch.audit(|audit| audit.unreachable(&sent));
                }
                (Outcome::Unanswered(reason), "no answer".to_owned())
            }
        };
        self.gate.passed().await;
        Some(WebhookResponse {
            outcome,
            detail,
            excerpt: Bytes::new(),
        })
    }
}
