//! What is answered when a request is not served: one enum, one table, one body (RFC 9457).
//!
//! Handlers return a [`Problem`]; the outermost layer writes its body, because only there the trace
//! id is known, logs what an operator must see and counts it. Texts are for callers; causes go to
//! the log only.

use std::error::Error as _;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use postrider_daemon::errors::chain;
use postrider_daemon::http::NotBefore;
use postrider_log::LogError;
use postrider_model::ids::TenantId;
use postrider_registry::WriteError;
use serde::Serialize;
use serde_json::json;

/// Media type of every problem's body.
pub(crate) const CONTENT_TYPE: &str = "application/problem+json";
const TYPE_PREFIX: &str = "urn:postrider:problem:";

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FieldError {
    /// Which field, query parameter or header; empty for the body as a whole.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) detail: String,
}

impl FieldError {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "texts and errors alike come as temporaries"
    )]
    pub(crate) fn new(field: impl Into<String>, detail: impl ToString) -> Self {
        Self {
            field: field.into(),
            detail: detail.to_string(),
        }
    }
}

/// Why a request is of nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unauthorized {
    #[error("every route needs `Authorization: Bearer` and a key")]
    Absent,
    #[error("the key after `Authorization: Bearer` is none of this installation, or was revoked")]
    Unknown,
    #[error("the key after `Authorization: Bearer` has expired")]
    Expired,
}

/// Why a request was not served.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Problem {
    #[error("{0}")]
    Unauthorized(Unauthorized),
    #[error("too many requests of this address bore a key that is none")]
    TooManyFailures { again_after_s: u32 },
    #[error("{0}")]
    Forbidden(String),
    #[error("there is nothing at this path")]
    NoRoute,
    #[error("this path does not take this method; the `Allow` header names those it takes")]
    MethodNotAllowed,
    #[error("{0} does not exist")]
    NotFound(String),
    #[error("the tenant \"{0}\" does not exist; `PUT /v1/tenants/{0}` creates it")]
    NoTenant(TenantId),
    #[error("{0} exists already")]
    Exists(String),
    #[error("{0} was deleted, and its id is never used again")]
    Deleted(String),
    #[error("it was changed since: it is at version {present}")]
    Changed { present: u64 },
    #[error("{0}")]
    WrongState(&'static str),
    #[error("there are {max} {of} already, no more are allowed")]
    TooMany { of: &'static str, max: usize },
    #[error("the body cannot be read as {format}: {detail}")]
    Syntax {
        format: &'static str,
        detail: String,
    },
    #[error("{}", invalid(.0))]
    Invalid(Vec<FieldError>),
    #[error("the body must be at most {bytes_max} bytes")]
    BodyTooLarge { bytes_max: usize },
    #[error("the `Content-Type` must be {expected}")]
    MediaType { expected: &'static str },
    #[error("`Content-Encoding` must be `gzip`, `identity` or absent")]
    Encoded,
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("the body ended early")]
    BodyBroken,
    #[error("as many requests as allowed are under way; nothing was taken, ask again")]
    Busy { again_after_s: u32 },
    #[error("the log took nothing; ask again")]
    NotTaken,
    #[error(
        "the log did not answer in time, so the event may have been accepted: repeat the request with the id {id}, \
         so that it is dropped if it is a repeat"
    )]
    PerhapsTaken { id: String },
    #[error(
        "not everything was done: repeat the request with the command_id {command_id}, which does nothing twice"
    )]
    RunCut { command_id: String },
    #[error("the log cannot be read at present; ask again")]
    LogUnavailable(#[source] LogError),
    #[error("tenants and endpoints are still being read; ask again")]
    RegistryBehind,
    #[error("the change could not be written in time; it was not made")]
    NotWritten,
    #[error(
        "the change could not be written in time, and may have been made: look before repeating it"
    )]
    PerhapsWritten,
    #[error(
        "the change was made, but who made it could not be written down in time: look before repeating it"
    )]
    NotAudited { subject: String },
    #[error("something went wrong inside")]
    Internal(#[source] LogError),
}

