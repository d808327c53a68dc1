//! The HTTP server: bounded in connections, in the time and the bytes that a request's head may
//! take, and in the time it drains.

mod places;
mod read_to_end;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use places::{NoPlace, Place, Places};
use read_to_end::{ReadToEnd, read_on};

/// Pause after a failed accept that is not the client's doing: most often there are no file
/// descriptors left, and asking again at once would only burn CPU until some connection closes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a refusal is kept back at most from a caller who does not wait.
const KEPT_BACK_MAX: Duration = Duration::from_secs(2);
/// What a connection reads at once, unless a head may be longer. Each keeps room for as much.
const READ_BYTES_MAX: usize = 8 << 10;

/// What a server takes and how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. For a further one the one goes that asked for nothing longest; while
    /// all ask or have just done so, it waits.
    pub connections_max: usize,
    /// Of them from one address. A further one is closed while all of its address ask for
    /// something.
    pub connections_per_address_max: usize,
    /// How long the first head may take on a connection.
    pub first_head_timeout: Duration,
    /// How long the head of a later request may take. It also closes a connection that was idle for
    /// as long.
    pub header_timeout: Duration,
    /// Bytes of a head; more is answered with 431.
    pub head_bytes_max: usize,
    /// How long open requests may go on after cancellation.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_address_max: 4096,
            first_head_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            head_bytes_max: 8 << 10,
            drain: Duration::from_secs(25),
        }
    }
}

impl From<Duration> for Limits {
    /// The default limits with this time to drain.
    fn from(drain: Duration) -> Self {
        Self {
            drain,
            ..Self::default()
        }
    }
}

/// Extension of an answer that refuses a request because there are too many: how long the caller
/// was asked to wait. If the next request on the same connection comes sooner and is refused as
/// well, its answer waits until then, but at most 2 s: so that those who do not wait cost little
/// more than those who do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotBefore(pub Duration);

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because they were not done in time.
    pub cut: usize,
}

/// Serves HTTP/1.1 until the token is cancelled: then it accepts nothing more, lets open requests
/// finish within the drain time, and cuts the rest. Handlers find the peer's address in
/// [`ConnectInfo<SocketAddr>`].
///
/// Dropping the future cuts everything at once.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    token: CancellationToken,
    limits: impl Into<Limits>,
) -> Drained {
    let limits = limits.into();
    let places = Places::new(limits.connections_max, limits.connections_per_address_max);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = token.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = tokio::select! {
                    biased;
                    () = token.cancelled() => break,
                    place = place(&places, peer) => place,
                };
                if let Some(place) = place {
                    let connection =
                        handle(stream, place, peer, router.clone(), token.clone(), limits);
                    connections.spawn(connection);
                }
            }
            Err(error) if is_clients_doing(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Further clients shall be refused by the kernel, so that they try another instance at once.
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain, all_ended).await.is_ok() {
        return Drained { cut: 0 };
    }
    let cut = connections.len();
    connections.shutdown().await;
    Drained { cut }
}

/// Waits for a place; `None`: the address has as many as it may.
async fn place(places: &Places, peer: SocketAddr) -> Option<Place> {
    loop {
        match places.take(peer.ip()) {
            Ok(place) => return Some(place),
            Err(NoPlace::AtAll) => places.freed().await,
            Err(NoPlace::OfAddress) => {
                tracing::debug!(%peer, "connection refused: its address has as many as it may");
                return None;
            }
        }
    }
}

fn is_clients_doing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::InvalidInput
    )
}

fn too_late() -> axum::response::Response {
    let close = [(hyper::header::CONNECTION, "close")];
    (StatusCode::SERVICE_UNAVAILABLE, close).into_response()
}

/// Of a connection: until when its caller was asked to wait.
#[derive(Debug, Default)]
struct Patience(Mutex<Option<Instant>>);

impl Patience {
    /// Keeps a refusal back until the time that an earlier one named, but no longer than a client
    /// surely waits.
    async fn exert(&self, told: Option<NotBefore>, token: &CancellationToken) {
        let earlier = self.replace(None);
        if let (Some(_), Some(until)) = (told, earlier) {
            let until = until.min(Instant::now() + KEPT_BACK_MAX);
            token.run_until_cancelled(sleep_until(until)).await;
        }
        self.replace(told.map(|NotBefore(wait)| Instant::now() + wait));
    }

    fn replace(&self, until: Option<Instant>) -> Option<Instant> {
        let mut told = self.0.lock();
        std::mem::replace(&mut *told, until)
    }
}

async fn handle(
    stream: TcpStream,
    place: Place,
    peer: SocketAddr,
    router: Router,
    token: CancellationToken,
    limits: Limits,
) {
    // Only speed depends on it.
    drop(stream.set_nodelay(true));
    let router = TowerToHyperService::new(router);
    let (place, token) = (&place, &token);
    let patience = &Patience::default();
    let (leftovers, left) = mpsc::channel(1);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let asking = place.ask();
        request.extensions_mut().insert(ConnectInfo(peer));
        // Whoever lost the place meanwhile is not begun with.
        let request = ReadToEnd::of(request, &leftovers);
        let response = asking.is_some().then(|| router.call(request));
        async move {
            let Some(response) = response else {
                return Ok(too_late());
            };
            let Ok(response) = response.await;
            let told = response.extensions().get().copied();
            patience.exert(told, token).await;
            drop(asking);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.head_bytes_max)
        .max_buf_size(READ_BYTES_MAX.max(limits.head_bytes_max))
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let silent = async {
        sleep(limits.first_head_timeout).await;
        if place.has_asked() {
            std::future::pending::<()>().await;
        }
    };
    let mut silent = pin!(async {
        tokio::select! {
            () = silent => {}
            () = read_on(left) => {}
        }
    });
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = place.ended.cancelled() => return,
        () = silent.as_mut() => return,
        () = token.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                result = connection => result,
                () = silent => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %peer, "connection ended early");
    }
}
