//! The two protocols by which the members of a group agree, and how one becomes the other.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use postrider_log::{Group, GroupEvent, LogError, Target};
use postrider_tests::{KafkaBroker, eventually};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::churn::{Seen, Worker};
use crate::support::{
    PATIENCE, TOPIC, connect, connect_to, create, join, numbered, producer, start_all,
};

const CLASSIC: [(&str, &str); 2] = [
    ("group.protocol", "classic"),
    ("session.timeout.ms", "10000"),
];
const CONSUMER: [(&str, &str); 1] = [("group.protocol", "consumer")];

both_protocols!(
    the_broker_knows_the_chosen_protocol,
    a_static_name_has_one_member_and_is_free_after_it,
);

async fn the_broker_knows_the_chosen_protocol(properties: &[(&str, &str)]) {
    let broker = KafkaBroker::shared();
    let log = connect(&broker.bootstrap(), properties);
    create(&log, 2).await;
    let mut group = join(&log, Duration::from_secs(5)).await;
    start_all(&mut *group, 2).await;
    let (_, protocol) = properties[0];
    let listed = broker.tool(
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        &["--list", "--type", protocol],
    );
    let name = format!("{}group", log.prefix());
    assert!(listed.lines().any(|line| line.contains(&name)), "{listed}");
    group.close().await;
}

/// A container that comes back under its name while the broker still counts on the one before.
async fn a_static_name_has_one_member_and_is_free_after_it(properties: &[(&str, &str)]) {
    let broker = KafkaBroker::shared().bootstrap();
    let mut properties = properties.to_vec();
    properties.push(("group.instance.id", "pod-0"));
    let log = connect(&broker, &properties);
    create(&log, 2).await;
    let mut first = join(&log, Duration::from_secs(5)).await;
    start_all(&mut *first, 2).await;
    let mut second = join(&log, Duration::from_secs(5)).await;
    // One of them fails and says so. Which one is the protocol's choice: the one before, or the one
    // that comes.
    let error = tokio::select! {
        error = failed(&mut *first) => error,
        error = failed(&mut *second) => error,
    };
    assert!(matches!(error, LogError::Permanent(_)), "{error:?}");
    first.close().await;
    second.close().await;
    // Whoever tries again gets in once the name is free: it was left, or its session is over.
    eventually(
        "a member has the name and the partitions",
        PATIENCE,
        async || {
            let mut next = join(&log, Duration::from_secs(5)).await;
            let outcome = assigned(&mut *next, 2).await;
            next.close().await;
            outcome
        },
    )
    .await;
}

/// Waits until the member has so many partitions, or cannot go on.
async fn assigned(group: &mut dyn Group, partitions: usize) -> Result<(), LogError> {
    let mut owned = 0;
    while owned < partitions {
        let event = tokio::time::timeout(PATIENCE, group.next()).await;
        if let GroupEvent::Assigned(assignments) = event.expect("in time")? {
            owned += assignments.len();
        }
    }
    Ok(())
}

/// Waits until the member cannot go on.
async fn failed(group: &mut dyn Group) -> LogError {
    let failing = async {
        loop {
            match group.next().await {
                Ok(_) => group.release(),
                Err(error) => return error,
            }
        }
    };
    tokio::time::timeout(PATIENCE, failing)
        .await
        .expect("one of the two fails")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_at_work_changes_its_protocol_and_back() {
    const PARTITIONS: i32 = 4;
    let broker = KafkaBroker::shared().bootstrap();
    let classic = connect(&broker, &CLASSIC);
    let consumer = connect_to(classic.prefix(), &broker, &CONSUMER);
    create(&classic, PARTITIONS).await;
    let seen = Seen {
        may_be_fenced: true,
        ..Seen::default()
    };
    let seen = Arc::new(Mutex::new(seen));
    let producer = producer(&classic, None).await;
    let mut appended = 0;
    let mut at_work: Vec<(oneshot::Sender<()>, JoinSet<()>)> = Vec::new();
    // Two of one kind, both replaced by the other kind one after the other, and back.
    for log in [&classic, &classic, &consumer, &consumer, &classic, &classic] {
        let (stop, stopped) = oneshot::channel();
        let mut task = JoinSet::new();
        task.spawn(Worker::join(log, &seen).await.run(stopped));
        at_work.push((stop, task));
        for _ in 0..100 {
            let append = producer.append(TOPIC, Target::Key, numbered(appended));
            append.await.expect("appended");
            appended += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if at_work.len() > 2 {
            end(at_work.remove(0)).await;
        }
    }
    eventually("every record is read", PATIENCE, async || {
        let read = seen.lock().counts.len();
        if read == appended { Ok(()) } else { Err(read) }
    })
    .await;
    for worker in at_work {
        end(worker).await;
    }
    let seen = seen.lock();
    let doubled = seen.counts.values().filter(|count| **count > 1).count();
    assert!(doubled == 0 || seen.lost > 0, "{doubled} of {appended}");
}

async fn end((stop, mut task): (oneshot::Sender<()>, JoinSet<()>)) {
    stop.send(()).expect("the member works");
    let done = task.join_next().await.expect("it was started");
    done.expect("the member did its work");
}
