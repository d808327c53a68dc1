//! The pipe: the least that moves records from a topic to a URL, as a yardstick. It consumes by
//! librdkafka, POSTs each record by reqwest and commits, and does nothing else: no endpoints,
//! signatures, retries or history.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::mpsc;

/// The argument that makes this program the pipe.
pub(crate) const PIPE: &str = "pipe";
/// Requests under way.
pub(crate) const CONNECTIONS: usize = 64;
const POLL: Duration = Duration::from_millis(100);

/// The pipe's own process.
#[derive(Debug)]
pub(crate) struct Pipe(Child);

impl Pipe {
    /// Starts a pipe from a topic to a URL.
    pub(crate) fn start(bootstrap: &str, topic: &str, url: &str) -> Self {
        let own = std::env::current_exe().expect("this program has a path");
        let child = Command::new(own)
            .args([PIPE, bootstrap, topic, url])
            .spawn()
            .expect("this program can be started again");
        Self(child)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A client as its library makes it, that resolves nothing.
pub(crate) fn client() -> reqwest::Client {
    // Refused only if it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    reqwest::Client::builder()
        .resolve("nowhere.invalid", nowhere)
        .build()
        .expect("a client can be made")
}

/// Posts a body, and panics unless that is answered with 2xx.
pub(crate) async fn post(client: &reqwest::Client, url: &str, body: Bytes) {
    let request = client.post(url).body(body);
    let answer = request.send().await.expect("the receiver answers");
    assert!(answer.status().is_success(), "{}", answer.status());
}

/// A record on its way.
struct Moved {
    partition: i32,
    offset: i64,
    body: Bytes,
}

/// Moves records until the process ends.
pub(crate) async fn run(bootstrap: &str, topic: &str, url: &str) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", topic)
        .set("enable.auto.offset.store", "false")
        .set("auto.commit.interval.ms", "1000")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("the configuration is good");
    consumer.subscribe(&[topic]).expect("it is subscribed");
    let consumer = Arc::new(consumer);
    let (taken, mut records) = mpsc::channel(CONNECTIONS);
    let polled = Arc::clone(&consumer);
    std::thread::spawn(move || poll(&polled, &taken));
    let client = client();
    stream::poll_fn(|context| records.poll_recv(context))
        .map(async |record: Moved| {
            post(&client, url, record.body).await;
            (record.partition, record.offset)
        })
        .buffered(CONNECTIONS)
        .for_each(async |(partition, offset)| {
            let stored = consumer.store_offset(topic, partition, offset);
            stored.expect("the partition is still ours");
        })
        .await;
}

fn poll(consumer: &BaseConsumer, taken: &mpsc::Sender<Moved>) {
    loop {
        let Some(message) = consumer.poll(POLL) else {
            continue;
        };
        let message = message.expect("the broker answers");
        let moved = Moved {
            partition: message.partition(),
            offset: message.offset(),
            body: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        };
        if taken.blocking_send(moved).is_err() {
            return;
        }
    }
}
