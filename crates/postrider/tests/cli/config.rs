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

/// A variable, what it is set to, and a part of what is said of it.
const WRONG: &[(&str, &str, &str)] = &[
    ("POSTRIDER_TOPICS__PARTITION", "3", "`partitions`"),
    ("POSTRIDER_TOPICS__PARTITIONS", "many", "topics.partitions"),
    (
        "POSTRIDER_EGRESS__ALLOW_CIDRS",
        "everywhere",
        "egress.allow_cidrs",
    ),
    ("POSTRIDER_KEYS__ENCRYPTION", "short", "keys.encryption"),
    ("POSTRIDER_KAFKA__SASL_PASSWORT", "hunter2", "sasl.passwort"),
    ("POSTRIDER_KAFKA__ACKS", "1", "acks must be all"),
    (
        "POSTRIDER_KAFKA__SOCKET_TIMEOUT_MS",
        "-7",
        "socket.timeout.ms",
    ),
    (
        "POSTRIDER_INGEST__OPERATOR_KEY",
        "hunter2",
        "ingest.operator_key",
    ),
    (
        "POSTRIDER_DELIVERY__DELIVER__LEASE_MS",
        "45000",
        "session.timeout.ms",
    ),
    (
        "POSTRIDER_INGEST_EVENT_BYTES_MAX",
        "1000",
        "POSTRIDER_INGEST__EVENT_BYTES_MAX",
    ),
    (
        "POSTRIDER_CONFGI",
        "/etc/postrider.toml",
        "did you mean `POSTRIDER_CONFIG`?",
    ),
    (
        "POSTRIDER_TELEMETRY__LOG",
        "foo=bar",
        "telemetry.log is not understood",
    ),
    (
        "POSTRIDER_TELEMETRY__LOG",
        "verbose",
        "telemetry.log is not understood",
    ),
    (
        "POSTRIDER_TELEMETRY__OTLP_ENDPOINT",
        "nonsense",
        "telemetry.otlp_endpoint",
    ),
    (
        "POSTRIDER_KAFKA__BOOTSTRAP_SERVERS",
        "broker:abc",
        "`broker:abc`",
    ),
    ("POSTRIDER_KAFKA__BOOTSTRAP_SERVERS", "", "host:port"),
];

#[test]
fn a_wrong_configuration_is_named_and_exits_2() {
    for &(name, value, said) in WRONG {
        let output = postrider(&["deliver", "--check-config"])
            .env("POSTRIDER_KAFKA__BOOTSTRAP_SERVERS", "broker:9092")
            .env(name, value)
            .output()
            .unwrap();
        assert!(!stderr(&output).contains("hunter2"), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(
            stderr(&output).contains(said),
            "{name}: {}",
            stderr(&output)
        );
    }
    for role in ["ingest", "deliver", "exporter"] {
        let nowhere = run(&[role, "--check-config"]);
        assert_eq!(nowhere.status.code(), Some(2), "{role}");
        let said = stderr(&nowhere);
        assert!(said.contains("bootstrap.servers is missing"), "{said}");
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
fn variables_of_kubernetes_and_of_the_command_line_are_no_configuration() {
    let output = postrider(&["--check-config"])
        .envs([
            ("POSTRIDER_SERVICE_HOST", "10.0.0.1"),
            ("POSTRIDER_PORT", "tcp://10.0.0.1:8080"),
            ("POSTRIDER_INGEST_SERVICE_PORT_HTTP", "8080"),
            ("POSTRIDER_INGEST_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("POSTRIDER_URL", "http://localhost:8080"),
            ("POSTRIDER_API_KEY", "0123456789abcdefgh"),
            ("POSTRIDER_TENANT", "acme"),
            ("POSTRIDER_CHECK_URL", "https://example.com"),
            (
                "POSTRIDER_TELEMETRY__OTLP_ENDPOINT",
                "http://user:hunter2@localhost:4318/v1",
            ),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = stdout(&output);
    assert!(shown.contains("http://***@localhost:4318/v1"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
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
