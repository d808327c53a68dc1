//! Sends webhooks over HTTP, to addresses that the policy permits and nowhere else.
//!
//! The policy is asked about the address that is really dialled: names are resolved here and only permitted
//! addresses are handed to the connector; an address written in the URL is checked before the request. Redirects are
//! not followed, proxies of the environment are not used, and an answer is read up to a cap only.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use postrider_log::Clock;
use postrider_model::address::AddressPolicy;
use postrider_model::delivery::{DETAIL_BYTES_MAX, RESPONSE_EXCERPT_BYTES_MAX};
use postrider_model::outcome::{Outcome, Reason, retry_after};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use tokio::time::timeout;
use url::Host;

use super::{MayLeave, Sender, WebhookRequest, WebhookResponse};
use crate::config::EgressConfig;

/// Why the sender cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    /// The HTTP client refused its settings.
    #[error("the http client could not be built")]
    Client(#[from] reqwest::Error),
}

/// Sends over HTTP/1.1 and, where TLS negotiates it, HTTP/2.
#[derive(Debug, Clone)]
pub struct HttpSender {
    client: reqwest::Client,
    policy: Arc<AddressPolicy>,
    clock: Arc<dyn Clock>,
    response_bytes_max: usize,
    response_body_timeout: Duration,
}

const OPEN_BODY: &str = "the body of the answer did not end in time";
/// Of the head of an answer: more headers, longer ones together, or a longer line are refused.
const RESPONSE_HEADERS_MAX: usize = 1024;
const RESPONSE_HEAD_BYTES_MAX: u32 = 64 << 10;

impl HttpSender {
    /// A sender with one connection pool.
    ///
    /// # Errors
    /// When the HTTP client cannot be built from the settings.
    pub fn new(
        policy: AddressPolicy,
        config: &EgressConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SenderError> {
        Self::over(reqwest::Client::builder(), policy, config, clock)
    }

    fn over(
        client: reqwest::ClientBuilder,
        policy: AddressPolicy,
        config: &EgressConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SenderError> {
        let policy = Arc::new(policy);
        let client = client
            .user_agent(concat!("Postrider/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .pool_max_idle_per_host(config.idle_connections_per_host_max)
            .pool_idle_timeout(Duration::from_millis(config.idle_connection_ms))
            .tcp_nodelay(true)
            // RFC 9113, 6.7: a connection that is dead is noticed while requests wait for it, not when they are given up.
            .http2_keep_alive_interval(Duration::from_millis(config.http2_ping_interval_ms))
            .http2_keep_alive_timeout(Duration::from_millis(config.http2_ping_timeout_ms))
            // Real servers write heads that RFC 9112 forbids; other clients read them.
            .http1_max_headers(RESPONSE_HEADERS_MAX)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .http2_max_header_list_size(RESPONSE_HEAD_BYTES_MAX)
            .dns_resolver(PolicedResolver {
                policy: policy.clone(),
            })
            .build()?;
        Ok(Self {
            client,
            policy,
            clock,
            response_bytes_max: config.response_bytes_max,
            response_body_timeout: Duration::from_millis(config.response_body_timeout_ms),
        })
    }

    /// Sends, and once more if the receiver says that it did nothing with the request: servers that end a connection
    /// after so many requests refuse those which are on their way.
    async fn exchange(
        &self,
        mut request: WebhookRequest,
        leaving: Arc<Leaving>,
    ) -> Result<WebhookResponse, reqwest::Error> {
        let began = Instant::now();
        match self.exchange_once(&request, leaving.clone()).await {
            Err(error) if is_unprocessed(&error) => {
                request.timeout = request.timeout.saturating_sub(began.elapsed());
                self.exchange_once(&request, leaving).await
            }
            ended => ended,
        }
    }

    async fn exchange_once(
        &self,
        request: &WebhookRequest,
        leaving: Arc<Leaving>,
    ) -> Result<WebhookResponse, reqwest::Error> {
        let headers = headers(request);
        let body = LeavingBody {
            bytes: Some(request.body.clone()),
            leaving,
        };
        let sent = self
            .client
            .post(request.url.clone())
            .timeout(request.timeout)
            .headers(headers)
            .body(reqwest::Body::wrap(body));
        let mut response = sent.send().await?;
        let retry_after_ms = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, self.clock.now_ms()));
        let status = response.status().as_u16();
        let target = redirect_target(&response);
        let (excerpt, trouble) = self.excerpt(&mut response).await;
        let details: Vec<String> = target.into_iter().chain(trouble).collect();
        Ok(WebhookResponse {
            outcome: Outcome::Answered {
                status,
                retry_after_ms,
            },
            detail: bounded(details.join("; ")),
            excerpt,
        })
    }

    /// The beginning of the body, and what was wrong with it. The status has decided already: a receiver that cannot end its
    /// answer has done its work all the same.
    async fn excerpt(&self, response: &mut reqwest::Response) -> (Bytes, Option<String>) {
        let mut excerpt = BytesMut::new();
        let mut read = 0_usize;
        let reading = async {
            while let Some(chunk) = response.chunk().await? {
                let room = RESPONSE_EXCERPT_BYTES_MAX - excerpt.len();
                excerpt.extend_from_slice(&chunk[..chunk.len().min(room)]);
                read += chunk.len();
                if read > self.response_bytes_max {
                    break;
                }
            }
            Ok::<(), reqwest::Error>(())
        };
        let trouble = match timeout(self.response_body_timeout, reading).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) if error.is_timeout() => Some(OPEN_BODY.to_owned()),
            Ok(Err(error)) => {
                let error = chain(&error.without_url());
                Some(format!("the body of the answer could not be read: {error}"))
            }
            Err(_) => Some(OPEN_BODY.to_owned()),
        };
        (excerpt.freeze(), trouble)
    }
}

