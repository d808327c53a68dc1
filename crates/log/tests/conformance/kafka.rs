//! The log on a real Kafka broker, as a subject.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use postrider_log::kafka::{KafkaLog, KafkaOptions};
use postrider_log::{Log, Offset, Partition};
use postrider_tests::KafkaBroker;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset as KafkaOffset, TopicPartitionList};

use crate::subject::{Control, Subject};

/// The longest that one question to the broker may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A log on the broker that all tests share, under a prefix of its own, with groups of the classic
/// protocol.
pub(crate) async fn classic(test: &str) -> Option<Subject> {
    Some(subject(test, "classic"))
}

/// The same with groups of the consumer protocol.
pub(crate) async fn consumer(test: &str) -> Option<Subject> {
    Some(subject(test, "consumer"))
}

fn subject(test: &str, protocol: &'static str) -> Subject {
    let prefix = format!("{test}-{:016x}.", RandomState::new().hash_one(test));
    Subject {
        log: connect(&prefix, protocol),
        prefix: "sub.".into(),
        patience: Duration::from_secs(60),
        fetch_bytes_max: 1 << 20,
        control: Box::new(Kafka { prefix, protocol }),
    }
}

fn connect(prefix: &str, protocol: &str) -> Arc<KafkaLog> {
    let bootstrap = KafkaBroker::shared().bootstrap();
    let properties = [
        ("bootstrap.servers", &bootstrap[..]),
        ("group.protocol", protocol),
    ];
    let options = KafkaOptions {
        prefix: prefix.to_owned(),
        properties: properties
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        replication: 1,
        client_id: "conformance".into(),
        partitions: [].into(),
    };
    KafkaLog::connect(options).expect("the options are good")
}

#[derive(Debug)]
struct Kafka {
    prefix: String,
    protocol: &'static str,
}

impl Kafka {
    fn config() -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", KafkaBroker::shared().bootstrap());
        config
    }

    fn admin() -> AdminClient<DefaultClientContext> {
        Self::config().create().expect("an admin client is made")
    }

    /// Appends to the topic in a transaction that is committed, or aborted.
    fn transaction(&self, topic: &str, partition: Partition, committed: bool) {
        let id = format!("{}{topic}-{partition}", self.prefix);
        let producer: BaseProducer = Self::config()
            .set("transactional.id", id)
            .create()
            .expect("a producer is made");
        producer
            .init_transactions(TIMEOUT)
            .expect("the producer is known");
        producer.begin_transaction().expect("a transaction begins");
        let topic = format!("{}{topic}", self.prefix);
        let record = BaseRecord::to(&topic)
            .partition(partition)
            .key("gap")
            .payload("gap");
        producer.send(record).expect("there is room in the queue");
        producer.flush(TIMEOUT).expect("the record is written");
        if committed {
            producer
                .commit_transaction(TIMEOUT)
                .expect("the transaction is committed");
        } else {
            producer
                .abort_transaction(TIMEOUT)
                .expect("the transaction is aborted");
        }
    }
}

#[async_trait]
impl Control for Kafka {
    async fn reopen(&mut self) -> Option<Arc<dyn Log>> {
        Some(connect(&self.prefix, self.protocol))
    }

    async fn truncate(&self, topic: &str, partition: Partition, to: Offset) -> bool {
        let mut list = TopicPartitionList::new();
        let topic = format!("{}{topic}", self.prefix);
        list.add_partition_offset(&topic, partition, KafkaOffset::Offset(to))
            .expect("an offset");
        let deleted = Self::admin()
            .delete_records(&list, &AdminOptions::new())
            .await;
        let deleted = deleted.expect("the records are deleted");
        deleted.elements()[0]
            .error()
            .expect("the partition is truncated");
        true
    }

    async fn gap(&self, topic: &str, partition: Partition) -> bool {
        tokio::task::block_in_place(|| {
            // The marker of each is an offset without a record, and so is what was aborted.
            self.transaction(topic, partition, true);
            self.transaction(topic, partition, false);
        });
        true
    }

    async fn compact(&self, topic: &str) -> bool {
        let full = format!("{}{topic}", self.prefix);
        let config = AlterConfig::new(ResourceSpecifier::Topic(&full))
            .set("cleanup.policy", "compact")
            .set("max.message.bytes", "100000")
            .set("segment.ms", "100")
            .set("min.cleanable.dirty.ratio", "0.001");
        let altered = Self::admin()
            .alter_configs(&[config], &AdminOptions::new())
            .await;
        altered.expect("kafka answers")[0]
            .as_ref()
            .expect("the topic is altered");
        let log = connect(&self.prefix, self.protocol);
        let deadline = Instant::now() + Duration::from_secs(60);
        // Only a segment that is closed is compacted, and only an append closes it.
        loop {
            tokio::task::block_in_place(|| self.transaction(topic, 0, true));
            let mut reader = log.reader(topic).await.expect("a reader is made");
            let first = reader
                .read(0, 0, 1, TIMEOUT)
                .await
                .expect("the topic is read");
            if first
                .records
                .first()
                .is_some_and(|record| record.offset > 0)
            {
                return true;
            }
            assert!(
                Instant::now() < deadline,
                "the broker compacts the topic in time"
            );
        }
    }
}
