//! The CPU time that processes took, theirs and of the broker that serves them.

use std::time::Duration;

use postrider_tests::{Cluster, LogKind};

use crate::figures::Figures;
use crate::throughput::count;

/// Clock ticks of /proc, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The cluster's processes, its broker, and this program under the given name.
pub(crate) fn processes(cluster: &Cluster, this_program: &str) -> Vec<(String, u32)> {
    let mut processes: Vec<_> = cluster
        .processes()
        .map(|(name, process)| (name.to_owned(), process.id()))
        .collect();
    if cluster.log() == LogKind::Kafka {
        processes.extend(brokers());
    }
    processes.push((this_program.to_owned(), std::process::id()));
    processes
}

/// What processes take from now on.
#[derive(Debug)]
pub(crate) struct Used(Vec<(String, u32, f64)>);

impl Used {
    pub(crate) fn new(processes: Vec<(String, u32)>) -> Self {
        let processes = processes.into_iter();
        Self(
            processes
                .map(|(name, id)| (name, id, seconds_of(id)))
                .collect(),
        )
    }

    /// CPU seconds of each since then.
    pub(crate) fn seconds(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0
            .iter()
            .map(|(name, id, before)| (name.as_str(), seconds_of(*id) - before))
    }

    /// Notes the CPU seconds per 100,000 events.
    pub(crate) fn tell(&self, events: usize, of: &str, figures: &mut Figures) {
        for (name, seconds) in self.seconds() {
            let each = seconds * 100_000.0 / count(events);
            figures.set(format!("{of}: CPU of {name}"), each);
        }
    }

    /// Notes how many cores each kept busy for this time.
    pub(crate) fn tell_cores(&self, time: Duration, of: &str, figures: &mut Figures) {
        for (name, seconds) in self.seconds() {
            let cores = seconds / time.as_secs_f64();
            figures.set(format!("{of}: cores of {name}"), cores);
        }
    }
}

/// CPU seconds that a process took so far.
fn seconds_of(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The second field may hold anything but ends at the last parenthesis.
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or_default()
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// The brokers that this program started: java processes whose parents lead here.
pub(crate) fn brokers() -> Vec<(String, u32)> {
    let own = std::process::id();
    let ids = std::fs::read_dir("/proc")
        .expect("/proc can be listed")
        .flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.contains("(java)") && parent(*id).and_then(parent) == Some(own)
    })
    .map(|id| ("kafka".to_owned(), id))
    .collect()
}

fn parent(id: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}
