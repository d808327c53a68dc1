//! Operational events: what Postrider itself tells a tenant, as events of the types `postrider.*`.
//!
//! They go the way of every other event, to endpoints that name their type. They are derived from
//! what they tell and from nothing else, so that whoever finds that one is due may append it again:
//! it has the same id, and fan-out drops the repeat.

use serde_json::json;

use crate::endpoint::{Endpoint, EndpointState};
use crate::event::{Event, TraceContext};
use crate::filter::EventTypeName;
use crate::hash::StableHash;
use crate::identity::RegistryStamp;
use crate::ids::{EndpointId, EventId};
use crate::payload::rfc3339;

/// An endpoint was disabled. Its data is `{"endpoint_id", "reason", "since"}`.
pub const ENDPOINT_DISABLED: &str = "postrider.endpoint.disabled";

/// The header of its record that proves an operational event to be Postrider's own: whoever has the
/// keys of the installation vouches for the record's value.
pub const PROOF_HEADER: &str = "postrider-proof";

/// Whether this event tells what holds of the endpoint, so that nobody needs to vouch for it. The
/// trace does not count.
pub fn tells(event: &Event, endpoint: &Endpoint, version: u64) -> bool {
    endpoint_disabled(endpoint, version).is_some_and(|told| {
        let trace = event.trace.clone();
        Event { trace, ..told } == *event
    })
}

/// Tells that an endpoint is disabled since this version of it. `None` if it is not.
pub fn endpoint_disabled(endpoint: &Endpoint, version: u64) -> Option<Event> {
    let EndpointState::Disabled { reason, since_ms } = &endpoint.state else {
        return None;
    };
    let data = json!({
        "endpoint_id": endpoint.id,
        "reason": reason,
        "since": rfc3339(*since_ms),
    });
    Some(Event {
        id: event_id(ENDPOINT_DISABLED, &endpoint.id, version),
        tenant: endpoint.tenant.clone(),
        event_type: EventTypeName::try_new(ENDPOINT_DISABLED).expect("it is a type"),
        occurred_at_ms: *since_ms,
        data: data.to_string().into(),
        ordering_key: endpoint.id.as_str().to_owned(),
        registry: RegistryStamp::default(),
        accepted_at_ms: *since_ms,
        trace: TraceContext::default(),
    })
}

/// Whether an event tells of this endpoint, which therefore is not to get it: it may be the one
/// that is in trouble. What an operational event is about is its ordering key.
pub fn is_about(event: &Event, endpoint: &EndpointId) -> bool {
    event.event_type.is_reserved() && event.ordering_key == endpoint.as_str()
}

fn event_id(event_type: &str, endpoint: &EndpointId, version: u64) -> EventId {
    let hash = StableHash::new()
        .with(event_type.as_bytes())
        .with(&[0])
        .with(endpoint.as_str().as_bytes())
        .finish();
    EventId::try_new(&format!("evt_postrider_{hash:016x}_{version}"))
        .expect("letters, digits and underscores, and at most 64 of them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventPosition;
    use crate::fixtures;
    use crate::wire::EventContext;

    fn endpoint(id: &str, state: EndpointState) -> Endpoint {
        Endpoint {
            state,
            ..fixtures::endpoint(id)
        }
    }

    fn disabled(id: &str) -> Endpoint {
        let reason = "endpoint_gone".to_owned();
        endpoint(
            id,
            EndpointState::Disabled {
                reason,
                since_ms: 1_700_000_000_000,
            },
        )
    }

    #[test]
    fn a_disabled_endpoint_is_told_once_for_each_time_it_was_disabled() {
        let told = endpoint_disabled(&disabled("ep_a"), 7).unwrap();
        assert_eq!(endpoint_disabled(&disabled("ep_a"), 7).unwrap(), told);
        for (id, version) in [("ep_a", 9), ("ep_b", 7)] {
            assert_ne!(
                endpoint_disabled(&disabled(id), version).unwrap().id,
                told.id
            );
        }
        for state in [EndpointState::Enabled, EndpointState::Paused] {
            assert_eq!(endpoint_disabled(&endpoint("ep_a", state), 7), None);
        }
    }

    #[test]
    fn it_says_which_why_and_since_when_and_can_be_read_from_the_log() {
        let told = endpoint_disabled(&disabled("ep_a"), u64::MAX).unwrap();
        let context = EventContext {
            position: EventPosition {
                partition: 0,
                offset: 0,
                appended_at_ms: 5,
            },
            traceparent: None,
        };
        assert_eq!(Event::decode(&told.encode(), context).unwrap(), told);
        let data: serde_json::Value = serde_json::from_slice(&told.data).unwrap();
        let since = "2023-11-14T22:13:20.000Z";
        let expected = json!({"endpoint_id": "ep_a", "reason": "endpoint_gone", "since": since});
        assert_eq!(data, expected);
        assert!(told.event_type.is_reserved());
    }

    #[test]
    fn only_what_holds_is_told_without_proof() {
        let told = endpoint_disabled(&disabled("ep_a"), 7).unwrap();
        assert!(tells(&told, &disabled("ep_a"), 7));
        for (endpoint, version) in [
            (disabled("ep_a"), 8),
            (disabled("ep_b"), 7),
            (endpoint("ep_a", EndpointState::Enabled), 7),
        ] {
            assert!(!tells(&told, &endpoint, version));
        }
        let forged = Event {
            data: "{}".into(),
            ..told
        };
        assert!(!tells(&forged, &disabled("ep_a"), 7));
    }

    #[test]
    fn it_is_about_its_endpoint_and_no_other_event_is() {
        let told = endpoint_disabled(&disabled("ep_a"), 7).unwrap();
        let (own, other) = (&disabled("ep_a").id, &disabled("ep_b").id);
        assert!(is_about(&told, own) && !is_about(&told, other));
        let published = Event {
            event_type: "invoice.paid".parse().unwrap(),
            ..told
        };
        assert!(!is_about(&published, own));
    }
}
