//! What is written to the log, and its way to and from the values of this crate.
//!
//! The messages in [`proto`] are generated from `proto/postrider/v1` and are trusted for nothing: a
//! producer may write to Kafka itself, and an older or newer release may have written what is read.
//! So bytes become values here, checked, or an [`InvalidRecord`] that says which dead letter to
//! write. What a record asks for and this release does not honour is refused, never ignored.

use std::fmt::Display;

use prost::Message;

use crate::event::EventPosition;
use crate::identity::RegistryStamp;
use crate::outcome::Reason;

mod access;
mod delivery;
mod event;
mod moved;
mod registry;

pub use event::{EventContext, ORDERING_KEY_BYTES_MAX};
pub use moved::{moved_delivery, moved_event, moved_registry_record, registry_endpoint};

/// The generated messages.
#[expect(
    clippy::large_enum_variant,
    reason = "a message is taken apart as soon as it is decoded; nothing keeps many of them"
)]
pub mod proto {
    include!("wire/generated/postrider.v1.rs");
}

/// Why a record's bytes are no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    /// It asks for something that this release does not honour.
    #[error("`{field}` is not supported")]
    Unsupported {
        /// Which field asks.
        field: &'static str,
    },
    /// It could not be understood.
    #[error("`{field}`: {detail}")]
    Malformed {
        /// Which field, or the name of the message if its bytes are none.
        field: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

impl InvalidRecord {
    /// Why the record is a dead letter.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unsupported { .. } => Reason::Unsupported,
            Self::Malformed { .. } => Reason::Malformed,
        }
    }

    pub(crate) fn malformed(field: &'static str, detail: impl Display) -> Self {
        Self::Malformed {
            field,
            detail: detail.to_string(),
        }
    }

    fn missing(field: &'static str) -> Self {
        Self::malformed(field, "is missing")
    }
}

/// Names the field that a value did not come out of.
fn field<T, E: Display>(name: &'static str, parsed: Result<T, E>) -> Result<T, InvalidRecord> {
    parsed.map_err(|error| InvalidRecord::malformed(name, error))
}

fn message<M: Message + Default>(
    name: &'static str,
    bytes: impl bytes::Buf,
) -> Result<M, InvalidRecord> {
    field(name, M::decode(bytes))
}

fn registry_id_to_proto(stamp: RegistryStamp) -> Option<u64> {
    (stamp.registry_id != 0).then_some(stamp.registry_id)
}

fn registry_stamp(registry_id: Option<u64>, position: u64) -> RegistryStamp {
    RegistryStamp {
        registry_id: registry_id.unwrap_or(0),
        position,
    }
}

fn position_to_proto(position: EventPosition) -> proto::EventPosition {
    proto::EventPosition {
        partition: position.partition,
        offset: position.offset,
        appended_at_ms: position.appended_at_ms,
    }
}

fn position_from_proto(
    position: Option<proto::EventPosition>,
) -> Result<EventPosition, InvalidRecord> {
    let position = position.ok_or_else(|| InvalidRecord::missing("position"))?;
    if position.partition < 0 || position.offset < 0 {
        return Err(InvalidRecord::malformed("position", "must not be negative"));
    }
    Ok(EventPosition {
        partition: position.partition,
        offset: position.offset,
        appended_at_ms: position.appended_at_ms,
    })
}

/// Statuses are written with 0 for none.
fn status_from_proto(name: &'static str, status: u32) -> Result<Option<u16>, InvalidRecord> {
    match status {
        0 => Ok(None),
        _ => field(name, u16::try_from(status)).map(Some),
    }
}

#[cfg(test)]
mod tests;
