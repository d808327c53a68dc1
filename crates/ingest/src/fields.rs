//! Taking a JSON object apart field by field, so that every wrong one is named, and all of them at
//! once.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::problem::{FieldError, Problem};

const UNKNOWN: &str = "is not a known field";

/// A JSON object whose values are still the bytes that came.
#[derive(Debug)]
pub(crate) struct RawObject<'a>(pub(crate) BTreeMap<String, &'a RawValue>);

impl<'a> RawObject<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, Problem> {
        serde_json::from_slice(without_mark(body)).map_err(|error| json_problem(&error))
    }
}

/// JSON without the byte order mark that some write before it and that a reader may pass over (RFC
/// 8259, section 8.1).
pub(crate) fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// The body as a JSON object. An empty one is an empty object, where the route says so.
pub(crate) fn parse_object(body: &[u8]) -> Result<Map<String, Value>, Problem> {
    serde_json::from_slice(without_mark(body)).map_err(|error| json_problem(&error))
}

/// Text that is no JSON is malformed, JSON that is no object is invalid.
pub(crate) fn json_problem(error: &serde_json::Error) -> Problem {
    if error.is_data() {
        Problem::field(
            "",
            format!("the body must be a JSON object without repeated names: {error}"),
        )
    } else {
        Problem::Syntax {
            format: "JSON",
            detail: error.to_string(),
        }
    }
}

impl<'de> Deserialize<'de> for RawObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawObjectVisitor)
    }
}

struct RawObjectVisitor;

impl<'de> Visitor<'de> for RawObjectVisitor {
    type Value = RawObject<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawObject<'de>, A::Error> {
        let mut values = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
            // Which of two values is meant, nobody can know.
            if values.contains_key(&name) {
                return Err(A::Error::custom(format!("`{name}` is given twice")));
            }
            values.insert(name, value);
        }
        Ok(RawObject(values))
    }
}

/// The fields of an object, taken one after the other. What is wrong gathers; what is left at the
/// end is unknown.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    values: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    pub(crate) fn new(values: Map<String, Value>) -> Self {
        Self {
            values,
            errors: Vec::new(),
        }
    }

    /// Query parameters are fields whose values are all text.
    pub(crate) fn of_query(parameters: Vec<(String, String)>) -> Self {
        let mut fields = Self::default();
        for (name, value) in parameters {
            if fields.values.contains_key(&name) {
                fields.wrong(name, "is given twice");
            } else {
                fields.values.insert(name, Value::String(value));
            }
        }
        fields
    }

    /// Whether the field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field that may be absent or `null`.
    pub(crate) fn optional<T, E: ToString>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&Value) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.values.remove(name).filter(|value| !value.is_null())?;
        parse(&value).map_err(|error| self.wrong(name, error)).ok()
    }

    /// A field that must be there. `None` only after noting why.
    pub(crate) fn required<T, E: ToString>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&Value) -> Result<T, E>,
    ) -> Option<T> {
        if self.values.get(name).is_none_or(Value::is_null) {
            self.values.remove(name);
            self.wrong(name, "is required");
            return None;
        }
        self.optional(name, parse)
    }

    /// A field that must not be there (or be `null`, `false` or empty, which asks for nothing).
    pub(crate) fn refuse(&mut self, name: &str, why: &str) {
        let asks = self.values.remove(name).is_some_and(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::String(text) => !text.is_empty(),
            Value::Object(_) | Value::Number(_) | Value::Bool(true) => true,
        });
        if asks {
            self.wrong(name, why);
        }
    }

    pub(crate) fn wrong(&mut self, name: impl Into<String>, why: impl ToString) {
        self.errors.push(FieldError::new(name, why));
    }

    /// Ends the taking: nothing may be wrong or left over.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        let mut errors = self.errors;
        errors.extend(
            self.values
                .keys()
                .map(|name| FieldError::new(name, UNKNOWN)),
        );
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::Invalid(errors))
        }
    }
}

/// Text of at most so many bytes.
pub(crate) fn text(bytes_max: usize) -> impl Fn(&Value) -> Result<String, String> {
    move |value| {
        let text = value.as_str().ok_or("must be text")?;
        if text.len() > bytes_max {
            return Err(format!(
                "must be at most {bytes_max} bytes, not {}",
                text.len()
            ));
        }
        Ok(text.to_owned())
    }
}

