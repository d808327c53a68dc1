//! Bodies that hold many items: an array, or lines. How many there are is decided while they are
//! read.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::fields::without_mark;
use crate::problem::Problem;

/// The items of a JSON array, as the bytes that came.
pub(crate) fn of_array(body: &[u8], max: usize) -> Result<Vec<&RawValue>, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(without_mark(body));
    let items = deserializer.deserialize_seq(Items { max });
    let items = items.and_then(|items| deserializer.end().map(|()| items));
    items.map_err(|error| {
        if error.is_data() {
            Problem::field("", format!("the body must be a JSON array: {error}"))
        } else {
            Problem::Syntax {
                format: "JSON",
                detail: error.to_string(),
            }
        }
    })
}

/// The lines that are not empty, each with its number.
pub(crate) fn of_lines(body: &[u8], max: usize) -> Result<Vec<(usize, &[u8])>, Problem> {
    let lines = without_mark(body)
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii);
    let filled = (1..).zip(lines).filter(|(_, line)| !line.is_empty());
    let found: Vec<_> = filled.take(max.saturating_add(1)).collect();
    if found.len() > max {
        return Err(Problem::field("", too_many(max)));
    }
    Ok(found)
}

fn too_many(max: usize) -> String {
    format!("there must be at most {max} items")
}

struct Items {
    max: usize,
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            if items.len() == self.max {
                return Err(A::Error::custom(too_many(self.max)));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(body: &str, max: usize) -> Result<Vec<String>, Problem> {
        let items = of_array(body.as_bytes(), max)?;
        Ok(items
            .into_iter()
            .map(|item| item.get().to_owned())
            .collect())
    }

    #[test]
    fn items_are_the_bytes_that_came_and_no_more_than_allowed() {
        assert_eq!(
            array(r#" [ {"a" : 1} , 2 ] "#, 2).unwrap(),
            [r#"{"a" : 1}"#, "2"]
        );
        assert!(array("[]", 0).unwrap().is_empty());
        assert!(matches!(array("[1,2]", 1), Err(Problem::Invalid(_))));
        assert!(matches!(array("{}", 9), Err(Problem::Invalid(_))));
        for broken in ["", "[1", "[1,]", "[1] 2"] {
            let refused = array(broken, 9);
            assert!(
                matches!(refused, Err(Problem::Syntax { .. })),
                "{broken}: {refused:?}"
            );
        }
    }

    #[test]
    fn lines_are_numbered_and_no_more_than_allowed() {
        let lines = of_lines(b"a\r\n\n  \nb", 2).unwrap();
        assert_eq!(lines, [(1, &b"a"[..]), (4, b"b")]);
        assert!(of_lines(b"a\nb\nc", 2).is_err());
        assert!(of_lines(b"", 0).unwrap().is_empty());
    }
}
