//! What the documentation says the program does.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn the_documented_defaults_are_the_defaults() {
    let program = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .arg("--check-config")
        .env_clear()
        .output()
        .unwrap();
    assert!(program.status.success(), "{program:?}");
    let defaults = String::from_utf8(program.stdout).unwrap();
    let page = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/configuration.md"
    ))
    .unwrap();
    let documented = page
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    assert_eq!(
        documented.trim(),
        defaults.trim(),
        "copy the right side into docs/configuration.md"
    );
}

#[test]
fn the_page_of_the_api_names_every_reason() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md")).unwrap();
    let (_, reasons) = page.split_once("Reasons of dead letters:").unwrap();
    let (reasons, _) = reasons.split_once("\n## ").unwrap();
    for reason in postrider_model::outcome::Reason::ALL {
        assert!(reasons.contains(&format!("`{reason}`")), "{reason}");
    }
}

/// What a snapshot of the chart, `deploy/helm/snapshots/*.yaml`, gives to the program.
struct Rendered {
    /// The configuration files, each as long as it is indented.
    configurations: Vec<String>,
    /// The variables of the environment that are configuration.
    variables: Vec<String>,
}

impl Rendered {
    fn read(snapshot: &str) -> Self {
        let mut configurations = Vec::new();
        let mut variables = Vec::new();
        let mut lines = snapshot.lines().peekable();
        while let Some(line) = lines.next() {
            if line == "  postrider.toml: |" {
                let mut text = String::new();
                while let Some(line) = lines.next_if(|line| line.starts_with("    ")) {
                    text.push_str(line.trim_start());
                    text.push('\n');
                }
                configurations.push(text);
            } else if let Some(name) = line.trim_start().strip_prefix("- name: POSTRIDER_")
                && name.contains("__")
            {
                variables.push(format!("POSTRIDER_{name}"));
            }
        }
        Self {
            configurations,
            variables,
        }
    }
}

