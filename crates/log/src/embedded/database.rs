//! The SQLite file: its format, and the statements of the one connection that writes.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::headers::encode_headers;
use super::writer::{Head, Heads, Store, StoreError};
use crate::local::topic::Topic;
use crate::port::{Commit, Committed, LogError, NewRecord, Offset, Partition, TopicSpec};

/// Changes with the schema. There is no other version yet, so there is nothing to convert.
const FORMAT: i64 = 1;

/// A record's key is its topic, partition and offset in one integer, because SQLite stores rows of
/// such a table in the leaves of the tree, however large, and appends to it fastest. 11, 12 and 40
/// bits.
const OFFSET_BITS: u32 = 40;
const PARTITION_BITS: u32 = 12;
const TOPIC_ID_MAX: i64 = (1 << 11) - 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS topic (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        partitions INTEGER NOT NULL,
        retention_ms INTEGER,
        message_bytes_max INTEGER NOT NULL,
        settings TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS head (
        slot INTEGER PRIMARY KEY,
        first_offset INTEGER NOT NULL,
        next_offset INTEGER NOT NULL,
        last_timestamp_ms INTEGER NOT NULL
    );
    CREATE TABLE IF NOT EXISTS record (
        id INTEGER PRIMARY KEY,
        timestamp_ms INTEGER NOT NULL,
        key BLOB NOT NULL,
        value BLOB,
        headers BLOB NOT NULL
    );
    CREATE TABLE IF NOT EXISTS committed (
        member_group TEXT NOT NULL,
        slot INTEGER NOT NULL,
        next_offset INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        PRIMARY KEY (member_group, slot)
    ) WITHOUT ROWID;
";

/// What must fit into a log that can be written: an event of the size that topics take by default.
const PROBE_BYTES: u32 = 1 << 20;

/// A partition of a topic as one integer.
pub(super) fn slot(topic_id: i64, partition: Partition) -> i64 {
    topic_id << PARTITION_BITS | i64::from(partition)
}

/// The key of the record at an offset. An offset that no record can have gives a key beyond the
/// partition's.
pub(super) fn row_id(slot: i64, offset: Offset) -> i64 {
    slot << OFFSET_BITS | offset.clamp(0, (1 << OFFSET_BITS) - 1)
}

/// The offset of a record by its key.
pub(super) fn offset_of(row_id: i64) -> Offset {
    row_id & ((1 << OFFSET_BITS) - 1)
}

/// The slot of a record by its key.
pub(super) fn slot_of(row_id: i64) -> i64 {
    row_id >> OFFSET_BITS
}

fn split_slot(slot: i64) -> (i64, Partition) {
    let partition = slot & ((1 << PARTITION_BITS) - 1);
    (
        slot >> PARTITION_BITS,
        Partition::try_from(partition).expect("12 bits fit"),
    )
}

/// The connection that writes. The directory's lock is given back after the connection is closed.
#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    _lock: DirectoryLock,
}

/// Held for as long as the log is open. Closing the file would release it too, but not while a
/// process that is just being started by this one still has a copy of the descriptor.
#[derive(Debug)]
struct DirectoryLock(File);

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // If it cannot be unlocked, closing the file is next.
        self.0.unlock().ok();
    }
}

/// What a log remembers.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) topics: Vec<std::sync::Arc<Topic>>,
    pub(super) commits: Vec<KeptCommit>,
}

/// A commit as it is kept.
#[derive(Debug)]
pub(super) struct KeptCommit {
    pub(super) group: String,
    pub(super) topic_id: i64,
    pub(super) partition: Partition,
    pub(super) committed: Committed,
}

