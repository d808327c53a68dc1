//! What the owner of a lane knows of it, and questions about it that somebody asks while the stage
//! runs.

use std::time::Duration;

use postrider_log::{Offset, Partition};
use postrider_model::ids::EndpointId;
use postrider_model::payload::rfc3339;
use serde::{Serialize, Serializer};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

/// Questions that wait, at most; more are refused.
const QUESTIONS_MAX: usize = 64;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What the owner of a lane knows of it, beyond what the log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneStatus {
    /// The partition of `deliveries` that the endpoint's traffic goes through.
    pub partition: Partition,
    /// Deliveries that wait in memory.
    pub queued: usize,
    /// Ordering keys that are held back by a delivery that failed, or have more deliveries than may
    /// wait in memory.
    pub blocked_keys: usize,
    /// Attempts under way.
    pub in_flight: usize,
    /// How many attempts the endpoint is given at once, as learned.
    pub concurrency_limit: usize,
    /// How long it takes to answer, smoothed; absent before the first success.
    pub latency_ms: Option<u32>,
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// When it is probed next, where its breaker is open, Unix milliseconds as every time here;
    /// told as RFC 3339.
    #[serde(rename = "next_probe_at", serialize_with = "as_rfc3339")]
    pub next_probe_at_ms: Option<i64>,
    /// It is paused or disabled, which whoever asks knows.
    #[serde(skip)]
    pub paused: bool,
    /// Since when nothing succeeded.
    #[serde(rename = "failing_since", serialize_with = "as_rfc3339")]
    pub failing_since_ms: Option<i64>,
    /// Since when the lane is behind.
    #[serde(rename = "behind_since", serialize_with = "as_rfc3339")]
    pub behind_since_ms: Option<i64>,
    /// Offsets between where its unsettled deliveries begin and the end of what was read; an upper
    /// bound for how many deliveries it is behind by, since other endpoints' lie between.
    pub behind_by_offsets: Option<Offset>,
    /// The lowest offset that is not settled.
    pub lowest_unsettled: Offset,
    /// When it may start its next attempt, of what waits in memory or of a blocked ordering key,
    /// where that is a matter of time. Other retries wait elsewhere.
    #[serde(rename = "next_attempt_at", serialize_with = "as_rfc3339")]
    pub next_attempt_at_ms: Option<i64>,
    /// What keeps everything from being sent to it that is neither its own fault nor anybody's
    /// wish, for people.
    pub obstacles: Vec<String>,
}

fn as_rfc3339<S: Serializer>(time_ms: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    time_ms.map(rfc3339).serialize(serializer)
}

type Question = (EndpointId, oneshot::Sender<Option<LaneStatus>>);

/// The stage has too much to do, begins anew or has ended.
#[derive(Debug)]
pub struct NoAnswer;

/// Asks a running stage about its lanes.
#[derive(Debug, Clone)]
pub struct LaneQuestions(mpsc::Sender<Question>);

/// Where the stage finds what it is asked; it is handed on when the stage starts again.
#[derive(Debug)]
pub struct LaneAnswers(pub(crate) Mutex<mpsc::Receiver<Question>>);

/// The two ends.
pub fn lane_questions() -> (LaneQuestions, LaneAnswers) {
    let (sender, receiver) = mpsc::channel(QUESTIONS_MAX);
    (LaneQuestions(sender), LaneAnswers(Mutex::new(receiver)))
}

impl LaneQuestions {
    /// What is known of the endpoint's lane; `None` if it has none here.
    ///
    /// # Errors
    /// When the stage does not answer within a second.
    pub async fn ask(&self, endpoint: EndpointId) -> Result<Option<LaneStatus>, NoAnswer> {
        let (sender, answer) = oneshot::channel();
        self.0.try_send((endpoint, sender)).map_err(|_| NoAnswer)?;
        let answer = timeout(ANSWER_TIMEOUT, answer).await;
        answer.map_err(|_| NoAnswer)?.map_err(|_| NoAnswer)
    }
}

impl LaneAnswers {
    /// The next question. Cancel-safe.
    pub(crate) async fn next(&self) -> Option<Question> {
        self.0.lock().await.recv().await
    }
}
