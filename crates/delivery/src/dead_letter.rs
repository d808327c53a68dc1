//! Dead letters as the stages write them.

use bytes::Bytes;
use postrider_log::{NewRecord, Partition, Producer, Record, Target};
use postrider_model::delivery::{DeadLetter, DeadLetterContent, Delivery, RawRecord};
use postrider_model::outcome::Reason;
use postrider_model::topics::DEAD_LETTERS;

use crate::durable::{TooLarge, append_durably};
use crate::metrics::DeliveryMetrics;
use crate::said::Said;

static SAID: Said = Said::new();

const RAW_KEY_BYTES_MAX: usize = 1024;

/// A record that could not be understood, cut to the cap. Its id names the record, so writing it twice shows.
pub(crate) fn of_record(
    topic: &str,
    record: &Record,
    reason: Reason,
    detail: String,
    value_bytes_max: usize,
    now_ms: i64,
) -> DeadLetter {
    let value = record.value.clone().unwrap_or_default();
    DeadLetter {
        id: format!(
            "dl_{topic}_{}_{}_{}",
            record.partition, record.offset, record.timestamp_ms
        ),
        reason,
        detail,
        dead_lettered_at_ms: now_ms,
        last_status: None,
        content: DeadLetterContent::Raw(RawRecord {
            topic: topic.to_owned(),
            partition: record.partition,
            offset: record.offset,
            key: cut(&record.key, RAW_KEY_BYTES_MAX),
            value_bytes: value.len() as u64,
            value: cut(&value, value_bytes_max),
        }),
    }
}

/// A delivery given up. Its id names the work, so writing it twice shows.
pub(crate) fn of_delivery(
    delivery: &Delivery,
    reason: Reason,
    detail: String,
    last_status: Option<u16>,
    now_ms: i64,
) -> DeadLetter {
    let endpoint = delivery.endpoint.as_str().trim_start_matches("ep_");
    DeadLetter {
        id: format!(
            "dl_{}_{}_{}_{endpoint}_{:x}",
            delivery.position.partition,
            delivery.position.offset,
            delivery.position.appended_at_ms,
            delivery.run
        ),
        reason,
        detail,
        dead_lettered_at_ms: now_ms,
        last_status,
        content: DeadLetterContent::Delivery(Box::new(delivery.clone())),
    }
}

/// Writes a dead letter, repeating until the log has it.
pub(crate) async fn write(
    producer: &dyn Producer,
    metrics: &DeliveryMetrics,
    letter: &DeadLetter,
) -> Result<(), TooLarge> {
    let key = match &letter.content {
        DeadLetterContent::Delivery(delivery) => {
            Bytes::copy_from_slice(delivery.endpoint.as_str().as_bytes())
        }
        DeadLetterContent::Raw(raw) => key_of_record(&raw.topic, raw.partition),
    };
    let record = NewRecord {
        key,
        value: Some(letter.encode()),
        headers: Vec::new(),
    };
    append_durably(producer, DEAD_LETTERS, Target::Key, record).await?;
    metrics.dead_lettered(letter.reason);
    if let Some(unsaid) = SAID.say() {
        tracing::warn!(dead_letter = %letter.id, reason = %letter.reason, detail = letter.detail, unsaid, "dead letter written");
    }
    Ok(())
}

/// Where the dead letters of the records of a partition are.
pub(crate) fn key_of_record(topic: &str, partition: Partition) -> Bytes {
    Bytes::from(format!("{topic}/{partition}"))
}

fn cut(bytes: &Bytes, bytes_max: usize) -> Bytes {
    bytes.slice(..bytes.len().min(bytes_max))
}
