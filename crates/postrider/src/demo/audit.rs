//! What the log says became of every delivery, read from `routes` and `attempts` while they grow.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use postrider_daemon::CancellationToken;
use postrider_daemon::tasks::Tasks;
use postrider_log::{Log, LogError, Offset, Partition, Reader};
use postrider_model::delivery::{Attempt, Route, Settlement};
use postrider_model::topics::{ATTEMPTS, ROUTES};
use postrider_model::work::WorkId;

use super::ledger::Ledger;
use super::{Behaviour, TENANT};

const ROUND_PAUSE: Duration = Duration::from_millis(200);
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Deliveries that ended, remembered so that a copy of their route does not open them again. Copies
/// come soon or never.
const ENDED_MAX: usize = 100_000;

/// The book.
#[derive(Debug, Default)]
pub(crate) struct Audit(Mutex<State>);

/// What happened at one endpoint since the start of this process, and what is pending from
/// whenever.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) delivered: u64,
    pub(crate) retried: u64,
    pub(crate) given_up: u64,
    pub(crate) pending: u64,
}

#[derive(Debug, Default)]
struct State {
    tallies: BTreeMap<&'static str, Tally>,
    /// Events routed since the start of this process.
    routed: u64,
    pending: HashMap<WorkId, Behaviour>,
    ended: HashSet<WorkId>,
    ended_in_order: VecDeque<WorkId>,
}

impl Audit {
    /// What happened at the endpoint.
    pub(crate) fn tally(&self, behaviour: Behaviour) -> Tally {
        let state = self.state();
        let pending = state
            .pending
            .values()
            .filter(|at| **at == behaviour)
            .count();
        let tally = state
            .tallies
            .get(behaviour.name())
            .copied()
            .unwrap_or_default();
        Tally {
            pending: u64::try_from(pending).unwrap_or(u64::MAX),
            ..tally
        }
    }

    /// Deliveries that are not settled and will be. What was matched with an endpoint before it was
    /// disabled waits until somebody enables it.
    pub(crate) fn unsettled(&self) -> usize {
        let state = self.state();
        let endpoints = state.pending.values();
        endpoints.filter(|at| **at != Behaviour::Gone).count()
    }

    /// Events routed since the start of this process: until these are as many as were accepted,
    /// more may become pending.
    pub(crate) fn events_routed(&self) -> u64 {
        self.state().routed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    fn routed(&self, route: &Route, is_new: bool) {
        let mut state = self.state();
        state.routed += u64::from(is_new && !route.repeated_event);
        for endpoint in &route.endpoints {
            let Some(behaviour) = behaviour_of(endpoint.as_str()) else {
                continue;
            };
            let work = WorkId {
                position: route.position,
                endpoint: endpoint.clone(),
                run: 0,
            };
            if !state.ended.contains(&work) {
                state.pending.insert(work, behaviour);
            }
        }
    }

    fn attempted(&self, attempt: &Attempt, is_new: bool, ledger: &Ledger) {
        let Some(behaviour) = behaviour_of(attempt.work.endpoint.as_str()) else {
            return;
        };
        let Some(settlement) = attempt.settlement else {
            return;
        };
        let mut state = self.state();
        if is_new {
            let tally = state.tallies.entry(behaviour.name()).or_default();
            match settlement {
                Settlement::Delivered => tally.delivered += 1,
                Settlement::RetryScheduled { .. } => tally.retried += 1,
                Settlement::DeadLettered | Settlement::Dropped => tally.given_up += 1,
            }
        }
        if settlement.is_end() {
            state.end(attempt.work.clone());
        }
        drop(state);
        if matches!(settlement, Settlement::DeadLettered | Settlement::Dropped) {
            ledger.done(attempt.event_id.as_str(), behaviour);
        }
    }
}

impl State {
    fn end(&mut self, work: WorkId) {
        self.pending.remove(&work);
        if self.ended.insert(work.clone()) {
            self.ended_in_order.push_back(work);
        }
        if self.ended_in_order.len() > ENDED_MAX
            && let Some(oldest) = self.ended_in_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}

fn behaviour_of(endpoint: &str) -> Option<Behaviour> {
    Behaviour::ALL
        .into_iter()
        .find(|behaviour| behaviour.endpoint() == endpoint)
}

/// Starts reading. What is in the log already counts as pending or not, but not as something that
/// happened now.
pub(crate) async fn spawn(
    tasks: &mut Tasks,
    log: Arc<dyn Log>,
    ledger: Arc<Ledger>,
) -> Result<Arc<Audit>, LogError> {
    let audit = Arc::new(Audit::default());
    let mut routes = Tail::open(&log, ROUTES).await?;
    let mut attempts = Tail::open(&log, ATTEMPTS).await?;
    round(&audit, &ledger, &mut routes, &mut attempts).await?;
    let book = audit.clone();
    let stop = tasks.token().clone();
    tasks.critical("demo-audit", async move {
        while !stop.is_cancelled() {
            round(&book, &ledger, &mut routes, &mut attempts).await?;
            pause(&stop).await;
        }
        Ok::<(), LogError>(())
    });
    Ok(audit)
}

async fn pause(stop: &CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = tokio::time::sleep(ROUND_PAUSE) => {}
    }
}

/// Reads both topics on to their ends. An end read before its route keeps the route from opening
/// the delivery again.
async fn round(
    audit: &Audit,
    ledger: &Ledger,
    routes: &mut Tail,
    attempts: &mut Tail,
) -> Result<(), LogError> {
    routes
        .advance(|value, is_new| match Route::decode(value) {
            Ok(route) if route.tenant.as_str() == TENANT => audit.routed(&route, is_new),
            Ok(_) | Err(_) => {}
        })
        .await?;
    attempts
        .advance(|value, is_new| {
            if let Ok(attempt) = Attempt::decode(value) {
                audit.attempted(&attempt, is_new, ledger);
            }
        })
        .await
}

/// A topic read from its beginning, as far as it is there.
struct Tail {
    reader: Box<dyn Reader>,
    partitions: Vec<TailPartition>,
}

struct TailPartition {
    partition: Partition,
    next: Offset,
    /// The end when reading began.
    new_from: Offset,
}

impl Tail {
    async fn open(log: &Arc<dyn Log>, topic: &'static str) -> Result<Self, LogError> {
        let mut partitions = Vec::new();
        for partition in 0..log.partition_count(topic).await? {
            let bounds = log.bounds(topic, partition).await?;
            partitions.push(TailPartition {
                partition,
                next: bounds.start,
                new_from: bounds.end,
            });
        }
        Ok(Self {
            reader: log.reader(topic).await?,
            partitions,
        })
    }

    /// Reads on to the present end, and says of each value whether it came after the beginning.
    async fn advance(&mut self, mut each: impl FnMut(&[u8], bool)) -> Result<(), LogError> {
        for TailPartition {
            partition,
            next,
            new_from,
        } in &mut self.partitions
        {
            loop {
                let batch = self
                    .reader
                    .read(*partition, *next, BATCH_BYTES_MAX, Duration::ZERO)
                    .await?;
                for record in &batch.records {
                    if let Some(value) = &record.value {
                        each(value, record.offset >= *new_from);
                    }
                }
                *next = batch.next;
                if batch.next >= batch.end || batch.records.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }
}