impl Sender for HttpSender {
    async fn send(&self, request: WebhookRequest, may_leave: MayLeave) -> Option<WebhookResponse> {
        let literal = match request.url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) | None => None,
        };
        if let Some(address) = literal.filter(|address| !self.policy.permits(*address)) {
            let detail = Forbidden(address).to_string();
            return Some(unanswered(Reason::AddressForbidden, detail));
        }
        let leaving = Arc::new(Leaving {
            may: may_leave,
            was_refused: AtomicBool::new(false),
        });
        match self.exchange(request, leaving.clone()).await {
            Ok(response) => Some(response),
            Err(_) if leaving.was_refused.load(Ordering::Relaxed) => None,
            Err(error) => {
                let error = error.without_url();
                Some(unanswered(reason_of(&error), chain(&error)))
            }
        }
    }
}

/// Whether a request may leave, and whether that was refused.
struct Leaving {
    may: MayLeave,
    was_refused: AtomicBool,
}

/// A body that a connection gets only if it may leave. HTTP/1 asks for it before it writes the head, so that not even
/// that leaves; HTTP/2 may have sent the head and resets the stream.
struct LeavingBody {
    bytes: Option<Bytes>,
    leaving: Arc<Leaving>,
}

/// The webhook may not leave any more.
#[derive(Debug, thiserror::Error)]
#[error("the webhook may not leave any more")]
struct MayNotLeave;

impl Body for LeavingBody {
    type Data = Bytes;
    type Error = MayNotLeave;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, MayNotLeave>>> {
        Poll::Ready(self.bytes.take().map(|bytes| {
            if (self.leaving.may)() {
                Ok(Frame::data(bytes))
            } else {
                self.leaving.was_refused.store(true, Ordering::Relaxed);
                Err(MayNotLeave)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

fn unanswered(reason: Reason, detail: String) -> WebhookResponse {
    WebhookResponse {
        outcome: Outcome::Unanswered(reason),
        detail: bounded(detail),
        excerpt: Bytes::new(),
    }
}

fn bounded(mut detail: String) -> String {
    detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
    detail
}

/// Where a redirect, which is not followed, leads.
fn redirect_target(response: &reqwest::Response) -> Option<String> {
    let target = response.headers().get(LOCATION)?;
    let target = String::from_utf8_lossy(target.as_bytes());
    response
        .status()
        .is_redirection()
        .then(|| format!("redirects, which are not followed, to {target}"))
}

fn headers(request: &WebhookRequest) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
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

fn reason_of(error: &reqwest::Error) -> Reason {
    for cause in causes(error) {
        if cause.is::<Forbidden>() {
            return Reason::AddressForbidden;
        }
        if cause.is::<Unresolved>() {
            return Reason::Dns;
        }
        if cause.is::<rustls::Error>() {
            return Reason::Tls;
        }
    }
    // Who does not let himself be connected to in time was not reached, like one who refuses.
    if error.is_timeout() && !error.is_connect() {
        Reason::Timeout
    } else {
        Reason::Connect
    }
}

/// Whether an HTTP/2 receiver vouches that it has not processed the request (RFC 9113, section 8.7).
fn is_unprocessed(error: &reqwest::Error) -> bool {
    let mut errors = causes(error).filter_map(<dyn Error>::downcast_ref::<h2::Error>);
    errors.any(|error| {
        let reason = error.reason();
        error.is_remote()
            && ((error.is_go_away() && reason == Some(h2::Reason::NO_ERROR))
                || (error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM)))
    })
}

/// An error and what it wraps, from the outside in.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| cause_of(*error))
}

/// What an error wraps. An `io::Error` passes over what it wraps itself and names only the cause of that.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
    {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(this) = cause {
        text.push_str(": ");
        text.push_str(&this.to_string());
        cause = this.source();
    }
    text
}

/// The policy refuses an address.
#[derive(Debug, thiserror::Error)]
#[error("address {0} is forbidden; `egress.allow_cidrs` opens networks")]
struct Forbidden(IpAddr);

/// A name has no address.
#[derive(Debug, thiserror::Error)]
#[error("the host name did not resolve: {0}")]
struct Unresolved(String);

#[derive(Debug)]
struct PolicedResolver {
    policy: Arc<AddressPolicy>,
}

impl Resolve for PolicedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.policy.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found: Vec<SocketAddr> = found
                .map_err(|error| Unresolved(error.to_string()))?
                .collect();
            let permitted: Vec<SocketAddr> = found
                .iter()
                .copied()
                .filter(|address| policy.permits(address.ip()))
                .collect();
            match (permitted.is_empty(), found.first()) {
                (false, _) => Ok(Box::new(permitted.into_iter()) as Addrs),
                (true, Some(refused)) => Err(Forbidden(refused.ip()).into()),
                (true, None) => Err(Unresolved("no addresses".to_owned()).into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use postrider_log::SystemClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

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
        drop(rustls::crypto::ring::default_provider().install_default());
        let policy = AddressPolicy::try_new(&["127.0.0.0/8".to_owned()]).unwrap();
        let client = reqwest::Client::builder().http2_prior_knowledge();
        HttpSender::over(client, policy, config, Arc::new(SystemClock)).unwrap()
    }

    async fn send(address: SocketAddr) -> WebhookResponse {
        send_by(&sender(&EgressConfig::default()), address).await
    }

    async fn send_by(sender: &HttpSender, address: SocketAddr) -> WebhookResponse {
        let request = WebhookRequest {
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
        let dead = send_by(&sender, address).await;
        assert_eq!(dead.outcome, Outcome::Unanswered(Reason::Timeout));
        assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
        assert_eq!(send_by(&sender, address).await.status(), Some(200));
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
