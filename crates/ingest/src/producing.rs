//! The producer of the API.

use std::time::Duration;

use postrider_log::{
    AppendError, Log, LogError, NewRecord, Position, Producer, ProducerOptions, Target,
};
use tokio::time::timeout;

use crate::config::IngestConfig;

/// Beyond the producer's own deadline, in case it does not keep it.
const GRACE: Duration = Duration::from_secs(1);

/// Appends, and waits for the fate of each append no longer than the configuration says. A producer that failed for
/// good is the log's to replace.
#[derive(Debug)]
pub(crate) struct Producing {
    producer: Box<dyn Producer>,
    append_timeout: Duration,
}

impl Producing {
    pub(crate) async fn open(log: &dyn Log, config: &IngestConfig) -> Result<Self, LogError> {
        let options = ProducerOptions {
            name: "ingest",
            append_timeout: Some(config.append_timeout()),
            linger: config.append_linger(),
            queue_bytes_max: config.append_queue_bytes_max,
        };
        let producer = log.producer(options).await?;
        Ok(Self {
            producer,
            append_timeout: config.append_timeout(),
        })
    }

    /// Appends a record and waits for its fate.
    pub(crate) async fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> Result<Position, AppendError> {
        let append = self.producer.append(topic, Target::Key, record);
        let fate = timeout(self.append_timeout + GRACE, append).await;
        let late = |_| Err(AppendError::Unknown("the log did not answer".into()));
        let fate = fate.unwrap_or_else(late);
        if let Err(AppendError::Unknown(detail)) = &fate {
            tracing::warn!(topic, detail, "fate of an append is unknown");
        }
        fate
    }

    pub(crate) async fn flush(&self, at_most: Duration) {
        self.producer.flush(at_most).await;
    }
}
