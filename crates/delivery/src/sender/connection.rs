//! Connections, and exchanges over them.
//!
//! A connection of HTTP/1.1 has no task: who makes an exchange drives it, and with the exchange it ends, unless that left it as
//! it was before. One of HTTP/2 has a task, since exchanges share it.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::HeaderMap;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, causes, chain};
use super::leaving::LeavingBody;
use super::metered::{Meter, Metered, Stream};
use crate::config::EgressConfig;

/// Of the head of an answer, with those of interim answers before it: more headers, or more bytes, are refused.
const HEADERS_MAX: usize = 1024;
const HEAD_BYTES_MAX: usize = 64 << 10;
/// What comes over HTTP/2 while no answer goes on: some heads at once.
const IDLE_BYTES_MAX: usize = 1 << 20;
/// What may come over HTTP/2 before it is read, of one answer and of all (RFC 9113, section 5.2).
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

const OPEN_BODY: &str = "the body of the answer did not end in time";

/// How long an exchange may take, and what is read of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) deadline: Instant,
    pub(super) body_timeout: Duration,
    pub(super) body_bytes_max: usize,
    pub(super) excerpt_bytes_max: usize,
}

/// What the receiver answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The beginning of the body.
    pub(super) excerpt: Bytes,
    /// What was wrong with the body. The status has decided already: a receiver that cannot end its answer has done its work
    /// all the same.
    pub(super) trouble: Option<String>,
}

/// No answer came over a connection.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) failure: Failure,
    /// Nothing at all came, so that on a connection that was used before the receiver may not have seen the request.
    pub(super) untouched: bool,
    /// The receiver says that it has not processed it (RFC 9113, section 8.7).
    pub(super) is_vouched: bool,
    /// It reset this exchange, and others on the same connection go on.
    pub(super) is_of_stream: bool,
    /// The receiver wants the request over HTTP/1.1 (RFC 9113, section 7).
    pub(super) wants_http1: bool,
}

/// A connection for one exchange at a time.
pub(super) struct Http1 {
    requests: http1::SendRequest<LeavingBody>,
    driver: Driver,
    meter: Arc<Meter>,
    pub(super) made_at: Instant,
    /// How long the receiver keeps it when nothing is asked, if it said so.
    pub(super) kept_for: Option<Duration>,
    _permit: OwnedSemaphorePermit,
}

/// The connection, and whether it has ended.
struct Driver {
    connection: http1::Connection<TokioIo<Metered>, LeavingBody>,
    ended: bool,
}

impl Driver {
    /// Waits for something that needs the connection to go on.
    async fn drive<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            // What it ends with, whoever waits for something hears.
            if !self.ended && Pin::new(&mut self.connection).poll(context).is_ready() {
                self.ended = true;
            }
            future.as_mut().poll(context)
        })
        .await
    }
}

impl Http1 {
    pub(super) async fn new(
        stream: Box<dyn Stream>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Failure> {
        let meter = Meter::new(HEAD_BYTES_MAX);
        let stream = Metered::new(stream, Arc::clone(&meter), true);
        // Real servers write heads that RFC 9112 forbids; other clients read them.
        let (requests, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Failure::Exchange)?;
        let driver = Driver {
            connection,
            ended: false,
        };
        Ok(Self {
            requests,
            driver,
            meter,
            made_at: Instant::now(),
            kept_for: None,
            _permit: permit,
        })
    }

    /// Whether the receiver has neither closed it nor sent what nobody asked for, as far as that has come.
    pub(super) fn is_usable(&mut self) -> bool {
        let seen = self.driver.drive(std::future::ready(())).now_or_never();
        seen.is_some() && !self.driver.ended && self.requests.is_ready()
    }

    /// Makes an exchange, and gives the connection back if it can take another.
    pub(super) async fn exchange(
        mut self,
        request: Request<LeavingBody>,
        limits: Limits,
    ) -> Result<(Answer, Option<Self>), Broken> {
        self.meter.begin(HEAD_BYTES_MAX);
        let sent = self.requests.send_request(request);
        let answered = timeout_at(limits.deadline, self.driver.drive(sent)).await;
        let response = answered
            .map_err(|_| Broken::by(Failure::Timeout))?
            .map_err(|error| Broken {
                untouched: self.meter.read() == 0,
                ..Broken::by(Failure::Exchange(error))
            })?;
        self.meter.begin(usize::MAX);
        let mut reading = Reading::of(response);
        let read = self.driver.drive(reading.read(limits));
        let ended = timeout_at(limits.body_until(), read).await;
        let (answer, complete) = reading.answer(ended);
        self.kept_for = kept_for(&answer.headers);
        let reusable = complete && !self.meter.write_failed() && self.is_usable();
        Ok((answer, reusable.then_some(self)))
    }
}

/// A connection for many exchanges at once.
pub(super) struct Http2 {
    requests: http2::SendRequest<LeavingBody>,
    meter: Arc<Meter>,
    pub(super) made_at: Instant,
    _driver: JoinSet<()>,
    _permit: OwnedSemaphorePermit,
}

impl Http2 {
    pub(super) async fn new(
        stream: Box<dyn Stream>,
        permit: OwnedSemaphorePermit,
        config: &EgressConfig,
    ) -> Result<Self, Failure> {
        let meter = Meter::new(IDLE_BYTES_MAX);
        let stream = Metered::new(stream, Arc::clone(&meter), false);
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            // RFC 9113, 6.7: a connection that is dead is noticed while requests wait for it, not when they are given up.
            .keep_alive_interval(Duration::from_millis(config.http2_ping_interval_ms))
            .keep_alive_timeout(Duration::from_millis(config.http2_ping_timeout_ms))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Failure::Exchange)?;
        let mut driver = JoinSet::new();
        // Whoever waits for an answer hears how it ended.
        driver.spawn(connection.map(drop));
        Ok(Self {
            requests,
            meter,
            made_at: Instant::now(),
            _driver: driver,
            _permit: permit,
        })
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.requests.is_closed()
    }

