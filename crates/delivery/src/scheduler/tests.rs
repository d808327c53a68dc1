//! What the stage holds in memory, looked at from inside.

use std::time::Duration;

use postrider_log::memory::MemoryLog;
use postrider_log::{Bounds, ProducerOptions, TopicSpec};
use postrider_model::event::Event;
use postrider_model::fixtures;
use postrider_model::topics::DEAD_LETTERS;

use super::*;

#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000 + i64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

async fn scheduler(config: SchedulerConfig) -> Scheduler {
    let clock = Arc::new(PausedClock(Instant::now()));
    let log = MemoryLog::new(clock.clone(), 1);
    let spec = |name: &str, partitions| TopicSpec {
        name: name.to_owned(),
        partitions,
        retention: None,
        message_bytes_max: 1 << 20,
        settings: Vec::new(),
    };
    let topics = [spec(DELIVERIES, 2), spec(RETRY, 3), spec(DEAD_LETTERS, 1)];
    log.create_topics(&topics).await.unwrap();
    let options = ProducerOptions {
        name: "test",
        append_timeout: None,
        linger: Duration::ZERO,
        queue_bytes_max: 1 << 24,
    };
    let context = SchedulerContext {
        clock,
        ladder: DelayLadder::try_new(vec![1_000, 5_000, 20_000]).unwrap(),
        config,
        raw_record_bytes_max: 1_000,
        metrics: DeliveryMetrics::detached(),
    };
    let producer = Arc::from(log.producer(options).await.unwrap());
    let mut scheduler = Scheduler::new(context, log, producer);
    for partition in 0..3 {
        let assignment = assignment(partition);
        let partitions = scheduler.prepare(&assignment, 0).await.unwrap();
        scheduler.begin(&assignment, partitions);
    }
    scheduler
}

fn assignment(partition: Partition) -> Assignment {
    Assignment {
        partition,
        generation: 1,
        committed: None,
        bounds: Bounds { start: 0, end: 0 },
    }
}

/// A record of a partition that is ready now and due then.
fn record(
    scheduler: &Scheduler,
    partition: Partition,
    offset: Offset,
    remaining_ms: i64,
) -> Record {
    let now_ms = scheduler.now().wall_ms;
    let event = Event {
        accepted_at_ms: now_ms,
        ..fixtures::event("evt_1")
    };
    let retry = Delivery {
        attempt: 2,
        due_at_ms: now_ms + remaining_ms,
        ..fixtures::delivery(event, "ep_1", offset)
    };
    let index = usize::try_from(partition).unwrap();
    Record {
        partition,
        offset,
        timestamp_ms: now_ms - scheduler.context.ladder.delays_ms()[index],
        key: Bytes::from_static(b"ep_1"),
        value: Some(retry.encode()),
        headers: Vec::new(),
    }
}

/// Waits until so many records moved on.
async fn resolve(scheduler: &mut Scheduler, count: usize) {
    let mut resolved = 0;
    for _ in 0..10_000 {
        resolved += scheduler.progress().await.unwrap().len();
        if resolved >= count {
            return;
        }
    }
    panic!("{resolved} of {count} moved on");
}

#[tokio::test(start_paused = true)]
async fn what_is_in_memory_is_counted_and_bounded() {
    let timer_bytes_max = 20_000;
    let mut scheduler = scheduler(SchedulerConfig {
        timer_bytes_max,
        ..SchedulerConfig::default()
    })
    .await;
    for offset in 0..500 {
        let record = record(&scheduler, 0, offset, 50_000);
        scheduler.take(record, 1);
    }
    resolve(&mut scheduler, 300).await;
    let in_timer = scheduler.held.records;
    assert!((15..100).contains(&in_timer), "{in_timer} records");
    let bytes = scheduler.held.bytes;
    assert!(
        (9_500..=timer_bytes_max / 2).contains(&bytes),
        "{bytes} bytes"
    );
    // Not even what is due soon is taken in now, and when all is taken, of what is due only a few.
    for offset in 0..100 {
        let soon = record(&scheduler, 1, offset, 500);
        scheduler.take(soon, 1);
    }
    for offset in 0..500 {
        let due = record(&scheduler, 2, offset, 0);
        scheduler.take(due, 1);
    }
    scheduler.advance();
    assert!(scheduler.held.bytes <= timer_bytes_max);
    let released = scheduler.context.metrics.retries_released.clone();
    for _ in 0..1_000 {
        scheduler.progress().await.unwrap();
    }
    assert!(released.get() >= 8, "{released:?} of what was due left");
    assert!(scheduler.held.records <= in_timer);
    tokio::time::sleep(Duration::from_secs(50)).await;
    for _ in 0..10_000 {
        if scheduler.held.records == 0 {
            break;
        }
        scheduler.progress().await.unwrap();
    }
    assert_eq!((scheduler.held.records, scheduler.held.bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn reading_pauses_while_memory_is_full_and_goes_on_after() {
    let mut scheduler = scheduler(SchedulerConfig {
        timer_bytes_max: 1_000,
        ..SchedulerConfig::default()
    })
    .await;
    // Ready in 900 ms, so it is memory alone that makes it pause.
    for offset in 0..10 {
        let mut record = record(&scheduler, 0, offset, 900);
        record.timestamp_ms += 900;
        scheduler.take(record, 1);
    }
    scheduler.advance();
    assert_eq!(scheduler.pauses(), [(0, true)], "nothing of others waits");
    resolve(&mut scheduler, 10).await;
    scheduler.advance();
    assert_eq!(scheduler.pauses(), [(0, false)]);
}

#[tokio::test(start_paused = true)]
async fn reading_pauses_while_too_many_are_on_their_way() {
    let releases_in_flight_max = 100;
    let mut scheduler = scheduler(SchedulerConfig {
        releases_in_flight_max,
        ..SchedulerConfig::default()
    })
    .await;
    for offset in 0..200 {
        let mut poison = record(&scheduler, 0, offset, 0);
        poison.value = Some(Bytes::from_static(b"no delivery"));
        scheduler.take(poison, 1);
    }
    scheduler.advance();
    assert_eq!(scheduler.pauses(), [(0, true), (1, true), (2, true)]);
    resolve(&mut scheduler, 200).await;
    scheduler.advance();
    assert_eq!(scheduler.pauses(), [(0, false), (1, false), (2, false)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_leaves_nothing_behind() {
    let mut scheduler = scheduler(SchedulerConfig {
        releases_per_second_max: 20,
        ..SchedulerConfig::default()
    })
    .await;
    for partition in 0..2 {
        for (offset, remaining_ms) in (0..40).zip([0, 0, 30_000, 80_000].into_iter().cycle()) {
            let record = record(&scheduler, partition, offset, remaining_ms);
            scheduler.take(record, 1);
        }
        // Its delay has hardly begun.
        let mut later = record(&scheduler, partition, 40, 0);
        later.timestamp_ms += 1_000_000;
        scheduler.take(later, 1);
    }
    scheduler.progress().await.unwrap();
    let before = scheduler.held.bytes;
    scheduler.drain(&[0]);
    scheduler.forget(0);
    assert!(scheduler.held.bytes > 0 && scheduler.held.bytes < before);
    scheduler.drain(&[1]);
    scheduler.forget(1);
    assert_eq!(scheduler.held.bytes, 0);
    // What was under way for the former assignment says nothing of the next.
    scheduler.begin(&assignment(0), 2);
    scheduler.delays.get_mut(&0).unwrap().generation = 2;
    while !scheduler.moves.is_empty() {
        scheduler.progress().await.unwrap();
    }
    assert!(scheduler.is_idle(0));
}
