use std::io::Write;

use crate::support::{postrider, run, stderr, stdout};

#[test]
fn check_config_prints_what_is_understood_without_secrets() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "[kafka]\nbootstrap.servers = \"broker:9092\"\nsasl.password = \"hush\"\n[ingest]\noperator_key = \"0123456789abcdefgh\"").unwrap();
    let output = postrider(&[
        "ingest",
        "--check-config",
        "--listen",
        "127.0.0.1:7000",
        "--config",
    ])
    .arg(file.path())
    .env("POSTRIDER_TOPICS__PARTITIONS", "24")
    .output()
    .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = stdout(&output);
    assert!(
        shown.contains("broker:9092")
            && shown.contains("partitions = 24")
            && shown.contains("127.0.0.1:7000"),
        "{shown}"
    );
    assert!(
        !shown.contains("hush") && !shown.contains("0123456789abcdefgh"),
        "{shown}"
    );
}

#[test]
fn a_wrong_configuration_is_named_and_exits_2() {
    for (name, value, said) in [
        ("POSTRIDER_TOPICS__PARTITION", "3", "`partitions`"),
        ("POSTRIDER_TOPICS__PARTITIONS", "many", "topics.partitions"),
        (
            "POSTRIDER_EGRESS__ALLOW_CIDRS",
            "everywhere",
            "egress.allow_cidrs",
        ),
        ("POSTRIDER_KEYS__ENCRYPTION", "short", "keys.encryption"),
    ] {
        let output = postrider(&["--check-config"])
            .env(name, value)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(
            stderr(&output).contains(said),
            "{name}: {}",
            stderr(&output)
        );
    }
    let missing = run(&["--check-config", "--config", "/nowhere/postrider.toml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        stderr(&missing).contains("/nowhere/postrider.toml"),
        "{}",
        stderr(&missing)
    );
}

#[test]
fn a_wrong_command_line_exits_2() {
    for arguments in [
        &["fly"][..],
        &[],
        &["event", "publish", "--tenant", "a"],
        &["up", "--for", "soon"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}
