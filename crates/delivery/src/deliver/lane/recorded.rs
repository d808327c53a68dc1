//! What `endpoint-state` may have of a lane.
//!
//! A state is sent, and then acknowledged, or its fate stays unknown: it may have landed. So what a
//! new owner of the lane would find is one of several candidates, and whatever is concluded from
//! the record must hold for each of them. States of unknown fate count no more when everything is
//! written again under another id.

use postrider_model::delivery::LaneState;

#[derive(Debug, Default)]
pub(super) struct Recorded {
    /// What was acknowledged last.
    durable: Option<LaneState>,
    /// What is on its way. A tombstone is a `None`, here and below.
    sent: Option<Option<LaneState>>,
    /// What was not acknowledged.
    in_doubt: Vec<Option<LaneState>>,
}

impl Recorded {
    pub(super) fn restored(state: LaneState) -> Self {
        Self {
            durable: Some(state),
            ..Self::default()
        }
    }

    pub(super) fn durable(&self) -> Option<&LaneState> {
        self.durable.as_ref()
    }

    pub(super) fn is_on_its_way(&self) -> bool {
        self.sent.is_some()
    }

    /// Whether a new owner would find nothing, whatever happens.
    pub(super) fn is_empty(&self) -> bool {
        self.durable.is_none() && self.sent.is_none() && self.in_doubt.is_empty()
    }

    /// Whether this holds for whatever a new owner may find.
    pub(super) fn holds_for_all_candidates(
        &self,
        holds: impl Fn(Option<&LaneState>) -> bool,
    ) -> bool {
        let unacknowledged = self.sent.iter().chain(&self.in_doubt);
        holds(self.durable.as_ref()) && unacknowledged.map(Option::as_ref).all(holds)
    }

    pub(super) fn send(&mut self, state: Option<LaneState>) {
        self.sent = Some(state);
    }

    /// What was sent, if anything, is durable under this id, and nothing else counts.
    pub(super) fn acknowledged(&mut self, state_id: i64) {
        if let Some(sent) = self.sent.take() {
            self.durable = sent.map(|state| LaneState { state_id, ..state });
            self.in_doubt.clear();
        }
    }

    /// The fate of what was sent is not known, and nothing more goes under its id.
    pub(super) fn not_acknowledged(&mut self) {
        self.in_doubt.extend(self.sent.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(breaker_openings: u32) -> LaneState {
        LaneState {
            endpoint: "ep_a".parse().unwrap(),
            state_id: 1,
            cursor: None,
            failing_since_ms: None,
            breaker_openings,
            breaker_open_until_ms: 0,
            blocked: Vec::new(),
        }
    }

    /// Whether every candidate is one of these, by how often the breaker opened.
    fn are_among(recorded: &Recorded, known: &[u32]) -> bool {
        recorded.holds_for_all_candidates(|state| {
            state.is_some_and(|state| known.contains(&state.breaker_openings))
        })
    }

    #[test]
    fn what_is_concluded_holds_for_what_is_on_its_way_and_what_is_in_doubt() {
        let mut recorded = Recorded::restored(state(1));
        assert!(are_among(&recorded, &[1]));
        recorded.send(Some(state(2)));
        assert!(!are_among(&recorded, &[1]) && are_among(&recorded, &[1, 2]));
        recorded.not_acknowledged();
        assert!(!are_among(&recorded, &[1]) && are_among(&recorded, &[1, 2]));
        recorded.send(None);
        assert!(!are_among(&recorded, &[1, 2]), "a tombstone is nothing");
        recorded.not_acknowledged();
        recorded.send(Some(state(3)));
        recorded.acknowledged(1);
        assert!(are_among(&recorded, &[3]), "nothing else counts any more");
    }
}
