//! The process's metrics.

use std::fmt;
use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntGauge, Opts, Registry, TextEncoder};

/// Kernel ticks per second in `/proc`: Linux fixes it to 100 for user space on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;
/// Content type of the text exposition format.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The registry that every metric of the process is in. Cloning it is cheap and gives the same registry.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A registry with `postrider_build_info` and, on Linux, what the kernel knows of this process.
    ///
    /// # Panics
    /// When `labels` has a name that Prometheus does not allow.
    pub fn new(version: &str, labels: &[(&str, &str)]) -> Self {
        let registry = Registry::new();
        let mut options = Opts::new("postrider_build_info", "What is running; always 1.")
            .const_label("version", version);
        for (name, value) in labels {
            options = options.const_label(*name, *value);
        }
        let build_info = IntGauge::with_opts(options).expect("the labels are well-formed");
        build_info.set(1);
        registry
            .register(Box::new(build_info))
            .expect("the registry is empty");
        registry
            .register(Box::new(ProcessCollector::new()))
            .expect("the names are its own");
        Self { registry }
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

/// Reads `/proc/self` when asked. Where that does not exist there are no such metrics.
struct ProcessCollector {
    cpu: Counter,
    resident: Gauge,
    threads: Gauge,
    open_files: Gauge,
    open_files_max: Gauge,
}

impl ProcessCollector {
    fn new() -> Self {
        let gauge = |name: &str, help: &str| {
            Gauge::with_opts(Opts::new(name, help)).expect("the name is well-formed")
        };
        let cpu = Opts::new("process_cpu_seconds_total", "CPU time used, in seconds.");
        Self {
            cpu: Counter::with_opts(cpu).expect("the name is well-formed"),
            resident: gauge("process_resident_memory_bytes", "Memory in use, in bytes."),
            threads: gauge("process_threads", "Number of threads."),
            open_files: gauge("process_open_fds", "Number of open file descriptors."),
            open_files_max: gauge("process_max_fds", "Limit of open file descriptors."),
        }
    }

    /// Reads what the kernel knows; `None` where it does not say.
    fn update(&self) -> Option<()> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        self.resident.set(field(&status, "VmRSS:")? * 1024.0);
        self.threads.set(field(&status, "Threads:")?);
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        self.open_files_max.set(field(&limits, "Max open files")?);
        let descriptors = fs::read_dir("/proc/self/fd").ok()?.count();
        self.open_files
            .set(f64::from(u32::try_from(descriptors).ok()?));

        // The second field is the program's name in parentheses and may contain spaces. After it, user and system
        // time are the 12th and 13th.
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        let ticks: f64 = after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|text| text.parse::<f64>().ok())
            .sum();
        self.cpu
            .inc_by((ticks / TICKS_PER_SECOND - self.cpu.get()).max(0.0));
        Some(())
    }
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

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [
            &self.resident,
            &self.threads,
            &self.open_files,
            &self.open_files_max,
        ];
        gauges
            .into_iter()
            .flat_map(Collector::desc)
            .chain(self.cpu.desc())
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if self.update().is_none() {
            return Vec::new();
        }
        let gauges = [
            &self.resident,
            &self.threads,
            &self.open_files,
            &self.open_files_max,
        ];
        gauges
            .into_iter()
            .flat_map(Collector::collect)
            .chain(self.cpu.collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposes_build_and_process() {
        let metrics = Metrics::new("1.2.3", &[("log", "kafka")]);
        let text = metrics.render();
        assert!(
            text.contains("postrider_build_info{log=\"kafka\",version=\"1.2.3\"} 1\n"),
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
