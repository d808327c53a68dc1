//! The body of a webhook: the same bytes in every attempt, made of nothing but the event.

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde_json::value::RawValue;

use crate::endpoint::PayloadFormat;
use crate::event::Event;

/// Content type of every format there is.
pub const CONTENT_TYPE: &str = "application/json";

/// The start of the year 1, before which a time has no text that every receiver reads.
const TIME_MS_MIN: i64 = -62_135_596_800_000;

/// Milliseconds and nothing finer or coarser, so that equal times have equal text.
const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));

/// The event's data does not fit the endpoint's format.
#[derive(Debug, thiserror::Error)]
#[error("data must be JSON for the format `standard`")]
pub struct FormatMismatch(#[source] serde_json::Error);

/// The body of the event in this format. Data is kept byte for byte, whitespace and order of keys
/// included.
///
/// # Errors
/// When the format is `standard` and the data is not JSON.
pub fn body(event: &Event, format: PayloadFormat) -> Result<Bytes, FormatMismatch> {
    match format {
        PayloadFormat::Raw => Ok(event.data.clone()),
        PayloadFormat::Standard => {
            // A RawValue, unlike an ignored one, is also checked to be UTF-8.
            serde_json::from_slice::<&RawValue>(&event.data).map_err(FormatMismatch)?;
            // A type has no character that JSON would have to escape.
            let head = format!(
                r#"{{"type":"{}","timestamp":"{}","data":"#,
                event.event_type,
                rfc3339(event.occurred_at_ms)
            );
            let mut body = BytesMut::with_capacity(head.len() + event.data.len() + 1);
            body.put_slice(head.as_bytes());
            body.put_slice(&event.data);
            body.put_u8(b'}');
            Ok(body.freeze())
        }
    }
}

/// The time as RFC 3339 in UTC with milliseconds. One that [`is_representable`] denies becomes the
/// nearest.
pub fn rfc3339(time_ms: i64) -> String {
    let clamped_ms = time_ms.clamp(TIME_MS_MIN, Timestamp::MAX.as_millisecond());
    let timestamp = Timestamp::from_millisecond(clamped_ms).unwrap_or(Timestamp::MAX);
    PRINTER.timestamp_to_string(&timestamp)
}

/// Whether the time can be written as RFC 3339: years 1 to 9999, roughly.
pub fn is_representable(time_ms: i64) -> bool {
    (TIME_MS_MIN..=Timestamp::MAX.as_millisecond()).contains(&time_ms)
}

/// The time that an RFC 3339 text names, cut to milliseconds; `None` if it names none.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let timestamp: Timestamp = text.parse().ok()?;
    let time_ms = timestamp.as_millisecond();
    is_representable(time_ms).then_some(time_ms)
}

#[cfg(test)]
mod tests;
