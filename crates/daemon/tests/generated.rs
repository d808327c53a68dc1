//! The catalogue of metrics: its rules, and the page that is made of it.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use postrider_daemon::metrics::Metrics;
use postrider_daemon::metrics::catalogue::{ALL, Kind, Part, disagreements};

/// Labels whose values somebody chooses; the exporter shows only a few of them at a time.
const CAPPED_LABELS: [&str; 2] = ["tenant", "endpoint"];

#[test]
fn names_follow_the_rules_of_prometheus() {
    let mut names = BTreeSet::new();
    for metric in ALL {
        let name = metric.name;
        assert!(names.insert(name), "{name} is listed twice");
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(
            plain(name) && metric.labels.iter().all(|label| plain(label)),
            "{name}"
        );
        let prefix = if metric.part == Part::Process && name.starts_with("process_") {
            "process_"
        } else {
            "postrider_"
        };
        assert!(name.starts_with(prefix), "{name}");
        assert_eq!(
            metric.kind == Kind::Counter,
            name.ends_with("_total"),
            "{name}"
        );
        assert_eq!(
            metric.kind == Kind::Histogram,
            !metric.buckets.is_empty(),
            "{name}"
        );
        assert!(
            metric.buckets.is_sorted_by(|one, next| one < next),
            "{name}"
        );
        for unit in ["_ms", "_milliseconds", "_minutes", "_kb", "_mb", "_percent"] {
            assert!(!name.contains(unit), "{name} is not in a base unit");
        }
        assert!(
            !metric.help.is_empty() && !metric.help.ends_with('.'),
            "{name}"
        );
    }
}

#[test]
fn ids_are_labels_only_of_the_few_worst() {
    for metric in ALL {
        let capped = metric.name.contains("_worst_") || metric.name.contains("_busiest_");
        let has_ids = metric
            .labels
            .iter()
            .any(|label| CAPPED_LABELS.contains(label));
        assert_eq!(capped, has_ids, "{}", metric.name);
    }
}

#[test]
fn a_process_declares_what_the_catalogue_lists() {
    let metrics = Metrics::new("1", "test");
    assert_eq!(
        disagreements(metrics.registry(), &[Part::Process]),
        Vec::<&str>::new()
    );
}

/// With `POSTRIDER_GENERATE=1` this writes the page instead of complaining.
#[test]
fn the_page_lists_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let page = page();
    if std::env::var_os("POSTRIDER_GENERATE").is_some_and(|value| value == "1") {
        fs::write(&path, &page).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page,
        "{} is out of date: run this test with POSTRIDER_GENERATE=1 and commit the file",
        path.display()
    );
}

fn page() -> String {
    let mut page = include_str!("generated/head.md").to_owned();
    for part in Part::ALL {
        let (title, text) = described(part);
        let roles = part.roles().iter().map(|role| format!("`{role}`"));
        let roles = roles.collect::<Vec<_>>().join(", ");
        let up = if matches!(part, Part::Kafka | Part::Embedded) {
            ""
        } else {
            ", `up`"
        };
        write!(page, "\n## {title}\n\nShown by {roles}{up}. {text}\n\n").unwrap();
        page.push_str("| metric | type | labels | unit | tells |\n|---|---|---|---|---|\n");
        for metric in ALL.iter().filter(|metric| metric.part == part) {
            let labels = metric.labels.iter().map(|label| format!("`{label}`"));
            let labels = labels.collect::<Vec<_>>().join(", ");
            let (name, kind, unit, help) = (
                metric.name,
                metric.kind.as_str(),
                metric.unit(),
                metric.help,
            );
            writeln!(page, "| `{name}` | {kind} | {labels} | {unit} | {help} |").unwrap();
        }
    }
    page
}

fn described(part: Part) -> (&'static str, &'static str) {
    match part {
        Part::Exporter => (
            "The installation, from outside",
            "True whatever the other roles do, since it comes from the topics: alerts and dashboards of the whole stand on these.",
        ),
        Part::Ingest => ("The API", "What this process did since it started."),
        Part::Delivery => (
            "Fan-out, deliver, scheduler",
            "What this process did since it started, and what it holds.",
        ),
        Part::Registry => ("The view of the registry", "Every process has its own."),
        Part::Topics => ("The topics", "Every process looks for itself."),
        Part::Clock => ("The clock", "Of the machine that the process is on."),
        Part::Kafka => (
            "Kafka's clients",
            "From librdkafka's statistics, every 5 s unless `kafka.\"statistics.interval.ms\"` says otherwise (0: none). `client` is the name of a producer or group; those of one name are added up. Other clients tell nothing.",
        ),
        Part::Embedded => ("The embedded log", "What its writer met."),
        Part::Process => ("The process", "From `/proc`, where there is one."),
    }
}
