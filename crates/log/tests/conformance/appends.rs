//! Promises about appends.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use postrider_log::{AppendError, NewRecord, Target};

use crate::subject::{Kept, Subject, number, numbered, record};

pub(crate) async fn survives_reopening(mut subject: Subject) {
    let topic = subject.topic("topic", 3, Kept::ForDays).await;
    for partition in 0..3 {
        subject.fill(&topic, partition, numbered(50)).await;
    }
    if !subject.reopen().await {
        return;
    }
    assert_eq!(subject.log.partition_count(&topic).await, Ok(3));
    for partition in 0..3 {
        let numbers: Vec<usize> = subject
            .read_all(&topic, partition)
            .await
            .iter()
            .map(number)
            .collect();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    }
    let next = subject.fill(&topic, 0, numbered(1)).await;
    assert_eq!(next[0].offset, 50, "offsets go on");
}

pub(crate) async fn keeps_order_per_partition(subject: Subject) {
    const PRODUCERS: usize = 4;
    const APPENDS: usize = 400;
    let topic = subject.topic("topic", 3, Kept::ForDays).await;
    let append_all = |name: usize| {
        let (subject, topic) = (&subject, &topic);
        async move {
            let producer = subject.producer().await;
            let mut appends = Vec::new();
            for number in 0..APPENDS {
                let record = record(&format!("producer-{name}"), &number.to_string());
                let partition = i32::try_from(number % 3).unwrap();
                appends.push(producer.append(topic, Target::Partition(partition), record));
                if number % 50 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            let mut positions = Vec::new();
            for append in appends {
                positions.push(
                    subject
                        .in_time(append)
                        .await
                        .expect("the append is acknowledged"),
                );
            }
            positions
        }
    };
    let acknowledged = futures_util::future::join_all((0..PRODUCERS).map(append_all)).await;

    let mut read = BTreeMap::new();
    for partition in 0..3 {
        let mut last: BTreeMap<Bytes, usize> = BTreeMap::new();
        for record in subject.read_all(&topic, partition).await {
            let before = last.insert(record.key.clone(), number(&record));
            assert!(
                before < Some(number(&record)),
                "{record:?} comes after {before:?}"
            );
            read.insert((partition, record.offset), record);
        }
    }
    assert_eq!(read.len(), PRODUCERS * APPENDS);
    for (name, positions) in acknowledged.iter().enumerate() {
        for (expected, position) in positions.iter().enumerate() {
            let record = &read[&(position.partition, position.offset)];
            assert_eq!(
                (&record.key[..], number(record)),
                (format!("producer-{name}").as_bytes(), expected)
            );
        }
    }
}

pub(crate) async fn places_keys_as_java_clients_do(subject: Subject) {
    // murmur2 of each key as in the unit test of Kafka's Java client.
    let vectors: [(&str, i32); 6] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ];
    let topic = subject.topic("topic", 12, Kept::ForDays).await;
    let producer = subject.producer().await;
    for (key, hash) in vectors {
        let append = producer.append(&topic, Target::Key, record(key, "value"));
        let position = subject
            .in_time(append)
            .await
            .expect("the append is acknowledged");
        assert_eq!(position.partition, (hash & 0x7fff_ffff) % 12, "{key}");
    }
}

pub(crate) async fn refuses_what_is_too_large(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let producer = subject.producer().await;
    let large = record("key", &"x".repeat(200_000));
    let append = producer.append(&topic, Target::Partition(0), large);
    assert_eq!(subject.in_time(append).await, Err(AppendError::TooLarge));
    let append = producer.append(&topic, Target::Partition(0), record("key", "fits"));
    subject
        .in_time(append)
        .await
        .expect("the next one is acknowledged");
    assert_eq!(subject.read_all(&topic, 0).await.len(), 1);
}

pub(crate) async fn refuses_what_exceeds_the_queue(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let producer = subject.producer_with_queue(10_000).await;
    let large = record("key", &"x".repeat(20_000));
    let append = producer.append(&topic, Target::Partition(0), large);
    assert_eq!(subject.in_time(append).await, Err(AppendError::QueueFull));
    for _ in 0..10 {
        let append = producer.append(
            &topic,
            Target::Partition(0),
            record("key", &"x".repeat(5_000)),
        );
        subject
            .in_time(append)
            .await
            .expect("room is given back with each acknowledgement");
    }
    assert_eq!(subject.read_all(&topic, 0).await.len(), 10);
}

pub(crate) async fn fails_for_a_topic_that_does_not_exist(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let producer = subject.producer().await;
    let missing = format!("{topic}-missing");
    let append = producer.append(&missing, Target::Partition(0), record("key", "value"));
    assert!(matches!(
        subject.in_time(append).await,
        Err(AppendError::Failed(_))
    ));
    let append = producer.append(&topic, Target::Partition(7), record("key", "value"));
    assert!(
        matches!(subject.in_time(append).await, Err(AppendError::Failed(_))),
        "nor a partition"
    );
}

pub(crate) async fn flush_waits_for_every_fate(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let producer = subject.producer().await;
    let appends: Vec<_> = numbered(500)
        .map(|record| producer.append(&topic, Target::Partition(0), record))
        .collect();
    producer.flush(subject.patience).await;
    for append in appends {
        let told = tokio::time::timeout(Duration::ZERO, append).await;
        told.expect("the fate is known after the flush")
            .expect("and good");
    }
}

pub(crate) async fn keeps_headers_and_tombstones(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::Compacted).await;
    let with_headers = NewRecord {
        key: Bytes::from_static(b"key"),
        value: Some(Bytes::from_static(b"\x00\xff")),
        headers: vec![
            ("traceparent".into(), Bytes::from_static(b"00-\xf0")),
            ("again".into(), Bytes::new()),
            ("again".into(), Bytes::from_static(b"second")),
        ],
    };
    let empty = NewRecord {
        value: Some(Bytes::new()),
        ..with_headers.clone()
    };
    let tombstone = NewRecord {
        key: Bytes::from_static(b"key"),
        ..NewRecord::default()
    };
    let written = [with_headers, empty, tombstone];
    subject.fill(&topic, 0, written.clone()).await;
    let read: Vec<NewRecord> = subject
        .read_all(&topic, 0)
        .await
        .into_iter()
        .map(|record| NewRecord {
            key: record.key,
            value: record.value,
            headers: record.headers,
        })
        .collect();
    assert_eq!(read, written);
}
