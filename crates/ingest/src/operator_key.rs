//! The operator key of the configuration, by which an installation begins.

use postrider_daemon::config::Secret;
use ring::hmac;

/// Shorter keys could be guessed.
const BYTES_MIN: usize = 16;

/// Why there is no operator key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOperatorKey {
    /// None was given, and the registry has none.
    #[error(
        "`ingest.operator_key` is not set: generate a key once by `postrider key generate operator` and give it, for example as POSTRIDER_INGEST__OPERATOR_KEY"
    )]
    Missing,
    /// It could be guessed.
    #[error("the operator key must be at least {BYTES_MIN} bytes")]
    TooShort,
    /// It could not be sent in a header.
    #[error("the operator key must be visible ASCII without spaces")]
    Characters,
}

/// The key, kept as a tag that it can be compared by but not read from.
#[derive(Debug)]
pub(crate) struct ConfiguredKey {
    key: hmac::Key,
    tag: hmac::Tag,
}

impl ConfiguredKey {
    /// The key, if there is one; an empty text is none.
    pub(crate) fn of(key: Option<&Secret>) -> Result<Option<Self>, InvalidOperatorKey> {
        let given = key.filter(|key| !key.expose().is_empty());
        given.map(Self::try_new).transpose()
    }

    fn try_new(key: &Secret) -> Result<Self, InvalidOperatorKey> {
        let text = key.expose();
        if text.len() < BYTES_MIN {
            return Err(InvalidOperatorKey::TooShort);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidOperatorKey::Characters);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes());
        let tag = hmac::sign(&key, text.as_bytes());
        Ok(Self { key, tag })
    }

    /// Whether that is the key. How long it takes says nothing of the key: what is compared are
    /// tags, in constant time.
    pub(crate) fn is(&self, presented: &[u8]) -> bool {
        hmac::verify(&self.key, presented, self.tag.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(text: &str) -> Result<ConfiguredKey, InvalidOperatorKey> {
        ConfiguredKey::try_new(&Secret::from(text.to_owned()))
    }

    #[test]
    fn the_configured_key_is_admitted_and_no_other() {
        let key = configured("0123456789abcdef").unwrap();
        assert!(key.is(b"0123456789abcdef"));
        for other in [
            "",
            "0123456789abcde",
            "0123456789abcdefg",
            "0123456789abcdeF",
        ] {
            assert!(!key.is(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn refuses_keys_that_could_be_guessed_or_not_be_sent() {
        let refused = |text| configured(text).unwrap_err();
        assert_eq!(refused("0123456789abcde"), InvalidOperatorKey::TooShort);
        assert_eq!(refused("0123456789 abcdef"), InvalidOperatorKey::Characters);
    }

    #[test]
    fn does_not_show_the_key_when_printed() {
        let printed = format!("{:?}", configured("0123456789abcdef").unwrap());
        assert!(!printed.contains("0123456789abcdef"), "{printed}");
    }
}
