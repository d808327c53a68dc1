//! Programs that share no code with the workspace: receivers and a producer on public libraries,
//! and real payloads. What they need is in `.tools`, put there by `make test`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::poll::eventually;
use crate::process::repository;

/// A library that verifies signatures, by its language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// `standardwebhooks` of npm.
    Node,
    /// `standardwebhooks` of PyPI.
    Python,
}

/// What a library said of one request.
#[derive(Debug, Clone, Deserialize)]
pub struct Verdict {
    /// `webhook-id`.
    pub id: String,
    /// Path of the request.
    pub path: String,
    /// Whether the library believes it.
    pub verified: bool,
    /// Why not.
    pub error: String,
    #[serde(rename = "body")]
    body_base64: String,
}

impl Verdict {
    /// The body as it came.
    pub fn body(&self) -> Vec<u8> {
        BASE64
            .decode(&self.body_base64)
            .expect("receivers report bodies in base64")
    }
}

/// A receiver in another language. It ends when dropped.
#[derive(Debug)]
pub struct LibraryReceiver {
    child: Child,
    port: u16,
    said: Arc<Mutex<Vec<String>>>,
    /// The receiver ends when this does.
    _input: Option<ChildStdin>,
}

impl LibraryReceiver {
    /// Starts a receiver that knows this secret.
    pub async fn start(library: Library, secret: &str) -> Self {
        let tests = repository().join("tests/receivers");
        let mut command = match library {
            Library::Node => {
                let mut node = Command::new("node");
                node.arg(tests.join("node/receiver.cjs"))
                    .env("NODE_PATH", tool("npm/node_modules"));
                node
            }
            Library::Python => {
                let mut python = Command::new(tool("python/bin/python"));
                python.arg(tests.join("python/receiver.py"));
                python
            }
        };
        command
            .env("WEBHOOK_SECRET", secret)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{library:?} does not start: {error}"));
        let input = child.stdin.take();
        let output = child.stdout.take().expect("its output was asked for");
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                heard.lock().push(line);
            }
        });
        let port = eventually(
            "the receiver listens",
            Duration::from_secs(30),
            async || {
                let lines = said.lock();
                let first = lines
                    .first()
                    .and_then(|line| serde_json::from_str::<Value>(line).ok());
                let port = first.and_then(|first| first["port"].as_u64());
                port.and_then(|port| u16::try_from(port).ok())
                    .ok_or("nothing said")
            },
        )
        .await;
        Self {
            child,
            port,
            said,
            _input: input,
        }
    }

    /// Its URL with this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What it listens at.
    pub fn address(&self) -> std::net::SocketAddr {
        (std::net::Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What it said of every request so far.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let lines = self.said.lock();
        let parse =
            |line: &String| serde_json::from_str(line).expect("a verdict is JSON as agreed");
        lines.iter().skip(1).map(parse).collect()
    }

    /// Waits for so many verdicts.
    pub async fn wait_for(&self, count: usize, at_most: Duration) -> Vec<Verdict> {
        eventually(&format!("{count} verdicts"), at_most, async || {
            let verdicts = self.verdicts();
            if verdicts.len() >= count {
                Ok(verdicts)
            } else {
                Err(verdicts.len())
            }
        })
        .await
    }
}

impl Drop for LibraryReceiver {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An event to be published by the producer in Python.
#[derive(Debug, Clone)]
pub struct ForeignEvent {
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: String,
    /// Its type.
    pub event_type: String,
    /// Its data.
    pub data: Vec<u8>,
}

/// Publishes straight to Kafka with `confluent-kafka` of PyPI and code generated from `proto/` by
/// `grpcio-tools`.
///
/// # Panics
/// When not every event was acknowledged.
pub fn publish_by_python(bootstrap_servers: &str, topic: &str, events: &[ForeignEvent]) {
    let mut producer = Command::new(tool("python/bin/python"))
        .arg(repository().join("tests/producers/python/publish.py"))
        .args([bootstrap_servers, topic])
        .arg(repository().join("proto"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the producer starts");
    let mut input = producer.stdin.take().expect("its input was asked for");
    for event in events {
        let line = json!({
            "id": event.id,
            "tenant": event.tenant,
            "type": event.event_type,
            "data": BASE64.encode(&event.data),
        });
        writeln!(input, "{line}").expect("the producer reads on");
    }
    drop(input);
    let output = producer.wait_with_output().expect("the producer ends");
    assert!(
        output.status.success(),
        "the producer failed with {}",
        output.status
    );
    let said: Value = serde_json::from_slice(&output.stdout).expect("the producer says JSON");
    assert_eq!(said, json!({ "acknowledged": events.len() }));
}

/// A payload that GitHub sent to somebody.
#[derive(Debug, Clone)]
pub struct GitHubPayload {
    /// Its type, such as `issues`.
    pub event_type: String,
    /// Its JSON, byte for byte as in the package.
    pub data: Vec<u8>,
}

/// Every example of the npm package `@octokit/webhooks-examples`.
///
/// # Panics
/// When the package is not there.
pub fn github_payloads() -> Vec<GitHubPayload> {
    #[derive(Deserialize)]
    struct EventKind<'a> {
        name: String,
        #[serde(borrow)]
        examples: Vec<&'a RawValue>,
    }
    let path = tool("npm/node_modules/@octokit/webhooks-examples/api.github.com/index.json");
    let text = fs::read_to_string(path).expect("the examples can be read");
    let kinds: Vec<EventKind<'_>> =
        serde_json::from_str(&text).expect("the examples are as they were");
    let payloads = kinds.into_iter().flat_map(|kind| {
        let examples = kind.examples.into_iter();
        examples
            .map(move |example| (kind.name.clone(), example.get().as_bytes().to_vec()))
            .collect::<Vec<_>>()
    });
    payloads
        .map(|(event_type, data)| GitHubPayload { event_type, data })
        .collect()
}

/// Something below `.tools`, which must be there.
pub(crate) fn tool(path: &str) -> PathBuf {
    let full = repository().join(".tools").join(path);
    assert!(
        full.exists(),
        "{} is missing: `make test` fetches what the tests need",
        full.display()
    );
    full
}
