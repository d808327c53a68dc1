//! What commands print: data on standard output, talk on standard error.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::bail;
use postrider_daemon::lines::Lines;
use serde_json::Value;

/// What a role may have said that nobody has read; further lines are dropped.
const UNREAD_BYTES_MAX: usize = 1 << 20;
/// How long a role that ends waits for its last lines to be read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Standard output and standard error of a role.
static OF_ROLE: OnceLock<[Lines; 2]> = OnceLock::new();

/// From now on nobody waits for a line to be read: a role goes on, other than a command, whoever
/// reads what it says.
pub(crate) fn never_wait() -> io::Result<()> {
    let data = Lines::start("stdout", io::stdout(), UNREAD_BYTES_MAX, |_| {})?;
    let talk = Lines::start("stderr", io::stderr(), UNREAD_BYTES_MAX, |_| {})?;
    // A process has one role.
    OF_ROLE.get_or_init(|| [data, talk]);
    Ok(())
}

/// Waits, at the end of a role, for its last lines to be read, for a second each at most.
pub(crate) fn flush() {
    for lines in OF_ROLE.get().into_iter().flatten() {
        lines.flush(FLUSH_TIMEOUT);
    }
}

/// A line of data.
pub(crate) fn data(line: impl AsRef<str>) {
    let line = format!("{}\n", line.as_ref());
    match OF_ROLE.get() {
        Some([data, _]) => data.push(line.as_bytes()),
        // A reader that has seen enough, such as `head`, is no error.
        None => drop(io::stdout().lock().write_all(line.as_bytes())),
    }
}

/// A line of talk.
pub(crate) fn talk(line: impl AsRef<str>) {
    let line = format!("{}\n", line.as_ref());
    match OF_ROLE.get() {
        Some([_, talk]) => talk.push(line.as_bytes()),
        None => drop(io::stderr().lock().write_all(line.as_bytes())),
    }
}

/// JSON, for people's eyes and programs alike.
pub(crate) fn json(value: &Value) {
    data(serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string()));
}

/// Rows under a heading, in columns as wide as their longest cell. Nothing but the heading says
/// that there is none.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) {
    let widths: Vec<usize> = (0..heading.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([heading[column].len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    data(line(heading.to_vec()));
    for row in rows {
        data(line(row.iter().map(String::as_str).collect()));
    }
}

/// Names and values, one a line.
pub(crate) fn facts<N: AsRef<str>>(facts: &[(N, String)]) {
    let width = facts.iter().map(|(name, _)| name.as_ref().len()).max();
    let width = width.unwrap_or(0);
    for (name, value) in facts {
        let name = name.as_ref();
        data(format!("{name:width$}  {value}").trim_end());
    }
}

/// Asks on the terminal. Without one there is nobody to ask, so it fails.
pub(crate) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("{question} Nobody is at the terminal to answer; say --yes");
    }
    let mut terminal = io::stderr().lock();
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("y") || answer.trim().eq_ignore_ascii_case("yes") {
        return Ok(());
    }
    bail!("nothing was done")
}

/// A field of an answer as a cell: texts without quotes, nothing as `-`.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        // What a receiver or a customer wrote must not steer the terminal.
        Value::String(text) => text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect(),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Several fields of an answer as a row.
pub(crate) fn row(value: &Value, fields: &[&str]) -> Vec<String> {
    fields.iter().map(|field| cell(&value[*field])).collect()
}

/// One page of a list: its columns, and how to go on.
pub(crate) fn list(answer: &Value, as_json: bool, fields: &[&str]) {
    if as_json {
        return json(answer);
    }
    let items = answer["data"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let heading: Vec<String> = fields
        .iter()
        .map(|field| field.to_uppercase().replace('_', " "))
        .collect();
    let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
    table(
        &heading,
        &items
            .iter()
            .map(|item| row(item, fields))
            .collect::<Vec<_>>(),
    );
    if answer["complete"] == Value::Bool(false) {
        talk("Not everything was read in the time a request has; there may be more.");
    }
    if let Some(cursor) = answer["next_cursor"].as_str() {
        talk(format!("There is more: --cursor {cursor}"));
    }
}

/// Fields of one thing, one a line; those that it does not have are left out.
pub(crate) fn one(answer: &Value, as_json: bool, fields: &[&str]) {
    if as_json {
        return json(answer);
    }
    let present = fields.iter().filter(|field| !answer[**field].is_null());
    facts(
        &present
            .map(|field| (*field, cell(&answer[*field])))
            .collect::<Vec<_>>(),
    );
}
