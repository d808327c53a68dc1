//! `make bench`: what one machine carries end to end, on a real Kafka and on the embedded log.
//!
//! Each event is 1 KiB and matches one of a few endpoints, on a receiver in a process of its own that answers 200 at
//! once. First as many events as fit through are published as fast as they are accepted: events per second, and the CPU
//! that each process took. Then events come at a fixed rate that leaves the machine room: how long from the moment
//! before an event is sent until its webhook is at the receiver. Publisher, broker and receiver share the machine with
//! what is measured.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Request};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use postrider_tests::http::HttpClient;
use postrider_tests::{Api, Cluster, LogKind, Plan, eventually};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const EVENTS: usize = 20_000;
const EVENT_BYTES: usize = 1_024;
const ENDPOINTS: usize = 16;
const PUBLISHERS: usize = 64;
const PACED_EVENTS: usize = 5_000;
const PACED_PER_SECOND: u32 = 500;
const DELIVERED_WITHIN: Duration = Duration::from_secs(180);
/// Clock ticks of /proc, per second, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
const RECEIVER: &str = "receiver";

#[tokio::main]
async fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(RECEIVER) => receive().await,
        None => {
            bench(LogKind::Kafka).await;
            bench(LogKind::Embedded).await;
        }
        Some("kafka") => bench(LogKind::Kafka).await,
        Some("embedded") => bench(LogKind::Embedded).await,
        Some(_) => say("usage: bench [kafka | embedded]"),
    }
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn say(line: &str) {
    println!("{line}");
}

async fn bench(log: LogKind) {
    say(&format!(
        "\n{log:?}: {EVENT_BYTES} byte events, fan-out 1, {ENDPOINTS} endpoints"
    ));
    let receiver = ReceiverProcess::start();
    let cluster = Plan::new(log)
        .set("POSTRIDER_TOPICS__PARTITIONS", "12")
        .start()
        .await;
    let api = cluster.api();
    for number in 0..ENDPOINTS {
        let types = json!({ "event_types": [format!("bench.n{number}")] });
        api.create_endpoint(&receiver.url(), types).await;
    }
    // So that connections are open and code is warm.
    publish(&api, 500).await;
    receiver.finished(500).await;

    let before = cpu_seconds(&cluster, &receiver);
    let started = Instant::now();
    publish(&api, EVENTS).await;
    let accepted = started.elapsed();
    receiver.finished(EVENTS).await;
    let delivered = started.elapsed();
    let used = cpu_seconds(&cluster, &receiver);
    say(&format!(
        "  accepted   {:>8.0} events/s",
        per_second(EVENTS, accepted)
    ));
    say(&format!(
        "  delivered  {:>8.0} events/s",
        per_second(EVENTS, delivered)
    ));
    for ((name, after), (_, before)) in used.iter().zip(&before) {
        let per_100_000 = (after - before) * 100_000.0 / per_second(EVENTS, Duration::from_secs(1));
        say(&format!(
            "  {name:<10} {per_100_000:>8.1} CPU-seconds per 100,000 events"
        ));
    }

    publish_paced(&api).await;
    let report = receiver.finished(PACED_EVENTS).await;
    let milliseconds = |name: &str| report[name].as_f64().unwrap_or_default() / 1000.0;
    say(&format!(
        "  at {PACED_PER_SECOND}/s, from sending to the receiver: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        milliseconds("p50_us"),
        milliseconds("p99_us"),
        milliseconds("max_us"),
    ));
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Microseconds of the wall clock, which all processes share.
#[expect(
    clippy::disallowed_methods,
    reason = "the times of two processes are compared"
)]
fn now_us() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

