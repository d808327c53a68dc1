//! What became of an event, and what an endpoint was sent: read back from the topics.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use postrider_log::{Record, partition_for};
use postrider_model::delivery::{Attempt, Route};
use postrider_model::event::{Event, EventPosition};
use postrider_model::ids::{EndpointId, EventId, TenantId};
use postrider_model::topics::{ATTEMPTS, EVENTS, ROUTES, event_key};
use postrider_model::wire::EventContext;
use postrider_registry::Lookup;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lists::{self, Window};
use crate::problem::Problem;
use crate::reading::{Budget, Forward, Range, Search, Step, place_of};
use crate::request::{Parameters, Segments};
use crate::shared::{ApiState, Shared};
use crate::views::{self, Deliveries, EventView};
use crate::{ids, page};

/// How much the clocks of ingest and of the log may differ when reads seek by the time in an id.
const CLOCK_SKEW_MS: i64 = 60_000;
/// Attempts in the answer about one event.
const ATTEMPTS_MAX: usize = 1_000;

/// Where the reading of an event's history was cut.
#[derive(Debug, Serialize, Deserialize)]
enum Cut {
    /// In search of its route.
    Route(Vec<Range>),
    /// In search of the event, which has no route.
    Event(Vec<Range>),
    /// In its attempts; its route is known.
    Attempts { route: Range, rest: Vec<Range> },
}

/// What was read of an event so far.
#[derive(Debug, Default)]
struct History {
    event: Option<Event>,
    route: Option<Route>,
    deliveries: Deliveries,
    cut: Option<Cut>,
}

#[derive(Serialize)]
struct HistoryView {
    event: Option<EventView>,
    route: Option<Value>,
    deliveries: Value,
    complete: bool,
    next_cursor: Option<String>,
}

/// `GET /v1/tenants/{tenant}/events/{event}`
pub(crate) async fn show(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    Parameters(mut parameters): Parameters,
) -> Result<Response, Problem> {
    let tenant = api.tenant(&tenant).await?;
    let id = EventId::try_new(&id).map_err(|_| Problem::NotFound(format!("the event {id:?}")))?;
    let now_ms = api.clock.now_ms();
    let since_ms = lists::time(&mut parameters, "since");
    let cut: Option<Cut> = page::cursor(&mut parameters);
    parameters.finish()?;
    let since_ms = since_ms
        .or_else(|| ids::event_id_time_ms(&id).map(|made_ms| made_ms - CLOCK_SKEW_MS))
        .unwrap_or_else(|| lists::since_default_ms(&api, now_ms));
    let search = EventSearch {
        api: &api,
        tenant: &tenant,
        id: &id,
        since_ms,
    };
    let mut budget = api.readers.admit(Some(&tenant))?;
    let history = search.run(cut, &mut budget).await?;
    if history.event.is_none() && history.route.is_none() && history.cut.is_none() {
        return Err(Problem::NotFound(format!(
            "the event `{id}`, in what is kept of the time asked for,"
        )));
    }
    let view = HistoryView {
        event: history.event.as_ref().map(EventView::of),
        route: history.route.as_ref().map(views::route),
        deliveries: history.deliveries.to_json(),
        complete: history.cut.is_none(),
        next_cursor: history.cut.as_ref().map(page::encode),
    };
    Ok(Json(view).into_response())
}

struct EventSearch<'a> {
    api: &'a Arc<Shared>,
    tenant: &'a TenantId,
    id: &'a EventId,
    since_ms: i64,
}

