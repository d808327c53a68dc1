//! The direction of dependencies is as ARCHITECTURE.md says: what a crate must not know, it cannot
//! name.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What each of our crates stands on directly, with the features it asks for, those for its tests
/// aside.
type Dependencies = BTreeMap<String, BTreeSet<String>>;

/// What a crate must not know, neither directly nor through another of ours.
const FORBIDDEN: [(&str, &[&str]); 8] = [
    (
        "postrider-model",
        &[
            "tokio",
            "rdkafka",
            "rusqlite",
            "reqwest",
            "axum",
            "hyper",
            "postrider-log",
        ],
    ),
    (
        "postrider-log",
        &[
            "postrider-model",
            "postrider-registry",
            "prost",
            "axum",
            "reqwest",
            "serde_json",
        ],
    ),
    (
        "postrider-registry",
        &["axum", "hyper", "reqwest", "postrider-daemon"],
    ),
    (
        "postrider-daemon",
        &[
            "postrider-model",
            "postrider-log",
            "postrider-registry",
            "rdkafka",
        ],
    ),
    ("postrider-ingest", &["postrider-delivery", "reqwest"]),
    (
        "postrider-delivery",
        &["postrider-ingest", "axum", "reqwest"],
    ),
    (
        "postrider-exporter",
        &["postrider-ingest", "postrider-delivery", "axum", "reqwest"],
    ),
    (
        "postrider-tests",
        &[
            "postrider-model",
            "postrider-log",
            "postrider-registry",
            "postrider",
        ],
    ),
];

fn dependencies() -> Dependencies {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--locked",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let needed = package["dependencies"].as_array().unwrap().iter();
            let needed = needed.filter(|dependency| dependency["kind"].is_null());
            (
                package["name"].as_str().unwrap().to_owned(),
                needed.flat_map(named).collect(),
            )
        });
    packages.collect()
}

/// A dependency's name, and each feature that is asked of it as `name/feature`.
fn named(dependency: &Value) -> Vec<String> {
    let name = dependency["name"].as_str().unwrap();
    let features = dependency["features"].as_array().unwrap().iter();
    let features = features.map(|feature| format!("{name}/{}", feature.as_str().unwrap()));
    features.chain([name.to_owned()]).collect()
}

/// Everything that a crate names, and that those of ours name which it names.
fn known_to(name: &str, dependencies: &Dependencies, known: &mut BTreeSet<String>) {
    for dependency in dependencies.get(name).into_iter().flatten() {
        if known.insert(dependency.clone()) {
            known_to(dependency, dependencies, known);
        }
    }
}

#[test]
fn no_crate_knows_what_it_must_not() {
    let dependencies = dependencies();
    for (name, forbidden) in FORBIDDEN {
        assert!(dependencies.contains_key(name), "there is no {name}");
        // Through another of ours only our own crates count: what a crate hides, it may use.
        let direct = &dependencies[name];
        let mut known = BTreeSet::new();
        known_to(name, &dependencies, &mut known);
        known.retain(|dependency| dependency.starts_with("postrider"));
        known.extend(direct.iter().cloned());
        let wrong: Vec<_> = forbidden
            .iter()
            .filter(|dependency| known.contains(**dependency))
            .collect();
        assert!(wrong.is_empty(), "{name} must not know {wrong:?}");
    }
}

#[test]
fn what_only_tests_use_is_in_no_binary() {
    for (name, needed) in dependencies() {
        for feature in ["postrider-log/memory", "postrider-model/fixtures"] {
            assert!(!needed.contains(feature), "{name} has {feature}");
        }
    }
}

#[test]
fn every_crate_of_ours_is_named_after_its_folder() {
    for name in dependencies().keys() {
        let folder = name.strip_prefix("postrider-").unwrap_or(name);
        let crates = format!("{}/../crates/{folder}", env!("CARGO_MANIFEST_DIR"));
        assert!(
            ["bench", "tests"].contains(&folder) || std::path::Path::new(&crates).is_dir(),
            "{name}"
        );
    }
}
