//! What a scenario measured, on the output and in a file.

use std::time::{Duration, Instant};

use postrider_tests::process::repository;
use serde_json::{Map, Value};

use crate::form::Form;

/// The figures of one scenario.
#[derive(Debug)]
pub(crate) struct Figures {
    scenario: &'static str,
    form: Form,
    began: Instant,
    figures: Vec<(&'static str, Value)>,
}

impl Figures {
    pub(crate) fn new(scenario: &'static str, form: Form) -> Self {
        Self {
            scenario,
            form,
            began: Instant::now(),
            figures: Vec::new(),
        }
    }

    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.figures.push((name, value.into()));
    }

    /// In seconds.
    pub(crate) fn set_time(&mut self, name: &'static str, time: Duration) {
        self.set(name, (time.as_secs_f64() * 1000.0).round() / 1000.0);
    }

    /// Writes `target/faults/full/SCENARIO.json`, or `short`, and a table. Call it before anything
    /// is asserted.
    #[expect(clippy::print_stdout, reason = "`make faults` shows it")]
    pub(crate) fn save(mut self) {
        self.set_time("took_s", self.began.elapsed());
        println!("\n{} ({:?})", self.scenario, self.form);
        for (name, value) in &self.figures {
            println!("  {name:<32} {value}");
        }
        let folder = repository()
            .join("target/faults")
            .join(self.form.pick("short", "full"));
        std::fs::create_dir_all(&folder).unwrap();
        let figures: Map<String, Value> = self
            .figures
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let text = serde_json::to_string_pretty(&figures).unwrap();
        std::fs::write(folder.join(self.scenario).with_extension("json"), text).unwrap();
    }
}
