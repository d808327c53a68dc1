//! The installation's keys, under which signing secrets rest in the log.
//!
//! AES-256-GCM with a random nonce and the endpoint's id as associated data: a sealed secret copied
//! to another endpoint does not open. A secret names the key that sealed it, so keys are rotated by
//! putting a new one first and keeping the older ones until nothing names them.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider_model::endpoint::SealedSecret;
use postrider_model::ids::EndpointId;
use postrider_model::signature::SigningSecret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};

const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 4;

/// The keys: the first seals, all open.
pub struct Keyring {
    primary: String,
    keys: BTreeMap<String, LessSafeKey>,
    /// Derived from each, for [`Keyring::prove`].
    proving: BTreeMap<String, hmac::Key>,
    random: SystemRandom,
}

/// Why a text holds no keyring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyring {
    /// There is no key in it.
    #[error("has no key")]
    Empty,
    /// A line is no key. The line itself is not shown.
    #[error("line {0} is not {KEY_BYTES} bytes in base64 or hexadecimal")]
    Line(usize),
}

/// Why a sealed secret does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key that sealed it is not in the keyring.
    #[error("the key {0} is not in the keyring")]
    KeyMissing(String),
    /// It was changed, or sealed for another endpoint.
    #[error("the secret was changed or belongs to another endpoint")]
    Forged,
    /// It opened, but is no signing secret.
    #[error("the opened text is no signing secret")]
    NotASecret,
}

impl Keyring {
    /// A keyring of these keys.
    pub fn from_bytes(primary: [u8; KEY_BYTES], older: Vec<[u8; KEY_BYTES]>) -> Self {
        let named = |key: [u8; KEY_BYTES]| {
            let unbound =
                UnboundKey::new(&AES_256_GCM, &key).expect("the key has the right length");
            (key_id(&key), LessSafeKey::new(unbound))
        };
        let all: Vec<_> = older.into_iter().chain([primary]).collect();
        let proving = |key: &[u8; KEY_BYTES]| (key_id(key), proving_key(key));
        Self {
            primary: key_id(&primary),
            proving: all.iter().map(proving).collect(),
            keys: all.into_iter().map(named).collect(),
            random: SystemRandom::new(),
        }
    }

    /// Parses keys of 32 bytes in base64 or hexadecimal, one a line, the first one sealing. Empty
    /// lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// When there is no key, or a line is none.
    pub fn from_text(text: &str) -> Result<Self, InvalidKeyring> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            keys.push(parse_key(line).ok_or(InvalidKeyring::Line(index + 1))?);
        }
        if keys.is_empty() {
            return Err(InvalidKeyring::Empty);
        }
        let primary = keys.remove(0);
        Ok(Self::from_bytes(primary, keys))
    }

    /// A new random key as [`Keyring::from_text`] reads it.
    pub fn generate_text() -> String {
        format!(
            "{}\n",
            STANDARD.encode(random_bytes::<KEY_BYTES>(&SystemRandom::new()))
        )
    }

    /// The name of the key that seals.
    pub(crate) fn primary(&self) -> &str {
        &self.primary
    }

    /// Whether a key of this name is here.
    pub(crate) fn has(&self, key_id: &str) -> bool {
        self.keys.contains_key(key_id)
    }

    /// The names of all keys.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// Encrypts a secret for one endpoint, to sign without end.
    pub fn seal(&self, endpoint: &EndpointId, secret: &SigningSecret) -> SealedSecret {
        let nonce = random_bytes::<NONCE_LEN>(&self.random);
        let mut text = secret.reveal().into_bytes();
        self.keys[&self.primary]
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(endpoint.as_str().as_bytes()),
                &mut text,
            )
            .expect("a secret is far shorter than the cipher's limit");
        let mut sealed = nonce.to_vec();
        sealed.append(&mut text);
        SealedSecret {
            key_id: self.primary.clone(),
            sealed,
            expires_at_ms: None,
        }
    }

    /// Proof that whoever has the installation's keys wrote this value.
    pub fn vouch(&self, value: &[u8]) -> String {
        let nonce = random_bytes::<NONCE_LEN>(&self.random);
        let tag = self.keys[&self.primary]
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                vouched(value),
                &mut [],
            )
            .expect("a record is far shorter than the cipher's limit");
        format!("{}.{}{}", self.primary, hex(&nonce), hex(tag.as_ref()))
    }

    /// Whether that is proof for this value, under any of the keys.
    pub fn vouches(&self, value: &[u8], proof: &str) -> bool {
        let opened = || {
            let (key_id, proof) = proof.split_once('.')?;
            let proof = unhex(proof)?;
            let (nonce, tag) = proof.split_first_chunk::<NONCE_LEN>()?;
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let mut tag = tag.to_vec();
            let key = self.keys.get(key_id)?;
            let opened = key.open_in_place(nonce, vouched(value), &mut tag);
            Some(opened.is_ok())
        };
        opened() == Some(true)
    }

    /// Proof that whoever has the installation's keys made this value. Of any number of them:
    /// unlike [`Keyring::vouch`] it needs no random number that never comes twice.
    pub fn prove(&self, value: &[u8]) -> String {
        let tag = hmac::sign(&self.proving[&self.primary], value);
        format!("{}.{}", self.primary, hex(tag.as_ref()))
    }

    /// Whether that is [`Keyring::prove`] of this value, under any of the keys.
    pub fn proves(&self, value: &[u8], proof: &str) -> bool {
        let Some((key_id, tag)) = proof.split_once('.') else {
            return false;
        };
        let (key, bytes) = (self.proving.get(key_id), unhex(tag));
        let (Some(key), Some(bytes)) = (key, bytes) else {
            return false;
        };
        // One proof has one spelling.
        hex(&bytes) == tag && hmac::verify(key, value, &bytes).is_ok()
    }

    /// Decrypts a secret.
    ///
    /// # Errors
    /// When its key is missing, or it was changed or sealed for another endpoint.
    pub fn open(
        &self,
        endpoint: &EndpointId,
        secret: &SealedSecret,
    ) -> Result<SigningSecret, OpenError> {
        let key = self
            .keys
            .get(&secret.key_id)
            .ok_or_else(|| OpenError::KeyMissing(secret.key_id.clone()))?;
        let (nonce, ciphertext) = secret
            .sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(OpenError::Forged)?;
        let mut text = ciphertext.to_vec();
        let opened = key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(endpoint.as_str().as_bytes()),
                &mut text,
            )
            .map_err(|_| OpenError::Forged)?;
        let text = std::str::from_utf8(opened).map_err(|_| OpenError::NotASecret)?;
        SigningSecret::parse(text).map_err(|_| OpenError::NotASecret)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keyring")
            .field("primary", &self.primary)
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

