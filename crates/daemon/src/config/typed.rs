//! From the tree to the type. The type leads: what it asks for decides how text is read, and the
//! fields of its structs are the keys that are known.

use std::collections::btree_map;
use std::fmt::{self, Display};
use std::rc::Rc;
use std::str::FromStr;

use serde::de::value::{MapAccessDeserializer, StringDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::ConfigError;
use super::error::nearest;
use super::tree::{Node, Tree};

pub(super) fn read<T: DeserializeOwned>(tree: Tree) -> Result<T, ConfigError> {
    let origin = tree.origin.clone();
    T::deserialize(Place {
        path: String::new(),
        tree,
    })
    .map_err(|fault| match fault {
        Fault::Placed(error) => *error,
        Fault::Somewhere(reason) => ConfigError::Invalid {
            key: String::new(),
            origin: origin.to_string(),
            reason,
        },
    })
}

/// A value to be read, and its path.
struct Place {
    path: String,
    tree: Tree,
}

impl Place {
    fn inner(path: &str, key: &str, tree: Tree) -> Self {
        let path = if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        };
        Self { path, tree }
    }

    /// Reads the value by a function and says of its fault where it was.
    fn located<V>(self, read: impl FnOnce(Self) -> Result<V, Fault>) -> Result<V, Fault> {
        let (path, origin) = (self.path.clone(), self.tree.origin.clone());
        read(self).map_err(|fault| fault.at(&path, &origin))
    }

    /// Parses the text of a variable as what the type asks for.
    fn parsed<'de, F: FromStr, V: Visitor<'de>>(
        self,
        kind: &str,
        visitor: V,
        visit: impl FnOnce(V, F) -> Result<V::Value, Fault>,
    ) -> Result<V::Value, Fault> {
        self.located(|place| match &place.tree.node {
            Node::Untyped(text) => match text.trim().parse() {
                Ok(value) => visit(visitor, value),
                Err(_) => Err(Fault::Somewhere(format!("`{text}` is not {kind}"))),
            },
            Node::Table(_) | Node::List(_) | Node::Scalar(_) => place.by_itself(visitor),
        })
    }

    /// Reads the value as what it is.
    fn by_itself<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Self { path, tree } = self;
        match tree.node {
            Node::Untyped(text) => visitor.visit_string(text),
            Node::Scalar(toml::Value::String(text)) => visitor.visit_string(text),
            Node::Scalar(toml::Value::Integer(number)) => visitor.visit_i64(number),
            Node::Scalar(toml::Value::Float(number)) => visitor.visit_f64(number),
            Node::Scalar(toml::Value::Boolean(flag)) => visitor.visit_bool(flag),
            Node::Scalar(other) => visitor.visit_string(other.to_string()),
            Node::List(items) => visitor.visit_seq(Items {
                path,
                items: items.into_iter().enumerate(),
            }),
            Node::Table(table) => visitor.visit_map(Entries {
                path,
                entries: table.into_iter(),
                value: None,
            }),
        }
    }
}

/// Reads the text of a variable as a list: a TOML array, or items between commas.
fn list(text: &str, origin: &Rc<str>) -> Result<Vec<Tree>, Fault> {
    let text = text.trim();
    if text.starts_with('[') {
        let table: toml::Table =
            format!("list = {text}")
                .parse()
                .map_err(|error: toml::de::Error| {
                    Fault::Somewhere(format!("no TOML array: {}", error.message()))
                })?;
        let Some(toml::Value::Array(values)) = table.into_iter().next().map(|(_, value)| value)
        else {
            return Err(Fault::Somewhere("no TOML array".to_owned()));
        };
        return Ok(values
            .into_iter()
            .map(|value| Tree::from_toml(value, origin))
            .collect());
    }
    let items = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    Ok(items
        .map(|item| Tree {
            origin: origin.clone(),
            node: Node::Untyped(item.to_owned()),
        })
        .collect())
}

