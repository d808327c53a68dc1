//! Signing as in Standard Webhooks 1.0.
//!
//! What is signed is `{webhook-id}.{webhook-timestamp}.{body}`, the body byte for byte as sent,
//! with the time of this attempt. The header lists one signature per valid secret, so that a
//! receiver can change over at its own time: `v1,` is HMAC-SHA256 with a shared secret (`whsec_`),
//! `v1a,` is ed25519 with a private key (`whsk_`), whose public half (`whpk_`) the receiver has.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::hmac;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// How far a timestamp may be from now, either way: what the reference libraries allow.
pub const TOLERANCE_S: i64 = 300;

const HMAC_PREFIX: &str = "whsec_";
const HMAC_KEY_BYTES_MIN: usize = 24;
const HMAC_KEY_BYTES_MAX: usize = 64;
const ED25519_PREFIX: &str = "whsk_";
const ED25519_PUBLIC_PREFIX: &str = "whpk_";
const ED25519_SEED_BYTES: usize = 32;
const HMAC_VERSION: &str = "v1";
const ED25519_VERSION: &str = "v1a";

/// Secrets of other systems are imported with and without padding; ours have it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a text is no signing secret. Says nothing of the text: it may be a secret in the wrong
/// place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// It has neither prefix.
    #[error("must begin with `whsec_` or `whsk_`")]
    Prefix,
    /// What follows the prefix is not base64.
    #[error("must be base64 after its prefix")]
    Base64,
    /// A shared secret is too short or too long.
    #[error("must hold {HMAC_KEY_BYTES_MIN} to {HMAC_KEY_BYTES_MAX} bytes, not {0}")]
    HmacLength(usize),
    /// A private key is neither a seed nor a seed with its public key.
    #[error("must hold a 32-byte seed, or the seed and its public key, not {0} bytes")]
    Ed25519Length(usize),
    /// A private key and the public key with it are of different pairs.
    #[error("must hold a seed and its own public key")]
    Ed25519Mismatch,
}

/// A secret that signs.
#[derive(Clone)]
pub struct SigningSecret(Key);

#[derive(Clone)]
enum Key {
    Hmac {
        bytes: Vec<u8>,
        key: hmac::Key,
    },
    Ed25519 {
        seed: [u8; ED25519_SEED_BYTES],
        pair: Arc<Ed25519KeyPair>,
    },
}

impl SigningSecret {
    /// Parses `whsec_…` or `whsk_…`.
    ///
    /// # Errors
    /// When the prefix is another, the rest is not base64, or its bytes are no key.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        if let Some(encoded) = text.strip_prefix(HMAC_PREFIX) {
            let bytes = BASE64.decode(encoded).map_err(|_| InvalidSecret::Base64)?;
            if !(HMAC_KEY_BYTES_MIN..=HMAC_KEY_BYTES_MAX).contains(&bytes.len()) {
                return Err(InvalidSecret::HmacLength(bytes.len()));
            }
            Ok(Self::from_hmac_key(bytes))
        } else if let Some(encoded) = text.strip_prefix(ED25519_PREFIX) {
            Self::from_ed25519_key(&BASE64.decode(encoded).map_err(|_| InvalidSecret::Base64)?)
        } else {
            Err(InvalidSecret::Prefix)
        }
    }

    /// A new shared secret of the random bytes.
    pub fn generate(random: &[u8; 32]) -> Self {
        Self::from_hmac_key(random.to_vec())
    }

    fn from_hmac_key(bytes: Vec<u8>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        Self(Key::Hmac { bytes, key })
    }

    fn from_ed25519_key(bytes: &[u8]) -> Result<Self, InvalidSecret> {
        let (seed, public) = bytes
            .split_first_chunk::<ED25519_SEED_BYTES>()
            .ok_or(InvalidSecret::Ed25519Length(bytes.len()))?;
        let pair = match public.len() {
            0 => Ed25519KeyPair::from_seed_unchecked(seed),
            32 => Ed25519KeyPair::from_seed_and_public_key(seed, public),
            _ => return Err(InvalidSecret::Ed25519Length(bytes.len())),
        }
        .map_err(|_| InvalidSecret::Ed25519Mismatch)?;
        Ok(Self(Key::Ed25519 {
            seed: *seed,
            pair: Arc::new(pair),
        }))
    }

    /// The secret as text, for its owner and for sealing; never for a log.
    pub fn reveal(&self) -> String {
        match &self.0 {
            Key::Hmac { bytes, .. } => format!("{HMAC_PREFIX}{}", BASE64.encode(bytes)),
            Key::Ed25519 { seed, pair } => {
                let both = [seed.as_slice(), pair.public_key().as_ref()].concat();
                format!("{ED25519_PREFIX}{}", BASE64.encode(both))
            }
        }
    }

    /// `whpk_…` of a private key, for the receiver; `None` of a shared secret.
    pub fn public_key(&self) -> Option<String> {
        match &self.0 {
            Key::Hmac { .. } => None,
            Key::Ed25519 { pair, .. } => Some(format!(
                "{ED25519_PUBLIC_PREFIX}{}",
                BASE64.encode(pair.public_key())
            )),
        }
    }

    fn version(&self) -> &'static str {
        match &self.0 {
            Key::Hmac { .. } => HMAC_VERSION,
            Key::Ed25519 { .. } => ED25519_VERSION,
        }
    }

    fn sign(&self, content: &[u8]) -> String {
        match &self.0 {
            Key::Hmac { key, .. } => BASE64.encode(hmac::sign(key, content)),
            Key::Ed25519 { pair, .. } => BASE64.encode(pair.sign(content)),
        }
    }

    fn accepts(&self, content: &[u8], signature: &[u8]) -> bool {
        match &self.0 {
            Key::Hmac { key, .. } => hmac::verify(key, content, signature).is_ok(),
            Key::Ed25519 { pair, .. } => UnparsedPublicKey::new(&ED25519, pair.public_key())
                .verify(content, signature)
                .is_ok(),
        }
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningSecret({}, hidden)", self.version())
    }
}

