//! Lists read from topics, newest first.

use axum::Json;
use postrider_log::{Partition, Record};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::fields::{self, Fields};
use crate::page;
use crate::problem::Problem;
use crate::reading::{Backward, Budget, Found, Range, Topic};
use crate::shared::Shared;

/// What part of a list is asked for.
#[derive(Debug)]
pub(crate) struct Window {
    limit: usize,
    since_ms: i64,
    until_ms: Option<i64>,
    cursor: Option<ListCursor>,
}

/// What the pages before did not show: it stays the same list, whatever is written meanwhile.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListCursor {
    rest: Vec<Range>,
}

impl Window {
    /// Takes `since`, `until`, `limit` and `cursor`.
    pub(crate) fn take(api: &Shared, parameters: &mut Fields) -> Self {
        let since_ms = time(parameters, "since");
        Self {
            limit: page::limit(parameters),
            since_ms: since_ms.unwrap_or_else(|| since_default_ms(api, api.clock.now_ms())),
            until_ms: time(parameters, "until"),
            cursor: page::cursor(parameters),
        }
    }
}

/// A time in the query.
pub(crate) fn time(parameters: &mut Fields, name: &str) -> Option<i64> {
    parameters.optional(name, fields::time)
}

/// From when on is read if the request does not say.
pub(crate) fn since_default_ms(api: &Shared, now_ms: i64) -> i64 {
    let back_ms = api.config.read_since_default_s.saturating_mul(1000);
    now_ms.saturating_sub(i64::try_from(back_ms).unwrap_or(i64::MAX))
}

/// One page of what `select` shows, from these partitions.
pub(crate) async fn newest_first(
    mut topic: Topic<'_>,
    partitions: impl IntoIterator<Item = Partition>,
    window: Window,
    mut budget: Budget,
    select: impl Fn(&Record) -> Option<Value>,
) -> Result<Json<Value>, Problem> {
    let ranges = match window.cursor {
        Some(cursor) => topic.checked(cursor.rest)?,
        None => {
            topic
                .ranges(partitions, Some(window.since_ms), window.until_ms)
                .await?
        }
    };
    let mut newest = Backward::new(topic, ranges, window.limit, select);
    let mut data = Vec::new();
    let mut complete = true;
    while data.len() < window.limit {
        match newest.next(&mut budget).await? {
            Found::Item(item) => data.push(item),
            Found::Done => break,
            Found::Cut => {
                complete = false;
                break;
            }
        }
    }
    let rest = newest.rest();
    let next_cursor = (!rest.is_empty()).then(|| page::encode(&ListCursor { rest }));
    Ok(Json(
        json!({ "data": data, "next_cursor": next_cursor, "complete": complete }),
    ))
}
