//! Tenants and endpoints, as the registry's records hold them.

use url::Url;

use super::{InvalidRecord, field, proto};
use crate::address::check_url;
use crate::endpoint::{
    Endpoint, EndpointState, PayloadFormat, RateLimit, SealedSecret, WhenBlocked,
};
use crate::filter::EventTypeFilter;
use crate::identity::{Identity, RegistryLoss};
use crate::ids::{EndpointId, TenantId};
use crate::retry::RetrySchedule;
use crate::tenant::{Installation, Tenant};

impl Tenant {
    /// As a record holds it.
    pub fn to_proto(&self) -> proto::Tenant {
        proto::Tenant {
            id: self.id.as_str().to_owned(),
            name: self.name.clone(),
            metadata: self.metadata.clone(),
            created_at_ms: self.created_at_ms,
            paused: self.paused,
            portal_token_generation: self.portal_token_generation,
        }
    }
}

impl TryFrom<proto::Tenant> for Tenant {
    type Error = InvalidRecord;

    fn try_from(tenant: proto::Tenant) -> Result<Self, InvalidRecord> {
        Ok(Self {
            id: field("id", TenantId::try_new(&tenant.id))?,
            name: tenant.name,
            metadata: tenant.metadata,
            created_at_ms: tenant.created_at_ms,
            paused: tenant.paused,
            portal_token_generation: tenant.portal_token_generation,
        })
    }
}

impl Installation {
    /// As a record holds it.
    pub fn to_proto(&self) -> proto::Installation {
        proto::Installation {
            deliveries_paused: self.deliveries_paused,
        }
    }
}

impl From<proto::Installation> for Installation {
    fn from(installation: proto::Installation) -> Self {
        Self {
            deliveries_paused: installation.deliveries_paused,
        }
    }
}

impl Identity {
    /// As a record holds it.
    pub fn to_proto(&self) -> proto::Identity {
        let loss = self.loss.as_ref().map(|loss| proto::RegistryLoss {
            found_at_ms: loss.found_at_ms,
            detail: loss.detail.clone(),
            lost_id: loss.lost_id,
        });
        proto::Identity {
            id: self.id,
            key_ids: self.key_ids.clone(),
            former_ids: self.former_ids.clone(),
            loss,
        }
    }
}

impl TryFrom<proto::Identity> for Identity {
    type Error = InvalidRecord;

    fn try_from(identity: proto::Identity) -> Result<Self, InvalidRecord> {
        if identity.id == 0 {
            return Err(InvalidRecord::missing("id"));
        }
        let loss = identity.loss.map(|loss| RegistryLoss {
            found_at_ms: loss.found_at_ms,
            detail: loss.detail,
            lost_id: loss.lost_id,
        });
        Ok(Self {
            id: identity.id,
            key_ids: identity.key_ids,
            former_ids: identity.former_ids,
            loss,
        })
    }
}

impl Endpoint {
    /// As a record holds it.
    pub fn to_proto(&self) -> proto::Endpoint {
        let (state, disabled_reason, disabled_since_ms) = match &self.state {
            EndpointState::Enabled => (proto::EndpointState::Enabled, String::new(), 0),
            EndpointState::Paused => (proto::EndpointState::Paused, String::new(), 0),
            EndpointState::Disabled { reason, since_ms } => {
                (proto::EndpointState::Disabled, reason.clone(), *since_ms)
            }
        };
        proto::Endpoint {
            id: self.id.as_str().to_owned(),
            tenant: self.tenant.as_str().to_owned(),
            url: self.url.as_str().to_owned(),
            description: self.description.clone(),
            metadata: self.metadata.clone(),
            event_types: self.event_types.patterns().to_vec(),
            format: format_to_proto(self.format).into(),
            rate_limit: self.rate_limit.map(rate_limit_to_proto),
            retry_schedule: self.retry_schedule.as_ref().map(schedule_to_proto),
            attempt_timeout_ms: self.attempt_timeout_ms.unwrap_or(0),
            ordered: self.ordered.is_some(),
            waits_when_blocked: self.ordered == Some(WhenBlocked::Wait),
            secrets: self.secrets.iter().map(secret_to_proto).collect(),
            state: state.into(),
            disabled_reason,
            created_at_ms: self.created_at_ms,
            channels: Vec::new(),
            disabled_since_ms,
            discard_matched_before: self.discard_matched_before,
        }
    }
}

impl TryFrom<proto::Endpoint> for Endpoint {
    type Error = InvalidRecord;