fn invalid(errors: &[FieldError]) -> String {
    match errors {
        [one] if one.field.is_empty() => one.detail.clone(),
        [one] => format!("`{}` {}", one.field, one.detail),
        _ => format!("{} fields are not as they must be", errors.len()),
    }
}

/// What follows from a problem, besides its text.
struct Facts {
    status: StatusCode,
    /// Last part of the problem's type; also what refused events are counted under.
    slug: &'static str,
    title: &'static str,
    retry_after_s: Option<u32>,
}

impl Problem {
    /// One field is wrong.
    pub(crate) fn field(field: impl Into<String>, detail: impl ToString) -> Self {
        Self::Invalid(vec![FieldError::new(field, detail)])
    }

    fn facts(&self) -> Facts {
        type S = StatusCode;
        let facts = |status, slug, title| Facts {
            status,
            slug,
            title,
            retry_after_s: None,
        };
        let after = |retry_after_s, facts| Facts {
            retry_after_s: Some(retry_after_s),
            ..facts
        };
        let later = |retry_after_s, slug, title| {
            after(retry_after_s, facts(S::SERVICE_UNAVAILABLE, slug, title))
        };
        match self {
            Self::Unauthorized(_) => facts(S::UNAUTHORIZED, "unauthorized", "Not authorized"),
            Self::TooManyFailures { again_after_s } => after(
                *again_after_s,
                facts(
                    S::TOO_MANY_REQUESTS,
                    "too-many-failures",
                    "Too many wrong keys",
                ),
            ),
            Self::Forbidden(_) => facts(S::FORBIDDEN, "forbidden", "Not allowed"),
            Self::NoRoute => facts(S::NOT_FOUND, "no-route", "No such path"),
            Self::MethodNotAllowed => facts(
                S::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
            ),
            Self::NotFound(_) | Self::NoTenant(_) => facts(S::NOT_FOUND, "not-found", "Not found"),
            Self::Exists(_) => facts(S::CONFLICT, "exists", "Exists already"),
            Self::Deleted(_) => facts(S::CONFLICT, "deleted", "Was deleted"),
            Self::Changed { .. } => facts(
                S::PRECONDITION_FAILED,
                "changed",
                "Changed since it was read",
            ),
            Self::WrongState(_) => facts(S::CONFLICT, "wrong-state", "Wrong state"),
            Self::TooMany { .. } => facts(S::CONFLICT, "too-many", "Too many"),
            Self::Syntax { .. } => facts(S::BAD_REQUEST, "syntax", "Malformed body"),
            Self::Invalid(_) => facts(S::UNPROCESSABLE_ENTITY, "invalid", "Invalid request"),
            Self::BodyTooLarge { .. } => {
                facts(S::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large")
            }
            Self::MediaType { .. } | Self::Encoded => facts(
                S::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "Unsupported media type",
            ),
            Self::BodyTimeout => facts(S::REQUEST_TIMEOUT, "body-timeout", "Body too slow"),
            Self::BodyBroken => facts(S::BAD_REQUEST, "body-broken", "Incomplete body"),
            Self::Busy { again_after_s } => later(*again_after_s, "busy", "Busy"),
            Self::NotTaken => later(2, "not-taken", "Not accepted"),
            Self::PerhapsTaken { .. } => later(5, "perhaps-taken", "Acceptance unknown"),
            Self::RunCut { .. } => later(5, "run-cut", "Not everything was done"),
            Self::LogUnavailable(_) => later(5, "log-unavailable", "Log unavailable"),
            Self::RegistryBehind => later(1, "registry-behind", "Not ready"),
            Self::NotWritten => later(2, "not-written", "Change not made"),
            Self::PerhapsWritten => later(5, "perhaps-written", "Change unknown"),
            Self::NotAudited { .. } => facts(
                S::SERVICE_UNAVAILABLE,
                "not-audited",
                "Made, but not recorded",
            ),
            Self::Internal(_) => facts(S::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
        }
    }

    /// Names the kind of problem, for metrics.
    pub(crate) fn slug(&self) -> &'static str {
        self.facts().slug
    }

    /// Whether something may have been changed although it was not done.
    pub(crate) fn may_have_changed(&self) -> bool {
        matches!(
            self,
            Self::PerhapsWritten | Self::RunCut { .. } | Self::Internal(_)
        )
    }

    /// After how many seconds the same may be asked again, if that is of use.
    pub(crate) fn retry_after_s(&self) -> Option<u32> {
        self.facts().retry_after_s
    }

    /// The answer, with the caller's trace id if there is one. Logs what an operator must see.
    pub(crate) fn render(&self, trace_id: Option<&str>) -> Response {
        let Facts {
            status,
            slug,
            title,
            retry_after_s,
        } = self.facts();
        self.log(slug);
        let mut body = json!({
            "type": format!("{TYPE_PREFIX}{slug}"),
            "title": title,
            "status": status.as_u16(),
            "detail": self.to_string(),
        });
        if let Self::Invalid(errors) = self {
            body["errors"] = json!(errors);
        }
        match self {
            Self::PerhapsTaken { id } => body["id"] = json!(id),
            Self::RunCut { command_id } => body["command_id"] = json!(command_id),
            Self::Changed { present } => body["version"] = json!(present),
            Self::NotAudited { subject } => body["subject"] = json!(subject),
            _ => {}
        }
        if let Some(trace_id) = trace_id {
            body["trace_id"] = json!(trace_id);
        }
        let mut response = (status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::Encoded) {
            // RFC 9110, section 12.5.3: so an answer of status 415 says what would be taken.
            let taken = HeaderValue::from_static("gzip, identity");
            headers.insert(header::ACCEPT_ENCODING, taken);
        }
        if matches!(self, Self::Unauthorized(_) | Self::TooManyFailures { .. }) {
            let challenge = HeaderValue::from_static("Bearer realm=\"postrider\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
            // A connection is kept for those who have the key.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Self::Busy { again_after_s } = self {
            let again_after = Duration::from_secs(u64::from(*again_after_s));
            response.extensions_mut().insert(NotBefore(again_after));
        }
        response
    }

    fn log(&self, slug: &'static str) {
        let cause = self.source().map(chain);
        if matches!(self, Self::Internal(_)) {
            tracing::error!(problem = slug, cause, "request failed");
        } else if cause.is_some() {
            tracing::warn!(problem = slug, cause, "request refused");
        }
    }
}

impl From<Unauthorized> for Problem {
    fn from(why: Unauthorized) -> Self {
        Self::Unauthorized(why)
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            // A topic that is missing is made again, and then a client may need a moment to see it.
            LogError::Unavailable(_) | LogError::NoSuchTopic(_) => Self::LogUnavailable(error),
            LogError::GroupHasMembers(_) | LogError::Permanent(_) => Self::Internal(error),
        }
    }
}

impl Problem {
    /// Why a write to the registry was not made; `what` names what was to be written.
    pub(crate) fn of_write(error: WriteError, what: impl FnOnce() -> String) -> Self {
        match error {
            WriteError::NotFound => Self::NotFound(what()),
            WriteError::Exists => Self::Exists(what()),
            WriteError::Deleted => Self::Deleted(what()),
            WriteError::Conflict { present } => Self::Changed { present },
            WriteError::TenantUnknown => Self::NotFound("the tenant".to_owned()),
            WriteError::Limit { of, max } => Self::TooMany { of, max },
            WriteError::TooLarge => Self::field("", "the whole is larger than can be kept"),
            WriteError::Invalid(detail) => Self::field("", format!("cannot be kept: {detail}")),
            WriteError::Unavailable {
                may_have_been_written: false,
            } => Self::NotWritten,
            WriteError::Unavailable {
                may_have_been_written: true,
            } => Self::PerhapsWritten,
        }
    }
}

/// Only marks the response: the outermost layer renders the problem.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.facts().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
