//! The receiver: a small customer's server that verifies what comes and answers as its path says.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use postrider_daemon::http;
use postrider_daemon::tasks::Tasks;
use postrider_log::{Clock, SystemClock};
use postrider_model::signature;
use tokio::net::TcpListener;

use super::Behaviour;
use super::ledger::Ledger;
use super::setup::Secrets;

const DRAIN: Duration = Duration::from_secs(1);

struct Receiver {
    secrets: Secrets,
    ledger: Arc<Ledger>,
    /// How often each event was refused by the flaky path, until it is taken.
    refused: Mutex<HashMap<String, u64>>,
}

/// Starts the receiver at a free port of the loopback interface.
pub(crate) async fn spawn(
    tasks: &mut Tasks,
    secrets: Secrets,
    ledger: Arc<Ledger>,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .context("listen for the demo's receiver")?;
    let address = listener.local_addr()?;
    let receiver = Arc::new(Receiver {
        secrets,
        ledger,
        refused: Mutex::default(),
    });
    let router = Router::new()
        .route("/{behaviour}", post(receive))
        .with_state(receiver);
    let stop = tasks.token().clone();
    tasks.critical("demo-receiver", async move {
        http::serve(listener, router, stop, DRAIN).await;
        Ok::<(), Infallible>(())
    });
    Ok(address)
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let Some(behaviour) = Behaviour::ALL
        .into_iter()
        .find(|behaviour| behaviour.name() == path)
    else {
        return StatusCode::NOT_FOUND;
    };
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let id = header("webhook-id");
    let verified = signature::verify(
        receiver.secrets.of(behaviour),
        id,
        header("webhook-timestamp"),
        header("webhook-signature"),
        &body,
        SystemClock.now_ms() / 1000,
    );
    if verified.is_err() {
        receiver.ledger.forgery();
        return StatusCode::UNAUTHORIZED;
    }
    match behaviour {
        Behaviour::Gone => StatusCode::GONE,
        Behaviour::Flaky if receiver.refuses(id) => StatusCode::INTERNAL_SERVER_ERROR,
        Behaviour::Healthy | Behaviour::Flaky => {
            receiver.ledger.done(id, behaviour);
            StatusCode::OK
        }
    }
}

impl Receiver {
    /// Every other request is refused, beginning with the first for half of the events.
    fn refuses(&self, event_id: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        event_id.hash(&mut hasher);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let times = refused.get(event_id).copied().unwrap_or(0);
        let refuses = hasher.finish().wrapping_add(times).is_multiple_of(2);
        if refuses {
            refused.insert(event_id.to_owned(), times + 1);
        } else {
            refused.remove(event_id);
        }
        refuses
    }
}
