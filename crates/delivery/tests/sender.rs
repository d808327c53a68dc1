//! The sender against real sockets: what comes back for every way an exchange can end, and where it
//! never connects.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use postrider_delivery::config::EgressConfig;
use postrider_delivery::sender::{HttpSender, Sender, WebhookRequest, WebhookResponse};
use postrider_log::SystemClock;
use postrider_model::address::AddressPolicy;
use postrider_model::ids::TenantId;
use postrider_model::outcome::{Outcome, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

#[path = "sender/answers.rs"]
mod answers;
#[path = "sender/connections.rs"]
mod connections;
#[path = "sender/receiver.rs"]
mod receiver;

use receiver::{NO_CONTENT, Receiver, asked};

/// A server that answers every connection with the same bytes and remembers what it was sent.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    received: Arc<tokio::sync::Mutex<Vec<u8>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn answering(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let received = Arc::new(tokio::sync::Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let (count, seen) = (connections.clone(), received.clone());
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut buffer = vec![0; 64 * 1024];
                let read = stream.read(&mut buffer).await.unwrap_or(0);
                seen.lock().await.extend_from_slice(&buffer[..read]);
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                // A client that has read enough closes first.
                if stream.write_all(answer).await.is_ok() {
                    drop(stream.shutdown().await);
                }
            }
        });
        Self {
            port,
            connections,
            received,
            _tasks: tasks,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }
}

fn sender(allow: &[&str], config: &EgressConfig) -> HttpSender {
    // Tests of one binary share the process's provider; all but the first find it installed.
    drop(rustls::crypto::ring::default_provider().install_default());
    let allow: Vec<String> = allow.iter().map(ToString::to_string).collect();
    let policy = AddressPolicy::try_new(&allow).unwrap();
    HttpSender::new(policy, config, Arc::new(SystemClock)).unwrap()
}

fn request(url: &str) -> WebhookRequest {
    WebhookRequest {
        tenant: TenantId::try_new("acme").unwrap(),
        url: url.parse().unwrap(),
        id: "evt_1".to_owned(),
        attempt: 1,
        timestamp_s: 1_700_000_000,
        signature: "v1,abc=".to_owned(),
        traceparent: String::new(),
        body: Bytes::from_static(b"{\"type\":\"a\"}"),
        timeout: Duration::from_secs(5),
    }
}

async fn send(url: &str) -> WebhookResponse {
    send_with(
        &sender(&["127.0.0.0/8"], &EgressConfig::default()),
        request(url),
    )
    .await
}

async fn send_with(sender: &HttpSender, request: WebhookRequest) -> WebhookResponse {
    sender.send(request, Arc::new(|| true)).await.unwrap()
}

fn reason(response: &WebhookResponse) -> Reason {
    match response.outcome {
        Outcome::Unanswered(reason) => reason,
        ref other => panic!("expected no answer, got {other:?}"),
    }
}

#[tokio::test]
async fn sends_the_headers_of_standard_webhooks_and_the_body_as_signed() {
    let server = Server::answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let response = send(&server.url()).await;
    assert_eq!(response.status(), Some(204));
    let received = String::from_utf8(server.received.lock().await.clone()).unwrap();
    let lower = received.to_lowercase();
    assert!(lower.starts_with("post /hook http/1.1\r\n"), "{received}");
    for header in [
        "webhook-id: evt_1\r\n",
        "webhook-timestamp: 1700000000\r\n",
        "webhook-signature: v1,abc=\r\n",
        "content-type: application/json\r\n",
        "content-length: 12\r\n",
        concat!("user-agent: postrider/", env!("CARGO_PKG_VERSION"), "\r\n"),
    ] {
        assert!(
            lower.contains(header),
            "{header:?} is missing in {received}"
        );
    }
    assert!(received.ends_with("\r\n\r\n{\"type\":\"a\"}"), "{received}");
}

#[tokio::test]
async fn writes_nothing_of_a_webhook_that_may_not_leave_once_it_is_connected() {
    let server = Server::answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let sender = sender(&["127.0.0.0/8"], &EgressConfig::default());
    let refused = sender.send(request(&server.url()), Arc::new(|| false));
    assert_eq!(refused.await, None);
    // The server takes one connection after the other: when it answers, it has seen all of the
    // first.
    let allowed = send_with(&sender, request(&server.url())).await;
    assert_eq!(allowed.status(), Some(204));
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
    let received = String::from_utf8(server.received.lock().await.clone()).unwrap();
    assert_eq!(received.matches("POST /hook").count(), 1, "{received}");
}

