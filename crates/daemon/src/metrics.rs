//! The process's metrics: the catalogue of what there is, and the registry of what this process
//! shows.

pub mod catalogue;
mod declare;

use std::fmt;
use std::fs;
use std::time::Duration;

use prometheus::{Error, Registry, TextEncoder};
use tokio::time::{Instant, sleep_until};

use crate::telemetry;
use catalogue::{
    BUILD_INFO, EVENT_LOOP_LAG, LOG_LINES_DROPPED, PROCESS_CPU, PROCESS_FILES, PROCESS_FILES_MAX,
    PROCESS_MEMORY, PROCESS_THREADS,
};
pub use declare::{Collected, Metric, Sample, Value, whole};

/// Kernel ticks per second in `/proc`: Linux fixes it to 100 for user space on every architecture
/// we build for.
const TICKS_PER_SECOND: f64 = 100.0;
/// Content type of the text exposition format.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;
/// How often the event loop is measured.
const LOOP_INTERVAL: Duration = Duration::from_millis(100);

/// The registry that every metric of the process is in. Cloning it is cheap and gives the same
/// registry.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    event_loop_lag: prometheus::Histogram,
}

impl Metrics {
    /// A registry with `postrider_build_info` and, on Linux, what the kernel knows of this process.
    pub fn new(version: &str, role: &str) -> Self {
        Self::declared(version, role)
            .expect("the registry is empty, and the catalogue names nothing twice")
    }

    fn declared(version: &str, role: &str) -> Result<Self, Error> {
        let registry = Registry::new();
        let build_info = BUILD_INFO.gauges(&registry)?;
        build_info.with_label_values(&[version, role]).set(1);
        let process = [
            &PROCESS_CPU,
            &PROCESS_MEMORY,
            &PROCESS_THREADS,
            &PROCESS_FILES,
            &PROCESS_FILES_MAX,
        ];
        Collected::declare(&registry, &process, || process_now().unwrap_or_default())?;
        Collected::declare(&registry, &[&LOG_LINES_DROPPED], || {
            let dropped = Sample::count(telemetry::log_lines_dropped_total());
            vec![(&LOG_LINES_DROPPED, vec![dropped])]
        })?;
        let event_loop_lag = EVENT_LOOP_LAG.histogram(&registry)?;
        Ok(Self {
            registry,
            event_loop_lag,
        })
    }

    /// Measures, for as long as it is polled, how late the timers of the event loop are that runs
    /// it.
    pub async fn watch_event_loop(&self) {
        loop {
            let due = Instant::now() + LOOP_INTERVAL;
            sleep_until(due).await;
            self.event_loop_lag.observe(due.elapsed().as_secs_f64());
        }
    }

    /// The registry, to declare metrics in.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All metrics in the text exposition format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What the kernel knows of this process; `None` where it does not say.
fn process_now() -> Option<Vec<(&'static Metric, Vec<Sample>)>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let descriptors = fs::read_dir("/proc/self/fd").ok()?.count();
    // The second field is the program's name in parentheses and may contain spaces. After it, user
    // and system time are the 12th and 13th.
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|text| text.parse::<f64>().ok())
        .sum();
    let numbers: [(&'static Metric, f64); 5] = [
        (&PROCESS_CPU, ticks / TICKS_PER_SECOND),
        (&PROCESS_MEMORY, field(&status, "VmRSS:")? * 1024.0),
        (&PROCESS_THREADS, field(&status, "Threads:")?),
        (&PROCESS_FILES, f64::from(u32::try_from(descriptors).ok()?)),
        (&PROCESS_FILES_MAX, field(&limits, "Max open files")?),
    ];
    let samples = numbers.map(|(metric, number)| (metric, vec![Sample::plain(number)]));
    Some(samples.to_vec())
}

/// The first number of the line that begins with the name.
fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number = line.split_whitespace().next()?;
    if number == "unlimited" {
        Some(f64::INFINITY)
    } else {
        number.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposes_build_and_process() {
        let metrics = Metrics::new("1.2.3", "deliver");
        let text = metrics.render();
        assert!(
            text.contains("postrider_build_info{role=\"deliver\",version=\"1.2.3\"} 1\n"),
            "{text}"
        );
        if !cfg!(target_os = "linux") {
            return;
        }
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_threads",
            "process_open_fds",
            "process_max_fds",
        ] {
            let value = field(&text, &format!("{name} "));
            assert!(value.is_some_and(|value| value >= 0.0), "{name}: {text}");
        }
        assert!(field(&text, "process_resident_memory_bytes ").unwrap() > 100_000.0);
        assert!(field(&text, "process_open_fds ").unwrap() >= 3.0);
    }
}