    pub(super) async fn exchange(
        &self,
        request: Request<LeavingBody>,
        limits: Limits,
    ) -> Result<Answer, Broken> {
        let sent = self.requests.clone().send_request(request);
        let answered = timeout_at(limits.deadline, sent).await;
        let response = answered
            .map_err(|_| Broken::by(Failure::Timeout))?
            .map_err(Broken::of_http2)?;
        self.meter.progress();
        let mut reading = Reading::of(response);
        let ended = timeout_at(limits.body_until(), reading.read(limits)).await;
        self.meter.progress();
        Ok(reading.answer(ended).0)
    }
}

impl Limits {
    fn body_until(&self) -> Instant {
        self.deadline.min(Instant::now() + self.body_timeout)
    }
}

impl Broken {
    fn by(failure: Failure) -> Self {
        Self {
            failure,
            untouched: false,
            is_vouched: false,
            is_of_stream: false,
            wants_http1: false,
        }
    }

    /// A receiver that resets one stream has seen the request. What the end of a whole connection took along, it may not have.
    fn of_http2(error: hyper::Error) -> Self {
        let found = causes(&error).find_map(<dyn Error>::downcast_ref::<h2::Error>);
        let remote = found.filter(|found| found.is_remote());
        let (is_reset, is_go_away) = remote.map_or((false, false), |found| {
            (found.is_reset(), found.is_go_away())
        });
        let reason = remote.and_then(h2::Error::reason);
        Self {
            untouched: !is_reset,
            is_vouched: (is_reset && reason == Some(h2::Reason::REFUSED_STREAM))
                || (is_go_away && reason == Some(h2::Reason::NO_ERROR)),
            is_of_stream: is_reset,
            wants_http1: reason == Some(h2::Reason::HTTP_1_1_REQUIRED),
            failure: Failure::Exchange(error),
        }
    }
}

/// An answer whose body is being read.
struct Reading {
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    excerpt: BytesMut,
}

impl Reading {
    fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        Self {
            status: head.status,
            headers: head.headers,
            body,
            excerpt: BytesMut::new(),
        }
    }

    /// Reads up to a cap; whether to the end.
    async fn read(&mut self, limits: Limits) -> Result<bool, hyper::Error> {
        let mut read = 0_usize;
        while let Some(frame) =
            poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await
        {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            let room = limits.excerpt_bytes_max - self.excerpt.len();
            self.excerpt
                .extend_from_slice(&data[..data.len().min(room)]);
            read += data.len();
            if read > limits.body_bytes_max {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The answer, and whether its body was read to the end.
    fn answer(
        self,
        ended: Result<Result<bool, hyper::Error>, tokio::time::error::Elapsed>,
    ) -> (Answer, bool) {
        let complete = matches!(ended, Ok(Ok(true)));
        let trouble = match ended {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!(
                "the body of the answer could not be read: {}",
                chain(&error)
            )),
            Err(_) => Some(OPEN_BODY.to_owned()),
        };
        let answer = Answer {
            status: self.status,
            headers: self.headers,
            excerpt: self.excerpt.freeze(),
            trouble,
        };
        (answer, complete)
    }
}

/// `Keep-Alive: timeout=5`: how long the receiver keeps a connection on which nothing is asked (RFC 2068, section 19.7.1.1).
fn kept_for(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = text.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_timeout = name.trim().eq_ignore_ascii_case("timeout");
        is_timeout.then(|| value.trim().parse().ok())?
    })?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_receiver_says_of_keeping_a_connection_is_read() {
        for (text, seconds) in [
            ("timeout=5", Some(5)),
            ("max=100, Timeout = 7", Some(7)),
            ("max=100", None),
            ("timeout=soon", None),
            ("timeout", None),
        ] {
            let headers = HeaderMap::from_iter([(
                hyper::header::HeaderName::from_static("keep-alive"),
                text.parse().unwrap(),
            )]);
            assert_eq!(
                kept_for(&headers),
                seconds.map(Duration::from_secs),
                "{text}"
            );
        }
    }
}