/// Refuses the first key that is not a field.
fn refuse_unknown(place: &Place, fields: &[&str]) -> Result<(), Fault> {
    let Node::Table(table) = &place.tree.node else {
        return Ok(());
    };
    let Some((key, value)) = table
        .iter()
        .find(|(key, _)| !fields.contains(&key.as_str()))
    else {
        return Ok(());
    };
    let path = if place.path.is_empty() {
        key.clone()
    } else {
        format!("{}.{key}", place.path)
    };
    Err(Fault::Placed(Box::new(ConfigError::Unknown {
        key: path,
        origin: value.origin.to_string(),
        nearest: nearest(key, fields),
        known: fields.iter().map(|field| (*field).to_owned()).collect(),
    })))
}

macro_rules! parse_as {
    ($($method:ident $visit:ident $type:ty, $kind:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.parsed::<$type, V>($kind, visitor, |visitor, value| visitor.$visit(value))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Place {
    type Error = Fault;

    parse_as! {
        deserialize_bool visit_bool bool, "true or false";
        deserialize_i8 visit_i64 i64, "a whole number";
        deserialize_i16 visit_i64 i64, "a whole number";
        deserialize_i32 visit_i64 i64, "a whole number";
        deserialize_i64 visit_i64 i64, "a whole number";
        deserialize_u8 visit_u64 u64, "a whole number from 0";
        deserialize_u16 visit_u64 u64, "a whole number from 0";
        deserialize_u32 visit_u64 u64, "a whole number from 0";
        deserialize_u64 visit_u64 u64, "a whole number from 0";
        deserialize_f32 visit_f64 f64, "a number";
        deserialize_f64 visit_f64 f64, "a number";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.located(|place| place.by_itself(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.located(|mut place| {
            if let Node::Untyped(text) = &place.tree.node {
                place.tree.node = Node::List(list(text, &place.tree.origin)?);
            }
            place.by_itself(visitor)
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        refuse_unknown(&self, fields)?;
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.located(|Self { path, tree }| match tree.node {
            Node::Untyped(text) | Node::Scalar(toml::Value::String(text)) => {
                let name: StringDeserializer<Fault> = text.into_deserializer();
                visitor.visit_enum(name)
            }
            Node::Table(table) => {
                let entries = Entries {
                    path,
                    entries: table.into_iter(),
                    value: None,
                };
                visitor.visit_enum(MapAccessDeserializer::new(entries))
            }
            Node::List(_) | Node::Scalar(_) => {
                Err(Fault::Somewhere("expected the name of a choice".to_owned()))
            }
        })
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map
        identifier ignored_any
    }
}

struct Items {
    path: String,
    items: std::iter::Enumerate<std::vec::IntoIter<Tree>>,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some((index, tree)) = self.items.next() else {
            return Ok(None);
        };
        seed.deserialize(Place::inner(&self.path, &index.to_string(), tree))
            .map(Some)
    }
}

struct Entries {
    path: String,
    entries: btree_map::IntoIter<String, Tree>,
    value: Option<Place>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some((key, tree)) = self.entries.next() else {
            return Ok(None);
        };
        let origin = tree.origin.clone();
        let place = Place::inner(&self.path, &key, tree);
        let path = place.path.clone();
        self.value = Some(place);
        let name: StringDeserializer<Fault> = key.into_deserializer();
        seed.deserialize(name)
            .map(Some)
            .map_err(|fault| fault.at(&path, &origin))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let place = self
            .value
            .take()
            .expect("serde asks for a value only after its key");
        place.located(|place| seed.deserialize(place))
    }
}

/// What went wrong, and where, as soon as that is known.
#[derive(Debug)]
enum Fault {
    Somewhere(String),
    Placed(Box<ConfigError>),
}

impl Fault {
    fn at(self, path: &str, origin: &str) -> Self {
        match self {
            Self::Somewhere(reason) => Self::Placed(Box::new(ConfigError::Invalid {
                key: path.to_owned(),
                origin: origin.to_owned(),
                reason,
            })),
            placed @ Self::Placed(_) => placed,
        }
    }
}

impl Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Somewhere(reason) => formatter.write_str(reason),
            Self::Placed(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(reason: T) -> Self {
        Self::Somewhere(reason.to_string())
    }
}
