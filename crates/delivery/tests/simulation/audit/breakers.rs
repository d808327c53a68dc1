//! An endpoint that is known to fail is asked with one request at a time.

use std::collections::BTreeMap;

use postrider_log::Committed;
use postrider_model::delivery::LaneState;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER};
use postrider_model::work::WorkId;

use super::Audit;
use crate::simulation::chronicle::Sent;

/// How long it may take until an owner learns of an answer: its settlement is written first, and
/// writes fail.
const LEARNS_MS_MAX: i64 = 20_000;

/// What the network saw of each endpoint.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    under_way: BTreeMap<String, Vec<Sent>>,
    succeeded_ms: BTreeMap<String, i64>,
}

impl Breakers {
    pub(super) fn succeeded(&mut self, endpoint: &str, at_ms: i64) {
        self.succeeded_ms.insert(endpoint.to_owned(), at_ms);
    }

    pub(super) fn ended(&mut self, sent: &Sent) {
        if let Some(under_way) = self.under_way.get_mut(&sent.endpoint) {
            under_way.retain(|other| other != sent);
        }
    }
}

impl Audit {
    /// A breaker that was written down as open is open until something succeeds.
    pub(super) fn check_probe(&mut self, id: &WorkId, sent: &Sent) {
        let under_way = self.breakers.under_way.get(&sent.endpoint);
        if let Some((state, written_ms)) = self.open_breaker(id, sent) {
            // What began before may leave later: names and connections take their time.
            let probes = |other: &&Sent| {
                other.tenure == sent.tenure
                    && sent.begun_wall_ms.min(other.begun_wall_ms) > written_ms
            };
            let other = under_way.and_then(|under_way| under_way.iter().find(probes));
            assert!(
                other.is_none(),
                "{state:?} since {written_ms}, but {other:?} is under way: {sent:?}"
            );
        }
        let under_way = self.breakers.under_way.entry(sent.endpoint.clone());
        under_way.or_default().push(sent.clone());
    }

    /// The state of the endpoint's lane, and when it was written, if it says that the breaker is
    /// open and nothing that came since then or shortly before can have closed it.
    fn open_breaker(&self, id: &WorkId, sent: &Sent) -> Option<(&LaneState, i64)> {
        let partition = sent.partition;
        let mut committed = self.committed(GROUP_DELIVER, DELIVERIES).into_iter();
        let (_, committed): (_, Committed) = committed.find(|(of, _)| *of == partition)?;
        let state = self.lanes.counting(partition, &committed, &id.endpoint)?;
        let owned_ms = sent.tenure?.since_wall_ms;
        let written_ms = self.lanes.known_since_ms(partition, state, owned_ms)?;
        let since_ms = sent.at_ms - (sent.wall_ms - written_ms) - LEARNS_MS_MAX;
        let succeeded_ms = self.breakers.succeeded_ms.get(&sent.endpoint);
        // Within its lease a former owner may act, who cannot know what the present one has
        // written.
        let is_open = state.breaker_openings > 0
            && sent.foreign_ms == 0
            && succeeded_ms.is_none_or(|succeeded_ms| *succeeded_ms < since_ms);
        (is_open && !self.rules.clock_is_set).then_some((state, written_ms))
    }
}
