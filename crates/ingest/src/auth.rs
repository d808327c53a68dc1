//! Who may ask: whoever bears the operator key.

use axum::http::{HeaderMap, header};
use postrider_daemon::config::Secret;
use ring::hmac;

/// Shorter keys could be guessed.
const KEY_BYTES_MIN: usize = 16;
/// Why there is no operator key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOperatorKey {
    /// None was given.
    #[error(
        "`ingest.operator_key` is not set: generate a key once by `postrider key generate operator` and give it, for example as POSTRIDER_INGEST__OPERATOR_KEY"
    )]
    Missing,
    /// It could be guessed.
    #[error("the operator key must be at least {KEY_BYTES_MIN} bytes")]
    TooShort,
    /// It could not be sent in a header.
    #[error("the operator key must be visible ASCII without spaces")]
    Characters,
}

/// The operator key, kept as a tag that it can be compared by but not read from.
#[derive(Debug)]
pub(crate) struct OperatorKey {
    key: hmac::Key,
    tag: hmac::Tag,
}

impl OperatorKey {
    pub(crate) fn try_new(key: Option<&Secret>) -> Result<Self, InvalidOperatorKey> {
        let text = key.map(Secret::expose).filter(|text| !text.is_empty());
        let text = text.ok_or(InvalidOperatorKey::Missing)?;
        if text.len() < KEY_BYTES_MIN {
            return Err(InvalidOperatorKey::TooShort);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidOperatorKey::Characters);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes());
        let tag = hmac::sign(&key, text.as_bytes());
        Ok(Self { key, tag })
    }

    /// Whether the request bears the key. How long it takes says nothing of the key: what is
    /// compared are tags, in constant time.
    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
        bearer(headers)
            .is_some_and(|presented| hmac::verify(&self.key, presented, self.tag.as_ref()).is_ok())
    }
}

/// What the request bears as a key (RFC 6750, section 2.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, presented) = value.split_first_chunk::<7>()?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| presented.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn key(text: &str) -> Result<OperatorKey, InvalidOperatorKey> {
        OperatorKey::try_new(Some(&Secret::from(text.to_owned())))
    }

    fn admits(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        key("0123456789abcdef").unwrap().admits(&headers)
    }

    #[test]
    fn admits_the_bearer_of_the_key_and_nobody_else() {
        assert!(admits("Bearer 0123456789abcdef"));
        assert!(admits("bearer  0123456789abcdef"));
        for other in [
            "",
            "Bearer",
            "Bearer ",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdefg",
            "Bearer 0123456789abcdeF",
        ] {
            assert!(!admits(other), "{other:?}");
        }
        assert!(!key("0123456789abcdef").unwrap().admits(&HeaderMap::new()));
    }

    #[test]
    fn refuses_keys_that_could_be_guessed_or_not_be_sent() {
        assert_eq!(
            OperatorKey::try_new(None).unwrap_err(),
            InvalidOperatorKey::Missing
        );
        assert_eq!(key("").unwrap_err(), InvalidOperatorKey::Missing);
        assert_eq!(
            key("0123456789abcde").unwrap_err(),
            InvalidOperatorKey::TooShort
        );
        assert_eq!(
            key("0123456789 abcdef").unwrap_err(),
            InvalidOperatorKey::Characters
        );
    }

    #[test]
    fn does_not_show_the_key_when_printed() {
        let printed = format!("{:?}", key("0123456789abcdef").unwrap());
        assert!(!printed.contains("0123456789abcdef"), "{printed}");
    }
}
