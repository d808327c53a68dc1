//! Records of the `registry` topic: how entities are written down and what is made of them when
//! read.

use std::fmt;

use bytes::Bytes;
use postrider_log::{NewRecord, Record};
use postrider_model::api_key::ApiKey;
use postrider_model::endpoint::Endpoint;
use postrider_model::identity::Identity;
use postrider_model::ids::{ApiKeyId, EndpointId, TenantId};
use postrider_model::tenant::{Installation, Tenant};
use postrider_model::wire::proto;
use prost::Message;
use proto::registry_record::Entity;

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EntityId {
    Tenant(TenantId),
    Endpoint(EndpointId),
    ApiKey(ApiKeyId),
    RetryDelays,
    Installation,
    Identity,
}

/// A record's key, `kind/id/version/nonce`. The nonce keeps two writers of one version from
/// replacing each other in compaction, which would let the later one win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordKey {
    pub(crate) entity: EntityId,
    pub(crate) version: u64,
    pub(crate) nonce: String,
}

/// What an entity is at one version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Tenant(Tenant),
    Endpoint(Box<Endpoint>),
    ApiKey(ApiKey),
    RetryDelays(Vec<i64>),
    Installation(Installation),
    Identity(Identity),
    Deleted,
}

/// A record as read.
#[derive(Debug)]
pub(crate) enum Read {
    /// One version of one entity. Its content may be unreadable, written by a later release or
    /// damaged; the version is taken nonetheless, so that every release agrees on who won.
    Version {
        key: RecordKey,
        content: Result<Content, Unreadable>,
    },
    /// The removal of a record that lost or was superseded.
    Tombstone(RecordKey),
    /// Not even its key is ours, or is of a kind this release does not know.
    Foreign,
}

impl Read {
    /// The endpoint that the record is about, if it is about one.
    pub(crate) fn endpoint(&self) -> Option<EndpointId> {
        match self {
            Self::Version { key, .. } => match &key.entity {
                EntityId::Endpoint(id) => Some(id.clone()),
                EntityId::Tenant(_)
                | EntityId::ApiKey(_)
                | EntityId::RetryDelays
                | EntityId::Installation
                | EntityId::Identity => None,
            },
            Self::Tombstone(_) | Self::Foreign => None,
        }
    }
}

/// Whether a key is that of the registry's identity.
pub(crate) fn is_identity(key: &[u8]) -> bool {
    RecordKey::parse(key).is_some_and(|key| key.entity == EntityId::Identity)
}

/// Why a record's value is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreadable(pub(crate) String);

/// Versions beyond this are not ours: no number of writes gets there, and the next version must
/// exist.
const VERSION_MAX: u64 = 1 << 53;
const KEY_BYTES_MAX: usize = 256;

impl fmt::Display for EntityId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(id) => write!(formatter, "tenant/{id}"),
            Self::Endpoint(id) => write!(formatter, "endpoint/{id}"),
            Self::ApiKey(id) => write!(formatter, "api-key/{id}"),
            Self::RetryDelays => formatter.write_str("retry-delays/all"),
            Self::Installation => formatter.write_str("installation/all"),
            Self::Identity => formatter.write_str("identity/all"),
        }
    }
}

impl RecordKey {
    pub(crate) fn to_bytes(&self) -> Bytes {
        format!("{}/{}/{}", self.entity, self.version, self.nonce).into()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > KEY_BYTES_MAX {
            return None;
        }
        let mut parts = std::str::from_utf8(bytes).ok()?.split('/');
        let (kind, id) = (parts.next()?, parts.next()?);
        let (version, nonce) = (parts.next()?, parts.next()?);
        let entity = match kind {
            "tenant" => EntityId::Tenant(TenantId::try_new(id).ok()?),
            "endpoint" => EntityId::Endpoint(EndpointId::try_new(id).ok()?),
            "api-key" => EntityId::ApiKey(ApiKeyId::try_new(id).ok()?),
            "retry-delays" if id == "all" => EntityId::RetryDelays,
            "installation" if id == "all" => EntityId::Installation,
            "identity" if id == "all" => EntityId::Identity,
            _ => return None,
        };
        let key = Self {
            entity,
            version: version.parse().ok()?,
            nonce: nonce.to_owned(),
        };
        // One key has one spelling, or its tombstone would miss it.
        let well_formed = (1..=VERSION_MAX).contains(&key.version) && key.to_bytes() == bytes;
        well_formed.then_some(key)
    }
}

