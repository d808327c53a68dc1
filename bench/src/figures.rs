//! Figures by name, of one build or of several beside each other.

use serde_json::{Value, json};

use crate::say;

/// What was measured, in the order in which it was.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    pub(crate) fn set(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }

    /// A figure by its name.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        let named = self.0.iter().find(|(known, _)| known == name);
        named.map(|(_, value)| *value)
    }

    pub(crate) fn json(&self) -> Value {
        let figures = self.0.iter();
        figures
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect()
    }
}

/// Prints a line for each figure of the first build, with those of the others beside it and how
/// many times as large as theirs it is.
pub(crate) fn tell(builds: &[(&str, Figures)]) {
    let Some(((first, figures), others)) = builds.split_first() else {
        return;
    };
    let mut head = format!("  {:<44} {first:>12}", "");
    for (name, _) in others {
        head.push_str(&format!(" {name:>12} {:>8}", "ratio"));
    }
    say(&head);
    for (name, value) in &figures.0 {
        let mut line = format!("  {name:<44} {value:>12.2}");
        for (_, other) in others {
            match other.get(name) {
                None => {}
                // Nothing is no ratio of anything.
                Some(0.0) => line.push_str(&format!(" {:>12.2} {:>8}", 0.0, "-")),
                Some(other) => line.push_str(&format!(" {other:>12.2} {:>8.2}", value / other)),
            }
        }
        say(&line);
    }
}
