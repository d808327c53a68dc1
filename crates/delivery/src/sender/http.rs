//! Sends webhooks over HTTP, to addresses that the policy permits and nowhere else.
//!
//! The policy is asked about the address that is really dialled. Redirects are not followed,
//! proxies of the environment are not used, and an answer is read up to a cap only. Why this stands
//! on hyper's connections and not on a client with a pool of its own,
//! docs/decisions/own-connections.md says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{
    ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
    USER_AGENT,
};
use hyper::{Method, Request, Uri};
use postrider_log::Clock;
use postrider_model::address::AddressPolicy;
use postrider_model::delivery::DETAIL_BYTES_MAX;
use postrider_model::outcome::{Outcome, retry_after};
use tokio::time::{Instant, sleep};
use url::{Position, Url};

use super::connection::{Answer, Broken, Limits};
use super::dial::{Dialer, Origin, Protocol};
use super::failure::Failure;
use super::leaving::{Leaving, LeavingBody, Leg};
use super::pool::{Connection, Pool};
use super::{MayLeave, Sender, WebhookRequest, WebhookResponse};
use crate::config::EgressConfig;

/// After this process could not connect for want of something of its own.
const OURS_WAIT: Duration = Duration::from_secs(1);

/// Why the sender cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    /// TLS cannot be used.
    #[error("TLS cannot be used")]
    Tls(#[from] rustls::Error),
    /// Names cannot be resolved.
    #[error("names cannot be resolved: {0}")]
    Resolver(String),
}

/// Sends over HTTP/1.1 and, where TLS negotiates it, HTTP/2.
#[derive(Debug, Clone)]
pub struct HttpSender {
    pool: Arc<Pool>,
    clock: Arc<dyn Clock>,
    response_bytes_max: usize,
    response_excerpt_bytes_max: usize,
    response_body_timeout: Duration,
}

impl HttpSender {
    /// A sender with connections of its own.
    ///
    /// # Errors
    /// When TLS or the resolver cannot be set up.
    pub fn new(
        policy: AddressPolicy,
        config: &EgressConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SenderError> {
        Self::over(Protocol::Http1, policy, config, clock)
    }

    /// `plain` is what is spoken without TLS.
    fn over(
        plain: Protocol,
        policy: AddressPolicy,
        config: &EgressConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SenderError> {
        Ok(Self {
            pool: Arc::new(Pool::new(Dialer::new(policy, config, plain)?, config)),
            clock,
            response_bytes_max: config.response_bytes_max,
            response_excerpt_bytes_max: config.response_excerpt_bytes_max,
            response_body_timeout: Duration::from_millis(config.response_body_timeout_ms),
        })
    }

    /// Makes the exchange, and once more if the receiver has not seen the request: as it says
    /// itself, or because it had closed the connection that was used again (RFC 9112, section
    /// 9.3.1). `webhook-id` makes that safe.
    async fn exchange(
        &self,
        request: &WebhookRequest,
        leaving: &Arc<Leaving>,
    ) -> Result<Answer, Failure> {
        let Some(origin) = Origin::of(request.tenant.clone(), &request.url) else {
            return Err(Failure::Unusable);
        };
        let limits = Limits {
            deadline: Instant::now() + request.timeout,
            body_timeout: self.response_body_timeout,
            body_bytes_max: self.response_bytes_max,
            excerpt_bytes_max: self.response_excerpt_bytes_max,
        };
        let used = self.pool.used(&origin);
        let was_used = used.is_some();
        let connection = match used {
            Some(connection) => connection,
            // Boxed, so that not every exchange makes room for it.
            None => Box::pin(self.pool.fresh(&origin, false, limits.deadline)).await?,
        };
        let broken = match self
            .over_one(connection, &origin, request, leaving, limits)
            .await
        {
            Ok(answer) => return Ok(answer),
            Err(broken) => broken,
        };
        let not_seen = broken.is_vouched || (was_used && broken.untouched);
        if !(not_seen || broken.wants_http1) {
            return Err(broken.failure);
        }
        let same = broken.is_of_stream && !broken.wants_http1;
        let again = async {
            let next = match same.then(|| self.pool.used(&origin)).flatten() {
                Some(connection) => connection,
                None => {
                    let only_http1 = broken.wants_http1;
                    self.pool
                        .fresh(&origin, only_http1, limits.deadline)
                        .await?
                }
            };
            let again = self.over_one(next, &origin, request, leaving, limits);
            again.await.map_err(|broken| broken.failure)
        };
        match Box::pin(again).await {
            // The receiver may have got it the first time, so that was an attempt.
            Err(Failure::Ours(_) | Failure::Refused)
                if !(broken.is_vouched || broken.wants_http1) =>
            {
                Err(broken.failure)
            }
            ended => ended,
        }
    }

    async fn over_one(
        &self,
        connection: Connection,
        origin: &Origin,
        request: &WebhookRequest,
        leaving: &Arc<Leaving>,
        limits: Limits,
    ) -> Result<Answer, Broken> {
        // Dropped last, when the connection is kept or has ended.
        let _exchanging = self.pool.exchanging();
        let (_leg, body) = Leg::new(leaving, request.body.clone());
        let ended = match connection {
            Connection::Http1(connection) => {
                let message = message(request, Protocol::Http1, body);
                let answered = connection.exchange(message, limits).await;
                answered.map(|(answer, kept)| {
                    if let Some(kept) = kept {
                        self.pool.keep(origin, kept);
                    }
                    answer
                })
            }
            Connection::Http2(connection) => {
                let message = message(request, Protocol::Http2, body);
                let answered = connection.exchange(message, limits).await;
                // Where one exchange was not answered in time, others do not wait too.
                let is_good = match &answered {
                    Ok(_) => true,
                    Err(broken) => broken.is_of_stream && !broken.wants_http1,
                };
                if !is_good {
                    self.pool.leave(origin, &connection);
                }
                answered
            }
        };
        ended.map_err(|broken| match leaving.was_refused() {
            true => Broken::by(Failure::Refused),
            false => broken,
        })
    }

    fn response(&self, answer: Answer) -> WebhookResponse {
        let retry_after_ms = answer
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, self.clock.now_ms()));
        let target = redirect_target(&answer);
        let details: Vec<String> = target.into_iter().chain(answer.trouble).collect();
        WebhookResponse {
            outcome: Outcome::Answered {
                status: answer.status.as_u16(),
                retry_after_ms,
            },
            detail: bounded(details.join("; ")),
            excerpt: answer.excerpt,
        }
    }
}

