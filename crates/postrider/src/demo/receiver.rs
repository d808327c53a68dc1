//! The receiver: a small customer's server that verifies what comes and answers as its path says.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use parking_lot::Mutex;
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
    flaky: Mutex<Flaky>,
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
        flaky: Mutex::default(),
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
    fn refuses(&self, event_id: &str) -> bool {
        let mut flaky = self.flaky.lock();
        flaky.refuses(event_id)
    }
}

/// Refuses the first request of every other event.
#[derive(Debug, Default)]
struct Flaky {
    new_events: u64,
    refused: HashSet<String>,
}

impl Flaky {
    /// What an earlier process refused is new to this one, so half of it is refused again. All of
    /// it must not be: a backlog of refused events would look like a dead endpoint.
    fn refuses(&mut self, event_id: &str) -> bool {
        if self.refused.remove(event_id) {
            return false;
        }
        self.new_events += 1;
        let refuses = self.new_events.is_multiple_of(2);
        if refuses {
            self.refused.insert(event_id.to_owned());
        }
        refuses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_refused_is_not_all_refused_again() {
        let events: Vec<String> = (0..80).map(|number| format!("evt_{number}")).collect();
        let mut before = Flaky::default();
        let refused: Vec<_> = events.iter().filter(|id| before.refuses(id)).collect();
        assert_eq!(refused.len(), 40);
        assert!(!refused.iter().any(|id| before.refuses(id)));

        let mut after = Flaky::default();
        let again = refused.iter().filter(|id| after.refuses(id)).count();
        assert_eq!(again, 20);
    }
}
