//! The body of a webhook, which a connection gets only while it may leave.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
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

/// One exchange with a webhook. When it is given up, the webhook does not leave by it any more,
/// though a connection of HTTP/2 may still have it.
pub(super) struct Leg(Arc<Leaving>);

impl Leg {
    /// An exchange, and the body for it.
    pub(super) fn new(leaving: &Arc<Leaving>, bytes: Bytes) -> (Arc<Self>, LeavingBody) {
        let leg = Arc::new(Self(Arc::clone(leaving)));
        let body = LeavingBody {
            bytes: Some(bytes),
            leg: Arc::downgrade(&leg),
        };
        (leg, body)
    }
}

/// A body that a connection gets only if it may leave. HTTP/1 asks for it before it writes the
/// head, so that not even that leaves; HTTP/2 may have sent the head and resets the stream.
pub(super) struct LeavingBody {
    bytes: Option<Bytes>,
    leg: Weak<Leg>,
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
            let Some(leg) = self.leg.upgrade() else {
                return Err(MayNotLeave);
            };
            if (leg.0.may)() {
                return Ok(Frame::data(bytes));
            }
            leg.0.was_refused.store(true, Ordering::Relaxed);
            Err(MayNotLeave)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
