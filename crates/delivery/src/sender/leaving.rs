//! The body of a webhook, which a connection gets only while it may leave.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::MayLeave;

/// Whether a request may leave, and whether that was refused.
pub(super) struct Leaving {
    may: MayLeave,
    was_refused: AtomicBool,
}

impl Leaving {
    pub(super) fn new(may: MayLeave) -> Arc<Self> {
        Arc::new(Self {
            may,
            was_refused: AtomicBool::new(false),
        })
    }

    pub(super) fn was_refused(&self) -> bool {
        self.was_refused.load(Ordering::Relaxed)
    }
}

/// A body that a connection gets only if it may leave. HTTP/1 asks for it before it writes the head, so that not even
/// that leaves; HTTP/2 may have sent the head and resets the stream.
pub(super) struct LeavingBody {
    bytes: Option<Bytes>,
    leaving: Arc<Leaving>,
}

impl LeavingBody {
    pub(super) fn new(bytes: Bytes, leaving: Arc<Leaving>) -> Self {
        Self {
            bytes: Some(bytes),
            leaving,
        }
    }
}

/// The webhook may not leave any more.
#[derive(Debug, thiserror::Error)]
#[error("the webhook may not leave any more")]
pub(super) struct MayNotLeave;

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