/// A record for one version of an entity.
pub(crate) fn encode(key: &RecordKey, content: &Content, now_ms: i64) -> NewRecord {
    let entity = match content {
        Content::Tenant(tenant) => Some(Entity::Tenant(tenant.to_proto())),
        Content::Endpoint(endpoint) => Some(Entity::Endpoint(endpoint.to_proto())),
        Content::ApiKey(key) => Some(Entity::ApiKey(key.to_proto())),
        Content::RetryDelays(delays) => Some(Entity::RetryDelays(proto::RetryDelays {
            delays_ms: delays.iter().map(|delay| delay.unsigned_abs()).collect(),
        })),
        Content::Installation(installation) => Some(Entity::Installation(installation.to_proto())),
        Content::Identity(identity) => Some(Entity::Identity(identity.to_proto())),
        Content::Deleted => None,
    };
    let record = proto::RegistryRecord {
        version: key.version,
        nonce: key.nonce.clone(),
        written_at_ms: now_ms,
        deleted: *content == Content::Deleted,
        entity,
    };
    NewRecord {
        key: key.to_bytes(),
        value: Some(record.encode_to_vec().into()),
        headers: vec![],
    }
}

/// Whether readers will understand a record. One that they don't would take its version for
/// nothing.
pub(crate) fn check(key: &RecordKey, record: &NewRecord) -> Result<(), Unreadable> {
    decode_content(key, record.value.as_deref().unwrap_or_default()).map(drop)
}

/// The removal of a record.
pub(crate) fn tombstone(key: &RecordKey) -> NewRecord {
    NewRecord {
        key: key.to_bytes(),
        value: None,
        headers: vec![],
    }
}

/// Reads a record. Never fails: what cannot be understood says so.
pub(crate) fn decode(record: &Record) -> Read {
    let Some(key) = RecordKey::parse(&record.key) else {
        return Read::Foreign;
    };
    match &record.value {
        None => Read::Tombstone(key),
        Some(value) => Read::Version {
            content: decode_content(&key, value),
            key,
        },
    }
}

