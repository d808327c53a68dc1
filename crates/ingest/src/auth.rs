//! Who asks: what a request bears as a key, and whose that is.
//!
//! There are four kinds of key. The operator key of the configuration, by which an installation
//! begins. Operators' and tenants' keys, which are in the registry as hashes. Portal tokens, which
//! are kept nowhere: they say themselves whose they are, until when, and that this installation
//! issued them.

mod failures;
mod portal_token;
mod uses;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postrider_log::Clock;
use postrider_model::api_key::{ApiKey, ApiKeyHash, Holder, Scope};
use postrider_model::audit::{Actor, ActorKind};
use postrider_registry::{Registry, Versioned};
use ring::digest;
use tokio::sync::Semaphore;

use crate::config::IngestConfig;
use crate::ids;
use crate::operator_key::{ConfiguredKey, InvalidOperatorKey};
use crate::problem::{Problem, Unauthorized};

pub(crate) use self::failures::Failures;
pub(crate) use self::portal_token::PortalToken;
use self::uses::Uses;

/// How an operator's key begins.
pub(crate) const OPERATOR_PREFIX: &str = "pro_";
/// How a tenant's key begins.
pub(crate) const TENANT_PREFIX: &str = "prt_";
/// Random bytes of a key.
const KEY_BYTES: usize = 32;
/// How many characters of a key people are shown.
const SHOWN_CHARACTERS: usize = 12;
/// Keys that are unknown here and may be new, looked for in the registry at a time.
const LOOKING_MAX: usize = 4;
/// How long the registry may take to say that a key is unknown.
const LOOKING_TIMEOUT: Duration = Duration::from_secs(1);
/// A view that was not read for so long may not know that a key was revoked.
const VIEW_AGE_MAX: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) actor: Actor,
    pub(crate) holder: Holder,
    /// Where the request comes from, if it came by a connection.
    pub(crate) address: Option<IpAddr>,
}

impl Caller {
    /// Whether the caller may deliver again, on a route that does so only if it is asked to.
    pub(crate) fn may_repair(&self) -> Result<(), Problem> {
        match &self.holder {
            Holder::Tenant { scopes, .. } if !scopes.contains(Scope::Repair) => {
                let detail = "the key lacks the scope `repair`, which `replay_since` needs";
                Err(Problem::Forbidden(detail.to_owned()))
            }
            Holder::Operator | Holder::Tenant { .. } => Ok(()),
        }
    }

    pub(crate) fn is_portal_token(&self) -> bool {
        self.actor.kind == ActorKind::PortalToken
    }
}

/// Tells who asks. Until the registry is read it knows the configured key alone.
#[derive(Debug)]
pub(crate) struct Authority {
    configured: Option<Arc<ConfiguredKey>>,
    failures: Arc<Failures>,
    registered: Option<Registered>,
}

/// What the registry says of keys.
#[derive(Debug)]
struct Registered {
    registry: Registry,
    clock: Arc<dyn Clock>,
    uses: Uses,
    looking: Semaphore,
}

impl Authority {
    pub(crate) fn new(config: &IngestConfig) -> Result<Self, InvalidOperatorKey> {
        let configured = ConfiguredKey::of(config.operator_key.as_ref())?;
        Ok(Self {
            configured: configured.map(Arc::new),
            failures: Arc::new(Failures::new(config.failed_keys_per_minute_max)),
            registered: None,
        })
    }

