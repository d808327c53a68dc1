//! Redriving: dead letters return to `deliveries`, as a run of their own.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::{Extension, Json};
use postrider_log::Record;
use postrider_model::delivery::DeadLetter;
use postrider_model::endpoint::EndpointState;
use postrider_model::ids::TenantId;
use postrider_model::topics::DEAD_LETTERS;
use postrider_registry::Lookup;
use serde_json::Value;

use crate::audit::Subject;
use crate::dead_letters::{self, Filter, delivery_of};
use crate::fields::{self, Fields, parse_object, texts};
use crate::page;
use crate::problem::Problem;
use crate::reading::{Backward, Budget, Forward, Found, Range, Step};
use crate::request::{self, Segments};
use crate::runs::{self, Run};
use crate::shared::{ApiState, Shared};

/// Dead letters held of each partition while those of given ids are searched: they hold whole
/// events.
const HELD_MAX: usize = 8;

/// Which dead letters are to be redriven.
#[derive(Debug)]
enum Selection {
    Ids(BTreeSet<String>),
    Range {
        since_ms: i64,
        until_ms: i64,
        filter: Filter,
    },
}

/// `POST /v1/tenants/{tenant}/dead-letters/redrive`
pub(crate) async fn redrive(
    State(api): ApiState,
    Segments(tenant): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<(Extension<Subject>, Json<Value>), Problem> {
    let tenant = api.tenant(&tenant).await?;
    request::expect_json(&headers)?;
    let config = &api.config;
    let body = request::read_body(
        &headers,
        body,
        config.import_bytes_max,
        config.body_timeout(),
    )
    .await?;
    let mut fields = Fields::new(parse_object(&body)?);
    let command_id = runs::take_command_id(&api, &mut fields);
    let cursor: Option<Vec<Range>> = page::cursor(&mut fields);
    let selection = take_selection(&api, &mut fields);
    fields.finish()?;
    let Some(selection) = selection else {
        unreachable!("what is wrong was noted")
    };
    let mut budget = api.readers.admit(Some(&tenant))?;
    let mut command = Command {
        api: &api,
        tenant: &tenant,
        run: Run::new(&api, command_id.clone(), &api.metrics.dead_letters_redriven),
        seen: BTreeSet::new(),
    };
    let rest = match &selection {
        Selection::Ids(ids) => command.redrive_ids(ids, cursor, &mut budget).await?,
        Selection::Range {
            since_ms,
            until_ms,
            filter,
        } => {
            command
                .redrive_range((*since_ms, *until_ms), filter, cursor, &mut budget)
                .await?
        }
    };
    let answer = command.run.answer("redriven", rest.as_ref());
    Ok((Extension(Subject(command_id)), Json(answer)))
}

fn take_selection(api: &Shared, fields: &mut Fields) -> Option<Selection> {
    if fields.has("ids") {
        for name in ["since", "until", "endpoint", "reason"] {
            fields.refuse(name, "cannot be given together with `ids`");
        }
        return take_ids(api.config.redrive_dead_letters_max, fields).map(Selection::Ids);
    }
    let since_ms = fields.required("since", fields::time);
    let until_ms = fields.required("until", fields::time);
    let filter = Filter::take(fields);
    Some(Selection::Range {
        since_ms: since_ms?,
        until_ms: until_ms?,
        filter,
    })
}

fn take_ids(ids_max: usize, fields: &mut Fields) -> Option<BTreeSet<String>> {
    fields.optional("ids", |value| {
        let ids: BTreeSet<_> = texts(value)?.into_iter().collect();
        if ids.is_empty() || ids.len() > ids_max {
            return Err(format!("must be 1 to {ids_max} ids"));
        }
        Ok(ids)
    })
}

struct Command<'a> {
    api: &'a Shared,
    tenant: &'a TenantId,
    run: Run<'a>,
    /// Ids seen: a dead letter may be in the topic twice.
    seen: BTreeSet<String>,
}

