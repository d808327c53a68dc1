//! The health server and the HTTP server over real sockets.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::response::Extension;
use axum::routing::get;
use postrider_daemon::CancellationToken;
use postrider_daemon::health::Health;
use postrider_daemon::http::{Drained, Limits, NotBefore, serve};
use postrider_daemon::metrics::Metrics;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};

const BOUND: Duration = Duration::from_secs(20);

/// By refusals of `/busy`.
const ASKED_TO_WAIT: Duration = Duration::from_millis(1_500);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream
}

fn send(stream: &mut TcpStream, path: &str) {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
}

fn fetch(address: SocketAddr, path: &str) -> String {
    let mut stream = connect(address);
    send(&mut stream, path);
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn readiness_follows_the_conditions() {
    let health = Health::new();
    let registry = health.condition("registry");
    let producer = health.condition("producer");
    let server = health
        .serve(
            ([127, 0, 0, 1], 0).into(),
            Metrics::new("1", "test"),
            axum::Router::new(),
        )
        .unwrap();
    let ready = || fetch(server.address(), "/readyz");

    let response = ready();
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(
        response.ends_with(r#"{"ready":false,"unmet":["producer","registry"]}"#),
        "{response}"
    );
    registry.set(true);
    assert!(ready().ends_with(r#""unmet":["producer"]}"#));
    health.condition("producer").set(true);
    let response = ready();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(
        response.ends_with(r#"{"ready":true,"unmet":[]}"#),
        "{response}"
    );
    producer.set(false);
    assert!(ready().starts_with("HTTP/1.1 503 "));
    let live = || fetch(server.address(), "/livez");
    assert!(live().starts_with("HTTP/1.1 200 "));
    let clients = health.vital("clients");
    assert!(live().starts_with("HTTP/1.1 200 "), "a new one is met");
    clients.set(false);
    let response = live();
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.ends_with("clients\n"), "{response}");
    producer.set(true);
    assert!(ready().starts_with("HTTP/1.1 200 "), "nothing of the other");
    clients.set(true);
    assert!(live().starts_with("HTTP/1.1 200 "));
    assert!(fetch(server.address(), "/else").starts_with("HTTP/1.1 404 "));
}

#[test]
fn metrics_are_served_as_text_and_the_server_stops() {
    let server = Health::new()
        .serve(
            ([127, 0, 0, 1], 0).into(),
            Metrics::new("1", "test"),
            axum::Router::new(),
        )
        .unwrap();
    let address = server.address();
    let response = fetch(address, "/metrics");
    assert!(
        response.contains("content-type: text/plain; version=0.0.4"),
        "{response}"
    );
    assert!(
        response.contains("postrider_build_info{role=\"test\",version=\"1\"} 1"),
        "{response}"
    );
    server.stop();
    assert!(TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn health_answers_while_the_main_runtime_is_busy() {
    let server = Health::new()
        .serve(
            ([127, 0, 0, 1], 0).into(),
            Metrics::new("1", "test"),
            axum::Router::new(),
        )
        .unwrap();
    // This blocks the only thread of the test's runtime.
    assert!(fetch(server.address(), "/livez").starts_with("HTTP/1.1 200 "));
}

#[test]
fn an_address_in_use_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Health::new()
        .serve(address, Metrics::new("1", "test"), axum::Router::new())
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

/// A server whose `/slow` says when it was entered and answers when it is let go.
struct Served {
    address: SocketAddr,
    token: CancellationToken,
    entered: Arc<Notify>,
    let_go: Arc<Notify>,
    servers: JoinSet<Drained>,
}

async fn served(limits: Limits) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (entered, let_go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (enter, wait) = (entered.clone(), let_go.clone());
    let router = Router::new()
        .route(
            "/peer",
            get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()),
        )
        .route(
            "/busy",
            get({
                let enter = entered.clone();
                async move || {
                    enter.notify_one();
                    (Extension(NotBefore(ASKED_TO_WAIT)), "busy")
                }
            }),
        )
        .route(
            "/slow",
            get(move || {
                let (enter, wait) = (enter.clone(), wait.clone());
                async move {
                    enter.notify_one();
                    wait.notified().await;
                    "done"
                }
            }),
        );
    let token = CancellationToken::new();
    let mut servers = JoinSet::new();
    servers.spawn(serve(listener, router, token.clone(), limits));
    Served {
        address,
        token,
        entered,
        let_go,
        servers,
    }
}

fn fetching(address: SocketAddr, path: &'static str) -> JoinHandle<String> {
    spawn_blocking(move || fetch(address, path))
}

#[tokio::test]
async fn handlers_know_the_peer() {
    let server = served(Limits::default()).await;
    let response = fetching(server.address, "/peer").await.unwrap();
    assert!(response.contains("\r\n\r\n127.0.0.1:"), "{response}");
}

#[tokio::test]
async fn open_requests_finish_after_cancellation_and_new_ones_are_refused() {
    let mut server = served(Limits::from(BOUND)).await;
    let slow = fetching(server.address, "/slow");
    server.entered.notified().await;
    let idle = connect(server.address);
    server.token.cancel();
    let address = server.address;
    spawn_blocking(move || {
        let began = Instant::now();
        while TcpStream::connect(address).is_ok() {
            assert!(began.elapsed() < BOUND, "still accepting");
        }
    })
    .await
    .unwrap();
    server.let_go.notify_one();
    assert!(slow.await.unwrap().ends_with("done"));
    let drained = server.servers.join_next().await.unwrap().unwrap();
    assert_eq!(drained, Drained { cut: 0 });
    drop(idle);
}

#[tokio::test]
async fn requests_that_outlast_the_drain_are_cut() {
    let mut server = served(Limits::from(Duration::from_millis(100))).await;
    let slow = fetching(server.address, "/slow");
    server.entered.notified().await;
    server.token.cancel();
    let drained = server.servers.join_next().await.unwrap().unwrap();
    assert_eq!(drained, Drained { cut: 1 });
    assert_eq!(
        slow.await.unwrap(),
        "",
        "the connection was closed without an answer"
    );
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut() {
    let limits = Limits {
        header_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = served(limits).await;
    let address = server.address;
    let rest = spawn_blocking(move || {
        let mut stream = connect(address);
        stream.write_all(b"GET /peer HTTP/1.1\r\nhost: te").unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).map(|_| rest)
    });
    let rest = rest
        .await
        .unwrap()
        .expect("closed before the client gave up");
    assert!(!rest.starts_with("HTTP/1.1 200"), "{rest}");
}

#[tokio::test]
async fn a_first_head_has_less_time_than_an_idle_connection() {
    let limits = Limits {
        first_head_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let server = served(limits).await;
    let address = server.address;
    spawn_blocking(move || {
        let mut silent = connect(address);
        let mut used = connect(address);
        used.write_all(b"GET /peer HTTP/1.1\r\nhost: test\r\n\r\n")
            .unwrap();
        assert!(used.read(&mut [0; 1024]).unwrap() > 0);
        assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "closed");
        used.set_read_timeout(Some(Duration::from_millis(700)))
            .unwrap();
        let kept = used.read(&mut [0; 1]).unwrap_err();
        assert_eq!(kept.kind(), io::ErrorKind::WouldBlock);
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_head_that_is_too_large_is_not_read_to_its_end() {
    let server = served(Limits::default()).await;
    let address = server.address;
    let answer = spawn_blocking(move || {
        let mut stream = connect(address);
        let line = format!("x-long: {}\r\n", "x".repeat(1000));
        drop(stream.write_all(b"GET /peer HTTP/1.1\r\nhost: test\r\n"));
        for _ in 0..300 {
            if stream.write_all(line.as_bytes()).is_err() {
                break;
            }
        }
        let mut answer = [0; 64];
        let read = stream.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..read]).into_owned()
    });
    let answer = answer.await.unwrap();
    // The answer may be lost where the kernel has already refused what came after it.
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
}

/// Asks on a connection, and gives how long the answer took.
fn ask(stream: &mut TcpStream, path: &str) -> Duration {
    let began = Instant::now();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
    began.elapsed()
}

#[tokio::test]
async fn a_refusal_is_kept_back_from_whoever_does_not_wait() {
    let server = served(Limits::default()).await;
    let address = server.address;
    spawn_blocking(move || {
        let mut stream = connect(address);
        let began = Instant::now();
        let first = ask(&mut stream, "/busy");
        assert!(first < ASKED_TO_WAIT, "{first:?}");
        ask(&mut stream, "/busy");
        let too_soon = began.elapsed();
        // A timer may fire a millisecond before.
        assert!(
            too_soon > ASKED_TO_WAIT - Duration::from_millis(100),
            "{too_soon:?}"
        );
        let served = ask(&mut stream, "/peer");
        assert!(served < ASKED_TO_WAIT, "{served:?}");
        assert!(ask(&mut stream, "/busy") < ASKED_TO_WAIT);
        std::thread::sleep(ASKED_TO_WAIT);
        let waited = ask(&mut stream, "/busy");
        assert!(waited < ASKED_TO_WAIT, "{waited:?}");
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_refusal_that_is_kept_back_does_not_hold_up_the_end() {
    let mut server = served(Limits::from(Duration::from_secs(1))).await;
    let address = server.address;
    let asked = spawn_blocking(move || {
        let mut stream = connect(address);
        ask(&mut stream, "/busy");
        write!(stream, "GET /busy HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        stream
    });
    server.entered.notified().await;
    let mut stream = asked.await.unwrap();
    server.entered.notified().await;
    server.token.cancel();
    let drained = server.servers.join_next().await.unwrap().unwrap();
    assert_eq!(drained, Drained { cut: 0 });
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_body_that_waits_to_be_asked_for_is_not_asked_for_after_the_answer() {
    let server = served(Limits::default()).await;
    let address = server.address;
    let answer = spawn_blocking(move || {
        let mut stream = connect(address);
        write!(
            stream,
            "POST /peer HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
}

/// Sends a body after the answer has come, and asks once more on the same connection.
fn asks_again_after(address: SocketAddr, body_bytes: usize) -> String {
    let mut stream = connect(address);
    write!(
        stream,
        "POST /peer HTTP/1.1\r\nhost: test\r\ncontent-length: {body_bytes}\r\n\r\n"
    )
    .unwrap();
    let mut answer = [0; 1024];
    let read = stream.read(&mut answer).unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 405"));
    // It may be told in the middle that nobody reads on.
    drop(stream.write_all(&vec![b'x'; body_bytes]));
    drop(stream.write_all(b"GET /peer HTTP/1.1\r\nhost: test\r\n\r\n"));
    let read = stream.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn a_connection_outlives_a_body_that_was_refused_but_not_an_endless_one() {
    let server = served(Limits::default()).await;
    let address = server.address;
    let asking = |bytes| spawn_blocking(move || asks_again_after(address, bytes));
    let answer = asking(300_000).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = asking(20 << 20).await.unwrap();
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn idle_connections_shut_nobody_out() {
    let server = served(Limits {
        connections_max: 4,
        ..Limits::default()
    })
    .await;
    let address = server.address;
    let mut idle: Vec<TcpStream> = (0..8).map(|_| connect(address)).collect();
    for _ in 0..3 {
        let answer = fetching(address, "/peer").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let first = idle.remove(0);
    let closed = spawn_blocking(move || {
        let mut first = first;
        first.read(&mut [0; 1])
    });
    assert_eq!(closed.await.unwrap().unwrap(), 0, "the oldest goes first");
}

#[tokio::test]
async fn connections_above_the_limit_wait() {
    let server = served(Limits {
        connections_max: 1,
        ..Limits::default()
    })
    .await;
    let slow = fetching(server.address, "/slow");
    server.entered.notified().await;
    let address = server.address;
    let waiting = spawn_blocking(move || {
        let mut stream = connect(address);
        send(&mut stream, "/peer");
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let early = stream.read(&mut [0; 1]);
        (stream, early)
    });
    let (mut stream, early) = waiting.await.unwrap();
    assert_eq!(
        early.unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "nobody answers yet"
    );
    server.let_go.notify_one();
    assert!(slow.await.unwrap().ends_with("done"));
    let response = spawn_blocking(move || {
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).map(|_| response)
    });
    assert!(
        response
            .await
            .unwrap()
            .unwrap()
            .starts_with("HTTP/1.1 200 ")
    );
}
