//! Pages of lists: limit, opaque cursor, and the body that carries both.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fields::{Fields, number_in_text};

const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 250;

/// How many items a page has, as the query says.
pub(crate) fn limit(fields: &mut Fields) -> usize {
    fields
        .optional("limit", number_in_text(1, LIMIT_MAX))
        .unwrap_or(LIMIT_DEFAULT)
}

/// Where the page goes on, as the query or body says.
pub(crate) fn cursor<T: DeserializeOwned>(fields: &mut Fields) -> Option<T> {
    fields.optional("cursor", |value| {
        let text = value.as_str().unwrap_or_default();
        decode(text).ok_or("must be a `next_cursor` of the same list")
    })
}

/// A cursor as text that nobody should read.
pub(crate) fn encode(cursor: &impl Serialize) -> String {
    let json = serde_json::to_vec(cursor).expect("a cursor is plain data");
    URL_SAFE_NO_PAD.encode(json)
}

fn decode<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// A page of a list.
#[derive(Debug, Serialize)]
pub(crate) struct Page<T> {
    data: Vec<T>,
    next_cursor: Option<String>,
}

impl<V> Page<V> {
    /// A page of something kept in memory in order of its id: one more than asked for tells whether
    /// there is another.
    pub(crate) fn of_ids<T>(
        mut items: Vec<T>,
        limit: usize,
        id: impl Fn(&T) -> String,
        view: impl Fn(&T) -> V,
    ) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more);
        Self {
            next_cursor: last.map(|last| encode(&id(last))),
            data: items.iter().map(view).collect(),
        }
    }
}
