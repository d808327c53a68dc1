//! The auditor: knows the topics, what groups committed and what the network saw, and nothing else.
//!
//! It reads the topics on as they grow and checks each promise in the moment it could break: what a
//! commit has passed when the commit lands, what a settlement says when its record lands, a request
//! when it leaves. Every breach is a panic, which fails the seed.

mod breakers;
mod commits;
mod lanes;
mod order;
mod requests;
mod topics;
mod views;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use postrider_log::memory::MemoryLog;
use postrider_log::{Committed, Offset, Partition};
use postrider_model::delivery::Cursor;
use postrider_model::event::EventPosition;
use postrider_model::ids::EndpointId;
use postrider_model::retry::RetrySchedule;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER};
use postrider_model::work::WorkId;

use super::chronicle::Sent;
use breakers::Breakers;
use lanes::LaneStates;
use order::Orders;
use topics::Source;
use views::Views;
pub(crate) use wishes::EVERYBODY;
use wishes::Wishes;

const UNSETTLED_SHOWN: usize = 5;

/// What the world of a seed allows.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// Somebody sets the wall clock: nothing can be said of times that were written down.
    pub(crate) clock_is_set: bool,
    /// Records are written by honest writers only.
    pub(crate) honest: bool,
    /// Settlements are remembered for longer than the run takes.
    pub(crate) remembers_all: bool,
    /// The schedule of every endpoint.
    pub(crate) schedule: RetrySchedule,
    pub(crate) lease: Duration,
    /// Attempts under way at one endpoint, at most.
    pub(crate) lane_in_flight_max: usize,
}

#[derive(Debug)]
pub(crate) struct Audit {
    rules: Rules,
    log: Arc<MemoryLog>,
    sources: Vec<Source>,
    works: BTreeMap<WorkId, Work>,
    /// Works by what a request shows: event id and endpoint, without `ep_`.
    shown: BTreeMap<(String, String), Vec<WorkId>>,
    /// Events that neither a route nor a dead letter answers.
    unrouted: BTreeSet<EventPosition>,
    /// What routes promised and no settlement ended.
    promised: BTreeSet<WorkId>,
    /// What no commit has passed yet, or what one has passed because a lane's cursor covers it.
    open_events: BTreeMap<Partition, BTreeMap<Offset, EventPosition>>,
    open_deliveries: BTreeMap<Partition, BTreeMap<Offset, (WorkId, u32)>>,
    open_retries: BTreeMap<Partition, BTreeMap<Offset, (WorkId, u32)>>,
    lanes: LaneStates,
    /// Offsets in `deliveries` of first attempts that were not made, by endpoint.
    unserved: BTreeMap<String, BTreeSet<Offset>>,
    orders: Orders,
    succeeded: BTreeSet<(String, String, u32)>,
    /// What lanes' states said when a partition was assigned, by the number of the tenure.
    cursors: BTreeMap<usize, BTreeMap<EndpointId, Cursor>>,
    /// The number of the last tenure of each partition.
    latest: BTreeMap<Partition, usize>,
    breakers: Breakers,
    views: Views,
    wishes: Wishes,
    pub(crate) counts: Counts,
}

/// How much there was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) events: usize,
    pub(crate) attempts: usize,
    pub(crate) retries: usize,
    pub(crate) dead_letters: usize,
    pub(crate) lane_states: usize,
    /// Deliveries that a commit passed while only a cursor covered them.
    pub(crate) covered: usize,
    /// Keys of ordered endpoints that lanes' states told of.
    pub(crate) blocked: usize,
}

/// What the topics say of one piece of work.
#[derive(Debug, Default)]
struct Work {
    /// The ordering key, if its endpoint wants order.
    order_key: Option<String>,
    /// By attempt: its records in `deliveries`.
    steps: BTreeMap<u32, Step>,
    /// By attempt: its records in `retry`.
    retries: BTreeMap<u32, Retry>,
    /// By attempt: when its dead letter landed.
    dead: BTreeMap<u32, i64>,
    settlements: Vec<Settled>,
    settled_to: u32,
    ended: bool,
    /// By attempt: under which assignment it was requested last.
    requested: BTreeMap<u32, usize>,
    /// Attempts that were requested: under which assignment, and when they began.
    asked: BTreeSet<(u32, usize, i64)>,
}

#[derive(Debug)]
struct Step {
    offset: Offset,
    landed_ms: i64,
    copies: usize,
}

#[derive(Debug)]
struct Retry {
    landed_ms: i64,
    due_at_ms: i64,
    /// Records that no commit has passed.
    open: BTreeSet<(Partition, Offset)>,
}

/// A settlement, and where its record is in `attempts`.
#[derive(Debug)]
struct Settled {
    place: Offset,
    number: u32,
    is_end: bool,
    delivery_offset: Option<Offset>,
    /// A former owner wrote it when the partition was another's, who had read `attempts` before.
    is_late: bool,
}

