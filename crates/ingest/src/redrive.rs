//! Redriving: dead letters return to `deliveries`, as a run of their own.
//!
//! The run is the hash of the command's id, so a command that is repeated, or cut and gone on with, appends the same
//! pieces of work again, and their owner drops what it has settled: nothing is delivered twice for it.

use std::collections::BTreeSet;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use bytes::Bytes;
use futures_util::future::join_all;
use postrider_log::{AppendError, NewRecord, Record};
use postrider_model::delivery::{DeadLetter, Delivery};
use postrider_model::endpoint::EndpointState;
use postrider_model::ids::{EventId, TenantId};
use postrider_model::topics::{DEAD_LETTERS, DELIVERIES};
use postrider_registry::Lookup;
use ring::digest;
use serde_json::{Value, json};

use crate::api::{ApiState, Shared};
use crate::dead_letters::{self, Filter, delivery_of};
use crate::fields::{self, Fields, parse_object, parsed, texts};
use crate::problem::Problem;
use crate::reading::{Backward, Budget, Forward, Found, Range, Step};
use crate::request::{self, Segments};
use crate::{ids, page};

/// Deliveries appended together, at most: in number, and in bytes.
const CHUNK_DELIVERIES_MAX: usize = 256;
const CHUNK_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Dead letters held of each partition while those of given ids are searched: they hold whole events.
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
) -> Result<Json<Value>, Problem> {
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
    let command_id = fields.optional("command_id", parsed(EventId::try_new));
    let cursor: Option<Vec<Range>> = page::cursor(&mut fields);
    let selection = take_selection(&api, &mut fields);
    fields.finish()?;
    let Some(selection) = selection else {
        unreachable!("what is wrong was noted")
    };
    let command_id = command_id.map_or_else(
        || ids::new_command_id(api.clock.now_ms()),
        |command_id| command_id.to_string(),
    );
    let mut budget = api.readers.admit()?;
    let mut command = Command {
        api: &api,
        tenant: &tenant,
        run: run_of(&command_id),
        command_id: &command_id,
        seen: BTreeSet::new(),
        chunk: Vec::new(),
        chunk_bytes: 0,
        redriven: 0,
        skipped: Vec::new(),
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
    Ok(Json(json!({
        "command_id": command_id,
        "redriven": command.redriven,
        "skipped": command.skipped,
        "complete": rest.is_none(),
        "next_cursor": rest.as_ref().map(page::encode),
    })))
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

/// The run of a command: never 0, which is the first delivery.
fn run_of(command_id: &str) -> u64 {
    let digest = digest::digest(&digest::SHA256, command_id.as_bytes());
    let (first, _) = digest
        .as_ref()
        .split_first_chunk()
        .expect("a digest has 32 bytes");
    u64::from_be_bytes(*first).max(1)
}

struct Command<'a> {
    api: &'a Shared,
    tenant: &'a TenantId,
    command_id: &'a str,
    run: u64,
    /// Ids seen: a dead letter may be in the topic twice.
    seen: BTreeSet<String>,
    chunk: Vec<(String, NewRecord)>,
    chunk_bytes: usize,
    redriven: usize,
    skipped: Vec<Value>,
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
        self.append_chunk().await?;
        if rest.is_none() {
            let missing: Vec<_> = ids.difference(&self.seen).cloned().collect();
            for id in missing {
                self.skip(&id, "not_found");
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
                let partitions = filter.partitions(topic.partitions);
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
                    self.append_chunk().await?;
                    return Ok(None);
                }
                Step::Cut => {
                    self.append_chunk().await?;
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
                    self.append_chunk().await?;
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
            self.skip(&letter.id, obstacle);
            return Ok(());
        }
        let delivery = Delivery {
            run: self.run,
            attempt: 1,
            registry_position: self.api.registry.position(),
            due_at_ms: 0,
            ..delivery.clone()
        };
        let value = delivery.encode();
        self.chunk_bytes += value.len();
        let record = NewRecord {
            key: Bytes::copy_from_slice(delivery.endpoint.as_str().as_bytes()),
            value: Some(value),
            headers: Vec::new(),
        };
        self.chunk.push((letter.id.clone(), record));
        if self.chunk.len() >= CHUNK_DELIVERIES_MAX || self.chunk_bytes >= CHUNK_BYTES_MAX {
            self.append_chunk().await?;
        }
        Ok(())
    }

    async fn append_chunk(&mut self) -> Result<(), Problem> {
        self.chunk_bytes = 0;
        let api = self.api;
        let appends = std::mem::take(&mut self.chunk)
            .into_iter()
            .map(async |(id, record)| (id, api.producing.append(DELIVERIES, record).await));
        for (id, fate) in join_all(appends).await {
            match fate {
                Ok(_) => {
                    self.redriven += 1;
                    api.metrics.dead_letters_redriven.inc();
                }
                Err(AppendError::TooLarge) => self.skip(&id, "too_large"),
                Err(error) => {
                    tracing::warn!(%error, command_id = self.command_id, "redrive cut short");
                    return Err(Problem::RedriveCut {
                        command_id: self.command_id.to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, id: &str, reason: &str) {
        self.skipped.push(json!({ "id": id, "reason": reason }));
    }
}

#[cfg(test)]
mod tests {
    use super::run_of;

    #[test]
    fn the_run_of_a_command_is_the_same_for_ever_and_never_the_first() {
        assert_eq!(run_of("abc"), 0xba78_16bf_8f01_cfea);
        assert_ne!(run_of("a"), run_of("b"));
        assert_ne!(run_of(""), 0);
    }
}
