//! A worker stays within the memory that it was given, whatever waits and whoever answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use postrider_tests::{Api, LogKind, Plan, Receiver, Reply};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const LIMIT_BYTES: u64 = 192 << 20;
const EVENT_BYTES: usize = 150_000;
/// Several times the limit, as records of `deliveries`.
const EVENTS_OF_EACH: usize = 60;
const HEALTHY: usize = 4;
const HUNG: usize = 8;
const LONG_HEADS: usize = 4;
/// Endpoints that hang hold most of the memory for as long as their attempts may take.
const WITHIN: Duration = Duration::from_secs(240);
const PATH: &str = "/healthy";

on_kafka!(a_worker_stays_within_its_memory_with_a_backlog_of_large_events);

async fn a_worker_stays_within_its_memory_with_a_backlog_of_large_events(log: LogKind) {
    let mut cluster = Plan::new(log)
        .set("POSTRIDER_MEMORY__LIMIT_BYTES", &LIMIT_BYTES.to_string())
        .set("POSTRIDER_TOPICS__PARTITIONS", "12")
        .start()
        .await;
    let healthy = Receiver::healthy().await;
    let hung = Receiver::start(|_| Reply::status(200).after(Duration::from_secs(60))).await;
    let mut servers = JoinSet::new();
    let long_heads = long_heads(&mut servers).await;
    let api = cluster.api();
    let mut kinds = Vec::new();
    for (count, url) in [
        (HEALTHY, healthy.url(PATH)),
        (HUNG, hung.url("/hung")),
        (LONG_HEADS, format!("http://{long_heads}/head")),
    ] {
        for _ in 0..count {
            let kind = format!("kind.n{}", kinds.len());
            api.create_endpoint(&url, json!({ "event_types": [kind] }))
                .await;
            kinds.push(kind);
        }
    }
    cluster.kill("deliver");
    let ids = publish(&api, &kinds).await;
    cluster.start_again("deliver");
    healthy.wait_for_all(PATH, &ids, WITHIN).await;
    let deliver = cluster.process("deliver");
    assert!(deliver.is_running(), "it goes on");
    let peak_bytes = deliver.peak_memory_bytes();
    assert!(peak_bytes <= LIMIT_BYTES, "it took {peak_bytes} bytes");
}

/// Publishes of each kind in turn, and gives the ids of those for endpoints that answer.
async fn publish(api: &Api, kinds: &[String]) -> Vec<String> {
    let data = "x".repeat(EVENT_BYTES);
    let events = stream::iter(0..EVENTS_OF_EACH * kinds.len()).map(async |number| {
        let kind = number % kinds.len();
        let event = json!({ "type": kinds[kind], "data": data });
        (kind, api.publish(&event).await)
    });
    let published: Vec<_> = events.buffer_unordered(8).collect().await;
    let answered = published.into_iter().filter(|(kind, _)| *kind < HEALTHY);
    answered.map(|(_, id)| id).collect()
}

/// A receiver whose answers begin, and whose heads do not end.
async fn long_heads(servers: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    servers.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer(stream));
        }
    });
    address
}

async fn answer(mut stream: TcpStream) {
    let mut request = vec![0; 64 << 10];
    // The client goes on sending, and may go away.
    let mut head = "HTTP/1.1 200 OK\r\n".to_owned();
    for number in 0..90 {
        head.push_str(&format!("x-{number}: {}\r\n", "y".repeat(4_000)));
    }
    if stream.read(&mut request).await.is_ok() && stream.write_all(head.as_bytes()).await.is_ok() {
        while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
    }
}
