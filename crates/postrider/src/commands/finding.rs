//! What a command that looks for trouble has found.

use std::process::ExitCode;

use crate::output;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Ok,
    /// It was not looked at.
    Skip,
    Warn,
    Error,
}

impl Level {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skip => "skip",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What kind of thing, one word.
    pub(crate) check: &'static str,
    /// Which one; empty where there is only one.
    pub(crate) subject: String,
    pub(crate) level: Level,
    /// What was found, and what to do about it.
    pub(crate) detail: String,
}

impl Finding {
    pub(crate) fn new(
        check: &'static str,
        subject: &str,
        level: Level,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            check,
            subject: subject.to_owned(),
            level,
            detail: detail.into(),
        }
    }
}

/// Says how many there are of each kind; an error is a failure.
pub(crate) fn verdict(findings: &[Finding]) -> ExitCode {
    let count = |wanted: Level| {
        findings
            .iter()
            .filter(|finding| finding.level == wanted)
            .count()
    };
    let (errors, warnings) = (count(Level::Error), count(Level::Warn));
    output::talk(format!("{errors} errors, {warnings} warnings"));
    if errors > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
