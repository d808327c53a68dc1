//! `postrider check`: silent about a sound environment, and one line with what to do for each thing
//! that is wrong.

use std::process::Output;
use std::sync::OnceLock;

use postrider_tests::{Cluster, KafkaBroker, LogKind, Plan, Receiver};
use serde_json::{Value, json};

use crate::topic_log::delete_topic;

/// Well-formed, and not the one that the secrets were sealed with.
const OTHER_KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

mod environments {
    use super::*;
    on_kafka!(
        a_sound_environment_has_no_error,
        what_is_wrong_is_named_with_what_to_do,
        without_a_broker_it_says_so_and_looks_at_the_rest,
        a_right_that_is_missing_is_named,
    );
}

/// Findings of one run, and whether it succeeded.
struct Checked {
    findings: Vec<Value>,
    success: bool,
}

impl Checked {
    fn of(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&said)
            .unwrap_or_else(|error| panic!("{error}: {said} {output:?}"));
        Self {
            findings: answer["data"].as_array().unwrap().clone(),
            success: output.status.success(),
        }
    }

    fn levels(&self, check: &str, subject: &str) -> Vec<&str> {
        let chosen = self.chosen(check, subject).into_iter();
        chosen
            .map(|finding| finding["level"].as_str().unwrap())
            .collect()
    }

    fn chosen(&self, check: &str, subject: &str) -> Vec<&Value> {
        let wanted = |finding: &&Value| {
            finding["check"] == check && finding["subject"].as_str().unwrap().ends_with(subject)
        };
        self.findings.iter().filter(wanted).collect()
    }

    /// The detail of the only error there.
    fn error(&self, check: &str, subject: &str) -> &str {
        let mut errors = self.chosen(check, subject);
        errors.retain(|finding| finding["level"] == "error");
        assert_eq!(errors.len(), 1, "{check} {subject}: {:#?}", self.findings);
        errors[0]["detail"].as_str().unwrap()
    }

    fn errors(&self) -> Vec<&Value> {
        let errors = self.findings.iter();
        errors
            .filter(|finding| finding["level"] == "error")
            .collect()
    }
}

fn check(cluster: &Cluster, more: &[&str], environment: &[(&str, &str)]) -> Checked {
    let arguments = [&["check", "--json"], more].concat();
    let mut command = cluster.command(&arguments);
    command.envs(environment.iter().copied());
    Checked::of(&command.output().expect("the binary starts"))
}

async fn a_sound_environment_has_no_error(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let receiver = Receiver::healthy().await;
    let api = cluster.api();
    api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    let topics = ["events", "deliveries", "retry", "attempts", "dead-letters"];
    let written = |cluster: &Cluster| topics.map(|topic| cluster.records_written(topic));
    let before = written(&cluster);

    let url = receiver.url("/check");
    let checked = check(&cluster, &["--url", &url], &[]);
    assert!(checked.success, "{:#?}", checked.findings);
    assert!(checked.errors().is_empty(), "{:#?}", checked.findings);
    assert_eq!(checked.levels("clock", ""), ["ok"]);
    assert_eq!(checked.levels("rights", "").len(), 10, "topics and groups");
    assert!(
        checked
            .levels("rights", "")
            .iter()
            .all(|level| *level == "ok")
    );
    assert_eq!(checked.levels("retention", ""), ["ok", "ok"]);
    assert_eq!(checked.levels("keys", ""), ["ok", "ok", "ok"]);
    assert_eq!(checked.levels("egress", "/check"), ["ok"]);
    assert_eq!(receiver.received("/check").len(), 1);
    // One broker has one replica, which is no error but is said.
    assert!(checked.levels("topic", "events").contains(&"warn"));
    let version = checked.chosen("broker", "")[0]["detail"].clone();
    assert!(version.as_str().unwrap().contains("Kafka 4.1"), "{version}");
    let secrets = checked.chosen("keys", "secrets")[0];
    assert!(secrets["detail"].as_str().unwrap().contains("1 endpoints"));
    // Nothing that anybody would deliver or read.
    assert_eq!(written(&cluster), before);

    let text = cluster.run(&["check"]);
    assert!(
        text.lines().any(|line| line.starts_with("ok    clock")),
        "{text}"
    );
    assert!(
        text.lines().any(|line| line.starts_with("skip  egress")),
        "{text}"
    );
}

