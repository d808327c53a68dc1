//! Keys for the API: whose they are and what they may do.

use std::fmt;
use std::str::FromStr;

use crate::ids::{ApiKeyId, TenantId};

/// Bytes of a key's hash, SHA-256.
pub const HASH_BYTES: usize = 32;

/// The hash of a key. A key has 32 random bytes, so nobody finds it by trying, and a fast hash is
/// as good as a slow one.
pub type ApiKeyHash = [u8; HASH_BYTES];

/// A key for the API, without the key itself, which is shown once and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its name for programs.
    pub id: ApiKeyId,
    /// Its name for people.
    pub name: String,
    /// Whose it is.
    pub holder: Holder,
    /// What a presented key is found by.
    pub hash: ApiKeyHash,
    /// How the key begins, for people to tell keys apart.
    pub prefix: String,
    /// When it was created.
    pub created_at_ms: i64,
    /// From when on it is void.
    pub expires_at_ms: Option<i64>,
    /// When it was used last, give or take an hour.
    pub last_used_at_ms: Option<i64>,
}

impl ApiKey {
    /// Whether it is void by now.
    pub fn has_expired(&self, now_ms: i64) -> bool {
        self.expires_at_ms.is_some_and(|end| end <= now_ms)
    }
}

/// Whose a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An operator's, which opens everything.
    Operator,
    /// A tenant's.
    Tenant {
        /// Which one's.
        tenant: TenantId,
        /// What it opens of what is the tenant's.
        scopes: Scopes,
    },
}

impl Holder {
    /// The tenant whose key it is.
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Operator => None,
            Self::Tenant { tenant, .. } => Some(tenant),
        }
    }
}

/// Something that a tenant's key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Publish events.
    Publish,
    /// Create, change and delete endpoints.
    Endpoints,
    /// Read what is the tenant's: endpoints, events, attempts, dead letters.
    Read,
    /// Deliver again: replay and redrive.
    Repair,
}

/// A text that names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be `publish`, `endpoints`, `read` or `repair`, not {0:?}")]
pub struct UnknownScope(String);

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 4] = [Self::Publish, Self::Endpoints, Self::Read, Self::Repair];

    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Endpoints => "endpoints",
            Self::Read => "read",
            Self::Repair => "repair",
        }
    }

    /// Its number in records.
    fn number(self) -> u32 {
        match self {
            Self::Publish => 1,
            Self::Endpoints => 2,
            Self::Read => 3,
            Self::Repair => 4,
        }
    }

    fn bit(self) -> u32 {
        1 << self.number()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let named = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        named.ok_or_else(|| UnknownScope(text.to_owned()))
    }
}

/// A set of scopes. It keeps those of a later release, which open nothing here, so that they are
/// still there when the key is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u32);

impl Scopes {
    /// Whether the scope is one of them.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether all of the others are among these.
    pub fn include(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those with these numbers; 0 is none.
    pub fn from_numbers(numbers: impl IntoIterator<Item = i32>) -> Self {
        let bit = |number| match u32::try_from(number) {
            Ok(number @ 1..u32::BITS) => 1 << number,
            Ok(_) | Err(_) => 0,
        };
        Self(numbers.into_iter().fold(0, |all, number| all | bit(number)))
    }

    /// The numbers of all, also of those of a later release.
    pub fn numbers(self) -> impl Iterator<Item = i32> {
        (1..32).filter(move |number| self.0 & (1 << number) != 0)
    }

    /// Each that is known here, in the order of [`Scope::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL
            .into_iter()
            .filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let bits = scopes.into_iter().map(Scope::bit);
        Self(bits.fold(0, |all, bit| all | bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_as_it_is_written() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        assert!("Publish".parse::<Scope>().is_err());
        assert!("".parse::<Scope>().is_err());
    }

    #[test]
    fn sets_of_scopes_hold_what_was_put_in() {
        for bits in 0..16_u32 {
            let chosen = |scope: &Scope| (bits << 1) & scope.bit() != 0;
            let scopes: Scopes = Scope::ALL.into_iter().filter(chosen).collect();
            assert_eq!(scopes.iter().count(), bits.count_ones() as usize);
            assert!(scopes.iter().all(|scope| scopes.contains(scope)));
            assert!(scopes.include(Scopes::default()) && scopes.include(scopes));
            assert_eq!(Scopes::default().include(scopes), scopes.is_empty());
            assert_eq!(Scopes::from_numbers(scopes.numbers()), scopes);
        }
    }

    #[test]
    fn a_scope_of_a_later_release_is_kept_and_opens_nothing() {
        let later = Scopes::from_numbers([3, 31, 0, -1, 32, 99]);
        assert_eq!(later.iter().collect::<Vec<_>>(), [Scope::Read]);
        assert_eq!(later.numbers().collect::<Vec<_>>(), [3, 31]);
    }
}
