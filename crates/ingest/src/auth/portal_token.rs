//! Portal tokens: short-lived keys of one tenant for a customer's browser, kept nowhere.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postrider_model::api_key::{Scope, Scopes};
use postrider_model::ids::{ApiKeyId, TenantId};
use serde::{Deserialize, Serialize};

/// How a token begins.
pub(super) const PREFIX: &str = "prp_";
/// A longer text is no token.
const BYTES_MAX: usize = 2048;
/// Stands before what is proven, so that the proof is good for nothing else.
const PROVEN: &[u8] = b"portal token\0";

/// What a portal token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortalToken {
    pub(crate) tenant: TenantId,
    pub(crate) scopes: Scopes,
    /// For whom, in the company's own words; empty: not said.
    pub(crate) user: String,
    /// The key by which it was issued. None: the configured one.
    pub(crate) issuer: Option<ApiKeyId>,
    /// How often the tenant's tokens had been revoked when it was issued.
    pub(crate) generation: u64,
    pub(crate) expires_at_ms: i64,
}

/// A token's content as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(rename = "t")]
    tenant: String,
    #[serde(rename = "s")]
    scopes: Vec<String>,
    #[serde(rename = "u")]
    user: String,
    #[serde(rename = "k")]
    issuer: Option<String>,
    #[serde(rename = "g")]
    generation: u64,
    #[serde(rename = "e")]
    expires_at_ms: i64,
}

impl PortalToken {
    /// As its bearer sends it, with this proof.
    pub(crate) fn write(&self, prove: impl FnOnce(&[u8]) -> String) -> String {
        let written = Written {
            tenant: self.tenant.to_string(),
            scopes: self.scopes.iter().map(|scope| scope.to_string()).collect(),
            user: self.user.clone(),
            issuer: self.issuer.as_ref().map(ApiKeyId::to_string),
            generation: self.generation,
            expires_at_ms: self.expires_at_ms,
        };
        let content = serde_json::to_vec(&written).expect("a token is plain data");
        let proof = prove(&proven(&content));
        format!("{PREFIX}{}.{proof}", URL_SAFE_NO_PAD.encode(content))
    }

    /// What a token says, if this installation issued it.
    pub(super) fn read(text: &str, is_proven: impl FnOnce(&[u8], &str) -> bool) -> Option<Self> {
        if text.len() > BYTES_MAX {
            return None;
        }
        let (content, proof) = text.strip_prefix(PREFIX)?.split_once('.')?;
        let content = URL_SAFE_NO_PAD.decode(content).ok()?;
        if !is_proven(&proven(&content), proof) {
            return None;
        }
        let written: Written = serde_json::from_slice(&content).ok()?;
        let issuer = written.issuer.map(|id| ApiKeyId::try_new(&id));
        // A scope of a later release opens nothing here.
        let scopes = written.scopes.iter().filter_map(|scope| scope.parse().ok());
        Some(Self {
            tenant: TenantId::try_new(&written.tenant).ok()?,
            scopes: scopes.collect::<Vec<Scope>>().into_iter().collect(),
            user: written.user,
            issuer: issuer.transpose().ok()?,
            generation: written.generation,
            expires_at_ms: written.expires_at_ms,
        })
    }
}

fn proven(content: &[u8]) -> Vec<u8> {
    [PROVEN, content].concat()
}

#[cfg(test)]
mod tests {
    use postrider_registry::Keyring;
    use proptest::prelude::*;

    use super::*;

    fn token() -> PortalToken {
        PortalToken {
            tenant: TenantId::try_new("acme").unwrap(),
            scopes: [Scope::Read, Scope::Repair].into_iter().collect(),
            user: "ann@acme.example".to_owned(),
            issuer: Some(ApiKeyId::try_new("key_1").unwrap()),
            generation: 5,
            expires_at_ms: 9,
        }
    }

    fn read(text: &str, keyring: &Keyring) -> Option<PortalToken> {
        PortalToken::read(text, |value, proof| keyring.proves(value, proof))
    }

    #[test]
    fn a_token_is_read_as_it_was_issued_and_elsewhere_not_at_all() {
        let keyring = Keyring::from_bytes([1; 32], vec![]);
        let written = token().write(|value| keyring.prove(value));
        assert_eq!(read(&written, &keyring), Some(token()));
        let rotated = Keyring::from_bytes([2; 32], vec![[1; 32]]);
        assert_eq!(read(&written, &rotated), Some(token()));
        assert_eq!(read(&written, &Keyring::from_bytes([2; 32], vec![])), None);
        let without_domain = token().write(|value| keyring.prove(&value[PROVEN.len()..]));
        assert_eq!(read(&without_domain, &keyring), None);
    }

    proptest! {
        #[test]
        fn no_other_text_is_a_token(at in 0_usize..1000, byte in 33_u8..127) {
            let keyring = Keyring::from_bytes([1; 32], vec![]);
            let written = token().write(|value| keyring.prove(value));
            let mut changed = written.clone().into_bytes();
            let at = at % changed.len();
            changed[at] = byte;
            let changed = String::from_utf8(changed).unwrap();
            prop_assume!(changed != written);
            prop_assert_eq!(read(&changed, &keyring), None);
        }

        #[test]
        fn reading_never_panics(text in "prp_[ -~]{0,99}") {
            let keyring = Keyring::from_bytes([1; 32], vec![]);
            prop_assert_eq!(read(&text, &keyring), None);
        }
    }
}
