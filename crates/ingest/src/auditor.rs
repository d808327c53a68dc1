//! Entries of the audit on their way into its topic.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_log::{AppendError, Backoff, Log, NewRecord, Producer, ProducerOptions, Target};
use postrider_model::audit::AuditEntry;
use postrider_model::ids::TenantId;
use postrider_model::topics::AUDIT;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::IngestConfig;

/// The topic's only partition.
const PARTITION: i32 = 0;
const QUEUE_BYTES_MAX: usize = 4 << 20;
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(50),
    longest: Duration::from_secs(1),
};

/// Appends entries by a producer of its own, so that no crowd of events keeps them waiting. It is
/// made when there is a first one.
#[derive(Debug)]
pub(crate) struct Auditor {
    log: Arc<dyn Log>,
    producer: OnceCell<Box<dyn Producer>>,
    append_timeout: Duration,
}

impl Auditor {
    pub(crate) fn new(log: Arc<dyn Log>, config: &IngestConfig) -> Self {
        Self {
            log,
            producer: OnceCell::new(),
            append_timeout: config.append_timeout(),
        }
    }

    /// Appends an entry, again as long as it is certain that it is not there. Unlike events it is
    /// appended also when the process counts on nothing any more: what it tells of was done.
    pub(crate) async fn append(&self, entry: &AuditEntry) -> Result<(), AppendError> {
        let tenant = entry.tenant.as_ref().map_or("", TenantId::as_str);
        let record = NewRecord {
            key: Bytes::copy_from_slice(tenant.as_bytes()),
            value: Some(entry.encode()),
            headers: Vec::new(),
        };
        let deadline = Instant::now() + self.append_timeout;
        let mut failures = 0;
        loop {
            let fate = timeout_at(deadline, self.append_once(&record)).await;
            let late = |_| Err(AppendError::Unknown("the log did not answer".into()));
            let fate = fate.unwrap_or_else(late);
            failures += 1;
            let again_at = Instant::now() + BACKOFF.pause(failures);
            match &fate {
                Err(AppendError::QueueFull | AppendError::Failed(_)) if again_at < deadline => {
                    sleep_until(again_at).await;
                }
                _ => return fate,
            }
        }
    }

    async fn append_once(&self, record: &NewRecord) -> Result<(), AppendError> {
        let producer = self.producer.get_or_try_init(async || {
            let options = ProducerOptions {
                name: "audit",
                append_timeout: Some(self.append_timeout),
                linger: Duration::ZERO,
                queue_bytes_max: QUEUE_BYTES_MAX,
            };
            self.log.producer(options).await
        });
        let producer = producer.await;
        let producer = producer.map_err(|error| AppendError::Failed(error.to_string()))?;
        let target = Target::Partition(PARTITION);
        let appended = producer.append(AUDIT, target, record.clone());
        appended.await.map(drop)
    }
}