/// Text that something else parses.
pub(crate) fn parsed<T, E: ToString>(
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let text = value.as_str().ok_or("must be text")?;
        parse(text).map_err(|error| error.to_string())
    }
}

/// A point in time as RFC 3339.
pub(crate) fn time(value: &Value) -> Result<i64, String> {
    let text = value.as_str().ok_or("must be text")?;
    postrider_model::payload::parse_rfc3339(text).ok_or_else(|| {
        "must be a time as RFC 3339 writes it, such as `2026-01-31T12:00:00Z`, up to `9999-12-30T22:00:00Z`".to_owned()
    })
}

/// A list of texts.
pub(crate) fn texts(value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or("must be a list of texts")?;
    list.iter()
        .map(|item| {
            item.as_str()
                .map(str::to_owned)
                .ok_or("must be a list of texts".to_owned())
        })
        .collect()
}

/// A whole number in a query parameter.
pub(crate) fn number_in_text(min: usize, max: usize) -> impl Fn(&Value) -> Result<usize, String> {
    move |value| {
        let number = value.as_str().and_then(|text| text.parse::<usize>().ok());
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| format!("must be a number from {min} to {max}"))
    }
}

/// Seconds, down to the millisecond, as milliseconds.
pub(crate) fn seconds_as_ms(value: &Value) -> Result<i64, String> {
    const SECONDS_MAX: f64 = 1e9;
    let seconds = value.as_f64().ok_or("must be a number of seconds")?;
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return Err(format!("must be 0 to {SECONDS_MAX} seconds"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the range was just checked"
    )]
    let ms = (seconds * 1000.0).round() as i64;
    Ok(ms)
}

/// Milliseconds as seconds: a whole number where it is one.
pub(crate) fn ms_as_seconds(ms: i64) -> Value {
    if ms % 1000 == 0 {
        return Value::from(ms / 1000);
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "days in milliseconds are far below 2^53"
    )]
    let seconds = ms as f64 / 1000.0;
    Value::from(seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: &Value) -> Fields {
        Fields::new(value.as_object().unwrap().clone())
    }

    fn named(problem: Problem) -> Vec<String> {
        match problem {
            Problem::Invalid(errors) => errors.into_iter().map(|error| error.field).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_every_wrong_field_at_once() {
        let mut fields = fields(&json!({"a": 1, "c": "x", "d": 1, "e": [1]}));
        assert_eq!(fields.required("a", text(9)), None);
        assert_eq!(fields.required("b", text(9)), None);
        assert_eq!(fields.optional("c", text(9)), Some("x".to_owned()));
        fields.refuse("e", "is not supported yet");
        assert_eq!(named(fields.finish().unwrap_err()), ["a", "b", "e", "d"]);
    }

    #[test]
    fn lets_pass_what_asks_for_nothing() {
        let mut fields = fields(&json!({"a": null, "b": false, "c": [], "d": ""}));
        for name in ["a", "b", "c", "d", "e"] {
            fields.refuse(name, "is not supported yet");
        }
        assert!(fields.finish().is_ok());
    }

    #[test]
    fn refuses_repeated_names_and_bodies_that_are_no_object() {
        assert!(matches!(
            RawObject::parse(br#"{"a":1,"a":2}"#),
            Err(Problem::Invalid(_))
        ));
        assert!(matches!(RawObject::parse(b"[]"), Err(Problem::Invalid(_))));
        assert!(matches!(
            RawObject::parse(b"{\"a\":1"),
            Err(Problem::Syntax { .. })
        ));
        assert!(matches!(
            RawObject::parse(b"{\"a\":\"\xff\"}"),
            Err(Problem::Syntax { .. })
        ));
        assert!(matches!(
            RawObject::parse(b"{} {}"),
            Err(Problem::Syntax { .. })
        ));
    }

    #[test]
    fn reads_and_writes_seconds_to_the_millisecond() {
        for (written, ms) in [
            (json!(5), 5000),
            (json!(0.25), 250),
            (json!(86400), 86_400_000),
        ] {
            assert_eq!(seconds_as_ms(&written), Ok(ms));
            assert_eq!(ms_as_seconds(ms), written);
        }
        assert!(seconds_as_ms(&json!(-1)).is_err());
        assert!(seconds_as_ms(&json!("5")).is_err());
        assert!(seconds_as_ms(&json!(1e300)).is_err());
    }
}