    fn try_from(endpoint: proto::Endpoint) -> Result<Self, InvalidRecord> {
        refuse_unsupported(&endpoint)?;
        let url = field("url", Url::parse(&endpoint.url))?;
        field("url", check_url(&url))?;
        Ok(Self {
            id: field("id", EndpointId::try_new(&endpoint.id))?,
            tenant: field("tenant", TenantId::try_new(&endpoint.tenant))?,
            url,
            description: endpoint.description,
            metadata: endpoint.metadata,
            event_types: field(
                "event_types",
                EventTypeFilter::try_new(endpoint.event_types),
            )?,
            format: format_from_proto(endpoint.format)?,
            retry_schedule: endpoint
                .retry_schedule
                .map(schedule_from_proto)
                .transpose()?,
            attempt_timeout_ms: (endpoint.attempt_timeout_ms != 0)
                .then_some(endpoint.attempt_timeout_ms),
            rate_limit: endpoint.rate_limit.map(rate_limit_from_proto).transpose()?,
            ordered: endpoint.ordered.then_some(if endpoint.waits_when_blocked {
                WhenBlocked::Wait
            } else {
                WhenBlocked::DeadLetter
            }),
            secrets: endpoint
                .secrets
                .into_iter()
                .map(secret_from_proto)
                .collect(),
            state: state_from_proto(
                endpoint.state,
                endpoint.disabled_reason,
                endpoint.disabled_since_ms,
            )?,
            discard_matched_before: endpoint.discard_matched_before,
            created_at_ms: endpoint.created_at_ms,
        })
    }
}

fn refuse_unsupported(endpoint: &proto::Endpoint) -> Result<(), InvalidRecord> {
    if !endpoint.channels.is_empty() {
        return Err(InvalidRecord::Unsupported { field: "channels" });
    }
    Ok(())
}

fn format_to_proto(format: PayloadFormat) -> proto::PayloadFormat {
    match format {
        PayloadFormat::Standard => proto::PayloadFormat::Standard,
        PayloadFormat::Raw => proto::PayloadFormat::Raw,
    }
}

fn format_from_proto(format: i32) -> Result<PayloadFormat, InvalidRecord> {
    match field("format", proto::PayloadFormat::try_from(format))? {
        proto::PayloadFormat::Unspecified => Err(InvalidRecord::missing("format")),
        proto::PayloadFormat::Standard => Ok(PayloadFormat::Standard),
        proto::PayloadFormat::Raw => Ok(PayloadFormat::Raw),
        proto::PayloadFormat::Cloudevents | proto::PayloadFormat::CloudeventsBinary => {
            Err(InvalidRecord::Unsupported { field: "format" })
        }
    }
}

fn state_from_proto(
    state: i32,
    reason: String,
    since_ms: i64,
) -> Result<EndpointState, InvalidRecord> {
    match field("state", proto::EndpointState::try_from(state))? {
        proto::EndpointState::Unspecified => Err(InvalidRecord::missing("state")),
        proto::EndpointState::Enabled => Ok(EndpointState::Enabled),
        proto::EndpointState::Paused => Ok(EndpointState::Paused),
        proto::EndpointState::Disabled => Ok(EndpointState::Disabled { reason, since_ms }),
    }
}

fn rate_limit_to_proto(limit: RateLimit) -> proto::RateLimit {
    proto::RateLimit {
        per_second: limit.per_second(),
        burst: limit.burst(),
    }
}

fn rate_limit_from_proto(limit: proto::RateLimit) -> Result<RateLimit, InvalidRecord> {
    field(
        "rate_limit",
        RateLimit::try_new(limit.per_second, limit.burst),
    )
}

fn schedule_to_proto(schedule: &RetrySchedule) -> proto::RetrySchedule {
    // A schedule has no negative delay.
    let delays_ms = schedule
        .delays_ms()
        .iter()
        .map(|delay| delay.unsigned_abs())
        .collect();
    proto::RetrySchedule { delays_ms }
}

fn schedule_from_proto(schedule: proto::RetrySchedule) -> Result<RetrySchedule, InvalidRecord> {
    let delays_ms = schedule.delays_ms.into_iter().map(i64::try_from).collect();
    let delays_ms = field("retry_schedule", delays_ms)?;
    field("retry_schedule", RetrySchedule::try_new(delays_ms))
}

fn secret_to_proto(secret: &SealedSecret) -> proto::SigningSecret {
    proto::SigningSecret {
        key_id: secret.key_id.clone(),
        sealed: secret.sealed.clone().into(),
        expires_at_ms: secret.expires_at_ms.unwrap_or(0),
    }
}

fn secret_from_proto(secret: proto::SigningSecret) -> SealedSecret {
    SealedSecret {
        key_id: secret.key_id,
        sealed: secret.sealed.into(),
        expires_at_ms: (secret.expires_at_ms != 0).then_some(secret.expires_at_ms),
    }
}