/// The value of `webhook-signature`: a signature by each secret, in their order.
pub fn sign(secrets: &[SigningSecret], webhook_id: &str, timestamp_s: i64, body: &[u8]) -> String {
    let content = signed_content(webhook_id, timestamp_s, body);
    let mut header = String::new();
    for secret in secrets {
        if !header.is_empty() {
            header.push(' ');
        }
        header.push_str(secret.version());
        header.push(',');
        header.push_str(&secret.sign(&content));
    }
    header
}

/// Why a webhook is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A header is missing or empty.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// The timestamp is no whole number of seconds.
    #[error("`webhook-timestamp` must be Unix seconds")]
    Timestamp,
    /// The timestamp is more than [`TOLERANCE_S`] before now.
    #[error("`webhook-timestamp` is too old")]
    TooOld,
    /// The timestamp is more than [`TOLERANCE_S`] after now.
    #[error("`webhook-timestamp` is too new")]
    TooNew,
    /// No signature is by this secret of this content.
    #[error("no signature matches")]
    NoMatch,
}

/// Checks a received webhook, as its receiver does: one matching signature suffices, unknown
/// versions are passed over.
///
/// # Errors
/// When a header is missing, the timestamp is not near `now_s`, or no signature matches.
pub fn verify(
    secret: &SigningSecret,
    id: &str,
    timestamp_header: &str,
    signature_header: &str,
    body: &[u8],
    now_s: i64,
) -> Result<(), VerifyError> {
    let headers = [
        ("webhook-id", id),
        ("webhook-timestamp", timestamp_header),
        ("webhook-signature", signature_header),
    ];
    if let Some((name, _)) = headers.iter().find(|(_, value)| value.is_empty()) {
        return Err(VerifyError::Missing(name));
    }
    let timestamp_s: i64 = timestamp_header
        .parse()
        .map_err(|_| VerifyError::Timestamp)?;
    if timestamp_s < now_s.saturating_sub(TOLERANCE_S) {
        return Err(VerifyError::TooOld);
    }
    if timestamp_s > now_s.saturating_add(TOLERANCE_S) {
        return Err(VerifyError::TooNew);
    }
    let content = signed_content(id, timestamp_s, body);
    let matches = signature_header
        .split(' ')
        .filter_map(|entry| entry.split_once(','))
        .filter(|(version, _)| *version == secret.version())
        .filter_map(|(_, encoded)| BASE64.decode(encoded).ok())
        .any(|signature| secret.accepts(&content, &signature));
    if matches {
        Ok(())
    } else {
        Err(VerifyError::NoMatch)
    }
}

fn signed_content(webhook_id: &str, timestamp_s: i64, body: &[u8]) -> Vec<u8> {
    let mut content = format!("{webhook_id}.{timestamp_s}.").into_bytes();
    content.extend_from_slice(body);
    content
}

#[cfg(test)]
mod tests;
