//! Dashboards, rules and runbooks name only what exists: metrics and labels of the catalogue,
//! recorded series that a rule records, a page for each alert.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use postrider_daemon::metrics::catalogue::{ALL, Kind};

/// What Prometheus adds to every series, and `le` of histograms.
const LABELS_OF_PROMETHEUS: [&str; 5] = ["job", "instance", "namespace", "pod", "le"];

fn at_root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// The files of a folder with this ending, with their text.
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(at_root(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .filter(|path| path.to_str().unwrap().ends_with(ending))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            // Quotes of queries are escaped in JSON.
            (
                name,
                fs::read_to_string(path).unwrap().replace("\\\"", "\""),
            )
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} has no *{ending}");
    files
}

fn everything() -> Vec<(String, String)> {
    let mut all = files("deploy/prometheus", ".rules.yaml");
    all.extend(files("deploy/grafana", ".json"));
    all.extend(files("docs/runbooks", ".md"));
    all
}

/// The labels of every series that the metrics make.
fn series() -> BTreeMap<String, &'static [&'static str]> {
    let mut series = BTreeMap::new();
    for metric in ALL {
        if metric.kind == Kind::Histogram {
            for part in ["_bucket", "_sum", "_count"] {
                series.insert(format!("{}{part}", metric.name), metric.labels);
            }
        } else {
            series.insert(metric.name.to_owned(), metric.labels);
        }
    }
    series
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'
}

/// Each word that may be the name of a series, with what follows it.
fn names(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let ours = |name: &str| {
        name.starts_with("postrider_")
            || name.starts_with("process_")
            || name.contains(":postrider_")
    };
    text.match_indices(is_of_a_name)
        .filter(|(start, _)| !text[..*start].ends_with(is_of_a_name))
        .map(|(start, _)| {
            let rest = &text[start..];
            rest.split_at(
                rest.find(|letter| !is_of_a_name(letter))
                    .unwrap_or(rest.len()),
            )
        })
        .filter(move |(name, _)| ours(name))
}

/// The labels that the matchers after a name ask for.
fn matched_labels(after: &str) -> Vec<&str> {
    let Some(matchers) = after.strip_prefix('{') else {
        return Vec::new();
    };
    // Every second piece is a value, whatever is in it.
    let around_values = matchers.split('"').step_by(2);
    around_values
        .take_while(|piece| !piece.contains('}'))
        .map(|piece| {
            let label = piece.trim_start_matches([',', ' ']);
            label.trim_end_matches(['=', '~', '!'])
        })
        .collect()
}

#[test]
fn dashboards_rules_and_runbooks_name_only_metrics_of_the_catalogue() {
    let series = series();
    let recorded: BTreeSet<String> = files("deploy/prometheus", ".rules.yaml")
        .iter()
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .map(str::to_owned)
        .collect();
    let mut seen = BTreeSet::new();
    for (file, text) in everything() {
        for (name, after) in names(&text) {
            if recorded.contains(name) {
                continue;
            }
            let Some(labels) = series.get(name) else {
                panic!("{file}: {name} is in no catalogue and recorded by no rule");
            };
            seen.insert(name.to_owned());
            for label in matched_labels(after) {
                let known = labels.contains(&label) || LABELS_OF_PROMETHEUS.contains(&label);
                assert!(known, "{file}: {name} has no label {label}");
            }
        }
    }
    assert!(seen.len() > 50, "only {seen:?} found");
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let mut alerts = BTreeSet::new();
    for (file, text) in files("deploy/prometheus", ".rules.yaml") {
        for alert in text.split("- alert: ").skip(1) {
            let name = alert.lines().next().unwrap();
            let url = format!("runbook_url: docs/runbooks/{name}.md\n");
            assert!(alert.contains(&url), "{file}: {name} lacks its {url}");
            alerts.insert(format!("{name}.md"));
        }
    }
    let runbooks = files("docs/runbooks", ".md");
    for (name, text) in &runbooks {
        let headings = ["## What it means", "## What to look at", "## What to do"];
        for heading in headings {
            assert!(text.contains(heading), "{name} does not say {heading:?}");
        }
    }
    let pages: BTreeSet<String> = runbooks.into_iter().map(|(name, _)| name).collect();
    assert_eq!(pages, alerts);
    for (file, text) in files("deploy/grafana", ".json") {
        for link in text.split("${runbooks}/Postrider").skip(1) {
            let page = format!("Postrider{}.md", link.split(".md").next().unwrap());
            assert!(pages.contains(&page), "{file} links {page}");
        }
    }
}

#[test]
fn names_and_labels_are_found_in_queries() {
    let text = r#"max by (job) (rate(a_b{x="y"}[5m])) - postrider_a{job=~"$job", use!="{free}"} + job:postrider_b:c"#;
    let found: Vec<_> = names(text)
        .map(|(name, after)| (name, matched_labels(after)))
        .collect();
    let expected = [
        ("postrider_a", vec!["job", "use"]),
        ("job:postrider_b:c", vec![]),
    ];
    assert_eq!(found, expected);
}
