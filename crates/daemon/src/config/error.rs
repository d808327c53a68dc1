//! Why a configuration was refused.

use std::path::PathBuf;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML. The line itself is not shown, for it may hold a secret.
    #[error("{origin}: line {line}: {reason}")]
    Syntax {
        /// The file.
        origin: String,
        /// Line, from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// No struct has this key.
    #[error("unknown key `{key}` in {origin}; {}", hint(nearest.as_deref(), known))]
    Unknown {
        /// Full path of the key.
        key: String,
        /// The file or variable it came from.
        origin: String,
        /// The known key that is spelt most alike, if one is close.
        nearest: Option<String>,
        /// All keys known in its section.
        known: Vec<String>,
    },
    /// A variable looks like configuration and lacks underscores.
    #[error(
        "variable {name} is not understood: two underscores stand between a section and its key, as in {example}"
    )]
    Variable {
        /// Its name.
        name: String,
        /// How it may have been meant.
        example: String,
    },
    /// A variable has the prefix and is none that is known.
    #[error(
        "variable {name} is not understood; {}known besides those of the configuration: {}",
        nearest.as_ref().map(|nearest| format!("did you mean `{nearest}`? ")).unwrap_or_default(),
        others.join(", ")
    )]
    UnknownVariable {
        /// Its name.
        name: String,
        /// The known variable that is spelt most alike, if one is close.
        nearest: Option<String>,
        /// The variables that are not of the configuration.
        others: Vec<String>,
    },
    /// The value does not fit.
    #[error("`{key}` in {origin}: {reason}")]
    Invalid {
        /// Full path of the key.
        key: String,
        /// The file or variable it came from.
        origin: String,
        /// Why.
        reason: String,
    },
}

fn hint(nearest: Option<&str>, known: &[String]) -> String {
    let listed = known.join(", ");
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`? known here: {listed}"),
        None if known.is_empty() => "no key is known here".to_owned(),
        None => format!("known here: {listed}"),
    }
}

/// The candidate spelt most like the key, if at most half of it differs.
pub(super) fn nearest(key: &str, candidates: &[&str]) -> Option<String> {
    let (distance, candidate) = candidates
        .iter()
        .map(|candidate| (strsim::levenshtein(key, candidate), candidate))
        .min()?;
    let close = distance <= key.len().div_ceil(2);
    close.then(|| (*candidate).to_owned())
}
