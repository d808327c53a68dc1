//! Free pairs on tenants and endpoints.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::fields::Fields;

const PAIRS_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 512;

/// Takes the field `metadata`; absent, there are none.
pub(crate) fn take(fields: &mut Fields) -> BTreeMap<String, String> {
    take_if_said(fields).unwrap_or_default()
}

/// Takes it, if the object has it.
pub(crate) fn take_if_said(fields: &mut Fields) -> Option<BTreeMap<String, String>> {
    fields.optional("metadata", parse)
}

fn parse(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let object = value.as_object().ok_or("must be an object of texts")?;
    if object.len() > PAIRS_MAX {
        return Err(format!(
            "must have at most {PAIRS_MAX} pairs, not {}",
            object.len()
        ));
    }
    let mut pairs = BTreeMap::new();
    for (name, value) in object {
        let value = value.as_str().ok_or("must be an object of texts")?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || value.len() > TEXT_BYTES_MAX {
            return Err(format!(
                "must have names of 1 to {NAME_BYTES_MAX} bytes and texts of at most {TEXT_BYTES_MAX} bytes"
            ));
        }
        pairs.insert(name.clone(), value.to_owned());
    }
    Ok(pairs)
}
