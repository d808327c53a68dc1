//! Writing a file into a log: first it is read to its end, so that nothing is written of one that
//! cannot be imported.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use postrider_log::{
    Append, Clock, Log, NewRecord, Producer, ProducerOptions, Stretch, SystemClock, Target,
};
use postrider_model::delivery::Delivery;
use postrider_model::endpoint::Endpoint;
use postrider_model::topics::{DEAD_LETTERS, DELIVERIES, EVENTS, REGISTRY, RETRY};
use postrider_model::wire::{
    moved_delivery, moved_event, moved_registry_record, registry_endpoint,
};
use postrider_registry::Keyring;
use ring::digest;

use super::file::{Counts, Reader};
use crate::config::Config;

const APPEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Appends under way: so many, and bytes of them.
const APPENDS_MAX: usize = 1_000;
const APPENDS_BYTES_MAX: usize = 16 << 20;
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Written by every installation itself, for its own topics.
const OWN_KEYS: [&[u8]; 2] = [b"retry-delays/", b"identity/"];

/// What is in a file.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) counts: Counts,
    registry_keys: BTreeSet<Vec<u8>>,
}

/// Reads the whole file; every secret in it must open.
pub(super) async fn survey(
    path: &Path,
    config: &Config,
    registry_only: bool,
) -> anyhow::Result<Survey> {
    let keyring = config.keyring().context(WHOSE_KEYS)?;
    let mut file = Reader::open(path)?;
    let mut survey = Survey {
        counts: Counts::default(),
        registry_keys: BTreeSet::new(),
    };
    while let Some((topic, record)) = file.next()? {
        // The work is in the disk, and others may have a turn.
        tokio::task::yield_now().await;
        if topic == REGISTRY {
            opens(&record, &keyring)?;
            survey.registry_keys.insert(record.key.to_vec());
        } else if ![DELIVERIES, RETRY, EVENTS, DEAD_LETTERS].contains(&topic.as_str()) {
            bail!("the file has records of a topic that this release does not import: {topic}");
        }
        if !registry_only || topic == REGISTRY {
            survey.counts.add(&topic);
        }
    }
    Ok(survey)
}

const WHOSE_KEYS: &str = "give the keys of the installation that the file comes from as `keys.encryption`: those of \
                          `postrider up` are in `encryption.key` of its data directory";

fn opens(record: &NewRecord, keyring: &Keyring) -> anyhow::Result<()> {
    let Some(endpoint) = record.value.as_deref().and_then(registry_endpoint) else {
        return Ok(());
    };
    let Endpoint { id, secrets, .. } = endpoint;
    for secret in &secrets {
        keyring
            .open(&id, secret)
            .with_context(|| format!("a secret of endpoint {id} does not open; {WHOSE_KEYS}"))?;
    }
    Ok(())
}

/// Writes the records: the registry first, since everything else is judged by it.
pub(super) async fn run(
    log: &dyn Log,
    config: &Config,
    path: &Path,
    registry_only: bool,
) -> anyhow::Result<Counts> {
    let mut file = Reader::open(path)?;
    let mut importing = Importing {
        log,
        config,
        producer: producer(log).await?,
        appends: VecDeque::new(),
        bytes: 0,
        export_id: file.header.id.clone(),
        registry_end: None,
    };
    let mut counts = Counts::default();
    while let Some((topic, record)) = file.next()? {
        if registry_only && topic != REGISTRY {
            continue;
        }
        importing.import(&topic, record).await?;
        counts.add(&topic);
    }
    importing.settle(0).await?;
    Ok(counts)
}

/// Refuses to import beside other entities: a registry that has some must stay as it is, as
/// versions of two would mix.
pub(super) async fn refuse_another_registry(log: &dyn Log, survey: &Survey) -> anyhow::Result<()> {
    let bounds = log.bounds(REGISTRY, 0).await?;
    let mut reader = log.reader(REGISTRY).await?;
    let mut stretch = Stretch::new(0, bounds.start..bounds.end);
    while let Some(records) = stretch.read(&mut *reader).await? {
        for record in &records {
            let known = is_own(&record.key) || survey.registry_keys.contains(record.key.as_ref());
            ensure!(
                known,
                "the registry there has tenants or endpoints that are not in the file; import into topics that are new, \
                 for example under another `kafka.prefix`"
            );
        }
    }
    Ok(())
}

fn is_own(key: &[u8]) -> bool {
    OWN_KEYS.iter().any(|own| key.starts_with(own))
}

