//! Configuration from a TOML file and the environment.
//!
//! The file comes first, the environment goes over it: `PREFIX_SECTION__KEY=value`, where a double
//! underscore separates levels and names are in lower case otherwise. A variable with the prefix
//! but without a double underscore is not configuration; [`check_variables`] refuses it. Defaults
//! are those of the type: give its structs `#[serde(default)]`.
//!
//! What the type asks for decides how the text of a variable is read: a string stays as it is (also
//! `0123`), a number or a bool is parsed, a list is a TOML array or separated by commas. A key that
//! no struct has is refused.
//!
//! A *dotted* section is an open map whose keys contain dots, such as the properties of librdkafka.
//! In its variables every single underscore stands for a dot (`PREFIX_KAFKA__BOOTSTRAP_SERVERS` is
//! `bootstrap.servers`), in the file a key may be written with or without quotes, and its values
//! may be numbers or bools: all become text.

mod error;
mod secret;
mod tree;
mod typed;
mod variable;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::ConfigError;
pub use secret::Secret;
pub use toml::{Table, Value};
use tree::Tree;

/// Loads the configuration. `dotted` names the dotted sections by their path, such as `kafka` or
/// `kafka.properties`.
///
/// # Errors
/// When the file cannot be read, or when a key or value does not fit the type; the error names the
/// key, where it came from, and the keys it may have been meant for. It never shows the value of a
/// [`Secret`].
pub fn load<T: DeserializeOwned>(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    prefix: &str,
    dotted: &[&str],
) -> Result<T, ConfigError> {
    load_over(Table::new(), file, environment, prefix, dotted)
}

/// The same, with other defaults than those of the type for some keys.
///
/// # Errors
/// As those of [`load`].
pub fn load_over<T: DeserializeOwned>(
    defaults: Table,
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    prefix: &str,
    dotted: &[&str],
) -> Result<T, ConfigError> {
    let mut tree = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
                path: path.to_path_buf(),
                source,
            })?;
            Tree::parse(&text, &path.display().to_string(), dotted)?
        }
        None => Tree::empty(),
    };
    // Sorted, so that the same environment gives the same error.
    let mut variables: Vec<_> = environment.collect();
    variables.sort();
    for (name, value) in variables {
        tree.overlay(prefix, &name, value, dotted)?;
    }
    tree.put_below(Tree::from_toml(
        Value::Table(defaults),
        &"the defaults".into(),
    ));
    typed::read(tree)
}

/// Looks for variables that begin with the prefix and are neither configuration nor among `others`:
/// a single underscore where there should be two, say.
///
/// # Errors
/// When there is one; the error names what it may have been meant for.
pub fn check_variables<T: DeserializeOwned>(
    environment: impl Iterator<Item = (String, String)>,
    prefix: &str,
    dotted: &[&str],
    others: &[&str],
) -> Result<(), ConfigError> {
    let mut names: Vec<String> = environment.map(|(name, _)| name).collect();
    names.sort();
    for name in names {
        let Some(rest) = name
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('_'))
        else {
            continue;
        };
        let is_known = rest.contains("__") || others.contains(&&*name) || is_service_link(rest);
        if !is_known {
            return Err(variable::refused::<T>(&name, prefix, dotted, others));
        }
    }
    Ok(())
}

/// Kubernetes tells every container of the services in its namespace by variables that begin with
/// their names.
fn is_service_link(rest: &str) -> bool {
    let rest = format!("_{rest}");
    let of_port = |(_, rest): (&str, &str)| rest.starts_with(|first: char| first.is_ascii_digit());
    rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.ends_with("_PORT")
        || rest.split_once("_PORT_").is_some_and(of_port)
}

/// Shows a configuration as TOML that [`load`] would read back, except for secrets.
pub fn render<T: Serialize>(config: &T) -> String {
    toml::to_string_pretty(config)
        .unwrap_or_else(|error| format!("# this configuration cannot be shown: {error}\n"))
}

#[cfg(test)]
mod tests;
