use std::collections::BTreeMap;
use std::io::Write;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Secret, load, render};

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    ingest: Ingest,
    kafka: BTreeMap<String, String>,
    egress: Egress,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Ingest {
    listen: String,
    body_bytes_max: u32,
    offset: i16,
    ratio: f64,
    strict: bool,
    key: Secret,
    label: Option<String>,
    mode: Mode,
}

impl Default for Ingest {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            body_bytes_max: 1000,
            offset: 0,
            ratio: 0.5,
            strict: true,
            key: Secret::default(),
            label: None,
            mode: Mode::Fast,
        }
    }
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Egress {
    allow_cidrs: Vec<String>,
    ports: Vec<u16>,
    deep: Deep,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Deep {
    #[serde(rename = "retries")]
    retry_count: u8,
    properties: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Fast,
    Safe,
}

fn try_load(file: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut written = tempfile::Builder::new()
        .prefix("config-")
        .tempfile()
        .unwrap();
    written.write_all(file.as_bytes()).unwrap();
    let variables = environment
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()));
    load(
        Some(written.path()),
        variables,
        "POSTRIDER",
        &["kafka", "egress.deep.properties"],
    )
}

fn refusal(file: &str, environment: &[(&str, &str)]) -> String {
    try_load(file, environment).unwrap_err().to_string()
}

#[test]
fn takes_defaults_then_file_then_environment() {
    let nothing: Config = load(None, std::iter::empty(), "POSTRIDER", &[]).unwrap();
    assert_eq!(nothing, Config::default());

    let config = try_load(
        "[ingest]\nlisten = \"file\"\nbody_bytes_max = 5\n",
        &[
            ("POSTRIDER_INGEST__LISTEN", "variable"),
            ("POSTRIDER_URL", "http://not-config"),
            ("POSTRIDER_", "not config"),
            ("POSTRIDERS_INGEST__LISTEN", "of another program"),
            ("INGEST__LISTEN", "without prefix"),
        ],
    )
    .unwrap();
    assert_eq!(config.ingest.listen, "variable");
    assert_eq!(config.ingest.body_bytes_max, 5);
    assert!(config.ingest.strict);
}

#[test]
fn reads_variables_as_the_type_asks() {
    let config = try_load(
        "",
        &[
            ("POSTRIDER_INGEST__LISTEN", "0123"),
            ("POSTRIDER_INGEST__LABEL", "true"),
            ("POSTRIDER_INGEST__BODY_BYTES_MAX", "77"),
            ("POSTRIDER_INGEST__OFFSET", "-3"),
            ("POSTRIDER_INGEST__RATIO", "1"),
            ("POSTRIDER_INGEST__STRICT", "false"),
            ("POSTRIDER_INGEST__MODE", "safe"),
            (
                "POSTRIDER_EGRESS__ALLOW_CIDRS",
                "10.0.0.0/8, 192.168.0.0/16",
            ),
            ("POSTRIDER_EGRESS__PORTS", "[80, 443]"),
            ("POSTRIDER_EGRESS__DEEP__RETRIES", "9"),
        ],
    )
    .unwrap();
    assert_eq!(config.ingest.listen, "0123");
    assert_eq!(config.ingest.label.as_deref(), Some("true"));
    assert_eq!(config.ingest.body_bytes_max, 77);
    assert_eq!(config.ingest.offset, -3);
    assert!((config.ingest.ratio - 1.0).abs() < f64::EPSILON);
    assert!(!config.ingest.strict);
    assert_eq!(config.ingest.mode, Mode::Safe);
    assert_eq!(config.egress.allow_cidrs, ["10.0.0.0/8", "192.168.0.0/16"]);
    assert_eq!(config.egress.ports, [80, 443]);
    assert_eq!(config.egress.deep.retry_count, 9);

    let config = try_load(
        "[egress]\nallow_cidrs = [\"::/0\"]\n",
        &[
            ("POSTRIDER_EGRESS__ALLOW_CIDRS", ""),
            ("POSTRIDER_EGRESS__PORTS", "80,443"),
        ],
    )
    .unwrap();
    assert!(config.egress.allow_cidrs.is_empty());
    assert_eq!(config.egress.ports, [80, 443]);
}

#[test]
fn dots_come_from_underscores_in_dotted_sections() {
    let config = try_load(
        "[kafka]\n\"bootstrap.servers\" = \"file:9092\"\nlinger.ms = 5\nssl.enabled = true\n",
        &[
            ("POSTRIDER_KAFKA__BOOTSTRAP_SERVERS", "variable:9092"),
            ("POSTRIDER_KAFKA__SASL_PASSWORD", "0123"),
            ("POSTRIDER_EGRESS__DEEP__PROPERTIES__A_B", "c"),
        ],
    )
    .unwrap();
    let properties: Vec<_> = config
        .kafka
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        properties,
        [
            ("bootstrap.servers", "variable:9092"),
            ("linger.ms", "5"),
            ("sasl.password", "0123"),
            ("ssl.enabled", "true"),
        ]
    );
    assert_eq!(config.egress.deep.properties["a.b"], "c");
}

