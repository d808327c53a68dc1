//! From librdkafka's messages to records.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers};

use crate::port::Record;

/// Copies a message out of the client, so that its memory there is free again. Key and value share
/// one allocation.
pub(super) fn record(message: &BorrowedMessage<'_>) -> Record {
    let key = message.key().unwrap_or_default();
    let value = message.payload();
    let mut both = Vec::with_capacity(key.len() + value.map_or(0, <[u8]>::len));
    both.extend_from_slice(key);
    both.extend_from_slice(value.unwrap_or_default());
    let mut both = Bytes::from(both);
    let key = both.split_to(key.len());
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
        key,
        value: value.map(|_| both),
        headers: message.headers().map(headers).unwrap_or_default(),
    }
}

fn headers(headers: &BorrowedHeaders) -> Vec<(String, Bytes)> {
    (0..headers.count())
        .filter_map(|index| header(headers, index))
        .collect()
}

/// A header whose name is not UTF-8 makes the client panic; Kafka lets anyone write one. It is left
/// out, as no name of ours is like that.
fn header(headers: &BorrowedHeaders, index: usize) -> Option<(String, Bytes)> {
    let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(index)))
        .ok()
        .flatten()?;
    Some((
        header.key.to_owned(),
        Bytes::copy_from_slice(header.value.unwrap_or_default()),
    ))
}
