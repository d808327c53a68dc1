//! TLS and SASL: properties pass through, and what is refused says why.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postrider_log::kafka::KafkaLog;
use postrider_log::{Commit, Committed, GroupEvent, Log, LogError, Target};
use postrider_tests::KafkaBroker;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{
    PATIENCE, TOPIC, connect, create, join, number, numbered, producer, read_all,
};

/// Of the key stores, and of both users.
const PASSWORD: &str = "pw-123";
/// The longest a refusal may take: a question has 10 s.
const BOUND: Duration = Duration::from_secs(15);

/// A broker whose only listener for clients wants TLS and a password.
struct Secured {
    broker: KafkaBroker,
    directory: TempDir,
}

impl Secured {
    /// The broker knows itself by PLAIN, and `postrider` by SCRAM.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificate(directory.path(), "broker");
        certificate(directory.path(), "stranger");
        let key_store = directory.path().join("broker.p12").display().to_string();
        let login = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required \
             username=\"broker\" password=\"{PASSWORD}\""
        );
        let plain = format!("{login} user_broker=\"{PASSWORD}\";");
        // The listener keeps its name; only what is spoken on it changes.
        let broker = KafkaBroker::start_with(&[
            (
                "listener.security.protocol.map",
                "PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT",
            ),
            ("sasl.mechanism.inter.broker.protocol", "PLAIN"),
            ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-512"),
            ("listener.name.plaintext.plain.sasl.jaas.config", &plain),
            (
                "listener.name.plaintext.scram-sha-512.sasl.jaas.config",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            ),
            ("ssl.keystore.location", &key_store),
            ("ssl.keystore.type", "PKCS12"),
            ("ssl.keystore.password", PASSWORD),
            ("ssl.truststore.location", &key_store),
            ("ssl.truststore.type", "PKCS12"),
            ("ssl.truststore.password", PASSWORD),
        ]);
        let secured = Self { broker, directory };
        secured.add_user(&login);
        secured
    }

    fn add_user(&self, login: &str) {
        let properties = self.directory.path().join("admin.properties");
        let text = format!(
            "security.protocol=SASL_SSL\nsasl.mechanism=PLAIN\nsasl.jaas.config={login};\n\
             ssl.truststore.type=PEM\nssl.truststore.location={}\n",
            self.pem("broker")
        );
        fs::write(&properties, text).unwrap();
        self.broker.tool(
            "kafka.admin.ConfigCommand",
            &[
                "--command-config",
                &properties.display().to_string(),
                "--alter",
                "--entity-type",
                "users",
                "--entity-name",
                "postrider",
                "--add-config",
                &format!("SCRAM-SHA-512=[password={PASSWORD}]"),
            ],
        );
    }

    fn pem(&self, name: &str) -> String {
        let path = self.directory.path().join(format!("{name}.pem"));
        path.display().to_string()
    }

    fn connect(&self, password: &str, trusted: &str) -> Arc<KafkaLog> {
        let properties = [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "postrider"),
            ("sasl.password", password),
            ("ssl.ca.location", &self.pem(trusted)),
        ];
        connect(&self.broker.bootstrap(), &properties)
    }
}

/// A key store with a certificate that nobody else has signed, and the certificate alone.
fn certificate(directory: &Path, name: &str) {
    let store = format!("{name}.p12");
    let keytool = |arguments: &[&str]| {
        let output = Command::new("keytool")
            .args(arguments)
            .args(["-alias", name, "-storetype", "PKCS12"])
            .args(["-keystore", &store, "-storepass", PASSWORD])
            .current_dir(directory)
            .output()
            .expect("keytool comes with Java");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    };
    keytool(&[
        "-genkeypair",
        "-keyalg",
        "RSA",
        "-validity",
        "2",
        "-dname",
        "CN=127.0.0.1",
        "-ext",
        "san=ip:127.0.0.1",
    ]);
    keytool(&["-exportcert", "-rfc", "-file", &format!("{name}.pem")]);
}

async fn refusal(log: Arc<KafkaLog>) -> String {
    let answer = timeout(BOUND, log.bounds(TOPIC, 0))
        .await
        .expect("an answer comes in time");
    match answer {
        Err(LogError::Unavailable(why)) => why,
        other => panic!("expected to be refused, got {other:?}"),
    }
}

/// Joins, reads the one record and commits past it.
async fn commit_one(log: &KafkaLog) -> Committed {
    let committed = Committed {
        offset: 1,
        metadata: "one".into(),
    };
    let mut group = join(log, Duration::from_secs(5)).await;
    let mut generation = None;
    loop {
        match group.next().await.expect("the group goes on") {
            GroupEvent::Assigned(assignments) => {
                generation = Some(assignments[0].generation);
                group.start(0, assignments[0].bounds.start);
            }
            GroupEvent::Records(records) => {
                assert_eq!(records.iter().map(number).collect::<Vec<_>>(), [7]);
                break;
            }
            event => panic!("{event:?}"),
        }
    }
    let commit = Commit {
        partition: 0,
        generation: generation.expect("assigned before the records"),
        committed: committed.clone(),
    };
    group.commit(vec![commit]).await.expect("it is committed");
    group.close().await;
    committed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speaks_tls_and_sasl_and_says_why_it_is_refused() {
    let secured = Secured::start();
    let log = secured.connect(PASSWORD, "broker");
    create(&log, 1).await;
    producer(&log, None)
        .await
        .append(TOPIC, Target::Partition(0), numbered(7))
        .await
        .expect("it is appended");
    let records = read_all(&log, 0).await;
    assert_eq!(records.iter().map(number).collect::<Vec<_>>(), [7]);
    let committed = timeout(PATIENCE, commit_one(&log)).await.expect("in time");
    assert_eq!(
        log.committed("group", TOPIC).await,
        Ok(vec![Some(committed)])
    );

    let (password, certificate) = tokio::join!(
        refusal(secured.connect("wrong", "broker")),
        refusal(secured.connect(PASSWORD, "stranger")),
    );
    assert!(password.contains("Authentication failed"), "{password}");
    assert!(
        certificate.contains("certificate verify failed"),
        "{certificate}"
    );
}