async fn producer(log: &dyn Log) -> anyhow::Result<Box<dyn Producer>> {
    let options = ProducerOptions {
        name: "import",
        append_timeout: Some(APPEND_TIMEOUT),
        linger: Duration::from_millis(5),
        queue_bytes_max: QUEUE_BYTES_MAX,
    };
    Ok(log.producer(options).await?)
}

/// An import under way.
struct Importing<'a> {
    log: &'a dyn Log,
    config: &'a Config,
    producer: Box<dyn Producer>,
    appends: VecDeque<(usize, Append)>,
    bytes: usize,
    export_id: String,
    /// The position that the registry's end has, once all of it is written.
    registry_end: Option<u64>,
}

impl Importing<'_> {
    async fn import(&mut self, topic: &str, record: NewRecord) -> anyhow::Result<()> {
        if topic == REGISTRY {
            if is_own(&record.key) {
                return Ok(());
            }
            let value = record.value.as_ref().map(moved_registry_record);
            let record = NewRecord { value, ..record };
            return self.append(REGISTRY, Target::Partition(0), record).await;
        }
        let position = self.position().await?;
        let value = record.value.unwrap_or_default();
        let (topic, target, value) = match topic {
            EVENTS => (EVENTS, Target::Key, moved_event(&value, position)),
            DEAD_LETTERS => (DEAD_LETTERS, Target::Key, value),
            _ => self.delivery(&value, position),
        };
        let record = NewRecord {
            value: Some(value),
            ..record
        };
        self.append(topic, target, record).await
    }

    /// Where a delivery goes on: into `retry` if it is not due, else to `deliveries`.
    fn delivery(
        &self,
        value: &bytes::Bytes,
        position: u64,
    ) -> (&'static str, Target, bytes::Bytes) {
        let Ok(delivery) = Delivery::decode(value) else {
            // It becomes a dead letter there as it would have here.
            return (DELIVERIES, Target::Key, value.clone());
        };
        let run = run_of(&self.export_id, delivery.run);
        let moved = moved_delivery(value, run, position);
        let remaining_ms = delivery.due_at_ms.saturating_sub(SystemClock.now_ms());
        if remaining_ms <= 0 {
            return (DELIVERIES, Target::Key, moved);
        }
        // Less than the shortest delay is taken for that.
        let place = self.config.topics.retry_delays_ms.place(remaining_ms);
        (RETRY, Target::Partition(place.unwrap_or(0)), moved)
    }

    /// What a record was matched at: everything in the imported registry, so that nobody judges it
    /// before reading that.
    async fn position(&mut self) -> anyhow::Result<u64> {
        if let Some(position) = self.registry_end {
            return Ok(position);
        }
        self.settle(0).await?;
        let end = self.log.bounds(REGISTRY, 0).await?.end;
        let position = end.unsigned_abs().max(1);
        self.registry_end = Some(position);
        Ok(position)
    }

    async fn append(
        &mut self,
        topic: &str,
        target: Target,
        record: NewRecord,
    ) -> anyhow::Result<()> {
        let bytes = record.key.len() + record.value.as_ref().map_or(0, |value| value.len());
        self.bytes += bytes;
        let append = self.producer.append(topic, target, record);
        self.appends.push_back((bytes, append));
        let few = APPENDS_MAX.min(self.appends.len());
        self.settle(few).await?;
        while self.bytes > APPENDS_BYTES_MAX {
            self.settle(self.appends.len() - 1).await?;
        }
        Ok(())
    }

    /// Waits until no more than so many appends are under way.
    async fn settle(&mut self, left: usize) -> anyhow::Result<()> {
        while self.appends.len() > left
            && let Some((bytes, append)) = self.appends.pop_front()
        {
            append
                .await
                .context("write a record; import the same file again")?;
            self.bytes -= bytes;
        }
        Ok(())
    }
}

/// The run of a moved delivery. Never 0: that is for what begins in the new log.
fn run_of(export_id: &str, run: u64) -> u64 {
    let digest = digest::digest(&digest::SHA256, format!("{export_id}/{run}").as_bytes());
    let first = digest.as_ref().first_chunk();
    u64::from_be_bytes(*first.expect("a digest has 32 bytes")).max(1)
}

#[cfg(test)]
mod tests {
    use super::run_of;

    #[test]
    fn runs_of_a_file_are_its_own_and_the_same_each_time() {
        assert_eq!(run_of("a", 0), run_of("a", 0));
        assert_ne!(run_of("a", 0), run_of("a", 1));
        assert_ne!(run_of("a", 0), run_of("b", 0));
        assert_ne!(run_of("a", 0), 0);
    }
}
