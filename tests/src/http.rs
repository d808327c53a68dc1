//! A small HTTP client that keeps its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Sends requests to one server.
#[derive(Debug, Clone)]
pub struct HttpClient {
    address: SocketAddr,
    connections: Arc<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    idle: Mutex<Vec<SendRequest<Body>>>,
    drivers: Mutex<JoinSet<()>>,
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// There was no answer.
#[derive(Debug)]
pub struct NoAnswer(pub String);

impl Answer {
    /// The body as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header's text, empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

impl HttpClient {
    /// A client of the server at this address.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            connections: Arc::default(),
        }
    }

    /// Where the server is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends one request and reads its answer.
    ///
    /// # Errors
    /// When there is no whole answer within half a minute.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer, NoAnswer> {
        let answered = async {
            let mut connection = self.connection().await?;
            let response = connection.send_request(request).await.map_err(no_answer)?;
            let (head, body) = response.into_parts();
            let body = axum::body::to_bytes(Body::new(body), ANSWER_BYTES_MAX)
                .await
                .map_err(no_answer)?;
            self.connections.idle.lock().push(connection);
            Ok(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body,
            })
        };
        tokio::time::timeout(TIMEOUT, answered)
            .await
            .map_err(no_answer)?
    }

    async fn connection(&self) -> Result<SendRequest<Body>, NoAnswer> {
        loop {
            let Some(mut idle) = self.connections.idle.lock().pop() else {
                break;
            };
            if idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let stream = TcpStream::connect(self.address).await.map_err(no_answer)?;
        stream.set_nodelay(true).map_err(no_answer)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(no_answer)?;
        self.connections.drivers.lock().spawn(async move {
            // An error of the connection is told to whoever uses it.
            drop(driver.await);
        });
        Ok(sender)
    }
}

fn no_answer(error: impl std::error::Error) -> NoAnswer {
    NoAnswer(error.to_string())
}