async fn what_is_wrong_is_named_with_what_to_do(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let receiver = Receiver::healthy().await;
    let api = cluster.api();
    api.create_endpoint(&receiver.url("/hook"), json!({})).await;
    let topic = |name: &str| format!("{}{name}", cluster.prefix());
    let broker = cluster.broker();
    broker.tool(
        "kafka.admin.ConfigCommand",
        &[
            "--alter",
            "--entity-type",
            "topics",
            "--entity-name",
            &topic("retry"),
            "--add-config",
            "retention.ms=10000",
        ],
    );
    delete_topic(&cluster, "routes");

    let nobody = "http://127.0.0.1:1/hook";
    let metadata = "http://169.254.169.254/";
    let checked = check(
        &cluster,
        &["--url", nobody, "--url", metadata],
        &[("POSTRIDER_KEYS__ENCRYPTION", OTHER_KEY)],
    );
    assert!(!checked.success);
    let missing = checked.error("topic", "routes");
    assert!(missing.contains("postrider topic create"), "{missing}");
    // Shorter than configured, and shorter than a retry waits.
    assert!(checked.error("topic", "retry").contains("configured"));
    let retention = checked.error("retention", "retry");
    assert!(retention.contains("retention.ms"), "{retention}");
    let secrets = checked.error("keys", "secrets");
    assert!(secrets.contains("keys.encryption"), "{secrets}");
    assert!(checked.error("egress", nobody).contains("firewalls"));
    assert!(checked.error("egress", metadata).contains("forbidden"));
    let installation = checked.error("keys", "installation");
    assert!(installation.contains("no role starts"), "{installation}");
    assert_eq!(checked.errors().len(), 7, "{:#?}", checked.errors());

    let nothing = [
        ("POSTRIDER_KEYS__ENCRYPTION", ""),
        ("POSTRIDER_INGEST__OPERATOR_KEY", ""),
    ];
    let mut command = cluster.command(&["check", "--json"]);
    for (name, _) in nothing {
        command.env_remove(name);
    }
    let checked = Checked::of(&command.output().unwrap());
    let encryption = checked.error("keys", "keys.encryption");
    assert!(
        encryption.contains("postrider key generate"),
        "{encryption}"
    );
    let operator = checked.error("keys", "ingest.operator_key");
    assert!(operator.contains("postrider key generate"), "{operator}");
}

async fn without_a_broker_it_says_so_and_looks_at_the_rest(log: LogKind) {
    let cluster = Plan::new(log).start().await;
    let receiver = Receiver::healthy().await;
    let url = receiver.url("/check");
    let checked = check(
        &cluster,
        &["--url", &url],
        &[(
            "POSTRIDER_KAFKA__BOOTSTRAP_SERVERS",
            "no-such-host.invalid:9092,127.0.0.1:1",
        )],
    );
    assert!(!checked.success);
    assert!(checked.error("broker", "").contains("a broker listens"));
    assert!(
        checked
            .error("dns", "no-such-host.invalid")
            .contains("does not resolve")
    );
    for skipped in ["topic", "rights", "clock", "retention"] {
        assert_eq!(checked.levels(skipped, ""), ["skip"]);
    }
    assert_eq!(checked.levels("egress", "/check"), ["ok"]);

    let mut command = cluster.command(&["check", "--json"]);
    command.env_remove("POSTRIDER_KAFKA__BOOTSTRAP_SERVERS");
    let checked = Checked::of(&command.output().unwrap());
    let broker = checked.error("broker", "");
    assert!(
        broker.contains("POSTRIDER_KAFKA__BOOTSTRAP_SERVERS"),
        "{broker}"
    );
}

/// A broker that looks at rights, and allows what nobody has spoken about.
fn guarded() -> &'static KafkaBroker {
    static GUARDED: OnceLock<KafkaBroker> = OnceLock::new();
    GUARDED.get_or_init(|| {
        KafkaBroker::start_with(&[
            (
                "authorizer.class.name",
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            ),
            ("allow.everyone.if.no.acl.found", "true"),
        ])
    })
}

async fn a_right_that_is_missing_is_named(log: LogKind) {
    let cluster = Plan::new(log).broker(guarded()).start().await;
    let prefix = cluster.prefix().to_owned();
    let rule = |more: &[&str]| {
        let rule = [&["--add", "--force"], more].concat();
        guarded().tool("org.apache.kafka.tools.AclCommand", &rule);
    };
    let principal = "User:ANONYMOUS";
    let deny = |operation: &str, kind: &str, name: &str| {
        let denied = ["--deny-principal", principal, "--operation", operation];
        rule(&[&denied[..], &[kind, name]].concat());
    };
    // What one rule is about, nobody may without another.
    let named = ["--topic", &prefix, "--group", &prefix];
    let allowed = ["--allow-principal", principal, "--operation", "All"];
    let by_prefix = ["--resource-pattern-type", "prefixed"];
    rule(&[&allowed[..], &named, &by_prefix].concat());
    assert!(check(&cluster, &[], &[]).success);
    deny("Write", "--topic", &format!("{prefix}deliveries"));
    deny("Write", "--topic", &format!("{prefix}routes"));
    deny("Read", "--topic", &format!("{prefix}attempts"));
    deny("Describe", "--topic", &format!("{prefix}dead-letters"));
    deny("Read", "--group", &format!("{prefix}check"));

    let checked = check(&cluster, &[], &[]);
    assert!(!checked.success);
    let written = checked.error("rights", "deliveries");
    assert!(
        written.contains("cannot write") && !written.contains("cannot read"),
        "{written}"
    );
    assert!(checked.error("rights", "routes").contains("allow Write"));
    let read = checked.error("rights", "attempts");
    assert!(
        read.contains("cannot read") && !read.contains("cannot write"),
        "{read}"
    );
    let described = checked.error("topic", "dead-letters");
    assert!(described.contains("allow Describe"), "{described}");
    let groups = checked.error("rights", "*");
    assert!(groups.contains("cannot commit"), "{groups}");
    assert_eq!(checked.errors().len(), 5, "{:#?}", checked.errors());
}
