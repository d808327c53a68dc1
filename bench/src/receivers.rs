//! Receivers of many endpoints in this process, each with a manner of its own that can change at
//! any moment.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Mutex as Turn;
use tokio::task::JoinSet;

/// How an endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// 200, at once.
    Answers,
    /// This status, at once.
    Refuses(u16),
    /// Never.
    Hangs,
    /// 200, one request after the other, each taking so long.
    TakesTurns(Duration),
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrival {
    /// Whose.
    pub(crate) flow: usize,
    /// When its event was due to be published, in microseconds since the beginning.
    pub(crate) due_us: u64,
    /// Tells events apart that were due at once.
    pub(crate) number: u64,
    /// When it came.
    pub(crate) at_us: u64,
}

/// All receivers, at every address of 127.0.0.0/8.
#[derive(Debug)]
pub(crate) struct Receivers {
    desk: Arc<Desk>,
    port: u16,
    _server: JoinSet<()>,
}

#[derive(Debug)]
struct Desk {
    began: Instant,
    endpoints: Vec<Endpoint>,
    arrivals: Mutex<Vec<Arrival>>,
}

#[derive(Debug)]
struct Endpoint {
    manner: Mutex<Manner>,
    turn: Turn<()>,
    answered: AtomicU64,
}

impl Receivers {
    /// Starts receivers of so many endpoints that answer at once.
    pub(crate) async fn start(count: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))
            .await
            .expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("a listener has an address");
        let endpoint = || Endpoint {
            manner: Mutex::new(Manner::Answers),
            turn: Turn::new(()),
            answered: AtomicU64::new(0),
        };
        let desk = Arc::new(Desk {
            began: Instant::now(),
            endpoints: std::iter::repeat_with(endpoint).take(count).collect(),
            arrivals: Mutex::default(),
        });
        let router = Router::new()
            .fallback(receive)
            .with_state(Arc::clone(&desk));
        let mut server = JoinSet::new();
        server.spawn(async move {
            drop(axum::serve(listener, router).await);
        });
        Self {
            desk,
            port: address.port(),
            _server: server,
        }
    }

    /// Where an endpoint is; each has an address of its own, as far as one octet reaches.
    pub(crate) fn url(&self, endpoint: usize) -> String {
        let host = 1 + endpoint % 250;
        format!("http://127.0.0.{host}:{}/{endpoint}", self.port)
    }

    /// From now on an endpoint answers like this. Requests that hang go on hanging.
    pub(crate) fn set(&self, endpoint: usize, manner: Manner) {
        *self.desk.endpoints[endpoint].manner.lock() = manner;
    }

    /// How many requests an endpoint answered with 200.
    pub(crate) fn answered(&self, endpoint: usize) -> u64 {
        self.desk.endpoints[endpoint]
            .answered
            .load(Ordering::Relaxed)
    }

    /// The moment that times are counted from.
    pub(crate) fn began(&self) -> Instant {
        self.desk.began
    }

    /// Microseconds since the beginning.
    pub(crate) fn now_us(&self) -> u64 {
        self.desk.now_us()
    }

    /// Everything that came so far.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.desk.arrivals.lock().clone()
    }
}

impl Desk {
    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

async fn receive(State(desk): State<Arc<Desk>>, request: Request) -> StatusCode {
    let Some((flow, due_us, number)) = read(&request) else {
        return StatusCode::BAD_REQUEST;
    };
    // The head is enough: the body is short and comes with it.
    let at_us = desk.now_us();
    desk.arrivals.lock().push(Arrival {
        flow,
        due_us,
        number,
        at_us,
    });
    let Some(endpoint) = desk.endpoints.get(flow) else {
        return StatusCode::NOT_FOUND;
    };
    let manner = *endpoint.manner.lock();
    match manner {
        Manner::Answers => {}
        Manner::Refuses(status) => {
            return StatusCode::from_u16(status).expect("scenarios name valid ones");
        }
        Manner::Hangs => std::future::pending().await,
        Manner::TakesTurns(time) => {
            let _turn = endpoint.turn.lock().await;
            tokio::time::sleep(time).await;
        }
    }
    endpoint.answered.fetch_add(1, Ordering::Relaxed);
    StatusCode::OK
}

/// Flow, due time and number, from the path and the event's id.
fn read(request: &Request) -> Option<(usize, u64, u64)> {
    let flow = request.uri().path().strip_prefix('/')?.parse().ok()?;
    let id = request.headers().get("webhook-id")?.to_str().ok()?;
    let mut parts = id.split('-').skip(1);
    let due_us = parts.next()?.parse().ok()?;
    let number = parts.next()?.parse().ok()?;
    Some((flow, due_us, number))
}
