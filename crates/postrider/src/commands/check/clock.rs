//! Our clock against that of the brokers, and whether they take a durable write.

use std::time::Duration;

use postrider_log::{Clock, Log, LogError, NewRecord, SystemClock, Target};
use postrider_model::topics::ROUTES;

use super::rights;
use crate::commands::finding::{Finding, Level};
use crate::commands::topic::Topic;

/// What goes unnoticed.
const SKEW_OK_MS: i64 = 2_000;
/// Receivers refuse signatures that are five minutes off.
const SKEW_MAX_MS: i64 = 60_000;
const READ_WAIT: Duration = Duration::from_secs(5);
const KEY: &str = "clock/check";

/// Appends a record without a value, as those who deliver do to learn the time, and looks at the
/// time that it was given.
pub(super) async fn look(log: &dyn Log, topics: &[Topic]) -> Vec<Finding> {
    let finding = |check, level, detail: String| vec![Finding::new(check, ROUTES, level, detail)];
    let present = topics
        .iter()
        .find(|(plan, _)| plan.name == ROUTES)
        .and_then(|(_, present)| present.as_ref());
    let Some(present) = present else {
        let detail = "no topic to append to".to_owned();
        return finding("clock", Level::Skip, detail);
    };
    let stamps = present
        .settings
        .iter()
        .any(|(name, value)| name == "message.timestamp.type" && value == "LogAppendTime");
    match append(log).await {
        Ok(_) if !stamps => {
            let detail = "the topic does not have the brokers' time".to_owned();
            finding("clock", Level::Skip, detail)
        }
        Ok(times) => {
            let (level, detail) = judge(&times);
            vec![Finding::new("clock", "", level, detail)]
        }
        Err(error) => {
            let detail = format!(
                "a record was not taken durably: {error}; allow Write, and see that `min.insync.replicas` brokers of its \
                 partition run"
            );
            finding("rights", Level::Error, detail)
        }
    }
}

/// When a record was appended, by our clock before and after, and by the broker's.
#[derive(Debug, Clone, Copy)]
struct Times {
    before_ms: i64,
    broker_ms: i64,
    after_ms: i64,
}

async fn append(log: &dyn Log) -> Result<Times, String> {
    let text = |error: LogError| error.to_string();
    let producer = rights::producer(log).await.map_err(text)?;
    // The first append finds the partition's leader, which may take a while; the second one is
    // quick.
    let mut times = None;
    for _ in 0..2 {
        let record = NewRecord {
            key: KEY.into(),
            ..NewRecord::default()
        };
        let before_ms = SystemClock.now_ms();
        let appended = producer.append(ROUTES, Target::Partition(0), record).await;
        let position = appended.map_err(|error| error.to_string())?;
        times = Some((before_ms, SystemClock.now_ms(), position));
    }
    let (before_ms, after_ms, position) = times.expect("it was appended");
    let mut reader = log.reader(ROUTES).await.map_err(text)?;
    let batch = reader
        .read(position.partition, position.offset, 1, READ_WAIT)
        .await
        .map_err(text)?;
    let record = batch
        .records
        .first()
        .filter(|record| record.offset == position.offset);
    let record = record.ok_or("it was acknowledged, but is not there")?;
    Ok(Times {
        before_ms,
        broker_ms: record.timestamp_ms,
        after_ms,
    })
}

fn judge(times: &Times) -> (Level, String) {
    // What is certain: the broker had this time at some moment between the two.
    let ahead_ms = times.broker_ms - times.after_ms;
    let behind_ms = times.before_ms - times.broker_ms;
    let skew_ms = ahead_ms.max(behind_ms).max(0);
    let side = if ahead_ms > behind_ms {
        "behind"
    } else {
        "ahead of"
    };
    let detail = format!(
        "this machine is at least {skew_ms} ms {side} the broker; let both keep time by NTP: receivers refuse signatures \
         that are minutes off, and retries are due by this clock"
    );
    match skew_ms {
        0..=SKEW_OK_MS => (
            Level::Ok,
            format!(
                "within {} ms of the broker's",
                skew_ms.max(times.after_ms - times.before_ms)
            ),
        ),
        ..=SKEW_MAX_MS => (Level::Warn, detail),
        _ => (Level::Error, detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_that_cannot_be_is_skew() {
        let judged = |before_ms, broker_ms, after_ms| {
            judge(&Times {
                before_ms,
                broker_ms,
                after_ms,
            })
        };
        assert_eq!(judged(1_000, 1_500, 9_000).0, Level::Ok);
        assert_eq!(judged(1_000, 3_005, 1_010).0, Level::Ok);
        let (level, detail) = judged(1_000, 4_010, 1_010);
        assert!(
            level == Level::Warn && detail.contains("3000 ms behind"),
            "{detail}"
        );
        let (level, detail) = judged(100_000, 30_000, 100_010);
        assert!(
            level == Level::Error && detail.contains("70000 ms ahead"),
            "{detail}"
        );
    }
}