fn decode_content(key: &RecordKey, value: &[u8]) -> Result<Content, Unreadable> {
    let unreadable = |error: &dyn fmt::Display| Unreadable(error.to_string());
    let record = proto::RegistryRecord::decode(value).map_err(|error| unreadable(&error))?;
    if (record.version, &record.nonce) != (key.version, &key.nonce) {
        return Err(Unreadable("version or nonce differ from the key's".into()));
    }
    if record.deleted {
        return Ok(Content::Deleted);
    }
    let content = match record.entity {
        Some(Entity::Tenant(tenant)) => {
            Content::Tenant(tenant.try_into().map_err(|error| unreadable(&error))?)
        }
        Some(Entity::Endpoint(endpoint)) => {
            let endpoint = Endpoint::try_from(endpoint).map_err(|error| unreadable(&error))?;
            Content::Endpoint(Box::new(endpoint))
        }
        Some(Entity::ApiKey(api_key)) => {
            Content::ApiKey(api_key.try_into().map_err(|error| unreadable(&error))?)
        }
        Some(Entity::RetryDelays(delays)) => Content::RetryDelays(
            delays
                .delays_ms
                .into_iter()
                .map(i64::try_from)
                .collect::<Result<_, _>>()
                .map_err(|error| unreadable(&error))?,
        ),
        Some(Entity::Installation(installation)) => Content::Installation(installation.into()),
        Some(Entity::Identity(identity)) => {
            Content::Identity(identity.try_into().map_err(|error| unreadable(&error))?)
        }
        Some(Entity::EventType(_)) | None => {
            return Err(Unreadable("holds no entity that this release knows".into()));
        }
    };
    let entity = match &content {
        Content::Tenant(tenant) => EntityId::Tenant(tenant.id.clone()),
        Content::Endpoint(endpoint) => EntityId::Endpoint(endpoint.id.clone()),
        Content::ApiKey(key) => EntityId::ApiKey(key.id.clone()),
        Content::Installation(_) => EntityId::Installation,
        Content::Identity(_) => EntityId::Identity,
        Content::RetryDelays(_) | Content::Deleted => EntityId::RetryDelays,
    };
    if entity != key.entity {
        return Err(Unreadable("holds another entity than its key says".into()));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: impl Into<Bytes>, value: Option<Bytes>) -> Record {
        Record {
            partition: 0,
            offset: 0,
            timestamp_ms: 0,
            key: key.into(),
            value,
            headers: vec![],
        }
    }

    fn key() -> RecordKey {
        let entity = EntityId::Tenant(TenantId::try_new("acme").unwrap());
        RecordKey {
            entity,
            version: 3,
            nonce: "n".into(),
        }
    }

    fn tenant(id: &str) -> Tenant {
        Tenant {
            id: TenantId::try_new(id).unwrap(),
            name: "Acme".into(),
            metadata: [("plan".to_owned(), "gold".to_owned())].into(),
            paused: true,
            created_at_ms: 5,
            portal_token_generation: 0,
        }
    }

    #[test]
    fn reads_what_it_wrote() {
        for content in [Content::Tenant(tenant("acme")), Content::Deleted] {
            let written = encode(&key(), &content, 7);
            assert_eq!(written.key, "tenant/acme/3/n");
            let Read::Version {
                key: read_key,
                content: read,
            } = decode(&record(written.key, written.value))
            else {
                panic!("not read as a version");
            };
            assert_eq!((read_key, read), (key(), Ok(content)));
        }
    }

    #[test]
    fn takes_no_key_that_another_spelling_could_mean() {
        for text in [
            "",
            "tenant",
            "tenant/acme/1",
            "tenant/acme/01/n",
            "tenant/acme/+1/n",
            "tenant/acme/0/n",
            "tenant/acme/18446744073709551615/n",
            "tenant/acme/1/n/",
            "tenant/a b/1/n",
            "endpoint/acme/1/n",
            "retry-delays/other/1/n",
            "installation/other/1/n",
            "identity/other/1/n",
            "api-key/ep_1/1/n",
            "event-type/invoice/1/n",
        ] {
            assert!(RecordKey::parse(text.as_bytes()).is_none(), "{text}");
        }
        assert!(RecordKey::parse(&[0xff, 0xfe]).is_none());
    }

    #[test]
    fn understands_no_value_that_disagrees_with_its_key() {
        let other_version = RecordKey {
            version: 4,
            ..key()
        };
        let other_nonce = RecordKey {
            nonce: "m".into(),
            ..key()
        };
        let values = [
            encode(&other_version, &Content::Tenant(tenant("acme")), 7).value,
            encode(&other_nonce, &Content::Tenant(tenant("acme")), 7).value,
            encode(&key(), &Content::Tenant(tenant("other")), 7).value,
            encode(&key(), &Content::RetryDelays(vec![1]), 7).value,
            Some(Bytes::from_static(b"\xff\xff\xff")),
            Some(Bytes::new()),
        ];
        for value in values {
            match decode(&record(key().to_bytes(), value.clone())) {
                Read::Version {
                    content: Err(_), ..
                } => {}
                other => panic!("{value:?} was read as {other:?}"),
            }
        }
    }
}
