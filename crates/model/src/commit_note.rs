//! What a group notes in its commits beside the offset, as their metadata.
//!
//! An offset alone does not say which log it was committed in: a topic that was made again, or lost
//! its end and grew past it, has other records at the same offsets. So a commit names records that
//! were read, each with the time that the log gave it: whoever goes on there looks first whether
//! the log still has them.

use std::fmt::{self, Display};
use std::str::FromStr;

/// Versions that are understood; the last is written.
const VERSIONS: [&str; 2] = ["1", "2"];
/// Says that what was known of the partition's records is void.
const VOID: &str = "void";
/// Says how often the topic was made.
const AGAIN: &str = "again";

/// A record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its offset.
    pub offset: i64,
    /// When the log got it, Unix milliseconds.
    pub appended_at_ms: i64,
}

impl Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.offset, self.appended_at_ms)
    }
}

impl FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (offset, appended_at_ms) = text.split_once('@').ok_or(())?;
        let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= 0);
        Ok(Self {
            offset: number(offset).ok_or(())?,
            appended_at_ms: number(appended_at_ms).ok_or(())?,
        })
    }
}

/// What a commit of one of the groups of fan-out, deliver and scheduler notes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitNote {
    /// The last record below the committed offset, if one is known.
    pub last: Option<Mark>,
    /// A record that was read before `last` and found in the log again since. `None`: that is
    /// `last` itself.
    pub verified: Option<Mark>,
    /// From where in `attempts` the settled set is rebuilt.
    pub rebuild_from: Option<i64>,
    /// Under which id the states of the partition's lanes count.
    pub state_id: Option<i64>,
    /// Offset in `endpoint-state` of the last state that was acknowledged.
    pub state_written: Option<i64>,
    /// The lowest unsettled offset of a lane that is behind.
    pub behind_from: Option<i64>,
    /// The offset was decided from outside, in a log that is another than the one before: offsets
    /// that were noted elsewhere, such as cursors, name other records or none.
    pub past_is_void: bool,
    /// The topic was made again, and what was in it is lost: nothing goes on until an operator has
    /// decided.
    pub made_again: bool,
    /// Where the process that committed answers questions; empty if it does not.
    pub owner: String,
}

impl CommitNote {
    /// The records that it names, the earlier one first.
    pub fn marks(&self) -> impl Iterator<Item = Mark> {
        self.verified.into_iter().chain(self.last)
    }

    /// Offset of the last record in `endpoint-state` that was there when it was written; if it is
    /// gone, records were lost.
    #[must_use]
    pub fn last_state(&self) -> Option<i64> {
        self.state_written.max(self.state_id)
    }

    /// The note of an offset that was decided from outside in another log.
    #[must_use]
    pub fn void_past() -> Self {
        Self {
            past_is_void: true,
            ..Self::default()
        }
    }

    /// The note of the beginning of a topic that was made again.
    #[must_use]
    pub fn of_made_again() -> Self {
        Self {
            made_again: true,
            ..Self::default()
        }
    }

    /// As metadata of the commit, at most 300 bytes and the owner's address.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = VERSIONS[1].to_owned();
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                text.push_str(&format!(" {name}={value}"));
            }
        };
        add("last", self.last.map(|mark| mark.to_string()));
        add("verified", self.verified.map(|mark| mark.to_string()));
        add("attempts", self.rebuild_from.map(|from| from.to_string()));
        add("state", self.state_id.map(|id| id.to_string()));
        add("written", self.state_written.map(|at| at.to_string()));
        add("behind", self.behind_from.map(|from| from.to_string()));
        add("past", self.past_is_void.then(|| VOID.to_owned()));
        add("made", self.made_again.then(|| AGAIN.to_owned()));
        let owner = Some(&self.owner).filter(|owner| !owner.is_empty());
        add("owner", owner.cloned());
        text
    }

    /// Reads it back. Metadata of other software, of another version or cut short says nothing.
    #[must_use]
    pub fn decode(metadata: &str) -> Self {
        let mut words = metadata.split(' ');
        if !words
            .next()
            .is_some_and(|version| VERSIONS.contains(&version))
        {
            return Self::default();
        }
        let mut note = Self::default();
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let number = || value.parse().ok().filter(|number| *number >= 0);
            match name {
                "last" => note.last = value.parse().ok(),
                "verified" => note.verified = value.parse().ok(),
                "attempts" => note.rebuild_from = number(),
                "state" => note.state_id = number(),
                "written" => note.state_written = number(),
                "behind" => note.behind_from = number(),
                "past" => note.past_is_void = value == VOID,
                "made" => note.made_again = value == AGAIN,
                "owner" => value.clone_into(&mut note.owner),
                _ => {}
            }
        }
        note
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_every_release_are_read() {
        let mark = |offset| Mark {
            offset,
            appended_at_ms: 1_700_000_000_000 + offset,
        };
        let first = CommitNote {
            rebuild_from: Some(42),
            ..CommitNote::default()
        };
        let second = CommitNote {
            rebuild_from: Some(42),
            state_id: Some(7),
            owner: "10.0.0.5:9464".to_owned(),
            ..CommitNote::default()
        };
        let present = CommitNote {
            last: Some(mark(57)),
            verified: Some(mark(50)),
            state_written: Some(9),
            behind_from: Some(3),
            ..second.clone()
        };
        for (written, note) in [
            ("1 attempts=42", first),
            ("2 attempts=42 state=7 owner=10.0.0.5:9464", second),
            (
                "2 last=57@1700000000057 verified=50@1700000000050 attempts=42 state=7 written=9 behind=3 owner=10.0.0.5:9464",
                present.clone(),
            ),
            ("2 past=void", CommitNote::void_past()),
            ("2", CommitNote::default()),
        ] {
            assert_eq!(CommitNote::decode(written), note, "{written}");
            if !written.starts_with('1') {
                assert_eq!(note.encode(), written);
            }
        }
        let later = format!("{} later=x", present.encode());
        assert_eq!(CommitNote::decode(&later), present);
    }

    #[test]
    fn metadata_of_others_says_nothing() {
        for foreign in [
            "",
            "1",
            "2 attempts=",
            "2 attempts=x",
            "3 attempts=4",
            "2 attempts=-4",
            "2 attempt",
            "2 last=5",
            "2 last=5@",
            "2 last=-5@7",
            "2 past=",
            "NAME",
        ] {
            assert_eq!(
                CommitNote::decode(foreign),
                CommitNote::default(),
                "{foreign:?}"
            );
        }
    }

    #[test]
    fn the_longest_note_fits_into_a_commit() {
        let mark = Some(Mark {
            offset: i64::MAX,
            appended_at_ms: i64::MAX,
        });
        let longest = CommitNote {
            last: mark,
            verified: mark,
            rebuild_from: Some(i64::MAX),
            state_id: Some(i64::MAX),
            state_written: Some(i64::MAX),
            behind_from: Some(i64::MAX),
            past_is_void: true,
            made_again: true,
            owner: String::new(),
        };
        assert!(longest.encode().len() <= 300);
    }
}
