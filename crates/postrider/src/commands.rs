//! The commands of an operator: most call the API; `check`, `topic`, `recover` and
//! those that move data go to the log itself.

pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod data;
pub(crate) mod dead_letter;
pub(crate) mod endpoint;
pub(crate) mod event;
pub(crate) mod key;
pub(crate) mod portal_token;
pub(crate) mod recover;
pub(crate) mod switch;
pub(crate) mod tenant;
pub(crate) mod topic;

mod attempts;
mod finding;
mod input;

use std::time::Duration;

use postrider_log::{Clock, SystemClock};
use postrider_model::payload::rfc3339;

/// The time so long ago, as the API reads it.
pub(crate) fn ago(since: Duration) -> String {
    let since_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    rfc3339(SystemClock.now_ms().saturating_sub(since_ms))
}

/// The time so long from now, as the API reads it.
pub(crate) fn from_now(time: Duration) -> String {
    let time_ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    rfc3339(SystemClock.now_ms().saturating_add(time_ms))
}
