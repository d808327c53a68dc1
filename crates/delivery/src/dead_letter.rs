//! Dead letters as the stages write them.

use bytes::Bytes;
use postrider_log::{NewRecord, Offset, Partition, Producer, Record, Target};
use postrider_model::delivery::{DeadLetter, DeadLetterContent, Delivery, RawRecord};
use postrider_model::outcome::Reason;
use postrider_model::topics::{DEAD_LETTERS, DELIVERIES};

use crate::durable::{TooLarge, append_durably};
use crate::metrics::DeliveryMetrics;
use crate::said::Said;

static SAID: Said = Said::new();

const RAW_KEY_BYTES_MAX: usize = 1024;
/// Of what does not fit whole: ids, type and the beginning of the data.
const BEGINNING_BYTES_MAX: usize = 16 * 1024;

/// A record that could not be understood, cut to the cap. Its id names the record, so writing it
/// twice shows.
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

/// How much of what was given up is in `dead-letters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// All of it.
    Whole,
    /// Its beginning and its place: it cannot be redriven.
    Beginning,
    /// Its place.
    Place,
}

impl Written {
    /// What to say to people where it is not the whole.
    pub(crate) fn note(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::Beginning => {
                Some("its dead letter holds the beginning only, as the topic takes no more")
            }
            Self::Place => Some("its dead letter holds the place only, as the topic takes no more"),
        }
    }
}

/// Writes the dead letter of a record of the topic that cannot go on. If not even its place fits,
/// the record counts as lost.
pub(crate) async fn keep(
    producer: &dyn Producer,
    metrics: &DeliveryMetrics,
    topic: &str,
    letter: DeadLetter,
    place: (Partition, Offset),
) {
    if write(producer, metrics, letter, place).await.is_err() {
        metrics.record_lost(topic);
    }
}

/// Writes a dead letter of the record at this place, repeating until the log has it: as much of it
/// as its topic takes.
///
/// # Errors
/// The topic takes not even the place.
pub(crate) async fn write(
    producer: &dyn Producer,
    metrics: &DeliveryMetrics,
    letter: DeadLetter,
    (partition, offset): (Partition, Offset),
) -> Result<Written, TooLarge> {
    let attempts = [
        (Written::Whole, None),
        (Written::Beginning, Some(BEGINNING_BYTES_MAX)),
        (Written::Place, Some(0)),
    ];
    for (written, bytes_max) in attempts {
        let shorter = bytes_max.map(|bytes_max| shortened(&letter, partition, offset, bytes_max));
        let record = record_of(shorter.as_ref().unwrap_or(&letter));
        if append_durably(producer, DEAD_LETTERS, Target::Key, record)
            .await
            .is_err()
        {
            continue;
        }
        metrics.dead_lettered(letter.reason);
        if let Some(unsaid) = SAID.say() {
            tracing::warn!(
                dead_letter = %letter.id,
                reason = %letter.reason,
                detail = letter.detail,
                ?written,
                unsaid,
                "dead letter written"
            );
        }
        return Ok(written);
    }
    tracing::error!(
        dead_letter = letter.id,
        "not even the place of what was given up fits into its topic; raise max.message.bytes of dead-letters"
    );
    Err(TooLarge)
}

fn record_of(letter: &DeadLetter) -> NewRecord {
    let key = match &letter.content {
        DeadLetterContent::Delivery(delivery) => {
            Bytes::copy_from_slice(delivery.endpoint.as_str().as_bytes())
        }
        DeadLetterContent::Raw(raw) => key_of_record(&raw.topic, raw.partition),
    };
    NewRecord {
        key,
        value: Some(letter.encode()),
        headers: Vec::new(),
    }
}

