//! Builds of Postrider that are measured in turn, in one run on one machine.

use std::path::PathBuf;

use clap::Args;

use crate::figures::{Figures, tell};
use crate::report::record_figures;

/// What is measured beside this build.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// A checkout of another state, with its release build: measured in turn with this one, and
    /// compared.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Measures this build once more with a setting, by the name of its variable, such as
    /// `POSTRIDER_INGEST__APPEND_LINGER_MS=2`. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Profiles `ingest` and `deliver`, or `up`, in each phase, by `perf`, into files in this
    /// folder. It costs CPU, so the figures of such a run are good for nothing else.
    #[arg(long, value_name = "DIR")]
    pub(crate) perf: Option<PathBuf>,
}

fn setting(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("it has no `=`")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A build to measure.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    /// What it is called in tables.
    pub(crate) name: &'static str,
    /// Its binary.
    pub(crate) binary: PathBuf,
    /// Settings that it has beside those of each build, by the names of their variables.
    pub(crate) settings: Vec<(String, String)>,
}

impl Options {
    /// This build.
    pub(crate) fn this() -> Build {
        Build {
            name: "this",
            binary: postrider_tests::process::postrider().to_owned(),
            settings: Vec::new(),
        }
    }

    /// Whether there is anything beside this build.
    pub(crate) fn compares(&self) -> bool {
        self.base.is_some() || !self.set.is_empty()
    }

    /// This build, with the settings, and the other one.
    fn builds(&self) -> Vec<Build> {
        let this = Self::this();
        let set = (!self.set.is_empty()).then(|| Build {
            name: "set",
            settings: self.set.clone(),
            ..this.clone()
        });
        let base = self.base.as_ref().map(|folder| Build {
            name: "base",
            binary: folder.join("target/release/postrider"),
            settings: Vec::new(),
        });
        [Some(this), set, base].into_iter().flatten().collect()
    }

    /// Measures each build, the oldest first, and prints what was measured.
    pub(crate) async fn compare(&self, scenario: &str, measure: impl AsyncFn(Build) -> Figures) {
        let mut measured = Vec::new();
        for build in self.builds().into_iter().rev() {
            measured.push((build.name, measure(build).await));
        }
        measured.reverse();
        tell(&measured);
        record_figures(scenario, &measured);
    }
}
