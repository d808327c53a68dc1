//! Configuration before it has types: a tree of values, each of which knows where it came from.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;

use super::ConfigError;

/// A value and the file or variable it came from.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) origin: Rc<str>,
    pub(super) node: Node,
}

#[derive(Debug)]
pub(super) enum Node {
    Table(BTreeMap<String, Tree>),
    List(Vec<Tree>),
    /// Text of a variable: what it means depends on the type that is asked for.
    Untyped(String),
    /// A scalar of the file.
    Scalar(toml::Value),
}

impl Tree {
    pub(super) fn empty() -> Self {
        Self {
            origin: "the defaults".into(),
            node: Node::Table(BTreeMap::new()),
        }
    }

    pub(super) fn parse(text: &str, origin: &str, dotted: &[&str]) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            let before = &text.as_bytes()[..offset.min(text.len())];
            ConfigError::Syntax {
                origin: origin.to_owned(),
                line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
                reason: error.message().to_owned(),
            }
        })?;
        let mut tree = Self::from_toml(toml::Value::Table(table), &origin.into());
        for section in dotted {
            if let Some(section) = tree.find(section) {
                section.flatten();
            }
        }
        Ok(tree)
    }

    pub(super) fn from_toml(value: toml::Value, origin: &Rc<str>) -> Self {
        let node = match value {
            toml::Value::Table(table) => Node::Table(
                table
                    .into_iter()
                    .map(|(key, value)| (key, Self::from_toml(value, origin)))
                    .collect(),
            ),
            toml::Value::Array(values) => Node::List(
                values
                    .into_iter()
                    .map(|value| Self::from_toml(value, origin))
                    .collect(),
            ),
            scalar => Node::Scalar(scalar),
        };
        Self {
            origin: origin.clone(),
            node,
        }
    }

    /// Puts one variable over the tree, if it is configuration.
    pub(super) fn overlay(
        &mut self,
        prefix: &str,
        name: &str,
        value: String,
        dotted: &[&str],
    ) -> Result<(), ConfigError> {
        let Some(path) = name
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('_'))
        else {
            return Ok(());
        };
        let path = path.to_ascii_lowercase();
        if !path.contains("__") {
            return Ok(());
        }
        let origin: Rc<str> = format!("variable {name}").into();
        let invalid = |reason: &str| ConfigError::Invalid {
            key: path.replace("__", "."),
            origin: origin.to_string(),
            reason: reason.to_owned(),
        };
        let keys = keys(&path, dotted);
        if keys.iter().any(String::is_empty) {
            return Err(invalid("a level of the name is empty"));
        }
        let mut tree = self;
        for key in keys {
            let Node::Table(table) = &mut tree.node else {
                return Err(invalid("a level above it has a value already"));
            };
            tree = table.entry(key).or_insert_with(|| Self {
                origin: origin.clone(),
                node: Node::Table(BTreeMap::new()),
            });
        }
        *tree = Self {
            origin: origin.clone(),
            node: Node::Untyped(value),
        };
        Ok(())
    }

    /// Takes from another tree what this one does not say.
    pub(super) fn put_below(&mut self, other: Self) {
        let (Node::Table(table), Node::Table(others)) = (&mut self.node, other.node) else {
            return;
        };
        for (key, other) in others {
            match table.entry(key) {
                Entry::Occupied(mut own) => own.get_mut().put_below(other),
                Entry::Vacant(place) => {
                    place.insert(other);
                }
            }
        }
    }

    fn find(&mut self, path: &str) -> Option<&mut Self> {
        path.split('.')
            .try_fold(self, |tree, key| match &mut tree.node {
                Node::Table(table) => table.get_mut(key),
                Node::List(_) | Node::Untyped(_) | Node::Scalar(_) => None,
            })
    }

    /// Joins the keys of nested tables by dots and turns scalars into text.
    fn flatten(&mut self) {
        let Node::Table(table) = &mut self.node else {
            return;
        };
        let mut flat = BTreeMap::new();
        for (key, value) in std::mem::take(table) {
            value.flatten_into(key, &mut flat);
        }
        *table = flat;
    }

    fn flatten_into(self, key: String, flat: &mut BTreeMap<String, Self>) {
        let node = match self.node {
            Node::Table(table) => {
                for (inner, value) in table {
                    value.flatten_into(format!("{key}.{inner}"), flat);
                }
                return;
            }
            Node::Scalar(toml::Value::String(text)) => Node::Untyped(text),
            Node::Scalar(scalar) => Node::Untyped(scalar.to_string()),
            other @ (Node::List(_) | Node::Untyped(_)) => other,
        };
        flat.insert(
            key,
            Self {
                origin: self.origin,
                node,
            },
        );
    }
}

/// The keys that the rest of a variable's name stands for.
fn keys(path: &str, dotted: &[&str]) -> Vec<String> {
    for section in dotted {
        let opening = format!("{}__", section.replace('.', "__"));
        if let Some(key) = path.strip_prefix(&opening) {
            let mut keys: Vec<String> = section.split('.').map(str::to_owned).collect();
            keys.push(key.replace('_', "."));
            return keys;
        }
    }
    path.split("__").map(str::to_owned).collect()
}
