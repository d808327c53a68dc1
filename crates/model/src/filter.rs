//! Types of events, and which of them an endpoint wants.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest type or pattern in bytes.
pub const EVENT_TYPE_BYTES_MAX: usize = 256;
/// Most patterns of one filter.
pub const PATTERNS_MAX: usize = 100;
/// Types below this are published by Postrider itself.
const RESERVED_PREFIX: &str = "postrider.";
/// Ends a pattern that matches whatever is below its prefix.
const BELOW_SUFFIX: &str = ".*";

/// Why a text is no type of event, or a list no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEventType {
    /// It is longer than [`EVENT_TYPE_BYTES_MAX`].
    #[error("must be at most {EVENT_TYPE_BYTES_MAX} bytes, not {0}")]
    TooLong(usize),
    /// It is empty, begins or ends with a full stop, or has two in a row.
    #[error("must be names joined by single full stops")]
    EmptyIdentifier,
    /// It has another character.
    #[error("may have letters, digits, `_`, `-`, `/` and `:` between full stops only, not {0:?}")]
    Character(char),
    /// A pattern has `*` elsewhere than in `.*` at its end.
    #[error(
        "may have letters, digits, `_`, `-`, `/` and `:` between full stops only, and `.*` at the end, as in `invoice.*`, \
         for all types below; leave the list out for all types"
    )]
    Asterisk,
    /// There are more patterns than [`PATTERNS_MAX`].
    #[error("may have at most {PATTERNS_MAX} patterns, not {0}")]
    TooManyPatterns(usize),
}

/// The type of an event: names of `[A-Za-z0-9_/:-]` joined by full stops, as those of CloudEvents
/// and of other systems are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct EventTypeName(Arc<str>);

impl EventTypeName {
    /// Parses the type.
    ///
    /// # Errors
    /// When it is too long, has an empty identifier or another character.
    pub fn try_new(text: &str) -> Result<Self, InvalidEventType> {
        check(text).map(|()| Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether only Postrider itself may publish it.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }
}

impl fmt::Debug for EventTypeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for EventTypeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for EventTypeName {
    type Err = InvalidEventType;

    fn from_str(text: &str) -> Result<Self, InvalidEventType> {
        Self::try_new(text)
    }
}

/// Which events an endpoint wants: no pattern is all of them but the reserved; `invoice.paid` is
/// that type; `invoice.*` is every type below `invoice`, at any depth, but not `invoice` itself.
/// What Postrider itself publishes comes only to those that name it: who wants everything of a
/// producer has not asked for the news of the operation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventTypeFilter {
    patterns: Vec<String>,
}

impl EventTypeFilter {
    /// Checks the patterns.
    ///
    /// # Errors
    /// When there are too many, or one is neither a type nor a type followed by `.*`.
    pub fn try_new(patterns: Vec<String>) -> Result<Self, InvalidEventType> {
        if patterns.len() > PATTERNS_MAX {
            return Err(InvalidEventType::TooManyPatterns(patterns.len()));
        }
        for pattern in &patterns {
            let checked = check(pattern.strip_suffix(BELOW_SUFFIX).unwrap_or(pattern));
            checked.map_err(|error| match error {
                InvalidEventType::Character('*') => InvalidEventType::Asterisk,
                other => other,
            })?;
        }
        Ok(Self { patterns })
    }

    /// Whether an event of this type is wanted.
    pub fn matches(&self, event_type: &EventTypeName) -> bool {
        if self.patterns.is_empty() {
            return !event_type.is_reserved();
        }
        self.patterns
            .iter()
            .any(|pattern| pattern_matches(pattern, event_type.as_str()))
    }

    /// The patterns as given.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }
}

fn pattern_matches(pattern: &str, event_type: &str) -> bool {
    match pattern.strip_suffix(BELOW_SUFFIX) {
        Some(prefix) => event_type
            .strip_prefix(prefix)
            .is_some_and(|below| below.starts_with('.')),
        None => pattern == event_type,
    }
}

fn check(text: &str) -> Result<(), InvalidEventType> {
    if text.len() > EVENT_TYPE_BYTES_MAX {
        return Err(InvalidEventType::TooLong(text.len()));
    }
    for identifier in text.split('.') {
        if identifier.is_empty() {
            return Err(InvalidEventType::EmptyIdentifier);
        }
        if let Some(other) = identifier
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || "_-/:".contains(*c)))
        {
            return Err(InvalidEventType::Character(other));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