/// The letter with so much of the record. A delivery that is not whole must not be redriven, so it
/// becomes a record as read.
fn shortened(
    letter: &DeadLetter,
    partition: Partition,
    offset: Offset,
    bytes_max: usize,
) -> DeadLetter {
    let raw = match &letter.content {
        DeadLetterContent::Raw(raw) => RawRecord {
            key: cut(&raw.key, bytes_max),
            value: cut(&raw.value, bytes_max),
            ..raw.clone()
        },
        DeadLetterContent::Delivery(delivery) => {
            let value = delivery.encode();
            RawRecord {
                topic: DELIVERIES.to_owned(),
                partition,
                offset,
                key: Bytes::copy_from_slice(delivery.endpoint.as_str().as_bytes()),
                value_bytes: value.len() as u64,
                value: cut(&value, bytes_max),
            }
        }
    };
    DeadLetter {
        content: DeadLetterContent::Raw(raw),
        ..letter.clone()
    }
}

/// Where the dead letters of the records of a partition are.
pub(crate) fn key_of_record(topic: &str, partition: Partition) -> Bytes {
    Bytes::from(format!("{topic}/{partition}"))
}

fn cut(bytes: &Bytes, bytes_max: usize) -> Bytes {
    bytes.slice(..bytes.len().min(bytes_max))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use postrider_log::memory::MemoryLog;
    use postrider_log::{Log, ProducerOptions, SystemClock, TopicSpec};
    use postrider_model::event::Event;
    use postrider_model::fixtures;

    use super::*;

    /// Writes a dead letter of 100,000 bytes of data into a topic that takes so much; what is told,
    /// and what is there.
    async fn written(topic_bytes_max: u32) -> (Result<Written, TooLarge>, Vec<DeadLetter>) {
        let log = MemoryLog::new(Arc::new(SystemClock), 1);
        let topic = TopicSpec {
            name: DEAD_LETTERS.to_owned(),
            partitions: 1,
            retention: None,
            message_bytes_max: topic_bytes_max,
            settings: Vec::new(),
        };
        log.create_topics(&[topic]).await.unwrap();
        let options = ProducerOptions {
            name: "test",
            append_timeout: None,
            linger: Duration::ZERO,
            queue_bytes_max: 1 << 20,
        };
        let producer = log.producer(options).await.unwrap();
        let event = Event {
            data: Bytes::from(vec![b'1'; 100_000]),
            ..fixtures::event("evt_1")
        };
        let delivery = Delivery {
            attempt: 3,
            ..fixtures::delivery(event, "ep_a", 5)
        };
        let letter = of_delivery(&delivery, Reason::Exhausted, "no".to_owned(), Some(500), 1);
        let told = write(&*producer, &DeliveryMetrics::detached(), letter, (2, 7)).await;
        let records = log.snapshot(DEAD_LETTERS);
        let letters = records
            .iter()
            .map(|record| DeadLetter::decode(record.value.as_ref().unwrap()).unwrap());
        (told, letters.collect())
    }

    #[tokio::test]
    async fn as_much_is_written_as_the_topic_takes_and_that_is_told() {
        let (told, letters) = written(1 << 20).await;
        assert_eq!(told, Ok(Written::Whole));
        assert!(
            matches!(&letters[..], [one] if matches!(one.content, DeadLetterContent::Delivery(_)))
        );

        for (bytes_max, expected, kept) in [
            (50_000, Written::Beginning, BEGINNING_BYTES_MAX),
            (1_000, Written::Place, 0),
        ] {
            let (told, letters) = written(bytes_max).await;
            assert_eq!(told, Ok(expected));
            let [letter] = &letters[..] else {
                panic!("{letters:?}")
            };
            assert_eq!(
                (letter.reason, letter.last_status),
                (Reason::Exhausted, Some(500))
            );
            let DeadLetterContent::Raw(raw) = &letter.content else {
                panic!("it could be redriven: {letter:?}")
            };
            assert_eq!(
                (&raw.topic[..], raw.partition, raw.offset),
                (DELIVERIES, 2, 7)
            );
            assert_eq!(raw.key, "ep_a");
            assert_eq!(raw.value.len(), kept);
            assert!(raw.value_bytes > 100_000);
        }

        assert_eq!(written(50).await, (Err(TooLarge), Vec::new()));
    }
}
