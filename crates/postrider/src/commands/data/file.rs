//! The file: lines of JSON. The first says what it is, the last that it is whole, each between them
//! is a record.
//!
//! ```text
//! {"format":"postrider-data","version":1,"id":"6f0c…","written_by":"0.1.0","registry_only":false}
//! {"topic":"registry","key":"dGVuYW50…","value":"CAES…"}
//! {"topic":"retry","key":"ZXBf…","value":"CrMB…","headers":[["traceparent","MDAt…"]]}
//! {"end":true,"records":2}
//! ```
//!
//! Topics are named without prefix, in the order registry, deliveries, retry, events, dead-letters.
//! Keys, values and headers are base64 of what was in the log; a record without a value is a
//! tombstone. Another version is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider_log::{NewRecord, Record};
use serde::{Deserialize, Serialize};

const FORMAT: &str = "postrider-data";
const VERSION: u32 = 1;
/// Far above what the largest record of any topic takes in base64.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// The first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Header {
    format: String,
    version: u32,
    /// Names this export.
    #[serde(default)]
    pub(super) id: String,
    #[serde(default)]
    written_by: String,
    #[serde(default)]
    pub(super) registry_only: bool,
}

impl Header {
    pub(super) fn new(id: String, registry_only: bool) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            id,
            written_by: env!("CARGO_PKG_VERSION").to_owned(),
            registry_only,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    topic: String,
    key: String,
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct End {
    end: bool,
    records: u64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Any {
    Record(Line),
    End(End),
}

/// How many records of each topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts(BTreeMap<String, u64>);

impl Counts {
    pub(super) fn add(&mut self, topic: &str) {
        *self.0.entry(topic.to_owned()).or_default() += 1;
    }

    fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} records", self.total())?;
        self.0
            .iter()
            .try_for_each(|(topic, count)| write!(formatter, "\n{count:>10} {topic}"))
    }
}

/// Writes a file, for its owner alone.
#[derive(Debug)]
pub(super) struct Writer {
    file: BufWriter<File>,
    counts: Counts,
}

impl Writer {
    pub(super) fn create(path: &Path, header: &Header) -> anyhow::Result<Self> {
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let file = opened.with_context(|| format!("create {}", path.display()))?;
        let mut writer = Self {
            file: BufWriter::new(file),
            counts: Counts::default(),
        };
        writer.line(header)?;
        Ok(writer)
    }

    pub(super) fn write(&mut self, topic: &str, record: &Record) -> anyhow::Result<()> {
        let headers = record.headers.iter();
        self.line(&Line {
            topic: topic.to_owned(),
            key: STANDARD.encode(&record.key),
            value: record.value.as_ref().map(|value| STANDARD.encode(value)),
            headers: headers
                .map(|(name, value)| (name.clone(), STANDARD.encode(value)))
                .collect(),
        })?;
        self.counts.add(topic);
        Ok(())
    }

    /// Says that the file is whole, and waits until the disk has it.
    pub(super) fn finish(mut self) -> anyhow::Result<Counts> {
        let records = self.counts.total();
        self.line(&End { end: true, records })?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        Ok(self.counts)
    }

    fn line(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.file, value).context("write the file")?;
        self.file.write_all(b"\n").context("write the file")
    }
}

/// Reads a file line by line.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) header: Header,
    file: BufReader<File>,
    records: u64,
}

