//! What the configured user may do, found out by doing it in ways that leave nothing behind.
//!
//! To write is tried with a record that is larger than the topic takes: the broker looks at the
//! right first, and at the size then, so that "too large" means that a smaller one would have been
//! taken.

use std::time::Duration;

use postrider_log::{
    AppendError, Committed, Log, NewRecord, Producer, ProducerOptions, Target, TopicDescription,
};
use postrider_model::topics::{REGISTRY, ROUTES};

use crate::commands::finding::{Finding, Level};
use crate::commands::topic::Topic;
use crate::config::Config;
use crate::data_dir::random_bytes;

/// Of which the commit is left.
const GROUP: &str = "check";
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
const READ_WAIT: Duration = Duration::from_millis(500);
/// The client sends none larger.
const PROBE_BYTES_MAX: usize = 15 << 20;

/// Looks at every topic that is there, and at the groups.
pub(super) async fn look(log: &dyn Log, config: &Config, topics: &[Topic]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (plan, present) in topics {
        let Some(present) = present else { continue };
        let name = format!("{}{}", config.kafka.prefix, plan.name);
        findings.push(topic(log, &name, present).await);
    }
    if topics
        .iter()
        .any(|(plan, present)| plan.name == REGISTRY && present.is_some())
    {
        findings.push(groups(log, &config.kafka.prefix).await);
    }
    findings
}

async fn topic(log: &dyn Log, name: &str, present: &TopicDescription) -> Finding {
    let (read, written) = (read(log, &present.name).await, write(log, present).await);
    let detail = match (read, written) {
        (Ok(()), Ok(Written::Told)) => "read, write",
        (Ok(()), Ok(Written::Untold)) => "read; whether it can be written was not tried",
        (read, written) => {
            let read = read.err().map(|error| format!("cannot read: {error}; "));
            let written = written
                .err()
                .map(|error| format!("cannot write: {error}; "));
            let detail = format!(
                "{}{}allow Describe, Read and Write on it, for example by prefix",
                read.unwrap_or_default(),
                written.unwrap_or_default()
            );
            return Finding::new("rights", name, Level::Error, detail);
        }
    };
    Finding::new("rights", name, Level::Ok, detail)
}

async fn read(log: &dyn Log, topic: &str) -> Result<(), String> {
    let read = async {
        let bounds = log.bounds(topic, 0).await?;
        let mut reader = log.reader(topic).await?;
        let last = (bounds.end - 1).max(bounds.start);
        reader.read(0, last, 1, READ_WAIT).await
    };
    let read: Result<_, postrider_log::LogError> = read.await;
    read.map(drop).map_err(|error| error.to_string())
}

/// Whether writing could be tried.
enum Written {
    Told,
    Untold,
}

async fn write(log: &dyn Log, present: &TopicDescription) -> Result<Written, String> {
    let mut settings = present.settings.iter();
    let bytes_max = settings
        .find(|(name, _)| name == "max.message.bytes")
        .and_then(|(_, value)| value.parse::<usize>().ok());
    // A real record is appended there to look at the clock.
    if present.name == ROUTES {
        return Ok(Written::Told);
    }
    let Some(bytes) = bytes_max.map(|bytes_max| bytes_max + 1024) else {
        return Ok(Written::Untold);
    };
    if bytes > PROBE_BYTES_MAX {
        return Ok(Written::Untold);
    }
    let producer = producer(log).await.map_err(|error| error.to_string())?;
    let record = NewRecord {
        key: "check".into(),
        value: Some(incompressible(bytes).into()),
        headers: Vec::new(),
    };
    match producer
        .append(&present.name, Target::Partition(0), record)
        .await
    {
        Err(AppendError::TooLarge) => Ok(Written::Told),
        Ok(_) => Err("it took a record beyond max.message.bytes".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The topic or the client may compress, and the limit holds afterwards.
fn incompressible(bytes: usize) -> Vec<u8> {
    let mut state = u64::from_le_bytes(random_bytes());
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        // Xorshift: noise enough for a compressor.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise
}

pub(super) async fn producer(log: &dyn Log) -> Result<Box<dyn Producer>, postrider_log::LogError> {
    let options = ProducerOptions {
        name: "check",
        append_timeout: Some(APPEND_TIMEOUT),
        linger: Duration::ZERO,
        queue_bytes_max: PROBE_BYTES_MAX + (1 << 20),
    };
    log.producer(options).await
}

/// A group that nobody is in commits, as the stages' groups do.
async fn groups(log: &dyn Log, prefix: &str) -> Finding {
    let committed = Committed {
        offset: 0,
        metadata: String::new(),
    };
    let committed = log.set_committed(GROUP, REGISTRY, &[(0, committed)]).await;
    let subject = format!("groups {prefix}*");
    match committed {
        Ok(()) => Finding::new("rights", &subject, Level::Ok, "join, commit"),
        Err(error) => {
            let detail = format!(
                "group {prefix}{GROUP} cannot commit: {error}; allow Describe and Read on groups by the prefix {prefix}"
            );
            Finding::new("rights", &subject, Level::Error, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_as_long_as_asked_and_has_no_pattern() {
        let noise = incompressible(100_000);
        assert!(noise.len() >= 100_000);
        let mut counts = [0_usize; 256];
        for byte in &noise {
            counts[usize::from(*byte)] += 1;
        }
        assert!(
            counts.iter().all(|count| (200..600).contains(count)),
            "{counts:?}"
        );
    }
}
