//! The auditor: knows the topics, what groups committed and what the network saw, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use postrider_log::memory::MemoryLog;
use postrider_log::{Log, Offset, Partition, Record};
use postrider_model::delivery::{
    Attempt, AttemptOutcome, DeadLetter, DeadLetterContent, Delivery, LaneState, Route, Settlement,
    WorkId,
};
use postrider_model::event::EventPosition;
use postrider_model::ids::EndpointId;
use postrider_model::topics::{
    ATTEMPTS, DEAD_LETTERS, DELIVERIES, ENDPOINT_STATE, EVENTS, GROUP_DELIVER, GROUP_FAN_OUT,
    GROUP_SCHEDULER, RETRY, ROUTES,
};

use super::network::Sent;

/// What the topics hold at a moment.
pub(crate) struct Audit {
    committed: BTreeMap<(&'static str, Partition), Offset>,
    events: Vec<Record>,
    routes: BTreeMap<EventPosition, Vec<Route>>,
    deliveries: Vec<(Partition, Offset, Delivery)>,
    retries: Vec<(Partition, Offset, Delivery)>,
    /// The steps that are in `deliveries`.
    delivered_steps: BTreeSet<(WorkId, u32)>,
    /// The steps that are in `retry`: how often, and when the first is due.
    retried_steps: BTreeMap<(WorkId, u32), (usize, i64)>,
    /// In order of their place, with the time they landed.
    attempts: BTreeMap<WorkId, Vec<(i64, Attempt)>>,
    dead: BTreeSet<(WorkId, u32)>,
    raw_dead: BTreeSet<(String, Partition, Offset)>,
    /// The lanes' states that count: under the id that the commit names.
    states: BTreeMap<(Partition, EndpointId), LaneState>,
}

impl Audit {
    pub(crate) async fn take(log: &MemoryLog) -> Self {
        let (mut committed, mut state_ids) = (BTreeMap::new(), BTreeMap::new());
        // Commits first: what they say must hold of the topics as they are now or later.
        for (topic, group) in [
            (EVENTS, GROUP_FAN_OUT),
            (DELIVERIES, GROUP_DELIVER),
            (RETRY, GROUP_SCHEDULER),
        ] {
            let of_topic = log.committed(group, topic).await.expect("commits");
            for (partition, commit) in (0..).zip(of_topic) {
                if let Some(state_id) = commit
                    .as_ref()
                    .filter(|_| topic == DELIVERIES)
                    .and_then(|commit| state_id(&commit.metadata))
                {
                    state_ids.insert(partition, state_id);
                }
                committed.insert((topic, partition), commit.map_or(0, |commit| commit.offset));
            }
        }
        let mut audit = Self {
            committed,
            events: log.snapshot(EVENTS),
            routes: BTreeMap::new(),
            deliveries: deliveries(log, DELIVERIES),
            retries: deliveries(log, RETRY),
            delivered_steps: BTreeSet::new(),
            retried_steps: BTreeMap::new(),
            attempts: BTreeMap::new(),
            dead: BTreeSet::new(),
            raw_dead: BTreeSet::new(),
            states: states(log, &state_ids),
        };
        audit.delivered_steps = audit
            .deliveries
            .iter()
            .map(|(_, _, delivery)| step(delivery))
            .collect();
        for (_, _, retry) in &audit.retries {
            let (count, due_at_ms) = audit
                .retried_steps
                .entry(step(retry))
                .or_insert((0, i64::MAX));
            *count += 1;
            *due_at_ms = retry.due_at_ms.min(*due_at_ms);
        }
        for record in log.snapshot(ROUTES) {
            let route = Route::decode(&value(&record)).expect("a route");
            audit.routes.entry(route.position).or_default().push(route);
        }
        for record in log.snapshot(ATTEMPTS) {
            let attempt = Attempt::decode(&value(&record)).expect("an attempt");
            audit
                .attempts
                .entry(attempt.work.clone())
                .or_default()
                .push((record.timestamp_ms, attempt));
        }
        for record in log.snapshot(DEAD_LETTERS) {
            match DeadLetter::decode(&value(&record))
                .expect("a dead letter")
                .content
            {
                DeadLetterContent::Delivery(delivery) => {
                    audit.dead.insert((delivery.work_id(), delivery.attempt));
                }
                DeadLetterContent::Raw(raw) => {
                    audit
                        .raw_dead
                        .insert((raw.topic, raw.partition, raw.offset));
                }
            }
        }
        audit
    }

