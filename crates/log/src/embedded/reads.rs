//! Reading from the file, on connections of its own, on tokio's threads for blocking work.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};

use super::database::{connect_to_read, offset_of, row_id};
use super::headers::decode_headers;
use super::writer::StoreError;
use crate::local::storage::Chunk;
use crate::port::{Bounds, LogError, Offset, Partition, Record};

/// Connections that are kept open for the next read; more are made when more is read at once.
const IDLE_CONNECTIONS_MAX: usize = 4;

/// Connections that read.
#[derive(Debug)]
pub(super) struct Readers {
    dir: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// A partition as a read sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) slot: i64,
    pub(super) partition: Partition,
    pub(super) bounds: Bounds,
}

impl Readers {
    pub(super) fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            dir,
            idle: Mutex::default(),
        })
    }

    /// Reads with a connection of its own, off the runtime's threads.
    pub(super) async fn read<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, LogError> {
        let reading = tokio::task::spawn_blocking(move || {
            let idle = self.idle.lock().pop();
            let connection = idle.map_or_else(|| connect_to_read(&self.dir), Ok)?;
            let answer = read(&connection);
            let mut idle = self.idle.lock();
            if idle.len() < IDLE_CONNECTIONS_MAX {
                idle.push(connection);
            }
            answer
        });
        match reading.await {
            Ok(answer) => {
                answer.map_err(|error: StoreError| LogError::Unavailable(error.to_string()))
            }
            Err(error) => Err(LogError::Unavailable(error.to_string())),
        }
    }
}

/// Records from an offset: at most so many bytes, but at least one record if there is any.
pub(super) fn records(
    connection: &Connection,
    place: Place,
    from: Offset,
    bytes_max: usize,
) -> Result<Chunk, StoreError> {
    let sql = "SELECT id, timestamp_ms, key, value, headers FROM record WHERE id >= ? AND id < ? ORDER BY id";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![
        row_id(place.slot, from),
        row_id(place.slot, place.bounds.end)
    ])?;
    let mut chunk = Chunk {
        records: Vec::new(),
        next: from,
    };
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let record = record_of(place.partition, row)?;
        bytes += record.size_bytes();
        if bytes > bytes_max && !chunk.records.is_empty() {
            return Ok(chunk);
        }
        chunk.next = record.offset + 1;
        chunk.records.push(record);
    }
    chunk.next = place.bounds.end;
    Ok(chunk)
}

fn record_of(partition: Partition, row: &rusqlite::Row<'_>) -> Result<Record, StoreError> {
    let blob = |column| -> Result<Option<Bytes>, StoreError> {
        Ok(row
            .get_ref(column)?
            .as_blob_or_null()?
            .map(Bytes::copy_from_slice))
    };
    let headers = decode_headers(row.get_ref(4)?.as_blob()?).ok_or(StoreError::InvalidQuery)?;
    Ok(Record {
        partition,
        offset: offset_of(row.get(0)?),
        timestamp_ms: row.get(1)?,
        key: blob(2)?.unwrap_or_default(),
        value: blob(3)?,
        headers,
    })
}

/// First offset appended at or after the time, else the end. Times never fall within a partition,
/// so it is searched by halves; each step looks at the first record at or after the middle, because
/// there are gaps.
pub(super) fn first_at(
    connection: &Connection,
    place: Place,
    timestamp_ms: i64,
) -> Result<Offset, StoreError> {
    let sql = "SELECT id, timestamp_ms FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let (mut low, mut high) = (place.bounds.start, place.bounds.end);
    let mut found = place.bounds.end;
    while low < high {
        let middle = low + (high - low) / 2;
        let next: Option<(i64, i64)> = statement
            .query_row(
                params![row_id(place.slot, middle), row_id(place.slot, high)],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        match next {
            Some((id, at_ms)) if at_ms < timestamp_ms => low = offset_of(id) + 1,
            Some((id, _)) => {
                found = offset_of(id);
                high = middle;
            }
            None => high = middle,
        }
    }
    Ok(found)
}

/// Whether anything is left of what was before an offset.
pub(super) fn any_before(
    connection: &Connection,
    slot: i64,
    before: Offset,
) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM record WHERE id >= ? AND id < ?)";
    connection
        .prepare_cached(sql)?
        .query_row([row_id(slot, 0), row_id(slot, before)], |row| row.get(0))
}
