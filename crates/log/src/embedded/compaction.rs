//! What compaction removes from a partition.
//!
//! A record goes when a later one of its key is older than the topic's `min.compaction.lag.ms`; a
//! tombstone goes when it is older than `delete.retention.ms` and nothing is left that it hides:
//! otherwise a crash between the two would bring back what was deleted.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::database::row_id;
use super::reads::Place;
use super::writer::StoreError;
use crate::port::TopicSpec;

/// How many are found in one pass.
const FOUND_MAX: usize = 10_000;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// When records may go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    /// Younger ones neither go nor make others go.
    settled_before_ms: i64,
    tombstones_before_ms: i64,
}

/// What a pass found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Keys of rows to delete.
    pub(super) row_ids: Vec<i64>,
    /// Time alone will let more be removed.
    pub(super) more_later: bool,
}

impl Ages {
    pub(super) fn of(spec: &TopicSpec, now_ms: i64) -> Self {
        let setting = |name: &str| -> Option<i64> {
            let found = spec.settings.iter().find(|setting| setting.0 == name)?;
            found.1.parse().ok()
        };
        let lag_ms = setting("min.compaction.lag.ms").unwrap_or(0);
        let tombstones_ms = setting("delete.retention.ms").unwrap_or(DAY_MS);
        Self {
            settled_before_ms: now_ms.saturating_sub(lag_ms),
            tombstones_before_ms: now_ms.saturating_sub(tombstones_ms),
        }
    }
}

/// Looks for what may go. Remembers each key once, as those who read the topic do too.
pub(super) fn find(connection: &Connection, place: Place, ages: Ages) -> Result<Found, StoreError> {
    let sql = "SELECT id, timestamp_ms, key, value IS NULL FROM record
        WHERE id >= ? AND id < ? ORDER BY id DESC";
    let mut statement = connection.prepare_cached(sql)?;
    let from = row_id(place.slot, place.bounds.start);
    let mut rows = statement.query(params![from, row_id(place.slot, place.bounds.end)])?;
    let mut found = Found::default();
    let mut tombstones = Vec::new();
    let mut later: HashSet<Vec<u8>> = HashSet::new();
    while let Some(row) = rows.next()? {
        let (id, timestamp_ms, is_tombstone): (i64, i64, bool) =
            (row.get(0)?, row.get(1)?, row.get(3)?);
        if timestamp_ms > ages.settled_before_ms {
            found.more_later = true;
            continue;
        }
        let key = row.get_ref(2)?.as_blob()?;
        if later.contains(key) {
            found.row_ids.push(id);
            if found.row_ids.len() == FOUND_MAX {
                return Ok(found);
            }
            continue;
        }
        later.insert(key.to_vec());
        if is_tombstone && timestamp_ms <= ages.tombstones_before_ms {
            tombstones.push(id);
        } else {
            found.more_later |= is_tombstone;
        }
    }
    if found.row_ids.is_empty() {
        tombstones.truncate(FOUND_MAX);
        found.row_ids = tombstones;
    }
    Ok(found)
}