impl Reader {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut file = BufReader::new(file);
        let first = line(&mut file)?.unwrap_or_default();
        let header: Header = serde_json::from_str(&first)
            .ok()
            .filter(|header: &Header| header.format == FORMAT)
            .with_context(|| format!("{} was not written by export-data", path.display()))?;
        ensure!(
            header.version == VERSION,
            "{} has version {} of the format, and this release reads version {VERSION}: import it with a release that \
             does (it was written by {})",
            path.display(),
            header.version,
            header.written_by
        );
        ensure!(!header.id.is_empty(), "{} has no id", path.display());
        Ok(Self {
            header,
            file,
            records: 0,
        })
    }

    /// The next record and its topic; `None` at the end of a whole file.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<(String, NewRecord)>> {
        let number = self.records + 2;
        let Some(text) = line(&mut self.file)? else {
            bail!("the file ends after line {}: it is not whole", number - 1);
        };
        let read = serde_json::from_str(&text).with_context(|| format!("read line {number}"))?;
        match read {
            Any::Record(line) => {
                self.records += 1;
                let topic = line.topic.clone();
                let record = record(line).with_context(|| format!("read line {number}"))?;
                Ok(Some((topic, record)))
            }
            Any::End(End { records, .. }) => {
                let read = self.records;
                ensure!(
                    records == read,
                    "the file had {records} records and now has {read}"
                );
                Ok(None)
            }
        }
    }
}

fn line(file: &mut BufReader<File>) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    let read = file.take(LINE_BYTES_MAX).read_line(&mut text);
    let bytes = read.context("read the file")?;
    // One that was cut off within has no end of its own.
    Ok((bytes > 0 && text.ends_with('\n')).then_some(text))
}

fn record(line: Line) -> anyhow::Result<NewRecord> {
    let headers = line.headers.into_iter().map(|(name, value)| {
        let value = STANDARD.decode(value)?;
        Ok::<_, base64::DecodeError>((name, value.into()))
    });
    Ok(NewRecord {
        key: STANDARD.decode(line.key)?.into(),
        value: line
            .value
            .map(|value| STANDARD.decode(value))
            .transpose()?
            .map(Into::into),
        headers: headers.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(directory: &Path, records: &[Record]) -> std::path::PathBuf {
        let path = directory.join("data");
        let mut writer = Writer::create(&path, &Header::new("one".to_owned(), false)).unwrap();
        for record in records {
            writer.write("events", record).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    fn example(value: Option<&'static [u8]>) -> Record {
        Record {
            partition: 1,
            offset: 2,
            timestamp_ms: 3,
            key: (&b"\x00key\xff"[..]).into(),
            value: value.map(Into::into),
            headers: vec![("traceparent".to_owned(), (&b"\xfe"[..]).into())],
        }
    }

    fn read(path: &Path) -> anyhow::Result<Vec<NewRecord>> {
        let mut reader = Reader::open(path)?;
        let mut records = Vec::new();
        while let Some((topic, record)) = reader.next()? {
            assert_eq!(topic, "events");
            records.push(record);
        }
        Ok(records)
    }

    #[test]
    fn reads_what_it_wrote_and_no_tombstone_for_an_empty_value() {
        let directory = tempfile::tempdir().unwrap();
        let records = [None, Some(&b""[..]), Some(&b"\x00\xff"[..])].map(example);
        let path = written(directory.path(), &records);
        let read = read(&path).unwrap();
        assert_eq!(read.len(), records.len());
        for (read, record) in read.iter().zip(&records) {
            assert_eq!((&read.key, &read.value), (&record.key, &record.value));
            assert_eq!(read.headers, record.headers);
        }
    }

    #[test]
    fn refuses_what_is_cut_off_anywhere_or_of_another_version() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path(), &[example(None), example(Some(b"v"))]);
        let whole = std::fs::read_to_string(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(read(&path).is_err(), "{}", &whole[..cut]);
        }
        let without_one: Vec<&str> = whole
            .lines()
            .enumerate()
            .filter(|(at, _)| *at != 1)
            .map(|(_, line)| line)
            .collect();
        std::fs::write(&path, without_one.join("\n") + "\n").unwrap();
        assert!(read(&path).is_err());
        std::fs::write(&path, whole.replace("\"version\":1", "\"version\":2")).unwrap();
        let refused = read(&path).unwrap_err().to_string();
        assert!(refused.contains("version 2"), "{refused}");
        std::fs::write(&path, "{}\n").unwrap();
        let refused = read(&path).unwrap_err().to_string();
        assert!(refused.contains("not written by export-data"), "{refused}");
    }

    #[test]
    fn never_overwrites() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path(), &[]);
        assert!(Writer::create(&path, &Header::new("two".to_owned(), false)).is_err());
    }
}
