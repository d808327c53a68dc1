//! Dead letters, listed and shown: those of a tenant, and the records that could not be understood,
//! which are the operator's.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use postrider_log::{Record, partition_for};
use postrider_model::delivery::{DeadLetter, DeadLetterContent, Delivery};
use postrider_model::ids::{EndpointId, TenantId};
use postrider_model::outcome::Reason;
use postrider_model::topics::DEAD_LETTERS;
use serde::Serialize;
use serde_json::Value;

use crate::fields::{Fields, parsed};
use crate::lists::{self, Window};
use crate::page;
use crate::problem::Problem;
use crate::reading::{Backward, Found, Range};
use crate::request::{Parameters, Segments};
use crate::shared::{ApiState, Shared};
use crate::views::{self, DeadLetterView, EventView};

/// Which dead letters are meant, besides their time.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub(crate) endpoint: Option<EndpointId>,
    reason: Option<Reason>,
}

impl Filter {
    /// Takes `endpoint` and `reason`.
    pub(crate) fn take(fields: &mut Fields) -> Self {
        Self {
            endpoint: fields.optional("endpoint", parsed(EndpointId::try_new)),
            reason: fields.optional("reason", parsed(str::parse::<Reason>)),
        }
    }

    pub(crate) fn admits(&self, letter: &DeadLetter) -> bool {
        let endpoint = delivery_of(letter).map(|delivery| &delivery.endpoint);
        let right_endpoint = self
            .endpoint
            .as_ref()
            .is_none_or(|wanted| endpoint == Some(wanted));
        right_endpoint && self.reason.is_none_or(|wanted| letter.reason == wanted)
    }

    /// The partitions that such letters are in: letters are keyed by their endpoint.
    pub(crate) fn partitions(&self, count: i32) -> Vec<i32> {
        match &self.endpoint {
            Some(endpoint) => vec![partition_for(endpoint.as_str().as_bytes(), count)],
            None => (0..count).collect(),
        }
    }
}

/// The delivery in a dead letter.
pub(crate) fn delivery_of(letter: &DeadLetter) -> Option<&Delivery> {
    match &letter.content {
        DeadLetterContent::Delivery(delivery) => Some(delivery),
        DeadLetterContent::Raw(_) => None,
    }
}

/// The dead letter of a record, if it is one of this tenant; without a tenant, if it is one of the
/// operator.
pub(crate) fn read(record: &Record, tenant: Option<&TenantId>) -> Option<DeadLetter> {
    let letter = DeadLetter::decode(record.value.as_ref()?).ok()?;
    let owner = delivery_of(&letter).map(|delivery| &delivery.event.tenant);
    (owner == tenant).then_some(letter)
}

/// `GET /v1/tenants/{tenant}/dead-letters`
pub(crate) async fn list(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    Parameters(parameters): Parameters,
) -> Result<Json<Value>, Problem> {
    let tenant = api.tenant(&tenant).await?;
    list_of(&api, Some(&tenant), parameters).await
}

/// `GET /v1/dead-letters`: the records that could not be understood.
pub(crate) async fn list_raw(
    State(api): ApiState,
    Parameters(parameters): Parameters,
) -> Result<Json<Value>, Problem> {
    list_of(&api, None, parameters).await
}

async fn list_of(
    api: &Shared,
    tenant: Option<&TenantId>,
    mut parameters: Fields,
) -> Result<Json<Value>, Problem> {
    let window = Window::take(api, &mut parameters);
    let filter = Filter::take(&mut parameters);
    parameters.finish()?;
    let budget = api.readers.admit(tenant)?;
    let topic = api.readers.topic(DEAD_LETTERS, &budget).await?;
    let partitions = filter.partitions(topic.key_partitions);
    lists::newest_first(topic, partitions, window, budget, |record| {
        let letter = read(record, tenant)?;
        filter.admits(&letter).then(|| views::dead_letter(&letter))
    })
    .await
}

#[derive(Serialize)]
struct ShownDeadLetter {
    #[serde(flatten)]
    letter: Option<DeadLetterView>,
    event: Option<EventView>,
    complete: bool,
    next_cursor: Option<String>,
}

/// `GET /v1/tenants/{tenant}/dead-letters/{letter}`
pub(crate) async fn show(
    State(api): ApiState,
    Segments((tenant, id)): Segments<(String, String)>,
    Parameters(parameters): Parameters,
) -> Result<Response, Problem> {
    let tenant = api.tenant(&tenant).await?;
    show_of(&api, Some(&tenant), &id, parameters).await
}

/// `GET /v1/dead-letters/{letter}`
pub(crate) async fn show_raw(
    State(api): ApiState,
    Segments(id): Segments<String>,
    Parameters(parameters): Parameters,
) -> Result<Response, Problem> {
    show_of(&api, None, &id, parameters).await
}

/// An id says nothing of when: everything kept is searched, newest first, as far as the budget
/// goes.
async fn show_of(
    api: &Shared,
    tenant: Option<&TenantId>,
    id: &str,
    mut parameters: Fields,
) -> Result<Response, Problem> {
    let cursor: Option<Vec<Range>> = page::cursor(&mut parameters);
    parameters.finish()?;
    let mut budget = api.readers.admit(tenant)?;
    let mut topic = api.readers.topic(DEAD_LETTERS, &budget).await?;
    let ranges = match cursor {
        Some(rest) => topic.checked(rest)?,
        None => topic.ranges(0..topic.partitions, None, None).await?,
    };
    let mut letters = Backward::new(topic, ranges, 1, |record: &Record| {
        read(record, tenant).filter(|letter| letter.id == id)
    });
    let shown = match letters.next(&mut budget).await? {
        Found::Done => return Err(Problem::NotFound(format!("the dead letter {id:?}"))),
        Found::Item(letter) => {
            let (view, event) = DeadLetterView::of(&letter);
            ShownDeadLetter {
                letter: Some(view),
                event,
                complete: true,
                next_cursor: None,
            }
        }
        Found::Cut => ShownDeadLetter {
            letter: None,
            event: None,
            complete: false,
            next_cursor: Some(page::encode(&letters.rest())),
        },
    };
    Ok(Json(shown).into_response())
}
