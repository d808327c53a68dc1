//! Profiles of what is measured, by Linux's `perf`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Samples a second: enough for a phase of seconds, and not in step with timers.
const FREQUENCY: &str = "399";
/// The stack that is kept of each sample, from which the calls are found.
const CALLS: &str = "dwarf,16384";

/// The profiles of some processes, until it is dropped.
#[derive(Debug)]
pub(crate) struct Recording(Vec<Child>);

impl Recording {
    /// Begins to profile each process, in `<dir>/<build>-<phase>-<process>.perf`.
    pub(crate) fn start(
        dir: &Path,
        build: &str,
        phase: &str,
        processes: impl Iterator<Item = (String, u32)>,
    ) -> Self {
        std::fs::create_dir_all(dir).expect("the folder for profiles can be made");
        let phase = phase.replace([' ', '/'], "-");
        let record = |(process, id): (String, u32)| {
            let file: PathBuf = dir.join(format!("{build}-{phase}-{process}.perf"));
            Command::new("perf")
                .args(["record", "-F", FREQUENCY, "--call-graph", CALLS])
                .args(["-p", &id.to_string(), "-o"])
                .arg(file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("perf is installed, which profiles are made with")
        };
        Self(processes.map(record).collect())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        for perf in &mut self.0 {
            // An interrupted perf writes what it has.
            let id = perf.id().to_string();
            drop(Command::new("kill").args(["-INT", &id]).status());
            drop(perf.wait());
        }
    }
}
