//! The generated code is committed, so that a build needs no compiler for protobuf; this keeps it
//! true to `proto/`.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at what it does not expect"
)]

use std::fs;
use std::path::Path;

const PROTOS: [&str; 5] = [
    "postrider/v1/audit.proto",
    "postrider/v1/delivery.proto",
    "postrider/v1/event.proto",
    "postrider/v1/lane_state.proto",
    "postrider/v1/registry.proto",
];

/// With `POSTRIDER_GENERATE=1` this writes the file instead of complaining.
#[test]
fn generated_code_is_what_the_protos_say() {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed_path = crate_root.join("src/wire/generated/postrider.v1.rs");
    let generated = generate(&crate_root.join("../../proto"));
    if std::env::var_os("POSTRIDER_GENERATE").is_some_and(|value| value == "1") {
        fs::write(&committed_path, &generated).unwrap();
    }
    let committed = fs::read_to_string(&committed_path).unwrap();
    assert!(
        committed == generated,
        "{} is out of date: run this test with POSTRIDER_GENERATE=1 and commit the file",
        committed_path.display()
    );
}

#[test]
fn every_proto_is_compiled() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/postrider/v1");
    let mut found: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            format!(
                "postrider/v1/{}",
                entry.unwrap().file_name().to_str().unwrap()
            )
        })
        .collect();
    found.sort();
    assert_eq!(found, PROTOS);
}

fn generate(proto_root: &Path) -> String {
    let descriptors = protox::compile(PROTOS, [proto_root]).unwrap();
    let mut config = prost_build::Config::new();
    // Payloads are shared, not copied; maps are ordered, so that equal values have equal bytes.
    config.bytes(["."]).btree_map(["."]);
    let requests = descriptors
        .file
        .into_iter()
        .map(|file| {
            (
                prost_build::Module::from_protobuf_package_name(file.package()),
                file,
            )
        })
        .collect();
    let files = config.generate(requests).unwrap();
    // Everything is in one package, and so in one file.
    let [code] = files.into_values().collect::<Vec<_>>().try_into().unwrap();
    format!("// Generated from proto/postrider/v1 by tests/generated.rs; do not edit.\n{code}")
}
