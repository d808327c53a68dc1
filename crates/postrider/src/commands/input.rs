//! What commands read: a file, or standard input for `-`.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use serde_json::value::RawValue;

/// The whole text.
pub(crate) fn text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    open(path)?
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}

/// One JSON value after the other, each as it is written, read as they are asked for.
pub(crate) fn json_values(
    path: &Path,
) -> anyhow::Result<impl Iterator<Item = serde_json::Result<Box<RawValue>>>> {
    Ok(serde_json::Deserializer::from_reader(open(path)?).into_iter())
}

fn open(path: &Path) -> anyhow::Result<Box<dyn Read>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}