#[test]
fn the_program_understands_what_the_chart_writes() {
    let scratch = tempfile::tempdir().unwrap();
    let generate = |kind: &str| {
        let made = Command::new(env!("CARGO_BIN_EXE_postrider"))
            .args(["key", "generate", kind])
            .output()
            .unwrap();
        let file = scratch.path().join(kind);
        std::fs::write(&file, made.stdout).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (operator, encryption) = (generate("operator"), generate("encryption"));
    let value_of = |variable: &str| match variable {
        "POSTRIDER_INGEST__OPERATOR_KEY__FILE" => operator.clone(),
        "POSTRIDER_KEYS__ENCRYPTION__FILE" => encryption.clone(),
        "POSTRIDER_DELIVERY__DELIVER__ADVERTISED_ADDRESS" => "10.0.0.1".to_owned(),
        "POSTRIDER_MEMORY__LIMIT_BYTES" => (1536 << 20).to_string(),
        _ => "debug".to_owned(),
    };
    let snapshots = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm/snapshots");
    let mut understood = 0;
    for snapshot in std::fs::read_dir(snapshots).unwrap() {
        let path = snapshot.unwrap().path();
        let rendered = Rendered::read(&std::fs::read_to_string(&path).unwrap());
        for configuration in &rendered.configurations {
            let file = scratch.path().join("postrider.toml");
            std::fs::write(&file, configuration).unwrap();
            let checked = Command::new(env!("CARGO_BIN_EXE_postrider"))
                .arg("--check-config")
                .env_clear()
                .env("POSTRIDER_CONFIG", &file)
                .envs(rendered.variables.iter().map(|name| (name, value_of(name))))
                .output()
                .unwrap();
            assert!(
                checked.status.success(),
                "{}: {configuration}\n{checked:?}",
                path.display()
            );
            understood += 1;
        }
    }
    assert!(understood >= 5, "only {understood} configurations found");
}

/// The commands of a page: lines of its shell blocks, and pieces of text in code.
fn commands(page: &str) -> Vec<String> {
    let inline = page.split('`').skip(1).step_by(2);
    let lines = page.lines().map(|line| line.trim_start_matches("$ "));
    let mut commands: Vec<String> = lines
        .chain(inline)
        .filter(|text| text.starts_with("postrider ") && !text.contains('`'))
        .map(str::to_owned)
        .collect();
    commands.sort();
    commands.dedup();
    commands
}

/// The words of a command up to where the shell goes on with something else. What is left out
/// counts as a word.
fn words(command: &str) -> Vec<String> {
    let command = command.split(" # ").next().unwrap_or_default();
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in command.chars() {
        match letter {
            '\'' => quoted = !quoted,
            '|' | '&' | '>' | '<' | ';' if !quoted => break,
            ' ' | '\n' if !quoted => words.push(String::new()),
            letter => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
        .into_iter()
        .map(|word| word.replace('…', "1"))
        .collect()
}

/// Every page that tells somebody what to do, by its path.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let folders = [
        "",
        "docs",
        "docs/runbooks",
        "docs/decisions",
        "deploy",
        "deploy/helm/postrider",
    ];
    let files = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap())
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        // It speaks of what there is no more, too.
        .filter(|path| !path.ends_with("CHANGELOG.md"));
    files
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn the_program_knows_the_commands_of_every_page() {
    let (mut known, mut unknown) = (0, Vec::new());
    for (path, page) in pages() {
        for command in commands(&page) {
            // With --help at its end a command is understood and not carried out.
            let understood = Command::new(env!("CARGO_BIN_EXE_postrider"))
                .args(words(&command).into_iter().skip(1))
                .arg("--help")
                .env_clear()
                .output()
                .unwrap();
            if !understood.status.success() {
                unknown.push(format!("{}: {command}", path.display()));
            }
            known += 1;
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(known > 60, "only {known} commands found");
}

/// Keys that have no default, and so are not among those that `--check-config` shows.
const WITHOUT_DEFAULT: [&str; 9] = [
    "api.listen",
    "health.listen",
    "ingest.operator_key",
    "keys.encryption",
    "memory.limit_bytes",
    "telemetry.otlp_endpoint",
    "delivery.deliver.advertised_address",
    "kafka.bootstrap",
    "kafka.properties",
];

#[test]
fn the_program_knows_the_configuration_keys_of_every_page() {
    let program = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .arg("--check-config")
        .env_clear()
        .output()
        .unwrap();
    let mut keys: BTreeSet<String> = WITHOUT_DEFAULT.map(str::to_owned).into();
    let mut section = String::new();
    for line in String::from_utf8(program.stdout).unwrap().lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name.to_owned();
            keys.insert(section.clone());
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.insert(format!("{section}.{key}"));
        }
    }
    // What librdkafka takes is not ours to list, and the exporter's metrics are no keys.
    let sections: BTreeSet<String> = keys
        .iter()
        .filter_map(|key| key.split_once('.'))
        .map(|(section, _)| section.to_owned())
        .filter(|section| section != "kafka")
        .collect();
    let is_key = |text: &str| {
        let plain = text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.'));
        plain
            && text
                .split_once('.')
                .is_some_and(|(section, _)| sections.contains(section))
    };
    let (mut known, mut unknown) = (0, Vec::new());
    // The chart's values are its own, and what ends in `.ms` is a property of librdkafka.
    let of_program = pages()
        .into_iter()
        .filter(|(path, _)| !path.iter().any(|part| part == "deploy"));
    for (path, page) in of_program {
        for text in page
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|text| is_key(text))
        {
            let is_other = [".rs", ".md", ".toml", ".yaml", ".ms"]
                .iter()
                .any(|end| text.ends_with(end));
            if !is_other && !keys.contains(text) {
                unknown.push(format!("{}: {text}", path.display()));
            }
            known += 1;
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(known > 60, "only {known} keys found");
}
