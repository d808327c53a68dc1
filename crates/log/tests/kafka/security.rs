//! TLS and SASL: properties pass through, and what is refused says why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postrider_log::kafka::KafkaLog;
use postrider_log::{Log, LogError, Target};
use postrider_tests::KafkaBroker;
use tokio::time::timeout;

use crate::support::{
    PATIENCE, TOPIC, connect, create, join, numbered, producer, read_all, start_all,
};

const PASSWORD: &str = "pw-123";

/// A broker whose only listener for clients wants TLS and a password.
struct Secured {
    broker: KafkaBroker,
    directory: PathBuf,
}

impl Secured {
    fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("postrider-tls-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        certificate(&directory, "broker");
        certificate(&directory, "stranger");
        let key_store = directory.join("broker.p12").display().to_string();
        let users = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"broker\" \
             password=\"{PASSWORD}\" user_broker=\"{PASSWORD}\" user_postrider=\"{PASSWORD}\";"
        );
        // The listener keeps its name; only what is spoken on it changes.
        let broker = KafkaBroker::start_with(&[
            (
                "listener.security.protocol.map",
                "PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT",
            ),
            ("inter.broker.listener.name", "PLAINTEXT"),
            ("sasl.mechanism.inter.broker.protocol", "PLAIN"),
            ("sasl.enabled.mechanisms", "PLAIN"),
            ("listener.name.plaintext.plain.sasl.jaas.config", &users),
            ("ssl.keystore.location", &key_store),
            ("ssl.keystore.type", "PKCS12"),
            ("ssl.keystore.password", PASSWORD),
            ("ssl.truststore.location", &key_store),
            ("ssl.truststore.type", "PKCS12"),
            ("ssl.truststore.password", PASSWORD),
        ]);
        Self { broker, directory }
    }

    fn connect(&self, password: &str, trusted: &str) -> Arc<KafkaLog> {
        let ca = self
            .directory
            .join(format!("{trusted}.pem"))
            .display()
            .to_string();
        let properties = [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "postrider"),
            ("sasl.password", password),
            ("ssl.ca.location", &ca),
        ];
        connect(&self.broker.bootstrap(), &properties)
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// A key store with a certificate of its own, and the certificate alone.
fn certificate(directory: &Path, name: &str) {
    let keytool = |arguments: &[&str]| {
        let store = format!("{name}.p12");
        let status = Command::new("keytool")
            .args(arguments)
            .args([
                "-alias",
                name,
                "-keystore",
                &store,
                "-storetype",
                "PKCS12",
                "-storepass",
                PASSWORD,
            ])
            .current_dir(directory)
            .output();
        let output = status.expect("keytool comes with Java");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    };
    let names = ["-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1"];
    keytool(
        &[
            &["-genkeypair", "-keyalg", "RSA", "-validity", "2"],
            &names[..],
        ]
        .concat(),
    );
    keytool(&["-exportcert", "-rfc", "-file", &format!("{name}.pem")]);
}

async fn refusal(log: &KafkaLog) -> String {
    let answer = timeout(PATIENCE, log.bounds(TOPIC, 0))
        .await
        .expect("an answer comes in time");
    match answer {
        Err(LogError::Unavailable(why)) => why,
        other => panic!("expected to be refused, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn speaks_tls_and_sasl_and_says_why_it_is_refused() {
    let secured = Secured::start();
    let log = secured.connect(PASSWORD, "broker");
    create(&log, 1).await;
    let appending = producer(&log, None).await;
    appending
        .append(TOPIC, Target::Partition(0), numbered(1))
        .await
        .unwrap();
    assert_eq!(read_all(&log, 0).await.len(), 1);
    let mut group = join(&log, Duration::from_secs(5)).await;
    start_all(&mut *group, 1).await;
    group.close().await;

    let why = refusal(&secured.connect("wrong", "broker")).await;
    assert!(why.contains("Authentication failed"), "{why}");
    let why = refusal(&secured.connect(PASSWORD, "stranger")).await;
    assert!(why.contains("certificate verify failed"), "{why}");
}
