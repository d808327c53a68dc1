//! Promises about topics and readers.

use std::time::Duration;

use bytes::Bytes;
use postrider_log::{Clock, NewRecord, Position, SystemClock};

use crate::subject::{Kept, Subject, is_ours, number, numbered, record};

pub(crate) async fn a_reader_waits_for_the_next_record(subject: Subject) {
    let topic = subject.topic("topic", 2, Kept::ForDays).await;
    let mut reader = subject.log.reader(&topic).await.unwrap();
    let (read, positions) = tokio::join!(reader.read(1, 0, 1 << 20, subject.patience), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        subject.fill(&topic, 1, numbered(1)).await
    });
    let batch = read.unwrap();
    assert_eq!(batch.records.len(), 1);
    assert_eq!(
        (batch.records[0].partition, batch.records[0].offset),
        (1, positions[0].offset)
    );
    assert_eq!(batch.next, positions[0].offset + 1);
}

pub(crate) async fn answers_with_an_empty_batch_at_the_end(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    subject.fill(&topic, 0, numbered(3)).await;
    let end = subject.log.bounds(&topic, 0).await.unwrap().end;
    let mut reader = subject.log.reader(&topic).await.unwrap();
    let read = reader.read(0, end, 1 << 20, Duration::from_millis(200));
    let batch = subject.in_time(read).await.unwrap();
    assert_eq!(
        (batch.from, batch.records.len(), batch.next, batch.end),
        (end, 0, end, end)
    );
}

pub(crate) async fn a_batch_keeps_to_its_byte_credit(subject: Subject) {
    const RECORD_BYTES: usize = 10_000;
    const CREDIT: usize = 55_000;
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let big = "x".repeat(RECORD_BYTES);
    subject
        .fill(&topic, 0, (0..100).map(|_| record("key", &big)))
        .await;
    let mut reader = subject.log.reader(&topic).await.unwrap();
    let (mut from, mut count) = (0, 0);
    while count < 100 {
        let batch = subject
            .in_time(reader.read(0, from, CREDIT, subject.patience))
            .await
            .unwrap();
        assert!(
            (1..=CREDIT / RECORD_BYTES).contains(&batch.records.len()),
            "{}",
            batch.records.len()
        );
        count += batch.records.len();
        from = batch.next;
    }
    let batch = subject
        .in_time(reader.read(0, 7, 1, subject.patience))
        .await
        .unwrap();
    assert_eq!(
        batch
            .records
            .iter()
            .map(|record| record.offset)
            .collect::<Vec<_>>(),
        [7],
        "at least one"
    );
}

pub(crate) async fn reads_from_a_time(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let early = subject.fill(&topic, 0, numbered(3)).await;
    let middle_ms = later_than(SystemClock.now_ms()).await;
    later_than(middle_ms).await;
    let late = subject.fill(&topic, 0, numbered(3)).await;
    let offset_for = |timestamp_ms| subject.log.offset_for_time(&topic, 0, timestamp_ms);
    assert_eq!(offset_for(0).await, Ok(early[0].offset));
    assert_eq!(offset_for(middle_ms).await, Ok(late[0].offset));
    let end = subject.log.bounds(&topic, 0).await.unwrap().end;
    assert_eq!(
        offset_for(SystemClock.now_ms() + 3_600_000).await,
        Ok(end),
        "later than all: the end"
    );
}

