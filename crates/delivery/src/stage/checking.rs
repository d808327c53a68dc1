//! Looks again and again whether the log still has what was read of it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use postrider_log::{Log, LogError};
use tokio::time::{Instant, sleep, sleep_until};

use crate::past::{Contradiction, contradiction};
use crate::progress::{Progress, ToVerify};

/// What is not found is looked for once more after this time: what a broker says while a leader
/// changes may pass.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Checking {
    log: Arc<dyn Log>,
    topic: &'static str,
    interval: Duration,
    next_at: Instant,
    under_way: Option<BoxFuture<'static, Vec<Checked>>>,
}

/// What was asked, and what contradicts it.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) asked: ToVerify,
    pub(super) found: Option<Contradiction>,
}

impl Checking {
    pub(super) fn new(log: Arc<dyn Log>, topic: &'static str, interval: Duration) -> Self {
        Self {
            log,
            topic,
            interval,
            next_at: Instant::now() + interval,
            under_way: None,
        }
    }

    /// Waits for the next answers. Cancel-safe.
    pub(super) async fn next(&mut self, progress: &Progress) -> Vec<Checked> {
        if self.under_way.is_none() {
            sleep_until(self.next_at).await;
        }
        let under_way = self.under_way.get_or_insert_with(|| {
            Box::pin(check(self.log.clone(), self.topic, progress.to_verify()))
        });
        let checked = under_way.await;
        self.under_way = None;
        self.next_at = Instant::now() + self.interval;
        checked
    }
}

async fn check(log: Arc<dyn Log>, topic: &'static str, asked: Vec<ToVerify>) -> Vec<Checked> {
    let mut checked = Vec::with_capacity(asked.len());
    for asked in asked {
        match look(&*log, topic, &asked).await {
            Ok(found) => checked.push(Checked { asked, found }),
            // It is asked again, and until then nothing counts as found.
            Err(error) => tracing::debug!(
                topic,
                partition = asked.partition,
                %error,
                "the log does not say whether it has what was read"
            ),
        }
    }
    checked
}

async fn look(
    log: &dyn Log,
    topic: &str,
    asked: &ToVerify,
) -> Result<Option<Contradiction>, LogError> {
    let ToVerify {
        partition, known, ..
    } = *asked;
    if contradiction(log, topic, partition, [known])
        .await?
        .is_none()
    {
        return Ok(None);
    }
    sleep(CONFIRM_AFTER).await;
    contradiction(log, topic, partition, [known]).await
}
