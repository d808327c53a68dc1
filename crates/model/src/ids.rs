//! One type for each identifier, parsed at the edge.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest identifier in bytes.
pub const ID_BYTES_MAX: usize = 64;

/// Why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// It is empty.
    #[error("must not be empty")]
    Empty,
    /// It is longer than [`ID_BYTES_MAX`].
    #[error("must be at most {ID_BYTES_MAX} bytes, not {0}")]
    TooLong(usize),
    /// It has another character.
    #[error("may have letters, digits, `_` and `-` only, not {0:?}")]
    Character(char),
    /// It lacks the prefix of its kind.
    #[error("must begin with `{0}`")]
    Prefix(&'static str),
}

fn check(text: &str, prefix: &'static str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > ID_BYTES_MAX {
        return Err(InvalidId::TooLong(text.len()));
    }
    if let Some(other) = text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || *c == '_' || *c == '-'))
    {
        return Err(InvalidId::Character(other));
    }
    if !text.starts_with(prefix) {
        return Err(InvalidId::Prefix(prefix));
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the identifier.
            ///
            /// # Errors
            /// When it is empty, too long, has another character or lacks its prefix.
            pub fn try_new(text: &str) -> Result<Self, InvalidId> {
                check(text, $prefix).map(|()| Self(text.into()))
            }

            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_new(text)
            }
        }
    };
}

id! {
    /// A tenant, by the caller's own id.
    TenantId, ""
}
id! {
    /// An event: the caller's own id or `evt_` and a UUIDv7. Sent as `webhook-id`.
    EventId, ""
}
id! {
    /// An endpoint: `ep_` and a UUIDv7, or the caller's own after `ep_`.
    EndpointId, "ep_"
}
id! {
    /// A key for the API: `key_` and a UUIDv7.
    ApiKeyId, "key_"
}