#[tokio::test]
async fn does_not_follow_redirects() {
    let target = Server::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let location = format!(
        "HTTP/1.1 307 Moved\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
        target.url()
    );
    let server = Server::answering(Box::leak(location.into_bytes().into_boxed_slice())).await;
    let response = send(&server.url()).await;
    assert_eq!(response.status(), Some(307));
    assert!(
        response.detail.contains(&target.url()),
        "{}",
        response.detail
    );
    assert_eq!(target.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn makes_no_connection_to_a_forbidden_address_however_it_is_written() {
    let server = Server::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let strict = sender(&[], &EgressConfig::default());
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "0.0.0.0",
    ] {
        let url = format!("http://{host}:{}/", server.port);
        let response = send_with(&strict, request(&url)).await;
        // A name may come to have another address, and who is told of a refusal need not know which
        // it has.
        let outcome = match host {
            "localhost" => Outcome::Unanswered(Reason::AddressForbidden),
            _ => Outcome::Unsendable(Reason::AddressForbidden),
        };
        assert_eq!(response.outcome, outcome, "{host}: {}", response.detail);
        assert!(
            response.detail.contains("egress.allow_cidrs"),
            "{}",
            response.detail
        );
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn turns_retry_after_into_a_wait() {
    let server =
        Server::answering(b"HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n")
            .await;
    let response = send(&server.url()).await;
    assert_eq!(
        response.outcome,
        Outcome::Answered {
            status: 429,
            retry_after_ms: Some(7_000)
        }
    );
}

#[tokio::test]
async fn reads_a_response_up_to_the_cap_only() {
    let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    answer.resize(8 * 1024 * 1024, b'x');
    let server = Server::answering(Box::leak(answer.into_boxed_slice())).await;
    let config = EgressConfig {
        response_bytes_max: 4096,
        ..EgressConfig::default()
    };
    let sender = sender(&["127.0.0.0/8"], &config);
    let response = send_with(&sender, request(&server.url())).await;
    assert_eq!(response.status(), Some(200));
    assert_eq!(response.excerpt.len(), 1024);
}

#[tokio::test]
async fn tells_apart_why_there_was_no_answer() {
    let silent = Server::answering(b"").await;
    let hasty = WebhookRequest {
        timeout: Duration::from_millis(200),
        ..request(&silent.url())
    };
    let open = sender(&["127.0.0.0/8"], &EgressConfig::default());
    assert_eq!(reason(&send_with(&open, hasty).await), Reason::Timeout);

    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    assert_eq!(
        reason(&send(&format!("http://{closed}/")).await),
        Reason::Connect
    );

    let (address, _waiting) = full().await;
    let config = EgressConfig {
        connect_timeout_ms: 300,
        ..EgressConfig::default()
    };
    let hasty = sender(&["127.0.0.0/8"], &config);
    let response = send_with(&hasty, request(&format!("http://{address}/"))).await;
    assert_eq!(reason(&response), Reason::Connect, "{}", response.detail);

    let plain = Server::answering(b"HTTP/1.1 400 Bad\r\n\r\n").await;
    assert_eq!(
        reason(&send(&format!("https://127.0.0.1:{}/", plain.port)).await),
        Reason::Tls
    );

    assert_eq!(
        reason(&send("http://no-such-host.invalid/").await),
        Reason::Dns
    );

    let broken = Server::answering(b"HTTP/1.1 200 OK\r\ncontent-le").await;
    assert_eq!(reason(&send(&broken.url()).await), Reason::Connect);
}

/// A listener that takes no more connections: what wants to connect is not answered, as if the
/// network dropped it.
async fn full() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let connect = || TcpStream::connect(address);
    while let Ok(connected) = timeout(Duration::from_millis(200), connect()).await {
        waiting.push(connected.unwrap());
    }
    (address, (listener, waiting))
}

#[tokio::test]
async fn uses_a_connection_again() {
    let receiver = Receiver::serving(|mut stream, _| async move {
        while asked(&mut stream).await {
            stream.write_all(NO_CONTENT).await.unwrap();
        }
    })
    .await;
    let sender = sender(&["127.0.0.0/8"], &EgressConfig::default());
    for _ in 0..20 {
        let response = send_with(&sender, request(&receiver.url)).await;
        assert_eq!(response.status(), Some(204));
    }
    assert_eq!(receiver.connections(), 1);
}
