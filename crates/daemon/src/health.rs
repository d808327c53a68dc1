//! Health and metrics over HTTP.
//!
//! The server has a thread and a runtime of its own, so that it answers when the main runtime is
//! busy: a process that works hard must not be taken for dead.
//!
//! - `/livez`: the process answers, and nothing is wrong with it that only another process would
//!   not have. Else 503 and the names of what is.
//! - `/readyz`: 200 when every named condition is met, else 503 and the names of those that are
//!   not.
//! - `/metrics`: Prometheus text exposition.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::http::{self, Limits};
use crate::metrics::{self, Metrics};

/// Probes are short, and come from few places.
const LIMITS: Limits = Limits {
    connections_max: 64,
    connections_per_address_max: 64,
    first_head_timeout: Duration::from_secs(5),
    head_bytes_max: 16 << 10,
    header_timeout: Duration::from_secs(10),
    drain: Duration::from_secs(1),
};

/// The conditions under which the process is ready, and those under which it is of any use. Cloning
/// it is cheap and gives the same conditions.
#[derive(Debug, Clone, Default)]
pub struct Health {
    ready: Conditions,
    live: Conditions,
}

#[derive(Debug, Clone, Default)]
struct Conditions(Arc<Mutex<BTreeMap<&'static str, Condition>>>);

/// One condition. It outlives its handles with the last state they set.
#[derive(Debug, Clone)]
pub struct Condition(Arc<AtomicBool>);

impl Condition {
    /// Says whether the condition is met.
    pub fn set(&self, met: bool) {
        self.0.store(met, Ordering::Release);
    }
}

/// The running server. Dropping it stops the server.
#[derive(Debug)]
pub struct HealthServer {
    address: SocketAddr,
    token: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    unmet: Vec<&'static str>,
}

impl Conditions {
    fn get(&self, name: &'static str, met: bool) -> Condition {
        let mut conditions = self.0.lock();
        let new = || Condition(Arc::new(AtomicBool::new(met)));
        conditions.entry(name).or_insert_with(new).clone()
    }

    fn unmet(&self) -> Vec<&'static str> {
        let conditions = self.0.lock();
        let unmet = conditions
            .iter()
            .filter(|(_, condition)| !condition.0.load(Ordering::Acquire));
        unmet.map(|(name, _)| *name).collect()
    }
}

impl Health {
    /// No conditions yet: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// The condition of readiness of this name; a new one is not met.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.ready.get(name, false)
    }

    /// The condition of life of this name; a new one is met. Say that it is not only when nothing
    /// but another process can help: whoever asks `/livez` ends this one.
    pub fn vital(&self, name: &'static str) -> Condition {
        self.live.get(name, true)
    }

    /// Names of the conditions of readiness that are not met, sorted.
    pub fn unmet(&self) -> Vec<&'static str> {
        self.ready.unmet()
    }

    /// Starts the server on a thread of its own. `further` are routes of the role's own, for those
    /// who operate it; they must be quick.
    ///
    /// # Errors
    /// When the address cannot be bound or the thread not started.
    pub fn serve(
        &self,
        address: SocketAddr,
        metrics: Metrics,
        further: Router,
    ) -> io::Result<HealthServer> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let router = Router::new()
            .route("/livez", get(live).with_state(self.clone()))
            .route("/readyz", get(ready).with_state(self.clone()))
            .route("/metrics", get(exposition).with_state(metrics))
            .merge(further);
        let token = CancellationToken::new();
        let stopped = token.clone();
        let thread = thread::Builder::new()
            .name("health".into())
            .spawn(move || {
                runtime.block_on(async {
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => {
                            http::serve(listener, router, stopped, LIMITS).await;
                        }
                        Err(error) => tracing::error!(%error, "health server cannot start"),
                    }
                });
            })?;
        Ok(HealthServer {
            address,
            token,
            thread: Some(thread),
        })
    }
}

impl HealthServer {
    /// The address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server and waits for its thread, a second or little more.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for HealthServer {
    fn drop(&mut self) {
        self.token.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("health server panicked");
        }
    }
}

async fn live(State(health): State<Health>) -> Response {
    let unmet = health.live.unmet();
    if unmet.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, unmet.join("\n") + "\n").into_response()
    }
}

async fn ready(State(health): State<Health>) -> Response {
    let unmet = health.unmet();
    let ready = unmet.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Readiness { ready, unmet })).into_response()
}

async fn exposition(State(metrics): State<Metrics>) -> Response {
    (
        [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
        metrics.render(),
    )
        .into_response()
}
