//! The CPU time that processes took, theirs and of the broker that serves them.

use postrider_tests::{Cluster, LogKind};

/// Clock ticks of /proc, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that each took so far: the cluster's processes, its broker, and this program under
/// the given name.
pub(crate) fn seconds(cluster: &Cluster, this_program: &str) -> Vec<(String, f64)> {
    let mut processes: Vec<_> = cluster
        .processes()
        .map(|(name, process)| (name.to_owned(), process.id()))
        .collect();
    if cluster.log() == LogKind::Kafka {
        processes.extend(brokers().into_iter().map(|id| ("kafka".to_owned(), id)));
    }
    processes.push((this_program.to_owned(), std::process::id()));
    let seconds = processes.into_iter();
    seconds.map(|(name, id)| (name, seconds_of(id))).collect()
}

/// CPU seconds that a process took so far.
pub(crate) fn seconds_of(id: u32) -> f64 {
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
fn brokers() -> Vec<u32> {
    let own = std::process::id();
    let ids = std::fs::read_dir("/proc")
        .expect("/proc can be listed")
        .flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.contains("(java)") && parent(*id).and_then(parent) == Some(own)
    })
    .collect()
}

fn parent(id: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}