impl Work {
    /// A failed attempt settles its record, but for where order matters: there it is made again
    /// from the same record.
    fn is_settled(&self, attempt: u32) -> bool {
        self.ended || (self.order_key.is_none() && self.settled_to >= attempt)
    }

    fn asks_for(&self, attempt: u32) -> bool {
        let again = self.order_key.is_some() && self.retries.contains_key(&attempt);
        again || self.steps.contains_key(&attempt)
    }
}

impl Audit {
    pub(crate) async fn new(log: Arc<MemoryLog>, rules: Rules) -> Self {
        Self {
            rules,
            sources: topics::sources(&log).await,
            log,
            works: BTreeMap::new(),
            shown: BTreeMap::new(),
            unrouted: BTreeSet::new(),
            promised: BTreeSet::new(),
            open_events: BTreeMap::new(),
            open_deliveries: BTreeMap::new(),
            open_retries: BTreeMap::new(),
            lanes: LaneStates::default(),
            unserved: BTreeMap::new(),
            orders: Orders::default(),
            succeeded: BTreeSet::new(),
            latest: BTreeMap::new(),
            cursors: BTreeMap::new(),
            breakers: Breakers::default(),
            views: Views::default(),
            wishes: Wishes::default(),
            counts: Counts::default(),
        }
    }

    /// Whether every event was routed and every promise of a route kept, but for retries that wait
    /// beyond a time because their endpoint asked for it.
    pub(crate) fn is_settled(&mut self, patience_ends_at_ms: i64) -> bool {
        self.check_commits();
        self.unrouted.is_empty() && self.unsettled(patience_ends_at_ms).is_empty()
    }

    /// What is left of the promises.
    pub(crate) fn unsettled(&self, patience_ends_at_ms: i64) -> Vec<(&WorkId, u32)> {
        let waits = |id: &WorkId| {
            let work = self.works.get(id)?;
            let retry = work.retries.get(&(work.settled_to + 1))?;
            Some(retry.due_at_ms > patience_ends_at_ms)
        };
        let promised = self.promised.iter();
        let open = promised.filter_map(|id| match self.works.get(id) {
            Some(work) => {
                // A key waits with its head, and so many may that the endpoint's other deliveries
                // wait, too.
                let held_back = self.lanes.holds_back(&id.endpoint, patience_ends_at_ms);
                let waits = held_back || waits(id) == Some(true);
                (!waits).then_some((id, work.settled_to))
            }
            None => Some((id, 0)),
        });
        open.collect()
    }

    /// Where things are stuck, for people.
    pub(crate) fn show_unsettled(&self, patience_ends_at_ms: i64) -> String {
        let unsettled = self.unsettled(patience_ends_at_ms);
        let mut shown = format!(
            "{} events without a route, {} deliveries unsettled\n",
            self.unrouted.len(),
            unsettled.len()
        );
        for (id, settled_to) in unsettled.into_iter().take(UNSETTLED_SHOWN) {
            let work = self.works.get(id);
            writeln!(shown, "{id:?}, settled to {settled_to}: {work:?}").expect("memory");
        }
        for (partition, committed) in self.committed(GROUP_DELIVER, DELIVERIES) {
            let open = self.open_deliveries.get(&partition);
            let open = open.map(|open| open.keys().collect::<Vec<_>>());
            writeln!(shown, "{partition}: {committed:?}, open {open:?}").expect("memory");
            self.lanes.show(partition, &committed, &mut shown);
        }
        shown
    }

    /// A partition of `deliveries` is assigned.
    pub(crate) fn assigned(
        &mut self,
        tenure: usize,
        partition: Partition,
        from: Option<&Committed>,
    ) {
        self.catch_up();
        self.latest.insert(partition, tenure);
        if let Some(from) = from {
            let cursors = self.lanes.cursors(partition, from);
            self.cursors.insert(tenure, cursors);
        }
    }

    /// The endpoint answered that it has it.
    pub(crate) fn succeeded(&mut self, sent: &Sent, at_ms: i64) {
        let Sent {
            event_id,
            endpoint,
            attempt,
            ..
        } = sent.clone();
        self.breakers.succeeded(&endpoint, at_ms);
        self.succeeded.insert((event_id, endpoint, attempt));
    }

    /// The endpoint was not reached: if that is our own fault, the attempt may be made again.
    pub(crate) fn unreachable(&mut self, sent: &Sent) {
        if let Some(id) = self.work_of(sent)
            && let Some(work) = self.works.get_mut(&id)
        {
            work.requested.remove(&sent.attempt);
        }
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn ended(&mut self, sent: &Sent) {
        self.breakers.ended(sent);
    }

    /// Lanes that are behind as far as their states say.
    pub(crate) fn behind(&mut self, patience_ends_at_ms: i64) -> Vec<String> {
        self.catch_up();
        let committed = self.committed(GROUP_DELIVER, DELIVERIES);
        self.lanes.behind(&committed, patience_ends_at_ms)
    }
}

/// An endpoint as requests show it.
fn name(work: &WorkId) -> &str {
    work.endpoint.as_str().trim_start_matches("ep_")
}
