//! What a stage appends through: what somebody waits for goes to the log at once, the rest is
//! gathered into fewer requests first.

use std::sync::Arc;
use std::time::Duration;

use postrider_log::{Log, LogError, Producer, ProducerOptions};

/// The part of the queue that is for what is gathered: it is small, and comes back late.
const GATHERING_PART: usize = 4;

/// The producers of one life of a stage. What is appended through one has no order with what goes
/// through the other.
#[derive(Debug, Clone)]
pub struct Producers {
    /// For what somebody waits for.
    pub prompt: Arc<dyn Producer>,
    /// For what nobody waits for: a record waits for others to share its request.
    pub gathering: Arc<dyn Producer>,
}

impl Producers {
    /// With these options; what nobody waits for gathers for so long, if it is told.
    pub(super) async fn start(
        log: &dyn Log,
        options: ProducerOptions,
        gathers: Option<Duration>,
    ) -> Result<Self, LogError> {
        let Some(linger) = gathers else {
            let only: Arc<dyn Producer> = Arc::from(log.producer(options).await?);
            return Ok(Self {
                prompt: Arc::clone(&only),
                gathering: only,
            });
        };
        let queue_bytes_max = options.queue_bytes_max / GATHERING_PART;
        let gathering = ProducerOptions {
            linger,
            queue_bytes_max,
            ..options
        };
        let prompt = ProducerOptions {
            queue_bytes_max: options.queue_bytes_max - queue_bytes_max,
            ..options
        };
        Ok(Self {
            prompt: Arc::from(log.producer(prompt).await?),
            gathering: Arc::from(log.producer(gathering).await?),
        })
    }
}