impl Database {
    /// Opens the file in a directory, for this process alone.
    pub(super) fn open(dir: &Path) -> Result<Self, LogError> {
        let failed = |error: &dyn std::error::Error| {
            LogError::Permanent(format!(
                "the log in {} cannot be opened: {error}",
                dir.display()
            ))
        };
        std::fs::create_dir_all(dir).map_err(|error| failed(&error))?;
        let lock = File::create(dir.join("lock")).map_err(|error| failed(&error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                LogError::Permanent(format!("{} is in use by another process", dir.display()))
            }
            TryLockError::Error(error) => failed(&error),
        })?;
        let connection = connect(dir).map_err(|error| failed(&error))?;
        let format: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(|error| failed(&error))?;
        if format != FORMAT {
            return Err(LogError::Permanent(format!(
                "{} has format {format}, and this version reads format {FORMAT}",
                dir.display()
            )));
        }
        // The names of new files are durable with their directory only.
        sync_directory(dir).map_err(|error| failed(&error))?;
        Ok(Self {
            connection,
            _lock: DirectoryLock(lock),
        })
    }

    /// Everything that is kept in memory while the log is open.
    pub(super) fn kept(&mut self) -> Result<Kept, StoreError> {
        let mut topics = self.topics()?;
        for (slot, head) in self.heads()? {
            let (topic_id, partition) = split_slot(slot);
            if let Some(topic) = topics.iter_mut().find(|topic| topic.id == topic_id) {
                topic.set_end(partition, head.next);
                topic.set_start(partition, head.first);
            }
        }
        let topics = topics.into_iter().map(std::sync::Arc::new).collect();
        Ok(Kept {
            topics,
            commits: self.commits()?,
        })
    }

    fn topics(&self) -> Result<Vec<Topic>, StoreError> {
        let sql = "SELECT id, name, partitions, retention_ms, message_bytes_max, settings FROM topic ORDER BY id";
        let mut statement = self.connection.prepare(sql)?;
        let topics = statement.query_map([], |row| {
            let retention_ms: Option<i64> = row.get(3)?;
            let spec = TopicSpec {
                name: row.get(1)?,
                partitions: row.get(2)?,
                retention: retention_ms.map(|ms| Duration::from_millis(ms.unsigned_abs())),
                message_bytes_max: row.get(4)?,
                settings: settings_of(&row.get::<_, String>(5)?),
            };
            Ok(Topic::new(row.get(0)?, spec))
        })?;
        topics.collect()
    }

    fn commits(&self) -> Result<Vec<KeptCommit>, StoreError> {
        let sql = "SELECT member_group, slot, next_offset, metadata FROM committed";
        let mut statement = self.connection.prepare(sql)?;
        let commits = statement.query_map([], |row| {
            let (topic_id, partition) = split_slot(row.get(1)?);
            let committed = Committed {
                offset: row.get(2)?,
                metadata: row.get(3)?,
            };
            Ok(KeptCommit {
                group: row.get(0)?,
                topic_id,
                partition,
                committed,
            })
        })?;
        commits.collect()
    }
}

fn connect(dir: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(dir.join("log.sqlite"))?;
    connection.busy_timeout(Duration::from_secs(10))?;
    // Before the first table; larger pages suit records of about 1 KiB.
    connection.pragma_update(None, "page_size", 8192)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| {
        let mode: String = row.get(0)?;
        assert_eq!(mode, "wal", "SQLite was built without WAL");
        Ok(())
    })?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // On macOS an fsync reaches the disk only so.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 4096)?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        connection.execute_batch(&format!(
            "BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"
        ))?;
    }
    Ok(connection)
}

/// Another connection to the same file, which only reads.
pub(super) fn connect_to_read(dir: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(dir.join("log.sqlite"), flags)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "cache_size", -4096)?;
    Ok(connection)
}

#[cfg(unix)]
fn sync_directory(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_dir: &Path) -> std::io::Result<()> {
    Ok(())
}

impl Store for Database {
    fn heads(&mut self) -> Result<Heads, StoreError> {
        let sql = "SELECT slot, first_offset, next_offset, last_timestamp_ms FROM head";
        let mut statement = self.connection.prepare_cached(sql)?;
        let heads = statement.query_map([], |row| {
            let head = Head {
                first: row.get(1)?,
                next: row.get(2)?,
                last_timestamp_ms: row.get(3)?,
            };
            Ok((row.get(0)?, head))
        })?;
        heads.collect::<Result<BTreeMap<_, _>, _>>()
    }

