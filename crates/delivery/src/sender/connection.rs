//! Connections, and exchanges over them.
//!
//! A connection of HTTP/1.1 has no task: who makes an exchange drives it, and with the exchange it
//! ends, unless that left it as it was before. One of HTTP/2 has tasks, since exchanges share it;
//! they end when nobody has it any more.

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
use hyper::rt::Executor;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use postrider_daemon::errors::{causes, chain};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::failure::Failure;
use super::leaving::LeavingBody;
use super::metered::{Meter, Metered, Stream};
use crate::config::EgressConfig;

/// Of the head of an answer, with those of interim answers before it: more headers, or more bytes,
/// are refused. Room for all headers is made for each answer.
const HEADERS_MAX: usize = 512;
const HEAD_BYTES_MAX: usize = 64 << 10;
/// What may come over HTTP/2 before it is read, of one answer and of all (RFC 9113, section 5.2).
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: usize = 256 << 10;

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
    /// What was wrong with the body. The status has decided already: a receiver that cannot end its
    /// answer has done its work all the same.
    pub(super) trouble: Option<String>,
}

/// No answer came over a connection.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) failure: Failure,
    /// Nothing at all came, so that on a connection that was used before the receiver may not have
    /// seen the request.
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
}

/// The connection, until it has ended.
struct Driver(Option<http1::Connection<TokioIo<Metered>, LeavingBody>>);

impl Driver {
    /// Waits for something that needs the connection to go on.
    async fn drive<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            if let Some(connection) = &mut self.0
                && Pin::new(connection).poll(context).is_ready()
            {
                // Only then whoever waits for something hears of the end.
                self.0 = None;
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
        let stream = Metered::new(stream, permit, Arc::clone(&meter), true);
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
        Ok(Self {
            requests,
            driver: Driver(Some(connection)),
            meter,
            made_at: Instant::now(),
            kept_for: None,
        })
    }

    /// Whether the receiver has neither closed it nor sent what nobody asked for, as far as that
    /// has come.
    pub(super) fn is_usable(&mut self) -> bool {
        let seen = self.driver.drive(std::future::ready(())).now_or_never();
        seen.is_some() && self.driver.0.is_some() && self.requests.is_ready()
    }

    /// Makes an exchange, and gives the connection back if it can take another.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        request: Request<LeavingBody>,
        limits: Limits,
    ) -> Result<(Answer, Option<Box<Self>>), Broken> {
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
        let read = self.driver.drive(reading.read(limits, &self.meter));
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
    _tasks: DropGuard,
}

/// Spawns what hyper needs for a connection, to end with it.
#[derive(Clone)]
struct Tasks(CancellationToken);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    #[expect(
        clippy::disallowed_methods,
        reason = "they end with the token, and how they end the exchanges tell"
    )]
    fn execute(&self, future: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(future));
    }
}

impl Http2 {
    pub(super) async fn new(
        stream: Box<dyn Stream>,
        permit: OwnedSemaphorePermit,
        config: &EgressConfig,
    ) -> Result<Self, Failure> {
        // What may still come of answers that were given up, and more for each that is awaited.
        let meter = Meter::new(CONNECTION_WINDOW_BYTES + HEAD_BYTES_MAX);
        let stream = Metered::new(stream, permit, Arc::clone(&meter), false);
        let tasks = Tasks(CancellationToken::new());
        let (requests, connection) = http2::Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(u32::try_from(CONNECTION_WINDOW_BYTES).ok())
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            // RFC 9113, 6.7: a connection that is dead is noticed while requests wait for it, not
            // when they are given up.
            .keep_alive_interval(Duration::from_millis(config.http2_ping_interval_ms))
            .keep_alive_timeout(Duration::from_millis(config.http2_ping_timeout_ms))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Failure::Exchange)?;
        // Whoever waits for an answer hears how it ended.
        tasks.execute(connection.map(drop));
        Ok(Self {
            requests,
            meter,
            made_at: Instant::now(),
            _tasks: tasks.0.drop_guard(),
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
        let _room = self.meter.room_for_head(HEAD_BYTES_MAX);
        let sent = self.requests.clone().send_request(request);
        let answered = timeout_at(limits.deadline, sent).await;
        let response = answered
            .map_err(|_| Broken::by(Failure::Timeout))?
            .map_err(Broken::of_http2)?;
        self.meter.progress();
        let mut reading = Reading::of(response);
        let read = reading.read(limits, &self.meter);
        let ended = timeout_at(limits.body_until(), read).await;
        Ok(reading.answer(ended).0)
    }
}

impl Limits {
    fn body_until(&self) -> Instant {
        self.deadline.min(Instant::now() + self.body_timeout)
    }
}

impl Broken {
    pub(super) fn by(failure: Failure) -> Self {
        Self {
            failure,
            untouched: false,
            is_vouched: false,
            is_of_stream: false,
            wants_http1: false,
        }
    }

    /// A receiver that resets one stream has seen the request, and if we do, its answer could not
    /// be read. What the end of a whole connection took along, it may not have seen.
    fn of_http2(error: hyper::Error) -> Self {
        let found = causes(&error).find_map(<dyn Error>::downcast_ref::<h2::Error>);
        let is_of_stream = found.is_some_and(h2::Error::is_reset);
        let said = found.filter(|found| found.is_remote());
        let said = said.and_then(h2::Error::reason);
        Self {
            untouched: !is_of_stream,
            is_vouched: match said {
                Some(h2::Reason::REFUSED_STREAM) => is_of_stream,
                Some(h2::Reason::NO_ERROR) => !is_of_stream,
                _ => false,
            },
            is_of_stream,
            wants_http1: said == Some(h2::Reason::HTTP_1_1_REQUIRED),
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
    async fn read(&mut self, limits: Limits, meter: &Meter) -> Result<bool, hyper::Error> {
        let mut read = 0_usize;
        while let Some(frame) =
            poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await
        {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            meter.progress();
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

/// `Keep-Alive: timeout=5`: how long the receiver keeps a connection on which nothing is asked (RFC
/// 2068, section 19.7.1.1).
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
    use hyper::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Semaphore;
    use tokio::time::timeout;

    use super::*;
    use crate::sender::leaving::{Leaving, Leg};

    /// As if the end came between the look at the connection and the request.
    #[tokio::test]
    async fn an_end_that_meets_the_request_is_told_at_once() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let connection = Box::new(Http1::new(Box::new(ours), permit).await.unwrap());
        let limits = Limits {
            deadline: Instant::now() + Duration::from_secs(60),
            body_timeout: Duration::from_secs(1),
            body_bytes_max: 1024,
            excerpt_bytes_max: 1024,
        };
        let leaving = Leaving::new(Arc::new(|| true));
        let (_leg, body) = Leg::new(&leaving, Bytes::from_static(b"{}"));
        let answering = async {
            assert!(theirs.read(&mut [0; 4096]).await.unwrap() > 0);
            theirs
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
        };
        let (answered, ()) =
            tokio::join!(connection.exchange(Request::new(body), limits), answering);
        let (answer, kept) = answered.unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        drop(theirs);
        let (_leg, body) = Leg::new(&leaving, Bytes::from_static(b"{}"));
        let again = kept.unwrap().exchange(Request::new(body), limits);
        let told = timeout(Duration::from_secs(5), again).await;
        let broken = told.expect("it is not waited for until the deadline");
        assert!(broken.is_err_and(|broken| broken.untouched));
    }

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
