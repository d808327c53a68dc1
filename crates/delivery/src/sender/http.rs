//! Sends webhooks over HTTP, to addresses that the policy permits and nowhere else.
//!
//! The policy is asked about the address that is really dialled. Redirects are not followed, proxies of the environment are not
//! used, and an answer is read up to a cap only. Why this stands on hyper's connections and not on a client with a pool of its own,
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
use super::leaving::{Leaving, LeavingBody};
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

    /// Makes the exchange, and once more if the receiver has not seen the request: as it says itself, or because it had closed
    /// the connection that was used again (RFC 9112, section 9.3.1). `webhook-id` makes that safe.
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
            None => self.pool.fresh(&origin, false).await?,
        };
        let broken = match self
            .over_one(connection, &origin, request, leaving, limits)
            .await
        {
            Ok(answer) => return Ok(answer),
            Err(broken) => broken,
        };
        let not_seen = broken.is_vouched || (was_used && broken.untouched);
        if leaving.was_refused() || !(not_seen || broken.wants_http1) {
            return Err(broken.failure);
        }
        let same = broken.is_of_stream && !broken.wants_http1;
        let next = match same.then(|| self.pool.used(&origin)).flatten() {
            Some(connection) => connection,
            None => self.pool.fresh(&origin, broken.wants_http1).await?,
        };
        let again = self.over_one(next, &origin, request, leaving, limits);
        again.await.map_err(|broken| broken.failure)
    }

    async fn over_one(
        &self,
        connection: Connection,
        origin: &Origin,
        request: &WebhookRequest,
        leaving: &Arc<Leaving>,
        limits: Limits,
    ) -> Result<Answer, Broken> {
        let body = LeavingBody::new(request.body.clone(), Arc::clone(leaving));
        match connection {
            Connection::Http1(connection) => {
                let message = message(request, Protocol::Http1, body);
                let (answer, kept) = connection.exchange(message, limits).await?;
                if let Some(kept) = kept {
                    self.pool.keep(origin, Box::new(kept));
                }
                Ok(answer)
            }
            Connection::Http2(connection) => {
                let message = message(request, Protocol::Http2, body);
                let answered = connection.exchange(message, limits).await;
                // Where one exchange was not answered in time, others do not wait too.
                if answered.as_ref().is_err_and(|broken| !broken.is_of_stream) {
                    self.pool.leave(origin, &connection);
                }
                answered
            }
        }
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
            Err(_) if leaving.was_refused() => None,
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
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use postrider_log::SystemClock;
    use postrider_model::ids::TenantId;
    use postrider_model::outcome::Reason;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// An HTTP/2 server that refuses the first requests and answers the others.
    async fn refusing(count: usize, tasks: &mut JoinSet<()>) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&requests);
        tasks.spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if seen.fetch_add(1, Ordering::SeqCst) < count {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    // The default is 200.
                    respond.send_response(Default::default(), true).unwrap();
                }
            }
        });
        (address, requests)
    }

    fn sender(config: &EgressConfig) -> HttpSender {
        let policy = AddressPolicy::try_new(&["127.0.0.0/8".to_owned()]).unwrap();
        HttpSender::over(Protocol::Http2, policy, config, Arc::new(SystemClock)).unwrap()
    }

    async fn send(address: SocketAddr) -> WebhookResponse {
        send_by(&sender(&EgressConfig::default()), address).await
    }

    async fn send_by(sender: &HttpSender, address: SocketAddr) -> WebhookResponse {
        let request = WebhookRequest {
            tenant: TenantId::try_new("acme").unwrap(),
            url: format!("http://{address}/").parse().unwrap(),
            id: "evt_1".to_owned(),
            attempt: 1,
            timestamp_s: 1_700_000_000,
            signature: "v1,abc=".to_owned(),
            traceparent: String::new(),
            body: Bytes::from_static(b"{}"),
            timeout: TIMEOUT,
        };
        sender.send(request, Arc::new(|| true)).await.unwrap()
    }

    /// Requests wait on one connection until it is found dead, and the next one gets another.
    #[tokio::test]
    async fn a_dead_connection_is_left_before_the_attempt_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            for answers in [1, 9] {
                let (stream, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                for _ in 0..answers {
                    let (_, mut respond) = connection.accept().await.unwrap().unwrap();
                    respond.send_response(Default::default(), true).unwrap();
                }
                // The answer leaves when the connection is asked for more; after that nobody looks at it.
                drop(timeout(Duration::from_millis(100), connection.accept()).await);
                std::mem::forget(connection);
            }
        });
        let sender = sender(&EgressConfig {
            http2_ping_interval_ms: 200,
            http2_ping_timeout_ms: 200,
            ..EgressConfig::default()
        });
        assert_eq!(send_by(&sender, address).await.status(), Some(200));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        // On the dead one nothing comes, so it is sent once more on the next.
        assert_eq!(send_by(&sender, address).await.status(), Some(200));
        assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_the_receiver_refused_unprocessed_is_sent_once_more() {
        let mut tasks = JoinSet::new();
        let (address, requests) = refusing(1, &mut tasks).await;
        let outcome = send(address).await.outcome;
        assert!(
            matches!(outcome, Outcome::Answered { status: 200, .. }),
            "{outcome:?}"
        );
        assert_eq!(requests.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_came_after_a_connection_was_going_away_is_sent_once_more() {
        // Frames of RFC 9113: SETTINGS without any, then GOAWAY with no stream processed and NO_ERROR.
        const GOES_AWAY: [u8; 26] = [
            0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut first, _) = listener.accept().await.unwrap();
            // The request is on its way when its connection goes.
            let mut begin = [0; 128];
            first.read_exact(&mut begin).await.unwrap();
            first.write_all(&GOES_AWAY).await.unwrap();
            let (second, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(second).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_response(Default::default(), true).unwrap();
            }
        });
        let outcome = send(address).await.outcome;
        assert!(
            matches!(outcome, Outcome::Answered { status: 200, .. }),
            "{outcome:?}"
        );
    }

    #[tokio::test]
    async fn what_is_refused_twice_has_failed() {
        let mut tasks = JoinSet::new();
        let (address, requests) = refusing(9, &mut tasks).await;
        assert_eq!(
            send(address).await.outcome,
            Outcome::Unanswered(Reason::Connect)
        );
        assert_eq!(requests.load(Ordering::SeqCst), 2);
    }
}
