//! Why there was no answer.

use std::error::Error;
use std::io;

use postrider_daemon::errors::{causes, chain};
use postrider_model::address::Host;
use postrider_model::outcome::{Outcome, Reason};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the host name did not resolve: {0}")]
    Unresolved(String),
    /// Of a name it is not said which address it has: that may be nobody's business.
    #[error("{0} is a forbidden address, or has no other; `egress.allow_cidrs` opens networks")]
    Forbidden(Host),
    #[error("the URL has no host")]
    Unusable,
    #[error("no connection came about in time")]
    ConnectTimeout,
    #[error("no connection came about: {0}")]
    Connect(io::Error),
    #[error("no TLS came about: {0}{hint}", hint = hint(.0))]
    Tls(io::Error),
    #[error("{}", chain(.0))]
    Exchange(hyper::Error),
    #[error("no answer came in time")]
    Timeout,
    /// The receiver has no part in it.
    #[error("this process cannot connect: {0}")]
    Ours(io::Error),
    /// The webhook might not leave any more.
    #[error("the webhook may not leave any more")]
    Refused,
}

impl Failure {
    /// An address that is written in the URL stays forbidden, and is not tried again. What a name
    /// resolves to may change.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Forbidden(Host::Address(_)) => Outcome::Unsendable(Reason::AddressForbidden),
            _ => Outcome::Unanswered(self.reason()),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Unresolved(_) | Self::Unusable => Reason::Dns,
            Self::Forbidden(_) => Reason::AddressForbidden,
            Self::Tls(error) if is_tls(error) => Reason::Tls,
            Self::Exchange(error) if is_tls(error) => Reason::Tls,
            Self::Exchange(error) if error.is_timeout() => Reason::Timeout,
            Self::Timeout => Reason::Timeout,
            // Who does not let himself be connected to in time was not reached, like one who
            // refuses.
            Self::ConnectTimeout
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::Exchange(_)
            | Self::Ours(_)
            | Self::Refused => Reason::Connect,
        }
    }
}

fn is_tls(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<rustls::Error>())
}

/// What is probably missing, where the error itself speaks of the protocol only.
fn hint(error: &io::Error) -> &'static str {
    let tls = causes(error).find_map(<dyn Error>::downcast_ref::<rustls::Error>);
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "; does the receiver send the intermediate certificates with its own?"
        }
        Some(rustls::Error::AlertReceived(
            rustls::AlertDescription::HandshakeFailure
            | rustls::AlertDescription::ProtocolVersion
            | rustls::AlertDescription::InsufficientSecurity,
        )) => {
            "; does the receiver speak TLS 1.3, or 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305?"
        }
        _ => "",
    }
}

/// Whether it is this machine that lacks something: descriptors, memory, local ports. One without
/// IPv6 has no local address for it either, but lacks nothing.
pub(super) fn is_ours(error: &io::Error, is_ipv4: bool) -> bool {
    use rustix::io::Errno;
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    ours.into_iter().any(is) || (is_ipv4 && is(Errno::ADDRNOTAVAIL))
}