    /// Nothing that a commit has passed is unsettled.
    pub(crate) fn check_commits(&self) {
        for event in &self.events {
            if event.offset < self.committed[&(EVENTS, event.partition)] {
                self.check_routed(event);
            }
        }
        for (partition, offset, delivery) in &self.deliveries {
            if *offset < self.committed[&(DELIVERIES, *partition)] {
                let work = delivery.work_id();
                assert!(
                    self.is_settled(&work, delivery.attempt)
                        || self.is_covered(*partition, *offset, &work.endpoint),
                    "committed past deliveries {partition}/{offset}, unsettled: {work:?} {}",
                    delivery.attempt
                );
            }
        }
        for (partition, offset, retry) in &self.retries {
            if *offset < self.committed[&(RETRY, *partition)] {
                assert!(
                    self.has_moved_on(retry),
                    "retry {partition}/{offset} is nowhere"
                );
            }
        }
    }

    fn check_routed(&self, event: &Record) {
        let position = EventPosition {
            partition: event.partition,
            offset: event.offset,
        };
        if self
            .raw_dead
            .contains(&(EVENTS.to_owned(), event.partition, event.offset))
        {
            return;
        }
        let routes = self.routes.get(&position);
        let routes =
            routes.unwrap_or_else(|| panic!("committed past event {position:?} without a route"));
        // A repeated route may know more or fewer endpoints; the deliveries of the first are there at least.
        for endpoint in &routes[0].endpoints {
            let work = WorkId {
                position,
                endpoint: endpoint.clone(),
                run: 0,
            };
            assert!(
                self.delivered_steps.contains(&(work, 1)),
                "event {position:?} was routed to {endpoint} without a delivery"
            );
        }
    }

    fn is_settled(&self, work: &WorkId, attempt: u32) -> bool {
        let records = self.attempts.get(work).into_iter().flatten();
        let mut settlements =
            records.filter_map(|(_, made)| made.settlement.map(|s| (made.number, s)));
        settlements.any(|(number, settlement)| number >= attempt || settlement.is_end())
    }

    /// Whether the next owner will read the record again.
    fn is_covered(&self, partition: Partition, offset: Offset, endpoint: &EndpointId) -> bool {
        let state = self.states.get(&(partition, endpoint.clone()));
        state
            .and_then(|state| state.cursor.as_ref())
            .is_some_and(|cursor| !cursor.has_settled(offset))
    }

    /// A retry that was passed is in `deliveries`, or once more in `retry`.
    fn has_moved_on(&self, retry: &Delivery) -> bool {
        let step = step(retry);
        self.delivered_steps.contains(&step)
            || self
                .retried_steps
                .get(&step)
                .is_some_and(|(count, _)| *count > 1)
    }

    /// Every settlement left what it says behind.
    pub(crate) fn check_settlements(&self) {
        for (work, records) in &self.attempts {
            for (_, made) in records {
                match made.settlement {
                    Some(Settlement::RetryScheduled { .. }) => {
                        let next = (work.clone(), made.number + 1);
                        assert!(
                            self.retried_steps.contains_key(&next),
                            "no retry for {work:?}"
                        );
                    }
                    Some(Settlement::DeadLettered) => {
                        assert!(
                            self.dead.contains(&(work.clone(), made.number)),
                            "no dead letter for {work:?}"
                        );
                    }
                    Some(Settlement::Delivered | Settlement::Dropped) | None => {}
                }
            }
        }
    }

    /// Pieces of work that a route promised and no settlement ended.
    pub(crate) fn unsettled(&self) -> Vec<WorkId> {
        let promised = self.routes.values().flatten().flat_map(|route| {
            let work = |endpoint: &_| WorkId {
                position: route.position,
                endpoint: Clone::clone(endpoint),
                run: 0,
            };
            route.endpoints.iter().map(work).collect::<Vec<_>>()
        });
        let is_open = |work: &WorkId| {
            let records = self.attempts.get(work).into_iter().flatten();
            !records
                .filter_map(|(_, made)| made.settlement)
                .any(Settlement::is_end)
        };
        promised.filter(is_open).collect()
    }

    /// Events that neither a route nor a dead letter answers.
    pub(crate) fn unrouted(&self) -> usize {
        let routed = |event: &&Record| {
            let position = EventPosition {
                partition: event.partition,
                offset: event.offset,
            };
            !self.routes.contains_key(&position)
                && !self
                    .raw_dead
                    .contains(&(EVENTS.to_owned(), event.partition, event.offset))
        };
        self.events.iter().filter(routed).count()
    }

