//! Nothing is concluded from a registry that is older than what it is asked about.

use std::collections::BTreeMap;

use postrider_model::delivery::{Attempt, Route};
use postrider_model::ids::{EndpointId, EventId};
use postrider_model::outcome::Reason;
use postrider_registry::{Lookup, Registry};

use super::Audit;

/// What was concluded and not yet compared with the registry.
#[derive(Debug, Default)]
pub(super) struct Views {
    /// Endpoints, at their versions, that wanted an event when it was published.
    wanted: BTreeMap<EventId, Vec<(EndpointId, u64)>>,
    routes: Vec<(EventId, Vec<EndpointId>)>,
    taken_as_deleted: Vec<EndpointId>,
    discarded: Vec<EndpointId>,
}

impl Audit {
    /// An event is published that these endpoints want.
    pub(crate) fn wanted(&mut self, event: EventId, endpoints: Vec<(EndpointId, u64)>) {
        self.views.wanted.insert(event, endpoints);
    }

    pub(super) fn note_route(&mut self, route: &Route) {
        let routed = (route.event_id.clone(), route.endpoints.clone());
        self.views.routes.push(routed);
    }

    pub(super) fn note_drop(&mut self, made: &Attempt) {
        match made.reason {
            Reason::EndpointDeleted => self.views.taken_as_deleted.push(made.work.endpoint.clone()),
            Reason::BacklogDiscarded => self.views.discarded.push(made.work.endpoint.clone()),
            Reason::EndpointDisabled => panic!("what is paused waits: {made:?}"),
            _ => {}
        }
    }

    /// Compares with a registry that knows everything by now: who wanted an event when it was
    /// published got it, unless it changed since, and what was taken as deleted is.
    pub(crate) fn check_views(&mut self, registry: &Registry) {
        for (event, routed) in std::mem::take(&mut self.views.routes) {
            for (endpoint, version) in self.views.wanted.get(&event).into_iter().flatten() {
                let unchanged = matches!(
                    registry.endpoint(endpoint),
                    Lookup::Found(found) if found.version == *version
                );
                assert!(
                    !unchanged || routed.contains(endpoint),
                    "{event} was not routed to {endpoint}, which wanted it"
                );
            }
        }
        for endpoint in std::mem::take(&mut self.views.taken_as_deleted) {
            assert!(
                matches!(registry.endpoint(&endpoint), Lookup::Deleted),
                "{endpoint} was taken as deleted"
            );
        }
        for endpoint in std::mem::take(&mut self.views.discarded) {
            if let Lookup::Found(found) = registry.endpoint(&endpoint) {
                let discards = found.value.discard_matched_before > 0;
                assert!(discards, "{endpoint} never discarded anything");
            }
        }
    }
}
