//! The exporter: gathers everything, and shows it.

mod gather;

use std::sync::Arc;

use postrider_log::{Clock, Log, LogError, Reader, Record};
use postrider_model::commit_note::CommitNote;
use postrider_model::delivery::{Attempt, AttemptOutcome, DeadLetter};
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::retry::DelayLadder;
use postrider_model::topics::{
    ATTEMPTS, DEAD_LETTERS, DELIVERIES, EVENTS, GROUP_DELIVER, REGISTRY,
};
use postrider_registry::Registry;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::ExporterConfig;
use crate::counting::Counting;
use crate::counts::Counts;
use crate::lag::Times;
use crate::lanes::Lanes;
use crate::ready::Search;
use crate::retries::Delay;
use crate::shown::Shown;
use crate::worst::Lately;

/// What an exporter needs.
#[derive(Debug)]
pub struct ExporterContext<'a> {
    /// Where the topics are.
    pub log: Arc<dyn Log>,
    /// The view of the registry; its follower runs elsewhere.
    pub registry: Registry,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The delays of the retry topic, unless the registry has recorded others.
    pub ladder: DelayLadder,
    /// Limits.
    pub config: ExporterConfig,
    /// Where the metrics are declared.
    pub metrics: &'a prometheus::Registry,
}

/// Why a gathering failed.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The log did not answer.
    #[error("read the log")]
    Log(#[from] LogError),
}

/// The exporter.
#[derive(Debug)]
pub struct Exporter {
    log: Arc<dyn Log>,
    registry: Registry,
    clock: Arc<dyn Clock>,
    ladder: DelayLadder,
    config: ExporterConfig,
    shown: Shown,
    counting: Option<(Counting, Counting)>,
    lanes: Lanes,
    searches: Vec<Search>,
    deliveries: Option<Box<dyn Reader>>,
    cursors: Times,
    events: Times,
    registry_times: Times,
    retries: Option<Box<dyn Reader>>,
    delays: Vec<Delay>,
    attempts_by: By,
}

/// Attempts of the last minutes, by whose they are.
#[derive(Debug, Default)]
struct By {
    tenant: Lately<TenantId>,
    tenant_failed: Lately<TenantId>,
    endpoint_failed: Lately<(TenantId, EndpointId)>,
}

impl Exporter {
    /// An exporter that shows nothing yet.
    ///
    /// # Errors
    /// When one of its metrics is declared already.
    pub fn new(context: ExporterContext<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            shown: Shown::declare(context.metrics)?,
            log: context.log,
            registry: context.registry,
            clock: context.clock,
            ladder: context.ladder,
            config: context.config,
            counting: None,
            lanes: Lanes::default(),
            searches: Vec::new(),
            deliveries: None,
            cursors: Times::new(DELIVERIES),
            events: Times::new(EVENTS),
            registry_times: Times::new(REGISTRY),
            retries: None,
            delays: Vec::new(),
            attempts_by: By::default(),
        })
    }

    /// Gathers at every interval until told to stop. `gathered` is told whether the last time was a
    /// success.
    pub async fn run(mut self, stop: CancellationToken, gathered: impl Fn(bool)) {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = self.registry.caught_up() => {}
        }
        let mut ticks = interval(self.config.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                result = self.gather() => result,
            };
            gathered(result.is_ok());
            if let Err(error) = result {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "not everything could be gathered, older values stay");
            }
        }
    }

    /// Gathers everything once, and shows it.
    ///
    /// # Errors
    /// When the log does not answer. What was shown stays.
    pub async fn gather(&mut self) -> Result<(), ExporterError> {
        match self.gather_values().await {
            Ok(values) => {
                self.shown.show(values);
                Ok(())
            }
            Err(error) => {
                self.shown.failed.inc();
                Err(error.into())
            }
        }
    }

    /// Counts what is new, and notes what else the records say.
    async fn count(&mut self, deadline: Instant) -> Result<(), LogError> {
        let log = &*self.log;
        if self.counting.is_none() {
            let committed = log.committed(GROUP_DELIVER, DELIVERIES).await?;
            let rebuilt_from = |partition: i32| {
                let committed = committed.get(usize::try_from(partition).ok()?)?.as_ref()?;
                CommitNote::decode(&committed.metadata).rebuild_from
            };
            let attempts = Counting::open(log, ATTEMPTS, rebuilt_from).await?;
            let dead_letters = Counting::open(log, DEAD_LETTERS, |_| None).await?;
            self.counting = Some((attempts, dead_letters));
        }
        let Some((attempts, dead_letters)) = &mut self.counting else {
            return Ok(());
        };
        let (searches, by) = (&mut self.searches, &mut self.attempts_by);
        let (now_ms, config) = (self.clock.now_ms(), &self.config);
        let look = |record: &Record, is_new: bool, counts: &mut Counts| {
            look_at_attempt(
                record,
                is_new,
                counts,
                searches,
                by,
                (now_ms, config.settled_max),
            );
        };
        attempts
            .count(log, config.read_bytes_max, deadline, look)
            .await?;
        let look = |record: &Record, is_new: bool, counts: &mut Counts| match DeadLetter::decode(
            record.value.as_deref().unwrap_or_default(),
        ) {
            _ if !is_new => {}
            Ok(letter) => counts.dead_letter(letter.reason),
            Err(_) => counts.unreadable += 1,
        };
        dead_letters
            .count(log, config.read_bytes_max, deadline, look)
            .await?;
        attempts.commit(log).await?;
        dead_letters.commit(log).await
    }
}

fn look_at_attempt(
    record: &Record,
    is_new: bool,
    counts: &mut Counts,
    searches: &mut [Search],
    by: &mut By,
    (now_ms, settled_max): (i64, usize),
) {
    let Ok(attempt) = Attempt::decode(record.value.as_deref().unwrap_or_default()) else {
        counts.unreadable += u64::from(is_new);
        return;
    };
    let partition = usize::try_from(record.partition).ok();
    let search = partition.and_then(|partition| searches.get_mut(partition));
    if let (Some(search), Some(_), Some(offset)) =
        (search, attempt.settlement, attempt.delivery_offset)
    {
        search.settled(offset, settled_max);
    }
    if !is_new {
        return;
    }
    counts.attempt(&attempt);
    let at_ms = record.timestamp_ms;
    let failed = attempt.outcome == AttemptOutcome::Failed;
    if failed || attempt.outcome == AttemptOutcome::Succeeded {
        by.tenant.add(attempt.tenant.clone(), at_ms, now_ms);
    }
    if failed {
        by.tenant_failed.add(attempt.tenant.clone(), at_ms, now_ms);
        let endpoint = (attempt.tenant, attempt.work.endpoint);
        by.endpoint_failed.add(endpoint, at_ms, now_ms);
    }
}
