//! What a variable may have been meant for that begins with the prefix and is not understood.

use std::iter;

use serde::de::DeserializeOwned;

use super::error::nearest;
use super::{ConfigError, load};

/// So many letters are wrong, or two stand in the wrong order.
const SLIP: usize = 2;

/// The error for such a variable: it names the key that is meant if only underscores are missing,
/// and otherwise the known variable that is spelt most alike.
pub(super) fn refused<T: DeserializeOwned>(
    name: &str,
    prefix: &str,
    dotted: &[&str],
    others: &[&str],
) -> ConfigError {
    let opening = format!("{prefix}_");
    let rest = name.strip_prefix(&opening).unwrap_or(name);
    let mut alike: Vec<String> = Vec::new();
    for spelling in spellings(rest) {
        match look_up::<T>(&spelling, prefix, dotted) {
            Found::Key => {
                return ConfigError::Variable {
                    name: name.to_owned(),
                    example: format!("{opening}{spelling}"),
                };
            }
            Found::Alike(spelling) => alike.push(spelling),
            Found::Nothing => {}
        }
    }
    // These are all told anyway, so only a slip of the fingers names one of them.
    let others_alike = others
        .iter()
        .filter_map(|name| name.strip_prefix(&opening))
        .filter(|other| strsim::levenshtein(other, rest) <= SLIP);
    let candidates: Vec<&str> = alike
        .iter()
        .map(String::as_str)
        .chain(others_alike)
        .collect();
    ConfigError::UnknownVariable {
        name: name.to_owned(),
        nearest: nearest(rest, &candidates).map(|found| format!("{opening}{found}")),
        others: others.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// The name with one or two of its underscores doubled: sections are at most that deep.
fn spellings(rest: &str) -> Vec<String> {
    let splits = |text: &str| -> Vec<(String, String)> {
        text.match_indices('_')
            .map(|(at, _)| (text[..at].to_owned(), text[at + 1..].to_owned()))
            .collect()
    };
    let mut once = Vec::new();
    let mut twice = Vec::new();
    for (section, key) in splits(rest) {
        for (inner, key) in splits(&key) {
            twice.push(format!("{section}__{inner}__{key}"));
        }
        once.push(format!("{section}__{key}"));
    }
    once.append(&mut twice);
    once
}

/// What the configuration has under a name.
enum Found {
    Key,
    /// In the same section there is a key that is spelt alike.
    Alike(String),
    Nothing,
}

fn look_up<T: DeserializeOwned>(spelling: &str, prefix: &str, dotted: &[&str]) -> Found {
    let levels: Vec<&str> = spelling.split("__").collect();
    if levels.iter().any(|level| level.is_empty()) {
        return Found::Nothing;
    }
    let path = levels.join(".").to_ascii_lowercase();
    let variable = (format!("{prefix}_{spelling}"), String::new());
    match load::<T>(None, iter::once(variable), prefix, dotted) {
        Ok(_) => Found::Key,
        // The key is there, and takes no empty text.
        Err(ConfigError::Invalid { key, .. }) if key == path => Found::Key,
        Err(ConfigError::Unknown {
            key,
            nearest: Some(nearest),
            ..
        }) if key == path => {
            let sections = levels[..levels.len() - 1].join("__");
            Found::Alike(format!("{sections}__{}", nearest.to_ascii_uppercase()))
        }
        Err(_) => Found::Nothing,
    }
}