    /// No request left that the log could have told its sender not to make, and none left early.
    pub(crate) fn check_requests(&self, sent: &[Sent], life_started_ms: &[i64]) {
        let mut of_request: BTreeMap<(&str, &str), Vec<&(i64, Attempt)>> = BTreeMap::new();
        for (work, records) in &self.attempts {
            for record in records {
                let endpoint = work.endpoint.as_str().trim_start_matches("ep_");
                of_request
                    .entry((record.1.event_id.as_str(), endpoint))
                    .or_default()
                    .push(record);
            }
        }
        let due = self.due();
        for request in sent {
            let key = (request.event_id.as_str(), request.endpoint.as_str());
            let records = of_request.get(&key).map_or(&[][..], Vec::as_slice);
            for (landed_ms, made) in records {
                let covers = made
                    .settlement
                    .is_some_and(|s| made.number >= request.attempt || s.is_end());
                let known = *landed_ms < life_started_ms[request.life];
                assert!(
                    !(covers && known),
                    "{request:?} was made although {made:?} was in the log"
                );
            }
            if request.attempt > 1 {
                let due_at_ms = due.get(&(key.0, key.1, request.attempt));
                assert!(
                    due_at_ms.is_some_and(|due_at_ms| request.at_ms >= *due_at_ms),
                    "{request:?} was made before {due_at_ms:?}"
                );
            }
        }
    }

    /// When each retry is due, the earliest where it was written more than once.
    fn due(&self) -> BTreeMap<(&str, &str, u32), i64> {
        let mut due = BTreeMap::new();
        for (_, _, retry) in &self.retries {
            let endpoint = retry.endpoint.as_str().trim_start_matches("ep_");
            let first = due
                .entry((retry.event.id.as_str(), endpoint, retry.attempt))
                .or_insert(i64::MAX);
            *first = retry.due_at_ms.min(*first);
        }
        due
    }

    /// How late each retry left.
    pub(crate) fn lateness(&self, sent: &[Sent]) -> Vec<i64> {
        let due = self.due();
        let late = |request: &Sent| {
            let due_at_ms = due.get(&(
                request.event_id.as_str(),
                request.endpoint.as_str(),
                request.attempt,
            ))?;
            Some(request.at_ms - due_at_ms)
        };
        sent.iter().filter_map(late).collect()
    }

    /// Every attempt recorded as successful was made.
    pub(crate) fn check_attempts_were_made(&self, sent: &[Sent]) {
        let requests = sent
            .iter()
            .map(|r| (r.event_id.as_str(), r.endpoint.as_str(), r.attempt));
        let asked: BTreeSet<_> = requests.collect();
        for (work, records) in &self.attempts {
            for (_, made) in records {
                if !matches!(made.outcome, AttemptOutcome::Succeeded) {
                    continue;
                }
                let endpoint = work.endpoint.as_str().trim_start_matches("ep_");
                assert!(
                    asked.contains(&(made.event_id.as_str(), endpoint, made.number)),
                    "{made:?} was never made"
                );
            }
        }
    }

    pub(crate) fn attempts(&self) -> usize {
        self.attempts.values().map(Vec::len).sum()
    }

    pub(crate) fn retries(&self) -> usize {
        self.retries.len()
    }

    pub(crate) fn dead_letters(&self) -> usize {
        self.dead.len() + self.raw_dead.len()
    }

    pub(crate) fn events(&self) -> usize {
        self.events.len()
    }
}

fn state_id(metadata: &str) -> Option<i64> {
    let word = metadata
        .split(' ')
        .find_map(|word| word.strip_prefix("state="))?;
    word.parse().ok()
}

fn states(
    log: &MemoryLog,
    state_ids: &BTreeMap<Partition, i64>,
) -> BTreeMap<(Partition, EndpointId), LaneState> {
    let mut by_key = BTreeMap::new();
    for record in log.snapshot(ENDPOINT_STATE) {
        let key = (record.partition, record.key.clone());
        match record.value.as_deref().map(LaneState::decode) {
            Some(Ok(state)) if state_ids.get(&record.partition) == Some(&state.state_id) => {
                by_key.insert(key, state);
            }
            Some(_) => {}
            None => {
                by_key.remove(&key);
            }
        }
    }
    let named =
        |((partition, _), state): (_, LaneState)| ((partition, state.endpoint.clone()), state);
    by_key.into_iter().map(named).collect()
}

fn step(delivery: &Delivery) -> (WorkId, u32) {
    (delivery.work_id(), delivery.attempt)
}

fn value(record: &Record) -> Vec<u8> {
    record.value.as_deref().unwrap_or_default().to_vec()
}

fn deliveries(log: &MemoryLog, topic: &str) -> Vec<(Partition, Offset, Delivery)> {
    let decoded = log.snapshot(topic).into_iter().filter_map(|record| {
        let delivery = Delivery::decode(&value(&record)).ok()?;
        Some((record.partition, record.offset, delivery))
    });
    decoded.collect()
}
