//! The log itself, looked at and written to past the processes.

use std::sync::Arc;
use std::time::Duration;

use postrider_log::embedded::EmbeddedLog;
use postrider_log::kafka::{KafkaLog, KafkaOptions};
use postrider_log::{Log, SystemClock};
use postrider_tests::{Cluster, LogKind, eventually};

const DRAINED_WITHIN: Duration = Duration::from_secs(60);
const NEW_WITHIN: Duration = Duration::from_secs(60);
/// Every group, and the topic it reads.
const GROUPS: [(&str, &str); 3] = [
    ("fan-out", "events"),
    ("deliver", "deliveries"),
    ("scheduler", "retry"),
];

/// Does something with the log. The embedded log has one owner, so its process is stopped
/// meanwhile.
pub(crate) async fn with_log<T>(
    cluster: &mut Cluster,
    work: impl AsyncFnOnce(Arc<dyn Log>) -> T,
) -> T {
    if cluster.log() == LogKind::Kafka {
        return work(on_kafka(cluster)).await;
    }
    cluster.terminate("up");
    let done =
        work(EmbeddedLog::open(&cluster.data_directory(), Arc::new(SystemClock)).unwrap()).await;
    cluster.restart("up").await;
    done
}

fn on_kafka(cluster: &Cluster) -> Arc<dyn Log> {
    let options = KafkaOptions {
        prefix: cluster.prefix().to_owned(),
        properties: [("bootstrap.servers".to_owned(), cluster.broker().bootstrap())].into(),
        replication: -1,
        client_id: "end-to-end".to_owned(),
        partitions: [].into(),
    };
    KafkaLog::connect(options).unwrap()
}

/// Waits until every group has committed the end of its topic: whatever was to come, also a second
/// time, has come.
pub(crate) async fn drained(cluster: &mut Cluster) {
    let mut last = Vec::new();
    let started = std::time::Instant::now();
    while started.elapsed() < DRAINED_WITHIN {
        last = with_log(cluster, async |log| uncommitted(&*log).await).await;
        if last.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("not drained within {DRAINED_WITHIN:?}: {last:?}");
}

/// The partitions that are not committed to their ends: group, partition, committed, end.
async fn uncommitted(log: &dyn Log) -> Vec<(&'static str, i32, Option<i64>, i64)> {
    let mut behind = Vec::new();
    for (group, topic) in GROUPS {
        let committed = log.committed(group, topic).await.unwrap();
        for (partition, committed) in (0..).zip(committed) {
            let bounds = log.bounds(topic, partition).await.unwrap();
            let committed = committed.map(|committed| committed.offset);
            if bounds.end > bounds.start && committed.is_none_or(|offset| offset < bounds.end) {
                behind.push((group, partition, committed, bounds.end));
            }
        }
    }
    behind
}

/// Kafka's own tool for topics.
pub(crate) const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";

/// Waits until a topic that was made again is there for readers and writers. For a moment the
/// broker goes on taking records for the former one, which then are gone with it.
pub(crate) async fn until_new(cluster: &Cluster, topic: &str) {
    let log = on_kafka(cluster);
    eventually("the new topic is there", NEW_WITHIN, async || {
        let bounds = log.all_bounds(topic).await;
        match &bounds {
            Ok(all) if all.iter().all(|one| one.end == 0) => Ok(()),
            _ => Err(format!("{bounds:?}")),
        }
    })
    .await;
}

/// Deletes a topic, and waits until the broker shows it no more.
pub(crate) fn delete_topic(cluster: &Cluster, topic: &str) {
    let name = format!("{}{topic}", cluster.prefix());
    let broker = cluster.broker();
    broker.tool(TOPICS, &["--delete", "--topic", &name]);
    let gone = (0..100).any(|_| {
        let listed = broker.tool(TOPICS, &["--list"]);
        !listed.lines().any(|line| line == name)
    });
    assert!(gone, "{name} is deleted");
}
