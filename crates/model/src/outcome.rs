//! How an attempt ended, and why: the closed list of reasons, and what an answer says beside its
//! status. What follows from it is [`crate::verdict`]'s.

use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;
use jiff::civil::{self, DateTime};

/// Longest wait that a `Retry-After` can ask for.
pub const RETRY_AFTER_MS_MAX: i64 = 24 * 60 * 60 * 1000;

const WEEKDAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const UNIX_EPOCH: DateTime = civil::date(1970, 1, 1).at(0, 0, 0, 0);

/// What was seen of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An HTTP answer, read up to the cap.
    Answered {
        /// Its status.
        status: u16,
        /// Its `Retry-After`, already turned into a wait from now and clamped to
        /// `0..=RETRY_AFTER_MS_MAX`; `None` if absent or not understood.
        retry_after_ms: Option<i64>,
    },
    /// No answer, for this reason (one of the connect, timeout, TLS, DNS or address reasons).
    Unanswered(Reason),
    /// Nothing was sent, nor would it ever be: the event's data does not fit the endpoint's format,
    /// or the address in its URL is forbidden.
    Unsendable(Reason),
}

impl Outcome {
    /// Why the attempt ended as it did.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Answered { status, .. } => reason_of_status(*status),
            Self::Unanswered(reason) | Self::Unsendable(reason) => *reason,
        }
    }

    /// Whether the endpoint is overwhelmed.
    pub(crate) fn throttles(&self) -> bool {
        match self {
            Self::Answered { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            Self::Unanswered(reason) => *reason == Reason::Timeout,
            Self::Unsendable(_) => false,
        }
    }

    /// Whether no connection came about.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unanswered(Reason::Connect | Reason::Dns))
    }

    /// How long the endpoint asked to be left alone.
    pub(crate) fn asked_wait_ms(&self) -> i64 {
        match self {
            Self::Answered { retry_after_ms, .. } => {
                retry_after_ms.unwrap_or(0).clamp(0, RETRY_AFTER_MS_MAX)
            }
            Self::Unanswered(_) | Self::Unsendable(_) => 0,
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Why an attempt or a delivery ended as it did: a closed list, the same in records,
        /// metrics and API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As written in records, metrics and API.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl FromStr for Reason {
            type Err = UnknownReason;

            fn from_str(text: &str) -> Result<Self, UnknownReason> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(UnknownReason(text.to_owned())),
                }
            }
        }
    };
}

/// The text names no reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason {0:?}; the reasons are {all}", all = all())]
pub struct UnknownReason(pub String);

fn all() -> String {
    let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    names.join(", ")
}

reasons! {
    /// 2xx.
    Ok = "ok",
    /// 410: the endpoint is gone and was disabled.
    EndpointGone = "endpoint_gone",
    /// 429.
    RateLimited = "rate_limited",
    /// 3xx; redirects are not followed.
    Redirect = "redirect",
    /// Another 4xx, or a status below 200.
    ClientError = "client_error",
    /// 5xx.
    ServerError = "server_error",
    /// No complete answer in time.
    Timeout = "timeout",
    /// No connection, or it broke.
    Connect = "connect",
    /// The TLS handshake failed.
    Tls = "tls",
    /// The name did not resolve.
    Dns = "dns",
    /// The address is forbidden by the policy; no connection was made.
    AddressForbidden = "address_forbidden",
    /// Cut short by us.
    Interrupted = "interrupted",
    /// The event's data does not fit the endpoint's format.
    FormatMismatch = "format_mismatch",
    /// The retry schedule is exhausted.
    Exhausted = "exhausted",
    /// It failed for too long at an ordered endpoint, where it held back its ordering key.
    BlockedTooLong = "blocked_too_long",
    /// The endpoint was deleted.
    EndpointDeleted = "endpoint_deleted",
    /// The endpoint is disabled.
    EndpointDisabled = "endpoint_disabled",
    /// Nothing succeeded at the endpoint for days; it was disabled.
    EndpointFailing = "endpoint_failing",
    /// It waited in the log for so long that retention would have taken it.
    Expired = "expired",
    /// What had gathered for the endpoint was discarded when it was enabled.
    BacklogDiscarded = "backlog_discarded",
    /// The record could not be understood.
    Malformed = "malformed",
    /// The record sets something this release does not honour.
    Unsupported = "unsupported",
    /// The event's tenant does not exist.
    UnknownTenant = "unknown_tenant",
    /// The event's type is reserved, and it is none of Postrider's own.
    ReservedType = "reserved_type",
    /// The record is too large for the next topic.
    TooLarge = "too_large",
    /// The endpoint's secret could not be opened.
    SecretUnavailable = "secret_unavailable",
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

fn reason_of_status(status: u16) -> Reason {
    match status {
        200..=299 => Reason::Ok,
        300..=399 => Reason::Redirect,
        410 => Reason::EndpointGone,
        429 => Reason::RateLimited,
        500..=599 => Reason::ServerError,
        _ => Reason::ClientError,
    }
}

/// How long a `Retry-After` of seconds or an HTTP date asks to wait from now, in
/// `0..=RETRY_AFTER_MS_MAX`; `None` if it is not understood. What is far off is the maximum, what
/// is past is no wait.
pub fn retry_after(header: &str, now_ms: i64) -> Option<i64> {
    let text = header.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that no number holds are a long wait, however long.
        let seconds = text.parse::<i64>().unwrap_or(i64::MAX);
        return Some(seconds.saturating_mul(1000).min(RETRY_AFTER_MS_MAX));
    }
    // Subtracted as civil times of one zone, since the last days of 9999, a common way to say
    // "never", are no instant.
    let now = UNIX_EPOCH.saturating_add(SignedDuration::from_millis(now_ms));
    let wait = http_date(text, now)?.duration_since(now);
    let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    Some(wait_ms.clamp(0, RETRY_AFTER_MS_MAX))
}

/// A date in one of the three forms that a recipient must understand (RFC 9110, 5.6.7): that which
/// is written today, that of RFC 850, and that of `asctime`.
fn http_date(text: &str, now: DateTime) -> Option<DateTime> {
    let today = DateTime::strptime("%a, %d %b %Y %H:%M:%S GMT", text);
    let date = today.or_else(|_| DateTime::strptime("%a %b %e %H:%M:%S %Y", text));
    date.ok().or_else(|| rfc_850_date(text, now))
}

/// Of the years with these two digits it is the one that is at most 50 years ahead, as RFC 9110
/// says, and else the latest.
fn rfc_850_date(text: &str, now: DateTime) -> Option<DateTime> {
    let (weekday, date) = text.split_once(", ")?;
    if !WEEKDAYS.contains(&weekday) {
        return None;
    }
    let parsed = DateTime::strptime("%d-%b-%y %H:%M:%S GMT", date).ok()?;
    let ahead = (parsed.year() - now.year()).rem_euclid(100);
    let year = now.year() + if ahead > 50 { ahead - 100 } else { ahead };
    parsed.with().year(year).build().ok()
}

#[cfg(test)]
mod tests;