impl Command<'_> {
    /// Redrives the dead letters of these ids, newest first; what is left to search if it was cut.
    async fn redrive_ids(
        &mut self,
        ids: &BTreeSet<String>,
        cursor: Option<Vec<Range>>,
        budget: &mut Budget,
    ) -> Result<Option<Vec<Range>>, Problem> {
        let mut topic = self.api.readers.topic(DEAD_LETTERS, budget).await?;
        let ranges = match cursor {
            Some(rest) => topic.checked(rest)?,
            None => topic.ranges(0..topic.partitions, None, None).await?,
        };
        let tenant = self.tenant;
        let mut letters = Backward::new(topic, ranges, HELD_MAX, |record: &Record| {
            dead_letters::read(record, Some(tenant)).filter(|letter| ids.contains(&letter.id))
        });
        let mut rest = None;
        while self.seen.len() < ids.len() {
            match letters.next(budget).await? {
                Found::Item(letter) => self.add(&letter).await?,
                Found::Done => break,
                Found::Cut => {
                    rest = Some(letters.rest());
                    break;
                }
            }
        }
        self.run.flush().await?;
        if rest.is_none() {
            let missing: Vec<_> = ids.difference(&self.seen).cloned().collect();
            for id in missing {
                self.run.skip(&id, "not_found");
            }
        }
        Ok(rest)
    }

    /// Redrives what was dead-lettered in a time, oldest first; what is left if it was cut.
    async fn redrive_range(
        &mut self,
        (since_ms, until_ms): (i64, i64),
        filter: &Filter,
        cursor: Option<Vec<Range>>,
        budget: &mut Budget,
    ) -> Result<Option<Vec<Range>>, Problem> {
        let mut topic = self.api.readers.topic(DEAD_LETTERS, budget).await?;
        let ranges = match cursor {
            Some(rest) => topic.checked(rest)?,
            None => {
                let partitions = filter.partitions(topic.key_partitions);
                topic
                    .ranges(partitions, Some(since_ms), Some(until_ms))
                    .await?
            }
        };
        let mut letters = Forward::new(topic, ranges);
        loop {
            let records = match letters.next(budget).await? {
                Step::Records(records) => records,
                Step::Done => {
                    self.run.flush().await?;
                    return Ok(None);
                }
                Step::Cut => {
                    self.run.flush().await?;
                    return Ok(Some(letters.rest()));
                }
            };
            for record in &records {
                let letter = dead_letters::read(record, Some(self.tenant));
                let Some(letter) = letter.filter(|letter| filter.admits(letter)) else {
                    continue;
                };
                if self.seen.len() >= self.api.config.redrive_dead_letters_max {
                    letters.back_to(record);
                    self.run.flush().await?;
                    return Ok(Some(letters.rest()));
                }
                self.add(&letter).await?;
            }
        }
    }

    /// Prepares the delivery of a dead letter, unless there is nobody to deliver it to.
    async fn add(&mut self, letter: &DeadLetter) -> Result<(), Problem> {
        let Some(delivery) = delivery_of(letter) else {
            return Ok(());
        };
        if !self.seen.insert(letter.id.clone()) {
            return Ok(());
        }
        let obstacle = match self.api.registry.endpoint(&delivery.endpoint) {
            Lookup::Found(found) => match found.value.state {
                EndpointState::Enabled | EndpointState::Paused => None,
                EndpointState::Disabled { .. } => Some("endpoint_disabled"),
            },
            Lookup::Deleted => Some("endpoint_deleted"),
            Lookup::Unknown => Some("endpoint_unknown"),
        };
        if let Some(obstacle) = obstacle {
            self.run.skip(&letter.id, obstacle);
            return Ok(());
        }
        let (event, position) = (delivery.event.clone(), delivery.position);
        self.run
            .add(&letter.id, event, position, &delivery.endpoint)
            .await
    }
}
