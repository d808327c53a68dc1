//! A receiver of webhooks that answers as its script says and remembers every request.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::poll::eventually;

const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// Path.
    pub path: String,
    /// `webhook-id`.
    pub id: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// When it was complete.
    pub at: Instant,
    /// Which request with this path and id it is, from 1.
    pub number: usize,
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    after: Duration,
    headers: Vec<(&'static str, String)>,
}

impl Reply {
    /// An answer at once.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            after: Duration::ZERO,
            headers: Vec::new(),
        }
    }

    /// The same answer, later.
    #[must_use]
    pub fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }

    /// The same answer, with a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

type Script = Box<dyn Fn(&Received) -> Reply + Send + Sync>;

/// A running receiver; it ends when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    desk: Arc<Desk>,
    _server: JoinSet<()>,
}

struct Desk {
    received: Mutex<Vec<Received>>,
    counts: Mutex<BTreeMap<(String, String), usize>>,
    script: Script,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Receiver {
    /// Starts a receiver that answers by this script.
    pub async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let desk = Arc::new(Desk {
            received: Mutex::default(),
            counts: Mutex::default(),
            script: Box::new(script),
        });
        let router = Router::new()
            .fallback(receive)
            .with_state(Arc::clone(&desk));
        let mut server = JoinSet::new();
        server.spawn(async move {
            drop(axum::serve(listener, router).await);
        });
        Self {
            address,
            desk,
            _server: server,
        }
    }

    /// Starts a receiver that is content with everything.
    pub async fn healthy() -> Self {
        Self::start(|_| Reply::status(200)).await
    }

    /// Its URL with this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What came to this path, in order.
    pub fn received(&self, path: &str) -> Vec<Received> {
        self.desk
            .received
            .lock()
            .iter()
            .filter(|received| received.path == path)
            .cloned()
            .collect()
    }

    /// When the latest request to this path came.
    pub fn latest(&self, path: &str) -> Option<Instant> {
        let received = self.desk.received.lock();
        let latest = received.iter().rev().find(|received| received.path == path);
        latest.map(|received| received.at)
    }

    /// Everything that came, in order.
    pub fn everything(&self) -> Vec<Received> {
        self.desk.received.lock().clone()
    }

    /// How many requests came to all paths.
    pub fn count(&self) -> usize {
        self.desk.received.lock().len()
    }

    /// How often each event came to this path.
    pub fn counts(&self, path: &str) -> BTreeMap<String, usize> {
        let counts = self.desk.counts.lock();
        let of_path = counts.iter().filter(|((at, _), _)| at == path);
        of_path
            .map(|((_, id), count)| (id.clone(), *count))
            .collect()
    }

    /// Waits until so many requests came to this path.
    pub async fn wait_for(&self, path: &str, count: usize, at_most: Duration) -> Vec<Received> {
        eventually(
            &format!("{count} requests to {path}"),
            at_most,
            async || {
                let received = self.received(path);
                if received.len() >= count {
                    Ok(received)
                } else {
                    Err(received.len())
                }
            },
        )
        .await
    }

    /// Waits until each of these events came to this path.
    pub async fn wait_for_all(&self, path: &str, ids: &[String], at_most: Duration) {
        eventually(
            &format!("{} events at {path}", ids.len()),
            at_most,
            async || {
                let counts = self.counts(path);
                let missing: Vec<_> = ids.iter().filter(|id| !counts.contains_key(*id)).collect();
                if missing.is_empty() {
                    Ok(())
                } else {
                    Err((missing.len(), missing[0].clone()))
                }
            },
        )
        .await;
    }
}

async fn receive(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .unwrap_or_default();
    let id = head
        .headers
        .get("webhook-id")
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    let mut received = Received {
        path: head.uri.path().to_owned(),
        id: id.to_owned(),
        body,
        at: Instant::now(),
        number: 0,
        headers: head.headers,
    };
    let reply = {
        let mut counts = desk.counts.lock();
        let count = counts
            .entry((received.path.clone(), received.id.clone()))
            .or_default();
        *count += 1;
        received.number = *count;
        (desk.script)(&received)
    };
    desk.received.lock().push(received);
    tokio::time::sleep(reply.after).await;
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response
        .body(Body::empty())
        .expect("tests script valid answers")
}