async fn publish_one(api: &Api, number: usize) {
    let data = format!(r#"{{"sent_us":{},"padding":""#, now_us());
    let padding = "x".repeat(EVENT_BYTES.saturating_sub(data.len() + 2));
    let body = format!(
        r#"{{"type":"bench.n{}","data":{data}{padding}"}}}}"#,
        number % ENDPOINTS
    );
    let json = [("content-type", "application/json")];
    let answer = api
        .call(Method::POST, "/events", &json, body)
        .await
        .expect("ingest answers");
    assert_eq!(answer.status, 202, "{}", answer.json());
}

async fn publish(api: &Api, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(PUBLISHERS, |number| publish_one(api, number))
        .await;
}

/// Each event at its time, whether the earlier ones were answered or not.
async fn publish_paced(api: &Api) {
    let started = tokio::time::Instant::now();
    let events = stream::iter(0..PACED_EVENTS).then(async |number| {
        let after =
            f64::from(u32::try_from(number).unwrap_or(u32::MAX)) / f64::from(PACED_PER_SECOND);
        tokio::time::sleep_until(started + Duration::from_secs_f64(after)).await;
        number
    });
    events
        .for_each_concurrent(PUBLISHERS, |number| publish_one(api, number))
        .await;
}

/// CPU seconds that each process took so far.
fn cpu_seconds(cluster: &Cluster, receiver: &ReceiverProcess) -> Vec<(String, f64)> {
    let mut processes: Vec<_> = cluster
        .processes()
        .map(|(name, process)| (name.to_owned(), process.id()))
        .collect();
    if cluster.log() == LogKind::Kafka {
        processes.extend(brokers().into_iter().map(|id| ("kafka".to_owned(), id)));
    }
    processes.push(("receiver".to_owned(), receiver.child.id()));
    processes.push(("publisher".to_owned(), std::process::id()));
    processes
        .into_iter()
        .map(|(name, id)| (name, cpu_seconds_of(id)))
        .collect()
}

fn cpu_seconds_of(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The second field may hold anything but ends at the last parenthesis.
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or_default()
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// The brokers that this program started: java processes whose parents lead here.
fn brokers() -> Vec<u32> {
    let own = std::process::id();
    let ids = std::fs::read_dir("/proc")
        .expect("/proc can be listed")
        .flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.contains("(java)") && parent(*id).and_then(parent) == Some(own)
    })
    .collect()
}

fn parent(id: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

/// The receiver, as the process that measures sees it.
struct ReceiverProcess {
    child: Child,
    address: SocketAddr,
    client: HttpClient,
}

impl ReceiverProcess {
    fn start() -> Self {
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

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Waits until so many webhooks came since the last time, and gives what was seen of them.
    async fn finished(&self, count: usize) -> Value {
        eventually(&format!("{count} webhooks"), DELIVERED_WITHIN, async || {
            let report = self.get("/report").await;
            if report["count"].as_u64() >= u64::try_from(count).ok() {
                Ok(())
            } else {
                Err(report)
            }
        })
        .await;
        self.get("/take").await
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

impl Drop for ReceiverProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

type Latencies = Arc<Mutex<Vec<u64>>>;

/// The receiver's own process: answers at once and remembers how long each webhook took.
async fn receive() {
    let latencies = Latencies::default();
    let router = Router::new()
        .route("/hook", post(hook))
        .route(
            "/report",
            get(async |State(latencies): State<Latencies>| {
                Json(json!({ "count": lock(&latencies).len() }))
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
    lock(&latencies).push(now_us.saturating_sub(sent.unwrap_or(now_us)));
}

async fn take(State(latencies): State<Latencies>) -> Json<Value> {
    let mut taken = std::mem::take(&mut *lock(&latencies));
    taken.sort_unstable();
    let at = |part: usize| taken.get(taken.len() * part / 1000).copied();
    Json(json!({ "p50_us": at(500), "p99_us": at(990), "max_us": taken.last() }))
}

fn lock(latencies: &Latencies) -> std::sync::MutexGuard<'_, Vec<u64>> {
    latencies.lock().unwrap_or_else(PoisonError::into_inner)
}
