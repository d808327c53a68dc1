//! What the documentation says the program does.

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

#[test]
fn the_program_knows_the_commands_of_operations_and_runbooks() {
    let docs = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs"));
    let runbooks = std::fs::read_dir(docs.join("runbooks")).unwrap();
    let mut pages = vec![docs.join("operations.md")];
    pages.extend(runbooks.map(|page| page.unwrap().path()));
    let mut known = 0;
    for path in pages {
        for command in commands(&std::fs::read_to_string(&path).unwrap()) {
            // With --help at its end a command is understood and not carried out.
            let understood = Command::new(env!("CARGO_BIN_EXE_postrider"))
                .args(command.replace('…', "1").split_whitespace().skip(1))
                .arg("--help")
                .env_clear()
                .output()
                .unwrap();
            assert!(
                understood.status.success(),
                "{}: {command}\n{understood:?}",
                path.display()
            );
            known += 1;
        }
    }
    assert!(known > 30, "only {known} commands found");
}