    fn begin(&mut self) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute([])
            .map(drop)
    }

    fn append(
        &mut self,
        slot: i64,
        offset: Offset,
        timestamp_ms: i64,
        record: &NewRecord,
    ) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO record (id, timestamp_ms, key, value, headers) VALUES (?, ?, ?, ?, ?)";
        self.connection
            .prepare_cached(sql)?
            .execute(params![
                row_id(slot, offset),
                timestamp_ms,
                &record.key[..],
                record.value.as_deref(),
                encode_headers(&record.headers),
            ])
            .map(drop)
    }

    fn save_head(&mut self, slot: i64, head: Head) -> Result<(), StoreError> {
        let sql = "INSERT INTO head (slot, first_offset, next_offset, last_timestamp_ms) VALUES (?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET first_offset = excluded.first_offset, next_offset = excluded.next_offset,
            last_timestamp_ms = excluded.last_timestamp_ms";
        let params = params![slot, head.first, head.next, head.last_timestamp_ms];
        self.connection
            .prepare_cached(sql)?
            .execute(params)
            .map(drop)
    }

    fn save_commits(
        &mut self,
        group: &str,
        topic_id: i64,
        commits: &[Commit],
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO committed (member_group, slot, next_offset, metadata) VALUES (?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset, metadata = excluded.metadata";
        let mut statement = self.connection.prepare_cached(sql)?;
        for Commit {
            partition,
            committed,
            ..
        } in commits
        {
            let slot = slot(topic_id, *partition);
            statement.execute(params![group, slot, committed.offset, committed.metadata])?;
        }
        Ok(())
    }

    fn create_topic(&mut self, spec: &TopicSpec) -> Result<i64, StoreError> {
        let find = "SELECT id FROM topic WHERE name = ?";
        let existing = self
            .connection
            .query_row(find, [&spec.name], |row| row.get(0))
            .optional()?;
        if let Some(id) = existing {
            return Ok(id);
        }
        let sql = "INSERT INTO topic (name, partitions, retention_ms, message_bytes_max, settings)
            VALUES (?, ?, ?, ?, ?)";
        let retention_ms = spec
            .retention
            .map(|retention| i64::try_from(retention.as_millis()).unwrap_or(i64::MAX));
        let settings: Vec<String> = spec
            .settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let params = params![
            spec.name,
            spec.partitions,
            retention_ms,
            spec.message_bytes_max,
            settings.join("\n")
        ];
        self.connection.execute(sql, params)?;
        Ok(self.connection.last_insert_rowid())
    }

    fn delete_before(
        &mut self,
        slot: i64,
        before: Offset,
        records_max: u32,
    ) -> Result<usize, StoreError> {
        let sql = "DELETE FROM record WHERE id IN
            (SELECT id FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT ?)";
        let params = params![row_id(slot, 0), row_id(slot, before), records_max];
        self.connection.prepare_cached(sql)?.execute(params)
    }

    fn delete(&mut self, row_ids: &[i64]) -> Result<usize, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("DELETE FROM record WHERE id = ?")?;
        let mut deleted = 0;
        for id in row_ids {
            deleted += statement.execute([id])?;
        }
        Ok(deleted)
    }

    fn write_probe(&mut self) -> Result<(), StoreError> {
        // A process that was killed may have left it.
        self.remove_probe()?;
        self.connection
            .execute_batch("CREATE TABLE probe (content BLOB NOT NULL)")?;
        let insert = "INSERT INTO probe (content) VALUES (zeroblob(?))";
        self.connection.execute(insert, [PROBE_BYTES]).map(drop)
    }

    fn remove_probe(&mut self) -> Result<(), StoreError> {
        self.connection.execute_batch("DROP TABLE IF EXISTS probe")
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("COMMIT")?
            .execute([])
            .map(drop)
    }

    fn rollback(&mut self) -> Result<(), StoreError> {
        if self.connection.is_autocommit() {
            return Ok(());
        }
        self.connection
            .prepare_cached("ROLLBACK")?
            .execute([])
            .map(drop)
    }
}

/// Why this log cannot have the topic.
pub(super) fn check_spec(spec: &TopicSpec, topics: usize) -> Result<(), LogError> {
    if spec.partitions > 1 << PARTITION_BITS {
        return Err(LogError::Permanent(format!(
            "topic {} has too many partitions",
            spec.name
        )));
    }
    if i64::try_from(topics).is_ok_and(|topics| topics >= TOPIC_ID_MAX) {
        return Err(LogError::Permanent("there are too many topics".into()));
    }
    Ok(())
}

fn settings_of(lines: &str) -> Vec<(String, String)> {
    let settings = lines.lines().filter_map(|line| line.split_once('='));
    settings
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::Database;

    #[test]
    fn syncs_every_commit() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap();
        let pragma = |name: &str| -> String {
            database
                .connection
                .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
                .map(|value| format!("{value:?}"))
                .unwrap()
        };
        assert_eq!(pragma("synchronous"), "Integer(2)", "FULL");
        assert_eq!(pragma("journal_mode"), "Text(\"wal\")");
    }

    #[test]
    fn keeps_a_second_process_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = Database::open(dir.path()).unwrap();
        let error = Database::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("is in use by another process"), "{error}");
        drop(first);
        Database::open(dir.path()).expect("it is free again");
    }
}
