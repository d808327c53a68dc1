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
