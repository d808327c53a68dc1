//! The producer of the API: replaced when it lost track of an append, which may have been a fatal error.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postrider_log::{
    AppendError, Log, LogError, NewRecord, Position, Producer, ProducerOptions, Target,
};
use tokio::time::timeout;

use crate::config::IngestConfig;

/// Beyond the producer's own deadline, in case it does not keep it.
const GRACE: Duration = Duration::from_secs(1);

/// Appends, and waits for the fate of each append no longer than the configuration says.
#[derive(Debug)]
pub(crate) struct Producing {
    log: Arc<dyn Log>,
    options: ProducerOptions,
    append_timeout: Duration,
    producer: Mutex<Arc<dyn Producer>>,
}

impl Producing {
    pub(crate) async fn open(log: Arc<dyn Log>, config: &IngestConfig) -> Result<Self, LogError> {
        let options = ProducerOptions {
            name: "ingest",
            append_timeout: Some(config.append_timeout()),
            linger: config.append_linger(),
            queue_bytes_max: config.append_queue_bytes_max,
        };
        let producer = Mutex::new(Arc::from(log.producer(options.clone()).await?));
        Ok(Self {
            log,
            options,
            append_timeout: config.append_timeout(),
            producer,
        })
    }

    /// Appends a record and waits for its fate.
    pub(crate) async fn append(
        &self,
        topic: &str,
        record: NewRecord,
    ) -> Result<Position, AppendError> {
        let producer = Arc::clone(&self.present());
        let append = producer.append(topic, Target::Key, record);
        let fate = timeout(self.append_timeout + GRACE, append).await;
        let fate =
            fate.unwrap_or_else(|_| Err(AppendError::Unknown("the log did not answer".into())));
        if let Err(AppendError::Unknown(detail)) = &fate {
            tracing::warn!(topic, detail, "fate of an append is unknown");
            self.replace(&producer).await;
        }
        fate
    }

    pub(crate) async fn flush(&self, at_most: Duration) {
        let producer = Arc::clone(&self.present());
        producer.flush(at_most).await;
    }

    /// Makes a new producer, unless another append saw to it. Order among events of different requests does not matter:
    /// nobody was told of the earlier one yet. What is under way with the old one ends there.
    async fn replace(&self, broken: &Arc<dyn Producer>) {
        if !Arc::ptr_eq(&self.present(), broken) {
            return;
        }
        match self.log.producer(self.options.clone()).await {
            Ok(made) => {
                let mut present = self.present();
                if Arc::ptr_eq(&present, broken) {
                    *present = Arc::from(made);
                }
            }
            Err(error) => tracing::warn!(%error, "no new producer, going on with the old one"),
        }
    }

    fn present(&self) -> MutexGuard<'_, Arc<dyn Producer>> {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
