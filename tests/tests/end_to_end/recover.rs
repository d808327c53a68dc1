//! Committed offsets that were lost: the partition stops and alarms, others go on, and
//! `postrider recover` goes on.

use std::time::Duration;

use postrider_log::Stretch;
use postrider_tests::{Cluster, LogKind, Plan, eventually};

use crate::load::{LOAD_WITHIN, assert_each_once, publish, with_all_delivered};
use crate::topic_log::{drained, with_log};

const PATH: &str = "/hook";
const EVENTS: usize = 80;
const SOON: Duration = Duration::from_secs(30);

mod stages {
    use super::*;
    on_kafka!(a_partition_without_its_commit_stops_alone_until_recover);
}

async fn a_partition_without_its_commit_stops_alone_until_recover(log: LogKind) {
    let (mut cluster, receiver, mut ids) = with_all_delivered(Plan::new(log), PATH, EVENTS).await;
    let api = cluster.api();
    let before = held(&mut cluster, &[1, 2]).await;

    // Two of a group's partitions at once, while nothing of it runs: only then Kafka lets anybody
    // take them away.
    cluster.terminate("deliver");
    forget_commits(&cluster, "fan-out", "events", &[1, 2]);
    ids.extend(publish(&api, EVENTS).await);
    // It is ready although partitions are stopped.
    cluster.restart("deliver").await;
    stopped(&cluster, "fan-out", 2).await;
    let waiting = held(&mut cluster, &[1, 2]).await - before;
    assert!(waiting > 0, "some of the events are in those partitions");
    receiver
        .wait_for(PATH, ids.len() - waiting, LOAD_WITHIN)
        .await;
    let log = cluster.process("deliver").output();
    assert!(
        log.contains("ERROR") && log.contains("`postrider recover`"),
        "{log}"
    );

    let shown = cluster.run(&["recover", "--stage", "fan-out"]);
    assert_eq!(
        shown.lines().count(),
        3,
        "a heading and two partitions: {shown}"
    );
    let skipping = ["recover", "--stage", "fan-out", "--from", "end", "--yes"];
    let refused = cluster.command(&skipping).output().expect("it starts");
    assert!(!refused.status.success(), "it would skip what nobody did");
    let one = ["recover", "--stage", "fan-out", "--partition", "1"];
    cluster.run(&[&one[..], &["--from", "start", "--yes"]].concat());
    stopped(&cluster, "fan-out", 1).await;
    cluster.run(&["recover", "--stage", "fan-out", "--from", "start", "--yes"]);
    stopped(&cluster, "fan-out", 0).await;
    receiver.wait_for(PATH, ids.len(), LOAD_WITHIN).await;
    drained(&mut cluster).await;
    assert_each_once(&receiver, PATH, &ids);

    // Without a process of the group the decision is the commit.
    cluster.terminate("deliver");
    forget_commits(&cluster, "deliver", "deliveries", &[0, 1, 2, 3]);
    ids.extend(publish(&api, EVENTS).await);
    cluster.run(&["recover", "--stage", "deliver", "--from", "start", "--yes"]);
    cluster.restart("deliver").await;
    receiver.wait_for(PATH, ids.len(), LOAD_WITHIN).await;
    drained(&mut cluster).await;
    stopped(&cluster, "deliver", 0).await;
    assert_each_once(&receiver, PATH, &ids);
}

fn forget_commits(cluster: &Cluster, group: &str, topic: &str, partitions: &[i32]) {
    let prefix = cluster.prefix();
    let partitions: Vec<String> = partitions.iter().map(ToString::to_string).collect();
    let topic = format!("{prefix}{topic}:{}", partitions.join(","));
    let group = format!("{prefix}{group}");
    let said = cluster.broker().tool(
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        &["--delete-offsets", "--group", &group, "--topic", &topic],
    );
    assert!(!said.contains("Error"), "{said}");
}

/// Waits until so many partitions of the stage are stopped.
async fn stopped(cluster: &Cluster, stage: &str, partitions: usize) {
    let line = format!("postrider_partitions_stopped{{stage=\"{stage}\"}} {partitions}");
    eventually(&line, SOON, async || {
        let metrics = cluster.metrics("deliver").await;
        if metrics.lines().any(|one| one == line) {
            return Ok(());
        }
        let stopped = |one: &&str| one.contains("partitions_stopped");
        Err(metrics
            .lines()
            .filter(stopped)
            .collect::<Vec<_>>()
            .join("\n"))
    })
    .await;
}

/// How many events these partitions hold.
async fn held(cluster: &mut Cluster, partitions: &[i32]) -> usize {
    with_log(cluster, async |log| {
        let mut held = 0;
        let mut reader = log.reader("events").await.unwrap();
        for partition in partitions {
            let bounds = log.bounds("events", *partition).await.unwrap();
            let mut stretch = Stretch::new(*partition, bounds.start..bounds.end);
            while let Some(records) = stretch.read(&mut *reader).await.unwrap() {
                held += records.len();
            }
        }
        held
    })
    .await
}
