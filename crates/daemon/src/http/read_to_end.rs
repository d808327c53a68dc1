//! Bodies that are read to their end, even if whoever answers does not want them.
//!
//! A client that is still sending when its connection is closed may lose the answer that came
//! before (RFC 9112, section 9.6), and has to connect again for its next request. So what is left
//! of a body is read and thrown away, within bounds.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::EXPECT;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::timeout;

/// What is read of a body that nobody wants. Of a larger one the connection is closed.
const BYTES_MAX: usize = 1 << 20;
const TIME_MAX: Duration = Duration::from_secs(5);

/// The body of a request. Dropped before its end, it goes to whoever reads on, see [`read_on`].
#[derive(Debug)]
pub(super) struct ReadToEnd {
    body: Option<Incoming>,
    leftovers: Option<Sender<Incoming>>,
}

impl ReadToEnd {
    pub(super) fn of(request: Request<Incoming>, leftovers: &Sender<Incoming>) -> Request<Self> {
        // One that waits until it is asked for (RFC 9110, section 10.1.1) is not asked for after
        // the answer.
        let comes = !request.headers().contains_key(EXPECT);
        let leftovers = comes.then(|| leftovers.clone());
        request.map(|body| Self {
            body: Some(body),
            leftovers,
        })
    }
}

impl Body for ReadToEnd {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let none = || SizeHint::with_exact(0);
        self.body.as_ref().map_or_else(none, Body::size_hint)
    }
}

impl Drop for ReadToEnd {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !body.is_end_stream());
        if let (Some(rest), Some(leftovers)) = (rest, &self.leftovers) {
            // Nobody reads on once the connection is gone, and of requests that came at once only
            // one is read on.
            drop(leftovers.try_send(rest));
        }
    }
}

/// Reads what is left of a connection's bodies, for as long as it is served.
pub(super) async fn read_on(mut leftovers: Receiver<Incoming>) {
    while let Some(rest) = leftovers.recv().await {
        // What is not read in time is dropped, which closes the connection.
        drop(timeout(TIME_MAX, read(rest)).await);
    }
}

async fn read(mut body: Incoming) {
    let mut bytes = 0;
    while bytes < BYTES_MAX {
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let Some(Ok(frame)) = next.await else {
            return;
        };
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}
