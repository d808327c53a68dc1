//! The auditor: compares what publishers were told, what the receivers got and what the topics say.

use std::collections::{BTreeMap, BTreeSet};

use postrider_log::{Log, Record};
use postrider_model::delivery::{Attempt, AttemptOutcome, Route, Settlement};
use postrider_model::event::{Event, EventPosition};
use postrider_model::wire::EventContext;
use postrider_model::work::WorkId;
use postrider_tests::Receiver;

use crate::figures::Figures;
use crate::load::Told;
use crate::topics::records;

/// What the auditor found. All but the counts and `repeated` must be 0 whatever happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Events that were accepted.
    pub(crate) accepted: usize,
    /// Requests that the receivers got.
    pub(crate) requests: usize,
    /// Accepted events that are not in `events`.
    pub(crate) not_in_the_log: usize,
    /// Events of which no route tells whom they matched.
    pub(crate) unrouted: usize,
    /// Deliveries without an end.
    pub(crate) unsettled: usize,
    /// Deliveries settled as delivered of which no receiver knows.
    pub(crate) not_received: usize,
    /// Attempts that have two settlements: made again although it was known what became of them, or
    /// recorded by two.
    pub(crate) settled_twice: usize,
    /// Requests beyond one for each attempt, those beside that were cut and recorded as that.
    pub(crate) repeated: usize,
    /// Attempts that were cut and recorded as that.
    pub(crate) interrupted: usize,
    /// Deliveries that ended as dead letters.
    pub(crate) dead_lettered: usize,
}

impl Findings {
    /// Nothing that was accepted is lost or without an end.
    pub(crate) fn assert_nothing_lost(&self) {
        let lost = self.not_in_the_log + self.unrouted + self.unsettled + self.not_received;
        assert_eq!(lost, 0, "{self:?}");
    }

    pub(crate) fn tell(&self, figures: &mut Figures) {
        let all = [
            ("accepted", self.accepted),
            ("requests", self.requests),
            ("not_in_the_log", self.not_in_the_log),
            ("unrouted", self.unrouted),
            ("unsettled", self.unsettled),
            ("not_received", self.not_received),
            ("settled_twice", self.settled_twice),
            ("repeated", self.repeated),
            ("interrupted", self.interrupted),
            ("dead_lettered", self.dead_lettered),
        ];
        all.into_iter()
            .for_each(|(name, count)| figures.set(name, count));
    }
}

/// Compares. Everything must have come to its end before: see [`crate::topics::drained`].
pub(crate) async fn audit(log: &dyn Log, told: &Told, receiver: &Receiver) -> Findings {
    let events = records(log, "events").await;
    let published: BTreeMap<EventPosition, String> = events.iter().map(event).collect();
    let ids: BTreeSet<&str> = published.values().map(String::as_str).collect();
    let routes = records(log, "routes").await;
    // Those without a value ask for the log's time.
    let routes = routes.iter().filter(|record| record.value.is_some());
    let routes: Vec<Route> = routes.map(route).collect();
    let attempts = records(log, "attempts").await;
    let attempts = Attempts::of(attempts.iter().map(attempt));

    let routed: BTreeSet<EventPosition> = routes.iter().map(|route| route.position).collect();
    let works: BTreeSet<WorkId> = routes.iter().flat_map(works).collect();
    let received = receiver.everything();
    let requested: BTreeSet<&str> = received.iter().map(|one| one.id.as_str()).collect();
    let unreceived = |work: &&WorkId| !requested.contains(published[&work.position].as_str());
    let missing = |(id, _): &&(String, _)| !ids.contains(id.as_str());
    Findings {
        accepted: told.accepted.len(),
        requests: received.len(),
        not_in_the_log: told.accepted.iter().filter(missing).count(),
        unrouted: published.keys().filter(|at| !routed.contains(at)).count(),
        unsettled: works.difference(&attempts.ended).count(),
        not_received: attempts.delivered.iter().filter(unreceived).count(),
        settled_twice: attempts.settled_twice,
        repeated: received
            .len()
            .saturating_sub(attempts.made.len() + attempts.interrupted),
        interrupted: attempts.interrupted,
        dead_lettered: attempts.dead_lettered,
    }
}

/// What `attempts` says.
#[derive(Debug, Default)]
struct Attempts {
    ended: BTreeSet<WorkId>,
    delivered: BTreeSet<WorkId>,
    /// Attempts that were settled after a request, by work and number.
    made: BTreeSet<(WorkId, u32)>,
    settled_twice: usize,
    interrupted: usize,
    dead_lettered: usize,
}

impl Attempts {
    fn of(attempts: impl Iterator<Item = Attempt>) -> Self {
        let mut all = Self::default();
        let mut settled = BTreeSet::new();
        for attempt in attempts {
            let step = (attempt.work.clone(), attempt.number);
            match attempt.outcome {
                AttemptOutcome::Succeeded | AttemptOutcome::Failed => {
                    all.made.insert(step.clone());
                }
                AttemptOutcome::Interrupted => all.interrupted += 1,
                AttemptOutcome::None => {}
            }
            let Some(settlement) = attempt.settlement else {
                continue;
            };
            all.settled_twice += usize::from(!settled.insert(step));
            if settlement.is_end() && all.ended.insert(attempt.work.clone()) {
                all.dead_lettered += usize::from(settlement == Settlement::DeadLettered);
            }
            if settlement == Settlement::Delivered {
                all.delivered.insert(attempt.work);
            }
        }
        all
    }
}

fn event(record: &Record) -> (EventPosition, String) {
    let position = EventPosition {
        partition: record.partition,
        offset: record.offset,
        appended_at_ms: record.timestamp_ms,
    };
    let context = EventContext {
        position,
        traceparent: None,
    };
    let event = Event::decode(record.value.as_ref().unwrap(), context).unwrap();
    (position, event.id.as_str().to_owned())
}

fn route(record: &Record) -> Route {
    Route::decode(record.value.as_ref().unwrap()).unwrap()
}

fn attempt(record: &Record) -> Attempt {
    Attempt::decode(record.value.as_ref().unwrap()).unwrap()
}

/// The deliveries that a route leads to.
fn works(route: &Route) -> Vec<WorkId> {
    let work = |endpoint: &postrider_model::ids::EndpointId| WorkId {
        position: route.position,
        endpoint: endpoint.clone(),
        run: 0,
    };
    route.endpoints.iter().map(work).collect()
}
