//! Telemetry of a whole process: this program started again as a child, whose standard error is no
//! terminal.

use std::env;
use std::process::Command;
use std::thread;

use postrider_daemon::telemetry::{self, TelemetryConfig, TelemetryError};
use serde_json::Value;

const CHILD: &str = "TELEMETRY_TEST_CHILD";

#[test]
fn child() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    let config = TelemetryConfig::default();
    let _guard = telemetry::init(&config, "test", "0").unwrap();
    telemetry::install_crypto();
    telemetry::install_crypto();
    tracing::info!(number = 7, "ready");
    tracing::debug!("not shown at this level");
    let thread = thread::spawn(|| panic!("on purpose"));
    assert!(thread.join().is_err());
    let twice = telemetry::init(&config, "test", "0").unwrap_err();
    assert!(matches!(twice, TelemetryError::Twice));
}

#[test]
fn everything_on_standard_error_is_json_even_panics() {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0]["message"], "ready");
    assert_eq!(lines[0]["number"], 7);
    assert_eq!(lines[1]["message"], "panicked");
    assert_eq!(lines[1]["level"], "ERROR");
    assert_eq!(lines[1]["panic"], "on purpose");
    assert!(
        lines[1]["location"]
            .as_str()
            .unwrap()
            .contains("telemetry.rs:")
    );
}
