//! Asking the process that owns an endpoint what it knows beyond the log: one request, bounded in
//! time and bytes.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postrider_model::ids::EndpointId;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

const TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why the owner told nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Silence {
    #[error("it did not answer within {} s", TIMEOUT.as_secs())]
    Late,
    #[error("it cannot be reached: {0}")]
    Unreachable(#[from] std::io::Error),
    #[error("it did not answer as HTTP: {0}")]
    Broken(#[from] hyper::Error),
    #[error(
        "it holds nothing of this endpoint: nothing is under way to it, or the partition is on its way to a process"
    )]
    Nothing,
    #[error("its deliver stage does not answer: it has too much to do, or begins anew")]
    Busy,
    #[error("it answered with status {0}")]
    Refused(StatusCode),
    #[error("its answer is not JSON, or too long")]
    Unreadable,
    #[error("it names no address that can be asked")]
    Address,
}

/// What the owner at `host:port` knows of the endpoint right now.
pub(crate) async fn ask(owner: &str, endpoint: &EndpointId) -> Result<Value, Silence> {
    timeout(TIMEOUT, call(owner, endpoint))
        .await
        .map_err(|_| Silence::Late)?
}

async fn call(owner: &str, endpoint: &EndpointId) -> Result<Value, Silence> {
    let request = Request::get(format!("/lanes/{endpoint}"))
        .header(header::HOST, owner)
        .body(Body::empty())
        .map_err(|_| Silence::Address)?;
    let stream = TcpStream::connect(owner).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Silence::Nothing),
            StatusCode::SERVICE_UNAVAILABLE => return Err(Silence::Busy),
            status => return Err(Silence::Refused(status)),
        }
        let body = to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await;
        let body = body.map_err(|_| Silence::Unreadable)?;
        serde_json::from_slice(&body).map_err(|_| Silence::Unreadable)
    };
    // The exchange holds the sender, without which the connection ends; what ends it otherwise, the
    // exchange tells.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// What is made of this answer, and the request that led to it.
    async fn asked(answer: &'static [u8]) -> (Result<Value, Silence>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let owner = listener.local_addr().unwrap().to_string();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            request.truncate(length);
            (String::from_utf8(request).unwrap(), stream)
        });
        let told = ask(&owner, &"ep_a".parse().unwrap()).await;
        // The connection is held open until here, as a server with keep-alive does.
        let (request, _) = server.join_next().await.unwrap().unwrap();
        (told, request)
    }

    #[tokio::test]
    async fn the_owner_is_asked_by_the_endpoints_id() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"queued\": 7}";
        let (told, request) = asked(answer).await;
        assert_eq!(told.unwrap()["queued"], 7);
        assert!(
            request.starts_with("GET /lanes/ep_a HTTP/1.1\r\n"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn an_owner_that_tells_nothing_of_use_is_told_apart() {
        let (told, _) = asked(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n").await;
        assert!(matches!(told, Err(Silence::Nothing)), "{told:?}");
        let (told, _) = asked(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await;
        assert!(matches!(told, Err(Silence::Busy)), "{told:?}");
        let (told, _) = asked(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await;
        assert!(matches!(told, Err(Silence::Refused(_))), "{told:?}");
        let (told, _) = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{]").await;
        assert!(matches!(told, Err(Silence::Unreadable)), "{told:?}");
        let (told, _) = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n{").await;
        assert!(
            matches!(told, Err(Silence::Unreadable | Silence::Late)),
            "{told:?}"
        );
        let (told, _) = asked(b"SSH-2.0-none\r\n\r\n").await;
        assert!(matches!(told, Err(Silence::Broken(_))), "{told:?}");
        let nobody = ask("127.0.0.1:1", &"ep_a".parse().unwrap()).await;
        assert!(matches!(nobody, Err(Silence::Unreachable(_))), "{nobody:?}");
        let nowhere = ask("a\r\nb", &"ep_a".parse().unwrap()).await;
        assert!(matches!(nowhere, Err(Silence::Address)), "{nowhere:?}");
    }

    #[tokio::test]
    async fn an_owner_that_hangs_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let owner = listener.local_addr().unwrap().to_string();
        let told = ask(&owner, &"ep_a".parse().unwrap()).await;
        assert!(matches!(told, Err(Silence::Late)), "{told:?}");
    }
}
