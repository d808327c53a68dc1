//! Keys for the API, and what was done with them.

use bytes::Bytes;
use prost::Message;

use super::{InvalidRecord, field, message, proto};
use crate::api_key::{ApiKey, ApiKeyHash, Holder, Scopes};
use crate::audit::{Actor, ActorKind, AuditEntry};
use crate::ids::{ApiKeyId, TenantId};

impl ApiKey {
    /// As a record holds it.
    pub fn to_proto(&self) -> proto::ApiKey {
        let (tenant, scopes) = match &self.holder {
            Holder::Operator => (String::new(), Scopes::default()),
            Holder::Tenant { tenant, scopes } => (tenant.as_str().to_owned(), *scopes),
        };
        proto::ApiKey {
            id: self.id.as_str().to_owned(),
            name: self.name.clone(),
            tenant,
            scopes: scopes.numbers().collect(),
            hash: Bytes::copy_from_slice(&self.hash),
            prefix: self.prefix.clone(),
            created_at_ms: self.created_at_ms,
            expires_at_ms: self.expires_at_ms.unwrap_or(0),
            last_used_at_ms: self.last_used_at_ms.unwrap_or(0),
        }
    }
}

impl TryFrom<proto::ApiKey> for ApiKey {
    type Error = InvalidRecord;

    fn try_from(key: proto::ApiKey) -> Result<Self, InvalidRecord> {
        let holder = if key.tenant.is_empty() {
            Holder::Operator
        } else {
            Holder::Tenant {
                tenant: field("tenant", TenantId::try_new(&key.tenant))?,
                scopes: Scopes::from_numbers(key.scopes),
            }
        };
        let hash = ApiKeyHash::try_from(key.hash.as_ref())
            .map_err(|_| InvalidRecord::malformed("hash", "is no SHA-256"))?;
        Ok(Self {
            id: field("id", ApiKeyId::try_new(&key.id))?,
            holder,
            hash,
            name: key.name,
            prefix: key.prefix,
            created_at_ms: key.created_at_ms,
            expires_at_ms: (key.expires_at_ms != 0).then_some(key.expires_at_ms),
            last_used_at_ms: (key.last_used_at_ms != 0).then_some(key.last_used_at_ms),
        })
    }
}

impl AuditEntry {
    /// As a record holds it.
    pub fn encode(&self) -> Bytes {
        let kind = match self.actor.kind {
            ActorKind::ConfiguredKey => proto::AuditActorKind::ConfiguredKey,
            ActorKind::OperatorKey => proto::AuditActorKind::OperatorKey,
            ActorKind::TenantKey => proto::AuditActorKind::TenantKey,
            ActorKind::PortalToken => proto::AuditActorKind::PortalToken,
        };
        let key_id = self.actor.key_id.as_ref().map(ApiKeyId::as_str);
        let entry = proto::AuditEntry {
            id: self.id.clone(),
            asked_at_ms: self.asked_at_ms,
            actor: Some(proto::AuditActor {
                kind: kind.into(),
                key_id: key_id.unwrap_or_default().to_owned(),
                name: self.actor.name.clone(),
            }),
            tenant: self
                .tenant
                .as_ref()
                .map_or_else(String::new, TenantId::to_string),
            action: self.action.clone(),
            subject: self.subject.clone(),
            status: self.status.into(),
            address: self.address.clone(),
            trace_id: self.trace_id.clone(),
        };
        entry.encode_to_vec().into()
    }

    /// Reads what a record holds.
    ///
    /// # Errors
    /// When it is no such entry, or of a later release.
    pub fn decode(bytes: &Bytes) -> Result<Self, InvalidRecord> {
        let entry: proto::AuditEntry = message("AuditEntry", bytes.as_ref())?;
        let actor = entry.actor.ok_or_else(|| InvalidRecord::missing("actor"))?;
        let kind = match actor.kind() {
            proto::AuditActorKind::Unspecified => {
                return Err(InvalidRecord::Unsupported { field: "kind" });
            }
            proto::AuditActorKind::ConfiguredKey => ActorKind::ConfiguredKey,
            proto::AuditActorKind::OperatorKey => ActorKind::OperatorKey,
            proto::AuditActorKind::TenantKey => ActorKind::TenantKey,
            proto::AuditActorKind::PortalToken => ActorKind::PortalToken,
        };
        let (tenant, key_id) = (&entry.tenant, &actor.key_id);
        let tenant = (!tenant.is_empty()).then(|| field("tenant", TenantId::try_new(tenant)));
        let key_id = (!key_id.is_empty()).then(|| field("key_id", ApiKeyId::try_new(key_id)));
        Ok(Self {
            tenant: tenant.transpose()?,
            actor: Actor {
                kind,
                key_id: key_id.transpose()?,
                name: actor.name,
            },
            status: field("status", u16::try_from(entry.status))?,
            id: entry.id,
            asked_at_ms: entry.asked_at_ms,
            action: entry.action,
            subject: entry.subject,
            address: entry.address,
            trace_id: entry.trace_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api_key::Scope;

    #[test]
    fn scopes_have_the_numbers_that_the_proto_says() {
        let numbers = [
            (Scope::Publish, proto::ApiKeyScope::Publish),
            (Scope::Endpoints, proto::ApiKeyScope::Endpoints),
            (Scope::Read, proto::ApiKeyScope::Read),
            (Scope::Repair, proto::ApiKeyScope::Repair),
        ];
        for (scope, written) in numbers {
            let scopes: Scopes = [scope].into_iter().collect();
            assert_eq!(scopes.numbers().collect::<Vec<_>>(), [written as i32]);
        }
    }
}
