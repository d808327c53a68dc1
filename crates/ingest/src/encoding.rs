//! Bytes as text.

use ::base64::Engine;
use ::base64::engine::general_purpose::STANDARD;

/// Bytes in JSON.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