/// Waits until the clock has gone on by enough that no rounding brings it back.
async fn later_than(timestamp_ms: i64) -> i64 {
    loop {
        let now_ms = SystemClock.now_ms();
        if now_ms > timestamp_ms + 5 {
            return now_ms;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A topic with two records and then a gap, where the log can have one.
async fn topic_with_a_gap(subject: &Subject) -> Option<(String, Vec<Position>)> {
    let topic = subject.topic("topic", 1, Kept::Compacted).await;
    let before = subject
        .fill(&topic, 0, [record("a", "0"), record("b", "1")])
        .await;
    let has_gap = subject.control.gap(&topic, 0).await;
    has_gap.then_some((topic, before))
}

pub(crate) async fn reads_over_gaps(subject: Subject) {
    let Some((topic, before)) = topic_with_a_gap(&subject).await else {
        return;
    };
    let after = subject
        .fill(&topic, 0, [record("c", "2"), record("d", "3")])
        .await;
    let all = subject.read_all(&topic, 0).await;
    let end = subject.log.bounds(&topic, 0).await.unwrap().end;
    assert!((all.len() as i64) < end, "there is a gap among {all:?}");
    let ours: Vec<_> = all
        .iter()
        .filter(|record| is_ours(record))
        .map(|record| record.offset)
        .collect();
    let expected: Vec<_> = before
        .iter()
        .chain(&after)
        .map(|position| position.offset)
        .collect();
    assert_eq!(ours, expected);
    let mut reader = subject.log.reader(&topic).await.unwrap();
    let gap = before[1].offset + 1;
    let batch = subject
        .in_time(reader.read(0, gap, 1 << 20, subject.patience))
        .await
        .unwrap();
    assert_eq!(batch.from, gap, "a gap is no truncation");
    assert!(batch.next > gap);
}

pub(crate) async fn reads_past_a_gap_at_the_end_one_record_at_a_time(subject: Subject) {
    let Some((topic, ours)) = topic_with_a_gap(&subject).await else {
        return;
    };
    let end = subject.log.bounds(&topic, 0).await.unwrap().end;
    for wait in [Duration::ZERO, subject.patience] {
        let mut reader = subject.log.reader(&topic).await.unwrap();
        let (mut read, mut from) = (Vec::new(), 0);
        while from < end {
            let reading = reader.read(0, from, 1, wait);
            let batch = subject.in_time(reading).await.unwrap();
            assert!(batch.records.len() <= 1, "one record at a time: {batch:?}");
            assert!(
                batch.next > from || wait.is_zero(),
                "a wait ends with something"
            );
            from = batch.next;
            read.extend(batch.records.into_iter().filter(is_ours));
        }
        let offsets = read.iter().map(|record| record.offset);
        assert!(offsets.eq(ours.iter().map(|position| position.offset)));
    }
}

pub(crate) async fn reads_from_the_start_of_a_truncated_log(subject: Subject) {
    let topic = subject.topic("topic", 1, Kept::ForDays).await;
    let positions = subject.fill(&topic, 0, numbered(10)).await;
    let start = positions[6].offset;
    if !subject.control.truncate(&topic, 0, start).await {
        return;
    }
    assert_eq!(subject.log.bounds(&topic, 0).await.unwrap().start, start);
    let mut reader = subject.log.reader(&topic).await.unwrap();
    let batch = subject
        .in_time(reader.read(0, 2, 1 << 20, subject.patience))
        .await
        .unwrap();
    assert_eq!(batch.from, start);
    assert_eq!(
        batch.records.iter().map(number).collect::<Vec<_>>(),
        [6, 7, 8, 9]
    );
    assert_eq!(subject.log.offset_for_time(&topic, 0, 0).await, Ok(start));
}

pub(crate) async fn keeps_the_latest_record_of_each_key(subject: Subject) {
    const KEYS: usize = 5;
    let topic = subject.topic("topic", 1, Kept::Compacted).await;
    let versions =
        (0..40).map(|version| record(&format!("key-{}", version % KEYS), &version.to_string()));
    subject.fill(&topic, 0, versions).await;
    let tombstone = NewRecord {
        key: Bytes::from_static(b"key-0"),
        ..NewRecord::default()
    };
    subject.fill(&topic, 0, [tombstone]).await;
    if !subject.control.compact(&topic).await {
        return;
    }
    let kept = subject.read_all(&topic, 0).await;
    assert!(kept.len() < 41, "something was compacted");
    for key in 1..KEYS {
        let latest = kept
            .iter()
            .rfind(|record| record.key == format!("key-{key}"))
            .expect("the key is there");
        assert_eq!(number(latest), 35 + key);
    }
    let deleted = kept
        .iter()
        .rfind(|record| record.key == "key-0")
        .expect("a young tombstone stays");
    assert_eq!(deleted.value, None);
    let end = subject.log.bounds(&topic, 0).await.unwrap().end;
    let next = subject.fill(&topic, 0, [record("key-0", "again")]).await;
    assert!(next[0].offset >= end, "offsets are not used again");
}

pub(crate) async fn creates_topics_once_and_describes_them(subject: Subject) {
    let spec = subject.spec("topic", 3, Kept::ForDays);
    let mut larger = spec.clone();
    larger.partitions = 5;
    let created = subject
        .log
        .create_topics(std::slice::from_ref(&spec))
        .await
        .unwrap();
    assert_eq!(created, std::slice::from_ref(&spec.name));
    let created = subject
        .log
        .create_topics(&[larger])
        .await
        .expect("an existing topic is left as it is");
    assert_eq!(created, Vec::<String>::new());
    assert_eq!(subject.log.partition_count(&spec.name).await, Ok(3));
    let missing = format!("{}missing", subject.prefix);
    let described = subject
        .log
        .describe_topics(&[&spec.name, &missing])
        .await
        .unwrap();
    assert_eq!(described[1], None);
    let description = described[0].as_ref().expect("the topic is described");
    assert_eq!(
        (description.name.as_str(), description.partitions),
        (spec.name.as_str(), 3)
    );
    for (name, value) in [
        ("retention.ms", "604800000"),
        ("max.message.bytes", "100000"),
    ] {
        let found = description
            .settings
            .iter()
            .find(|setting| setting.0 == name);
        assert_eq!(
            found.map(|setting| setting.1.as_str()),
            Some(value),
            "{name}"
        );
    }
    assert!(
        subject.log.reader(&missing).await.is_err()
            || subject.log.bounds(&missing, 0).await.is_err()
    );
}
