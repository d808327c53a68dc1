//! What the API accepted, and what the receiver received: known without asking Postrider.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use super::Behaviour;

/// The book. It keeps what is open only, so that a demo may run for days.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    accepted: u64,
    forged: u64,
    open: HashMap<String, Open>,
}

/// An event that is not done everywhere.
#[derive(Debug, Default)]
struct Open {
    accepted: bool,
    healthy_done: bool,
    flaky_done: bool,
}

impl Ledger {
    /// About to be published: its webhook may arrive before the API's answer.
    pub(crate) fn publishing(&self, event_id: &str) {
        self.state()
            .open
            .insert(event_id.to_owned(), Open::default());
    }

    /// The API accepted it.
    pub(crate) fn event_accepted(&self, event_id: &str) {
        let mut state = self.state();
        state.accepted += 1;
        state.change(event_id, |open| open.accepted = true);
    }

    /// The API refused it, or was not asked long enough to know.
    pub(crate) fn event_not_accepted(&self, event_id: &str) {
        self.state().open.remove(event_id);
    }

    /// The receiver has it and said so, or the log says that it was given up.
    pub(crate) fn done(&self, event_id: &str, at: Behaviour) {
        self.state().change(event_id, |open| match at {
            Behaviour::Healthy => open.healthy_done = true,
            Behaviour::Flaky => open.flaky_done = true,
            // Events are matched with it until it is disabled, so which are is for the log to say.
            Behaviour::Gone => {}
        });
    }

    /// A request came whose signature was not ours.
    pub(crate) fn forgery(&self) {
        self.state().forged += 1;
    }

    /// Events accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.state().accepted
    }

    /// Requests with a wrong signature.
    pub(crate) fn forged(&self) -> u64 {
        self.state().forged
    }

    /// Events that were accepted and are not done everywhere.
    pub(crate) fn open(&self) -> usize {
        self.state()
            .open
            .values()
            .filter(|open| open.accepted)
            .count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// Changes an open event, and closes it when nothing more is to come.
    fn change(&mut self, event_id: &str, change: impl FnOnce(&mut Open)) {
        let Some(open) = self.open.get_mut(event_id) else {
            return;
        };
        change(open);
        if open.accepted && open.healthy_done && open.flaky_done {
            self.open.remove(event_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_open_until_it_is_done_everywhere() {
        let ledger = Ledger::default();
        ledger.publishing("a");
        ledger.done("a", Behaviour::Healthy);
        assert_eq!(ledger.open(), 0);
        ledger.event_accepted("a");
        assert_eq!((ledger.accepted(), ledger.open()), (1, 1));
        ledger.done("a", Behaviour::Gone);
        ledger.done("a", Behaviour::Healthy);
        assert_eq!(ledger.open(), 1);
        ledger.done("a", Behaviour::Flaky);
        assert_eq!((ledger.accepted(), ledger.open()), (1, 0));
    }

    #[test]
    fn an_event_that_arrives_before_the_answer_is_closed_by_the_answer() {
        let ledger = Ledger::default();
        ledger.publishing("a");
        ledger.done("a", Behaviour::Healthy);
        ledger.done("a", Behaviour::Flaky);
        ledger.event_accepted("a");
        assert_eq!((ledger.accepted(), ledger.open()), (1, 0));
    }
}