#[test]
fn refuses_unknown_keys_and_names_the_near_ones() {
    let text = refusal("[ingest]\nlissten = 1\n", &[]);
    assert!(
        text.starts_with("unknown key `ingest.lissten` in "),
        "{text}"
    );
    assert!(text.contains("config-"), "{text}");
    assert!(
        text.contains("did you mean `listen`? known here: listen, body_bytes_max"),
        "{text}"
    );

    let text = refusal("", &[("POSTRIDER_EGRESS__DEEP__RETRY", "1")]);
    assert!(
        text.contains("`egress.deep.retry` in variable POSTRIDER_EGRESS__DEEP__RETRY"),
        "{text}"
    );
    assert!(text.contains("did you mean `retries`?"), "{text}");

    let text = refusal("[elsewhere]\n", &[]);
    assert!(
        text.ends_with("; known here: ingest, kafka, egress"),
        "{text}"
    );
}

#[test]
fn refuses_values_of_the_wrong_type() {
    for (file, variable, expected) in [
        (
            "[ingest]\nlisten = 5\n",
            None,
            "invalid type: integer `5`, expected a string",
        ),
        ("[ingest]\nstrict = \"no\"\n", None, "`ingest.strict` in "),
        (
            "[ingest]\nbody_bytes_max = -1\n",
            None,
            "invalid value: integer `-1`, expected u32",
        ),
        (
            "[egress]\nports = [80, 70000]\n",
            None,
            "`egress.ports.1` in ",
        ),
        ("ingest = 5\n", None, "`ingest` in "),
        (
            "[ingest]\nmode = \"slow\"\n",
            None,
            "unknown variant `slow`, expected `fast` or `safe`",
        ),
        (
            "",
            Some(("POSTRIDER_INGEST__BODY_BYTES_MAX", "many")),
            "`ingest.body_bytes_max` in variable POSTRIDER_INGEST__BODY_BYTES_MAX: \
             `many` is not a whole number from 0",
        ),
        (
            "",
            Some(("POSTRIDER_INGEST__OFFSET", "40000")),
            "invalid value: integer `40000`",
        ),
        (
            "",
            Some(("POSTRIDER_EGRESS__PORTS", "80,x")),
            "`egress.ports.1` in variable",
        ),
        (
            "",
            Some(("POSTRIDER_EGRESS__PORTS", "[80")),
            "no TOML array",
        ),
        (
            "",
            Some(("POSTRIDER_INGEST__", "x")),
            "a level of the name is empty",
        ),
        (
            "[ingest]\nlisten = \"a\"\n",
            Some(("POSTRIDER_INGEST__LISTEN__X", "b")),
            "has a value already",
        ),
    ] {
        let text = refusal(file, variable.as_slice());
        assert!(text.contains(expected), "{file}{variable:?}: {text}");
    }
}

#[test]
fn says_the_line_of_a_syntax_error_but_does_not_show_it() {
    let text = refusal("[ingest]\n\nkey = hunter2\n", &[]);
    assert!(text.contains(": line 3: "), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn reads_secrets_and_never_shows_them() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"from a file\n").unwrap();
    let path = file.path().to_str().unwrap();

    let plain = try_load("[ingest]\nkey = \"hunter2\"\n", &[]).unwrap();
    assert_eq!(plain.ingest.key.expose(), "hunter2");
    let numeric = try_load("", &[("POSTRIDER_INGEST__KEY", "0123")]).unwrap();
    assert_eq!(numeric.ingest.key.expose(), "0123");
    let by_file = try_load(&format!("[ingest]\nkey = {{ file = '{path}' }}\n"), &[]).unwrap();
    assert_eq!(by_file.ingest.key.expose(), "from a file");
    let by_variable = try_load("", &[("POSTRIDER_INGEST__KEY__FILE", path)]).unwrap();
    assert_eq!(by_variable.ingest.key.expose(), "from a file");

    assert!(!format!("{plain:?}").contains("hunter2"));
    assert!(
        render(&plain).contains("key = \"***\""),
        "{}",
        render(&plain)
    );
    for wrong in [
        "key = 4711",
        "key = { fill = '4711' }",
        "key = { file = '/nowhere', x = '4711' }",
    ] {
        let text = refusal(&format!("[ingest]\n{wrong}\n"), &[]);
        assert!(text.contains("`ingest.key"), "{text}");
        assert!(!text.contains("4711"), "{text}");
    }
    let text = refusal("[ingest]\nkey = { file = '/nowhere' }\n", &[]);
    assert!(text.contains("cannot read the file /nowhere"), "{text}");
}

#[test]
fn renders_what_it_would_read_back() {
    let config = try_load("[kafka]\na.b = 1\n[egress]\nports = [1]\n", &[]).unwrap();
    let again = try_load(&render(&config), &[]).unwrap();
    assert_eq!(config, again);
}

#[test]
fn names_a_file_that_is_not_there() {
    let result = load::<Config>(
        Some("/nowhere/postrider.toml".as_ref()),
        std::iter::empty(),
        "P",
        &[],
    );
    assert_eq!(
        result.unwrap_err().to_string(),
        "cannot read /nowhere/postrider.toml"
    );
}
