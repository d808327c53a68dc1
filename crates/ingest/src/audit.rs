//! The audit: who changed what. A change is answered only after its entry is durable.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use postrider_daemon::telemetry::trace_id;
use postrider_log::Record;
use postrider_model::audit::AuditEntry;
use postrider_model::ids::TenantId;
use postrider_model::payload::rfc3339;
use postrider_model::topics::AUDIT;
use serde::Serialize;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::fields::{Fields, parsed, text};
use crate::ids;
use crate::lists::{self, Window};
use crate::problem::Problem;
use crate::request::Parameters;
use crate::shared::{ApiState, Shared};

/// A change that somebody asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) action: &'static str,
    /// As the path names it.
    pub(crate) tenant: Option<String>,
    /// As the path names it.
    pub(crate) subject: Option<String>,
    pub(crate) asked_at_ms: i64,
    pub(crate) traceparent: String,
    pub(crate) caller: Caller,
}

/// Extension of an answer: what was made, where the path does not say it.
#[derive(Debug, Clone)]
pub(crate) struct Subject(pub(crate) String);

/// Notes a change that was made, or of which that is not known; one that was certainly not made is
/// not noted. The answer tells if it could not be noted.
pub(crate) async fn note(api: &Shared, asked: Asked, response: Response) -> Response {
    let status = response.status();
    let problem = response.extensions().get::<Problem>();
    if !problem.map_or(status.is_success(), Problem::may_have_changed) {
        return response;
    }
    let made = response.extensions().get::<Subject>();
    let subject = made.map(|made| made.0.clone()).or(asked.subject);
    let subject = subject.unwrap_or_default();
    let address = asked.caller.address;
    let entry = AuditEntry {
        id: ids::new_audit_id(asked.asked_at_ms),
        asked_at_ms: asked.asked_at_ms,
        actor: asked.caller.actor,
        tenant: asked.tenant.and_then(|id| TenantId::try_new(&id).ok()),
        action: asked.action.to_owned(),
        subject: subject.clone(),
        status: status.as_u16(),
        address: address.map_or_else(String::new, |address| address.to_string()),
        trace_id: trace_id(&asked.traceparent).unwrap_or_default().to_owned(),
    };
    match api.auditor.append(&entry).await {
        Ok(()) => response,
        Err(error) => {
            tracing::error!(action = asked.action, subject, %error, "a change is not in the audit");
            // What is not known to be made needs no other answer.
            if status.is_success() {
                Problem::NotAudited { subject }.into_response()
            } else {
                response
            }
        }
    }
}

/// An entry as it is shown.
#[derive(Debug, Serialize)]
struct AuditEntryView {
    id: String,
    at: String,
    actor: ActorView,
    tenant: Option<TenantId>,
    action: String,
    subject: Option<String>,
    status: u16,
    address: Option<String>,
    trace_id: Option<String>,
}

#[derive(Debug, Serialize)]
struct ActorView {
    kind: &'static str,
    key_id: Option<String>,
    name: Option<String>,
}

impl AuditEntryView {
    fn of(entry: AuditEntry) -> Self {
        let said = |text: String| (!text.is_empty()).then_some(text);
        Self {
            id: entry.id,
            at: rfc3339(entry.asked_at_ms),
            actor: ActorView {
                kind: entry.actor.kind.as_str(),
                key_id: entry.actor.key_id.map(|id| id.to_string()),
                name: said(entry.actor.name),
            },
            tenant: entry.tenant,
            action: entry.action,
            subject: said(entry.subject),
            status: entry.status,
            address: said(entry.address),
            trace_id: said(entry.trace_id),
        }
    }
}

/// What is asked for of the list.
#[derive(Debug)]
struct Filter {
    tenant: Option<TenantId>,
    /// The id of a key, a key's name or a portal token's user.
    actor: Option<String>,
    /// What kind of key.
    kind: Option<String>,
    action: Option<String>,
}

impl Filter {
    fn take(parameters: &mut Fields) -> Self {
        const BYTES_MAX: usize = 512;
        Self {
            tenant: parameters.optional("tenant", parsed(TenantId::try_new)),
            actor: parameters.optional("actor", text(BYTES_MAX)),
            kind: parameters.optional("kind", text(BYTES_MAX)),
            action: parameters.optional("action", text(BYTES_MAX)),
        }
    }

    fn admits(&self, entry: &AuditEntry) -> bool {
        let is_actor = |wanted: &String| {
            let actor = &entry.actor;
            let key_id = actor.key_id.as_ref().map(|id| id.as_str());
            key_id == Some(wanted) || actor.name == *wanted
        };
        self.tenant
            .as_ref()
            .is_none_or(|tenant| entry.tenant.as_ref() == Some(tenant))
            && self.actor.as_ref().is_none_or(is_actor)
            && self
                .kind
                .as_ref()
                .is_none_or(|kind| entry.actor.kind.as_str() == kind)
            && self
                .action
                .as_ref()
                .is_none_or(|action| entry.action == *action)
    }
}

/// `GET /v1/audit`
pub(crate) async fn list(
    State(api): ApiState,
    Parameters(mut parameters): Parameters,
) -> Result<Json<Value>, Problem> {
    let window = Window::take(&api, &mut parameters);
    let filter = Filter::take(&mut parameters);
    parameters.finish()?;
    let budget = api.readers.admit(None)?;
    let topic = api.readers.topic(AUDIT, &budget).await?;
    let partitions = 0..topic.partitions;
    lists::newest_first(topic, partitions, window, budget, |record: &Record| {
        let entry = AuditEntry::decode(record.value.as_ref()?).ok()?;
        filter
            .admits(&entry)
            .then(|| json!(AuditEntryView::of(entry)))
    })
    .await
}
