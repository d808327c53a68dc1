//! The receiver of the throughput benchmark: a process of its own, so that its CPU is counted
//! apart.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::Request;
use axum::routing::{get, post};
use axum::{Json, Router};
use parking_lot::Mutex;
use postrider_tests::eventually;
use postrider_tests::http::HttpClient;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::figures::Figures;
use crate::{RECEIVER, say};

const DELIVERED_WITHIN: Duration = Duration::from_secs(180);

/// The receiver, as the process that measures sees it.
pub(crate) struct ReceiverProcess {
    child: Child,
    address: SocketAddr,
    client: HttpClient,
}

impl ReceiverProcess {
    pub(crate) fn start() -> Self {
        let own = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(own)
            .arg(RECEIVER)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let mut line = String::new();
        let output = child.stdout.take().expect("its output was asked for");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it says where it listens");
        let address: SocketAddr = line.trim().parse().expect("it says an address");
        Self {
            child,
            address,
            client: HttpClient::new(address),
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Where a handler reads what is posted, and does nothing.
    pub(crate) fn empty_url(&self) -> String {
        format!("http://{}/empty", self.address)
    }

    /// Waits until so many webhooks came since the last time, and gives what was seen of them.
    pub(crate) async fn finished(&self, count: usize) -> Report {
        eventually(&format!("{count} webhooks"), DELIVERED_WITHIN, async || {
            let report = self.get("/report").await;
            if report["count"].as_u64() >= u64::try_from(count).ok() {
                Ok(())
            } else {
                Err(report)
            }
        })
        .await;
        Report(self.get("/take").await)
    }

    async fn get(&self, path: &str) -> Value {
        let request = Request::get(path)
            .header("host", "receiver")
            .body(Body::empty())
            .expect("it is valid");
        self.client
            .send(request)
            .await
            .expect("the receiver answers")
            .json()
    }
}

/// How long what came took, from the moment before it was sent.
#[derive(Debug)]
pub(crate) struct Report(Value);

impl Report {
    pub(crate) fn tell(&self, of: &str, figures: &mut Figures) {
        for (name, field) in [("p50", "p50_us"), ("p99", "p99_us"), ("most", "max_us")] {
            let milliseconds = self.0[field].as_f64().unwrap_or_default() / 1000.0;
            figures.set(format!("{of}: {name} ms"), milliseconds);
        }
    }
}

impl Drop for ReceiverProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Microseconds of the wall clock, which all processes share.
#[expect(
    clippy::disallowed_methods,
    reason = "the times of two processes are compared"
)]
pub(crate) fn now_us() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

type Latencies = Arc<Mutex<Vec<u64>>>;

/// The receiver's own process: answers at once and remembers how long each webhook took.
pub(crate) async fn receive() {
    let latencies = Latencies::default();
    let router = Router::new()
        .route("/hook", post(hook))
        .route("/empty", post(async |_: Bytes| {}))
        .route(
            "/report",
            get(async |State(latencies): State<Latencies>| {
                Json(json!({ "count": latencies.lock().len() }))
            }),
        )
        .route("/take", get(take))
        .with_state(latencies);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port is free");
    say(&listener
        .local_addr()
        .expect("a listener has an address")
        .to_string());
    axum::serve(listener, router)
        .await
        .expect("the receiver serves");
}

async fn hook(State(latencies): State<Latencies>, body: Bytes) {
    let now_us = now_us();
    let text = std::str::from_utf8(&body).unwrap_or_default();
    let sent = text
        .split_once(r#""sent_us":"#)
        .and_then(|(_, rest)| rest.split_once(',')?.0.parse().ok());
    latencies
        .lock()
        .push(now_us.saturating_sub(sent.unwrap_or(now_us)));
}

async fn take(State(latencies): State<Latencies>) -> Json<Value> {
    let mut taken = std::mem::take(&mut *latencies.lock());
    taken.sort_unstable();
    let at = |part: usize| taken.get(taken.len() * part / 1000).copied();
    Json(json!({ "p50_us": at(500), "p99_us": at(990), "max_us": taken.last() }))
}