/// Names a key without telling anything of it that helps.
fn key_id(key: &[u8; KEY_BYTES]) -> String {
    hex(&digest::digest(&digest::SHA256, key).as_ref()[..KEY_ID_BYTES])
}

/// What proves is not what encrypts.
fn proving_key(key: &[u8; KEY_BYTES]) -> hmac::Key {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, b"proves").as_ref())
}

/// What is vouched for can be mistaken for no secret: those are sealed with an endpoint's id.
fn vouched(value: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([b"vouched for\0", value].concat())
}

/// The bytes that [`hex`] writes so. Nothing else is read: not a digit that is alone, nor a sign.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let is_whole =
        text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    is_whole.then(|| text.as_bytes().chunks_exact(2).map(byte).collect())?
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn random_bytes<const N: usize>(random: &SystemRandom) -> [u8; N] {
    let mut bytes = [0; N];
    random
        .fill(&mut bytes)
        .expect("the operating system has a random source");
    bytes
}

fn parse_key(line: &str) -> Option<[u8; KEY_BYTES]> {
    if line.len() == 2 * KEY_BYTES && line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let mut key = [0; KEY_BYTES];
        for (byte, digits) in key.iter_mut().zip(line.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        return Some(key);
    }
    STANDARD.decode(line).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(id: &str) -> EndpointId {
        EndpointId::try_new(id).unwrap()
    }

    fn secret() -> SigningSecret {
        SigningSecret::generate(&[7; 32])
    }

    #[test]
    fn vouches_for_what_was_written_under_any_of_its_keys_and_nothing_else() {
        let former = Keyring::from_bytes([1; 32], vec![]);
        let proof = former.vouch(b"value");
        let rotated = Keyring::from_bytes([2; 32], vec![[1; 32]]);
        assert!(former.vouches(b"value", &proof) && rotated.vouches(b"value", &proof));
        assert!(!Keyring::from_bytes([2; 32], vec![]).vouches(b"value", &proof));
        assert!(!former.vouches(b"another", &proof));
        let mut changed = proof;
        changed.pop();
        for forged in ["", ".", "00000000.00", changed.as_str()] {
            assert!(!former.vouches(b"value", forged), "{forged}");
        }
    }

    #[test]
    fn reads_nothing_as_hex_that_it_would_not_write_so() {
        assert_eq!(unhex("00ff"), Some(vec![0, 255]));
        for text in ["0", "000", "00f", "+f", "0x", "é"] {
            assert_eq!(unhex(text), None, "{text}");
        }
    }

    #[test]
    fn opens_what_it_sealed() {
        let keyring = Keyring::from_bytes([1; 32], vec![]);
        let sealed = keyring.seal(&endpoint("ep_a"), &secret());
        assert_eq!(
            keyring.open(&endpoint("ep_a"), &sealed).unwrap().reveal(),
            secret().reveal()
        );
    }

    #[test]
    fn never_seals_alike_twice() {
        let keyring = Keyring::from_bytes([1; 32], vec![]);
        let seal = || keyring.seal(&endpoint("ep_a"), &secret()).sealed;
        assert_ne!(seal(), seal());
    }

    #[test]
    fn refuses_a_secret_of_another_endpoint_or_key_or_a_changed_one() {
        let keyring = Keyring::from_bytes([1; 32], vec![]);
        let sealed = keyring.seal(&endpoint("ep_a"), &secret());
        assert_eq!(
            keyring.open(&endpoint("ep_b"), &sealed).err(),
            Some(OpenError::Forged)
        );

        let other = Keyring::from_bytes([2; 32], vec![]);
        let missing = OpenError::KeyMissing(sealed.key_id.clone());
        assert_eq!(other.open(&endpoint("ep_a"), &sealed).err(), Some(missing));

        let renamed = SealedSecret {
            key_id: other.primary.clone(),
            ..sealed.clone()
        };
        assert_eq!(
            other.open(&endpoint("ep_a"), &renamed).err(),
            Some(OpenError::Forged)
        );

        for index in 0..sealed.sealed.len() {
            let mut changed = sealed.clone();
            changed.sealed[index] ^= 1;
            assert_eq!(
                keyring.open(&endpoint("ep_a"), &changed).err(),
                Some(OpenError::Forged)
            );
        }
        let short = SealedSecret {
            sealed: vec![0; NONCE_LEN - 1],
            ..sealed
        };
        assert_eq!(
            keyring.open(&endpoint("ep_a"), &short).err(),
            Some(OpenError::Forged)
        );
    }

    #[test]
    fn opens_with_an_older_key_and_seals_with_the_first() {
        let before = Keyring::from_bytes([1; 32], vec![]);
        let sealed = before.seal(&endpoint("ep_a"), &secret());
        let after = Keyring::from_bytes([2; 32], vec![[1; 32]]);
        assert_eq!(
            after.open(&endpoint("ep_a"), &sealed).unwrap().reveal(),
            secret().reveal()
        );
        let resealed = after.seal(&endpoint("ep_a"), &secret());
        assert_ne!(resealed.key_id, sealed.key_id);
        let later = Keyring::from_bytes([2; 32], vec![]);
        assert!(later.open(&endpoint("ep_a"), &resealed).is_ok());
        assert!(later.open(&endpoint("ep_a"), &sealed).is_err());
    }

    #[test]
    fn reads_base64_and_hexadecimal_lines() {
        let text = format!(
            "# new\n{}\n\n {}\n",
            STANDARD.encode([2; 32]),
            "01".repeat(32)
        );
        let keyring = Keyring::from_text(&text).unwrap();
        assert_eq!(keyring.primary, key_id(&[2; 32]));
        assert!(keyring.keys.contains_key(&key_id(&[1; 32])));
        assert!(Keyring::from_text(&Keyring::generate_text()).is_ok());
        assert_ne!(Keyring::generate_text(), Keyring::generate_text());
    }

    #[test]
    fn refuses_a_text_without_keys_or_with_another_line() {
        assert_eq!(
            Keyring::from_text("\n# none\n").err(),
            Some(InvalidKeyring::Empty)
        );
        let text = format!("{}\nnonsense", STANDARD.encode([2; 32]));
        assert_eq!(
            Keyring::from_text(&text).err(),
            Some(InvalidKeyring::Line(2))
        );
        let short = STANDARD.encode([2; 31]);
        assert_eq!(
            Keyring::from_text(&short).err(),
            Some(InvalidKeyring::Line(1))
        );
    }

    #[test]
    fn hides_its_keys_when_printed() {
        let keyring = Keyring::from_bytes([0xab; 32], vec![]);
        let printed = format!("{keyring:?}");
        assert!(
            !printed.contains("abab") && !printed.contains("171"),
            "{printed}"
        );
    }
}