impl EventSearch<'_> {
    async fn run(&self, cut: Option<Cut>, budget: &mut Budget) -> Result<History, Problem> {
        let (ranges, attempts) = match cut {
            Some(Cut::Event(rest)) => return self.find_event(Some(rest), budget).await,
            Some(Cut::Attempts { route, rest }) => (Some(vec![route]), Some(rest)),
            Some(Cut::Route(rest)) => (Some(rest), None),
            None => (None, None),
        };
        match self.find_route(ranges, budget).await? {
            Search::Found(route, place) => self.follow(route, place, attempts, budget).await,
            Search::Absent => self.find_event(None, budget).await,
            Search::Cut(rest) => Ok(History {
                cut: Some(Cut::Route(rest)),
                ..History::default()
            }),
        }
    }

    /// The route is in the partition of the event's id, and says where everything else is.
    async fn find_route(
        &self,
        ranges: Option<Vec<Range>>,
        budget: &mut Budget,
    ) -> Result<Search<Route>, Problem> {
        let mut topic = self.api.readers.topic(ROUTES, budget).await?;
        let partition = partition_for(self.id.as_str().as_bytes(), topic.key_partitions);
        let ranges = match ranges {
            Some(ranges) => topic.checked(ranges)?,
            None => topic.ranges([partition], Some(self.since_ms), None).await?,
        };
        let fits = |record: &Record| {
            let route = Route::decode(record.value.as_ref()?).ok()?;
            (route.event_id == *self.id && route.tenant == *self.tenant).then_some(route)
        };
        Forward::new(topic, ranges).find(budget, fits).await
    }

    /// An event that nobody routed yet. Without an ordering key its partition is known; with one it
    /// may be in any.
    async fn find_event(
        &self,
        ranges: Option<Vec<Range>>,
        budget: &mut Budget,
    ) -> Result<History, Problem> {
        let mut topic = self.api.readers.topic(EVENTS, budget).await?;
        let ranges = match ranges {
            Some(ranges) => topic.checked(ranges)?,
            None => {
                let key = event_key(self.tenant, "", self.id);
                let first = partition_for(&key, topic.key_partitions);
                let others = (0..topic.partitions).filter(|partition| *partition != first);
                topic
                    .ranges(
                        std::iter::once(first).chain(others),
                        Some(self.since_ms),
                        None,
                    )
                    .await?
            }
        };
        let found = Forward::new(topic, ranges)
            .find(budget, |record| self.as_event(record))
            .await?;
        Ok(match found {
            Search::Found(event, _) => History {
                event: Some(event),
                ..History::default()
            },
            Search::Absent => History::default(),
            Search::Cut(rest) => History {
                cut: Some(Cut::Event(rest)),
                ..History::default()
            },
        })
    }

    /// Reads the event that a route names, and the attempts at the endpoints it matched.
    async fn follow(
        &self,
        route: Route,
        place: Range,
        rest: Option<Vec<Range>>,
        budget: &mut Budget,
    ) -> Result<History, Problem> {
        let EventPosition {
            partition, offset, ..
        } = route.position;
        let events = self.api.readers.topic(EVENTS, budget).await?;
        let event = Forward::new(events, vec![place_of(partition, offset)]);
        let event = match event.find(budget, |record| self.as_event(record)).await? {
            Search::Found(event, _) => Some(event),
            Search::Absent | Search::Cut(_) => None,
        };
        let mut topic = self.api.readers.topic(ATTEMPTS, budget).await?;
        let ranges = match rest {
            Some(rest) => topic.checked(rest)?,
            None => {
                let partitions: BTreeSet<_> = route
                    .endpoints
                    .iter()
                    .map(|endpoint| {
                        partition_for(endpoint.as_str().as_bytes(), topic.key_partitions)
                    })
                    .collect();
                topic
                    .ranges(partitions, Some(route.routed_at_ms - CLOCK_SKEW_MS), None)
                    .await?
            }
        };
        let mut deliveries = Deliveries::of(&route);
        let attempts = Forward::new(topic, ranges);
        let rest = collect_attempts(attempts, &route, &mut deliveries, budget).await?;
        let cut = rest.map(|rest| Cut::Attempts { route: place, rest });
        Ok(History {
            event,
            route: Some(route),
            deliveries,
            cut,
        })
    }

    fn as_event(&self, record: &Record) -> Option<Event> {
        let context = EventContext {
            position: EventPosition {
                partition: record.partition,
                offset: record.offset,
                appended_at_ms: record.timestamp_ms,
            },
            traceparent: None,
        };
        let event = Event::decode(record.value.as_ref()?, context).ok()?;
        (event.id == *self.id && event.tenant == *self.tenant).then_some(event)
    }
}

/// Adds the attempts of the routed event; what is left to read if it was cut.
async fn collect_attempts(
    mut attempts: Forward<'_>,
    route: &Route,
    deliveries: &mut Deliveries,
    budget: &mut Budget,
) -> Result<Option<Vec<Range>>, Problem> {
    let mut count = 0;
    loop {
        let records = match attempts.next(budget).await? {
            Step::Records(records) => records,
            Step::Done => return Ok(None),
            Step::Cut => return Ok(Some(attempts.rest())),
        };
        for record in &records {
            let attempt = record
                .value
                .as_ref()
                .and_then(|value| Attempt::decode(value).ok());
            let Some(attempt) = attempt else { continue };
            if !attempt.work.position.names_same_as(route.position)
                || attempt.event_id != route.event_id
            {
                continue;
            }
            if count == ATTEMPTS_MAX {
                attempts.back_to(record);
                return Ok(Some(attempts.rest()));
            }
            count += 1;
            deliveries.add(&attempt);
        }
    }
}

/// `GET /v1/tenants/{tenant}/endpoints/{endpoint}/attempts`: newest first by the time they were
/// written.
pub(crate) async fn list_attempts(
    State(api): ApiState,
    Segments((tenant, endpoint)): Segments<(String, String)>,
    Parameters(mut parameters): Parameters,
) -> Result<Json<Value>, Problem> {
    let tenant = api.tenant(&tenant).await?;
    let endpoint = known_endpoint(&api, &tenant, &endpoint).await?;
    let window = Window::take(&api, &mut parameters);
    parameters.finish()?;
    let budget = api.readers.admit(Some(&tenant))?;
    let topic = api.readers.topic(ATTEMPTS, &budget).await?;
    let partition = partition_for(endpoint.as_str().as_bytes(), topic.key_partitions);
    lists::newest_first(topic, [partition], window, budget, |record| {
        let attempt = Attempt::decode(record.value.as_ref()?).ok()?;
        let wanted = attempt.work.endpoint == endpoint && attempt.tenant == tenant;
        wanted.then(|| views::attempt(&attempt))
    })
    .await
}

/// The endpoint of the path, which may have been deleted: what it was sent is still there.
async fn known_endpoint(api: &Shared, tenant: &TenantId, id: &str) -> Result<EndpointId, Problem> {
    let missing = || Problem::NotFound(format!("the endpoint {id:?}"));
    let id = EndpointId::try_new(id).map_err(|_| missing())?;
    let mut found = api.registry.endpoint(&id);
    if found == Lookup::Unknown {
        api.refresh_registry().await?;
        found = api.registry.endpoint(&id);
    }
    match found {
        Lookup::Found(found) if found.value.tenant == *tenant => Ok(id),
        Lookup::Deleted => Ok(id),
        Lookup::Found(_) | Lookup::Unknown => Err(missing()),
    }
}
