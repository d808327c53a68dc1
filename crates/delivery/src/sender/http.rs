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
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
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
}

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
            .dns_resolver(PolicedResolver {
                policy: policy.clone(),
            })
            .build()?;
        Ok(Self {
            client,
            policy,
            clock,
            response_bytes_max: config.response_bytes_max,
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
        let mut excerpt = BytesMut::new();
        let mut read = 0_usize;
        while let Some(chunk) = response.chunk().await? {
            let room = RESPONSE_EXCERPT_BYTES_MAX - excerpt.len();
            excerpt.extend_from_slice(&chunk[..chunk.len().min(room)]);
            read += chunk.len();
            if read > self.response_bytes_max {
                break;
            }
        }
        Ok(WebhookResponse {
            outcome: Outcome::Answered {
                status,
                retry_after_ms,
            },
            detail: String::new(),
            excerpt: excerpt.freeze(),
        })
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

fn unanswered(reason: Reason, mut detail: String) -> WebhookResponse {
    let cut = detail.floor_char_boundary(DETAIL_BYTES_MAX);
    detail.truncate(cut);
    WebhookResponse {
        outcome: Outcome::Unanswered(reason),
        detail,
        excerpt: Bytes::new(),
    }
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
    if error.is_timeout() {
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

    async fn send(address: SocketAddr) -> WebhookResponse {
        drop(rustls::crypto::ring::default_provider().install_default());
        let policy = AddressPolicy::try_new(&["127.0.0.0/8".to_owned()]).unwrap();
        let sender = HttpSender::over(
            reqwest::Client::builder().http2_prior_knowledge(),
            policy,
            &EgressConfig::default(),
            Arc::new(SystemClock),
        );
        let request = WebhookRequest {
            url: format!("http://{address}/").parse().unwrap(),
            id: "evt_1".to_owned(),
            attempt: 1,
            timestamp_s: 1_700_000_000,
            signature: "v1,abc=".to_owned(),
            traceparent: String::new(),
            body: Bytes::from_static(b"{}"),
            timeout: Duration::from_secs(5),
        };
        let sent = sender.unwrap().send(request, Arc::new(|| true)).await;
        sent.unwrap()
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