    /// The same, when there is a registry; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When neither the configuration nor the registry has an operator key: nobody could do
    /// anything.
    pub(crate) fn with_registry(
        &self,
        registry: &Registry,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, InvalidOperatorKey> {
        let now_ms = clock.now_ms();
        let keys = registry.api_keys(None, None, usize::MAX);
        let is_good = |key: &Versioned<ApiKey>| !key.value.has_expired(now_ms);
        if self.configured.is_none() && !keys.iter().any(is_good) {
            return Err(InvalidOperatorKey::Missing);
        }
        let registered = Registered {
            registry: registry.clone(),
            clock: Arc::clone(clock),
            uses: Uses::new(registry.clone()),
            looking: Semaphore::new(LOOKING_MAX),
        };
        Ok(Self {
            configured: self.configured.clone(),
            failures: Arc::clone(&self.failures),
            registered: Some(registered),
        })
    }

    /// Who asks. A key that is good is always taken; one that is not is counted against its
    /// address.
    pub(crate) async fn caller(
        &self,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Result<Caller, Problem> {
        let found = match bearer(headers) {
            None => Err(Unauthorized::Absent.into()),
            Some(presented) => self.holder_of(presented, address).await,
        };
        match found {
            Ok((actor, holder)) => Ok(Caller {
                actor,
                holder,
                address,
            }),
            Err(Problem::Unauthorized(why)) => Err(self.failures.counted(address, why)),
            Err(other) => Err(other),
        }
    }

    async fn holder_of(
        &self,
        presented: &[u8],
        address: Option<IpAddr>,
    ) -> Result<(Actor, Holder), Problem> {
        if self
            .configured
            .as_ref()
            .is_some_and(|key| key.is(presented))
        {
            let actor = Actor {
                kind: ActorKind::ConfiguredKey,
                key_id: None,
                name: String::new(),
            };
            return Ok((actor, Holder::Operator));
        }
        let Some(form) = Form::of(presented) else {
            return Err(Unauthorized::Unknown.into());
        };
        let Some(registered) = &self.registered else {
            // Whose it is, nobody can say yet.
            return Err(Problem::RegistryBehind);
        };
        if !registered.registry.ready() || registered.registry.age() > VIEW_AGE_MAX {
            return Err(Problem::RegistryBehind);
        }
        match form {
            Form::PortalToken(token) => {
                let may_look = !self.failures.are_too_many(address);
                registered.holder_of_token(token, may_look).await
            }
            Form::Key(key) if self.failures.are_too_many(address) => {
                // Whoever tries keys costs no questions to the log.
                registered.holder_of_known_key(&hash_of(key))
            }
            Form::Key(key) => registered.holder_of_key(&hash_of(key)).await,
        }
    }
}

impl Registered {
    /// The holder of a key that another process may just have created.
    async fn holder_of_key(&self, hash: &ApiKeyHash) -> Result<(Actor, Holder), Problem> {
        if self.registry.api_key_with_hash(hash).is_none() {
            self.look_again().await?;
        }
        self.holder_of_known_key(hash)
    }

    fn holder_of_known_key(&self, hash: &ApiKeyHash) -> Result<(Actor, Holder), Problem> {
        let key = self.registry.api_key_with_hash(hash);
        let key = key.ok_or(Unauthorized::Unknown)?;
        let now_ms = self.clock.now_ms();
        if key.has_expired(now_ms) {
            return Err(Unauthorized::Expired.into());
        }
        self.uses.note(&key, now_ms);
        let ApiKey {
            id, name, holder, ..
        } = &*key;
        let kind = match holder {
            Holder::Operator => ActorKind::OperatorKey,
            Holder::Tenant { tenant, .. } => {
                self.registry.tenant(tenant).ok_or(Unauthorized::Unknown)?;
                ActorKind::TenantKey
            }
        };
        let actor = Actor {
            kind,
            key_id: Some(id.clone()),
            name: name.clone(),
        };
        Ok((actor, holder.clone()))
    }

    /// A token is void when it has expired, when the key by which it was issued is void, or when
    /// its tenant's tokens were revoked since. Another process may just have made what it names.
    async fn holder_of_token(
        &self,
        text: &str,
        may_look: bool,
    ) -> Result<(Actor, Holder), Problem> {
        let proven = |value: &[u8], proof: &str| self.registry.proves(value, proof);
        let token = PortalToken::read(text, proven).ok_or(Unauthorized::Unknown)?;
        if may_look && self.may_be_new(&token) {
            self.look_again().await?;
        }
        self.check(&token)?;
        let actor = Actor {
            kind: ActorKind::PortalToken,
            key_id: token.issuer,
            name: token.user,
        };
        let holder = Holder::Tenant {
            tenant: token.tenant,
            scopes: token.scopes,
        };
        Ok((actor, holder))
    }

    /// Whether the view lacks something that the token names, and that another process may have
    /// made. A generation only grows, so one that is over is over.
    fn may_be_new(&self, token: &PortalToken) -> bool {
        let generation = self.registry.tenant(&token.tenant);
        let generation = generation.map(|tenant| tenant.value.portal_token_generation);
        let is_ahead = generation.is_none_or(|generation| token.generation > generation);
        token.expires_at_ms > self.clock.now_ms()
            && (is_ahead
                || generation == Some(token.generation)
                    && matches!(self.check(token), Err(Unauthorized::Unknown)))
    }

    fn check(&self, token: &PortalToken) -> Result<(), Unauthorized> {
        let now_ms = self.clock.now_ms();
        let mut has_expired = token.expires_at_ms <= now_ms;
        let tenant = self.registry.tenant(&token.tenant);
        let tenant = tenant.ok_or(Unauthorized::Unknown)?;
        if token.generation != tenant.value.portal_token_generation {
            return Err(Unauthorized::Unknown);
        }
        if let Some(issuer) = &token.issuer {
            let of_tenant = self.registry.api_key(Some(&token.tenant), issuer);
            let key = of_tenant.or_else(|| self.registry.api_key(None, issuer));
            let key = key.ok_or(Unauthorized::Unknown)?;
            has_expired |= key.value.has_expired(now_ms);
        }
        if has_expired {
            return Err(Unauthorized::Expired);
        }
        Ok(())
    }

    /// Brings the view up to what is in the registry now.
    async fn look_again(&self) -> Result<(), Problem> {
        let looking = self.looking.try_acquire();
        let _looking = looking.map_err(|_| Problem::Busy { again_after_s: 1 })?;
        if self.registry.refresh(LOOKING_TIMEOUT).await {
            Ok(())
        } else {
            Err(Problem::RegistryBehind)
        }
    }
}

/// What of ours a presented text looks like.
enum Form<'a> {
    Key(&'a str),
    PortalToken(&'a str),
}

impl<'a> Form<'a> {
    fn of(presented: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(presented).ok()?;
        if text.starts_with(portal_token::PREFIX) {
            return Some(Self::PortalToken(text));
        }
        let random = text
            .strip_prefix(OPERATOR_PREFIX)
            .or_else(|| text.strip_prefix(TENANT_PREFIX))?;
        let bytes = URL_SAFE_NO_PAD.decode(random).ok()?;
        (bytes.len() == KEY_BYTES).then_some(Self::Key(text))
    }
}

/// A new key of this holder: the key itself, its hash, and how it begins.
pub(crate) fn generate(holder: &Holder) -> (String, ApiKeyHash, String) {
    let prefix = match holder {
        Holder::Operator => OPERATOR_PREFIX,
        Holder::Tenant { .. } => TENANT_PREFIX,
    };
    let random = ids::random_bytes::<KEY_BYTES>();
    let key = format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random));
    let (hash, shown) = (hash_of(&key), key[..SHOWN_CHARACTERS].to_owned());
    (key, hash, shown)
}

fn hash_of(key: &str) -> ApiKeyHash {
    let digest = digest::digest(&digest::SHA256, key.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// What the request bears as a key (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
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

    #[test]
    fn a_key_is_what_follows_the_scheme() {
        let presented = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(presented("Bearer key").as_deref(), Some(&b"key"[..]));
        assert_eq!(presented("bearer  key ").as_deref(), Some(&b"key"[..]));
        for other in ["", "Bearer", "key", "Basic key"] {
            assert_eq!(presented(other), None, "{other:?}");
        }
        assert!(bearer(&HeaderMap::new()).is_none());
    }

    #[test]
    fn a_key_has_a_form_of_its_own() {
        let (key, hash, shown) = generate(&Holder::Operator);
        assert!(matches!(Form::of(key.as_bytes()), Some(Form::Key(text)) if text == key));
        assert!(key.starts_with(&shown) && shown.starts_with(OPERATOR_PREFIX));
        assert_eq!(hash_of(&key), hash);
        let (other, ..) = generate(&Holder::Operator);
        assert_ne!(other, key);
        for wrong in [&key[..key.len() - 1], &key[1..], "pro_", "\u{fc}", ""] {
            assert!(Form::of(wrong.as_bytes()).is_none(), "{wrong:?}");
        }
        assert!(Form::of(b"\xff").is_none());
    }
}