impl Sender for HttpSender {
    async fn send(&self, request: WebhookRequest, may_leave: MayLeave) -> Option<WebhookResponse> {
        let leaving = Leaving::new(may_leave);
        match self.exchange(&request, &leaving).await {
            Ok(answer) => Some(self.response(answer)),
            Err(Failure::Refused) => None,
            Err(failure @ Failure::Ours(_)) => {
                tracing::warn!(%failure, "a webhook waits");
                sleep(OURS_WAIT).await;
                None
            }
            Err(failure) => Some(WebhookResponse {
                outcome: failure.outcome(),
                detail: bounded(failure.to_string()),
                excerpt: Bytes::new(),
            }),
        }
    }
}

fn bounded(mut detail: String) -> String {
    detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
    detail
}

/// Where a redirect, which is not followed, leads.
fn redirect_target(answer: &Answer) -> Option<String> {
    let target = answer.headers.get(LOCATION)?;
    let target = String::from_utf8_lossy(target.as_bytes());
    answer
        .status
        .is_redirection()
        .then(|| format!("redirects, which are not followed, to {target}"))
}

fn message(
    request: &WebhookRequest,
    protocol: Protocol,
    body: LeavingBody,
) -> Request<LeavingBody> {
    let mut message = Request::new(body);
    *message.method_mut() = Method::POST;
    *message.uri_mut() = target(&request.url, protocol);
    *message.headers_mut() = headers(request);
    if protocol == Protocol::Http1
        && let Ok(host) =
            HeaderValue::from_str(&request.url[Position::BeforeHost..Position::AfterPort])
    {
        message.headers_mut().insert(HOST, host);
    }
    message
}

/// HTTP/1.1 names the path (RFC 9112, section 3.2.1), HTTP/2 all of it.
fn target(url: &Url, protocol: Protocol) -> Uri {
    let from = match protocol {
        Protocol::Http1 => Position::BeforePath,
        Protocol::Http2 => Position::BeforeScheme,
    };
    // What a URL writes plainly a URI does too.
    url[from..Position::AfterQuery].parse().unwrap_or_default()
}

fn headers(request: &WebhookRequest) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("Postrider/", env!("CARGO_PKG_VERSION"))),
    );
    let timestamp = request.timestamp_s.to_string();
    let texts = [
        ("webhook-id", &request.id),
        ("webhook-timestamp", &timestamp),
        ("webhook-signature", &request.signature),
        ("traceparent", &request.traceparent),
    ];
    for (name, text) in texts {
        if !text.is_empty()
            && let Ok(value) = HeaderValue::from_str(text)
        {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}

#[cfg(test)]
mod tests;
