//! The door to the outside: one request, one answer.

mod connection;
mod dial;
mod failure;
pub mod http;
mod leaving;
mod metered;
mod pool;
mod resolver;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::ids::TenantId;
use postrider_model::outcome::Outcome;
use url::Url;

pub use http::{HttpSender, SenderError};

/// A webhook, signed and ready to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRequest {
    /// Whose it is: no two tenants share a connection.
    pub tenant: TenantId,
    /// Where to.
    pub url: Url,
    /// `webhook-id`.
    pub id: String,
    /// Number of the attempt, from 1; it is not sent.
    pub attempt: u32,
    /// `webhook-timestamp`, Unix seconds.
    pub timestamp_s: i64,
    /// `webhook-signature`.
    pub signature: String,
    /// `traceparent`, empty for none.
    pub traceparent: String,
    /// The body, exactly as signed.
    pub body: Bytes,
    /// How long the whole exchange may take.
    pub timeout: Duration,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookResponse {
    /// What it means for the delivery.
    pub outcome: Outcome,
    /// What went wrong, for people; of an answer, where it redirects to and what was wrong with its
    /// body.
    pub detail: String,
    /// The beginning of the body.
    pub excerpt: Bytes,
}

impl WebhookResponse {
    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self.outcome {
            Outcome::Answered { status, .. } => Some(status),
            Outcome::Unanswered(_) | Outcome::Unsendable(_) => None,
        }
    }
}

/// Whether a webhook may still leave. Names are resolved and connections made before a request is
/// written, which may take seconds, and a process may be frozen meanwhile: this is asked when the
/// bytes are about to go.
pub type MayLeave = Arc<dyn Fn() -> bool + Send + Sync>;

/// Sends webhooks. It never fails: whatever happens is an outcome. Dropping the future gives the
/// request up.
pub trait Sender: Debug + Send + Sync + 'static {
    /// Sends one webhook, or `None` if it did not leave: it might not any more, or this process
    /// lacked what it takes to connect. Then the receiver has got no body.
    fn send(
        &self,
        request: WebhookRequest,
        may_leave: MayLeave,
    ) -> impl Future<Output = Option<WebhookResponse>> + Send;
}
