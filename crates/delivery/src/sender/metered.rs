//! The bytes of a connection, counted and bounded while the head of an answer is awaited.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

/// TCP, or TLS over it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a connection has read since the last progress, and how much it may.
#[derive(Debug)]
pub(super) struct Meter {
    read: AtomicUsize,
    read_max: AtomicUsize,
    write_failed: AtomicBool,
}

/// Room for the head of one more answer.
pub(super) struct HeadRoom<'a> {
    meter: &'a Meter,
    bytes: usize,
}

impl Drop for HeadRoom<'_> {
    fn drop(&mut self) {
        self.meter.read_max.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Meter {
    pub(super) fn new(read_max: usize) -> Arc<Self> {
        Arc::new(Self {
            read: AtomicUsize::new(0),
            read_max: AtomicUsize::new(read_max),
            write_failed: AtomicBool::new(false),
        })
    }

    /// Counts from here on, up to a limit.
    pub(super) fn begin(&self, read_max: usize) {
        self.read.store(0, Ordering::Relaxed);
        self.read_max.store(read_max, Ordering::Relaxed);
    }

    /// One more answer is awaited on a connection that several exchanges share.
    pub(super) fn room_for_head(&self, bytes: usize) -> HeadRoom<'_> {
        self.read_max.fetch_add(bytes, Ordering::Relaxed);
        HeadRoom { meter: self, bytes }
    }

    /// The head of an answer came, or a part of a body: what may come until the next begins anew.
    pub(super) fn progress(&self) {
        self.read.store(0, Ordering::Relaxed);
    }

    /// Bytes read since [`Meter::begin`].
    pub(super) fn read(&self) -> usize {
        self.read.load(Ordering::Relaxed)
    }

    /// The receiver has closed its side against what was still to be written.
    pub(super) fn write_failed(&self) -> bool {
        self.write_failed.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.read() >= self.read_max.load(Ordering::Relaxed)
    }
}

/// The receiver sends and sends and no answer begins.
#[derive(Debug, thiserror::Error)]
#[error("the head of the answer, with those of interim answers, is too large")]
pub(super) struct HeadTooLarge;

pub(super) struct Metered {
    stream: Box<dyn Stream>,
    /// Lasts as long as the socket.
    _permit: OwnedSemaphorePermit,
    meter: Arc<Meter>,
    /// A receiver may answer before it has read the request, and close (RFC 9112, section 9.6). So
    /// that the answer is read, what it does not take any more counts as written.
    forgives_writes: bool,
}

impl Metered {
    pub(super) fn new(
        stream: Box<dyn Stream>,
        permit: OwnedSemaphorePermit,
        meter: Arc<Meter>,
        forgives_writes: bool,
    ) -> Self {
        Self {
            stream,
            _permit: permit,
            meter,
            forgives_writes,
        }
    }

    /// What writing gave, or what it would have given had the receiver taken it.
    fn forgiven<T>(&self, written: io::Result<T>, instead: T) -> io::Result<T> {
        match written {
            Err(error) if self.forgives_writes && is_closed(&error) => {
                self.meter.write_failed.store(true, Ordering::Relaxed);
                Ok(instead)
            }
            written => written,
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.is_full() {
            return Poll::Ready(Err(io::Error::other(HeadTooLarge)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.meter.read.fetch_add(read, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.meter.write_failed() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(self.forgiven(written, bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.meter.write_failed() {
            return Poll::Ready(Ok(()));
        }
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        Poll::Ready(self.forgiven(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = ready!(Pin::new(&mut self.stream).poll_shutdown(context));
        Poll::Ready(self.forgiven(closed, ()))
    }
}
