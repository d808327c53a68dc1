//! Whatever happens in whatever order: nothing is released that a new owner would not find, and
//! nothing is held for ever.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const HOLD_MS_MAX: i64 = 100;

/// A lane around a cover, and what `endpoint-state` really may have of it.
#[derive(Debug)]
struct World {
    cover: Cover,
    held: Tally,
    now: Now,
    next: Offset,
    unsettled: BTreeSet<Offset>,
    /// Unsettled, and held no more.
    released: BTreeSet<Offset>,
    /// Records that come stay in the log.
    is_unread: bool,
    committed: Offset,
    durable: Option<LaneState>,
    on_its_way: Option<Option<LaneState>>,
    in_doubt: Vec<Option<LaneState>>,
    state_id: i64,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Record,
    Settle(usize),
    Unread(bool),
    Tick { ms: i64, waits: bool },
    Write,
    Acknowledge,
    LoseAcknowledgement,
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Record),
        3 => (0..20_usize).prop_map(Step::Settle),
        1 => any::<bool>().prop_map(Step::Unread),
        2 => (0..150_i64, any::<bool>()).prop_map(|(ms, waits)| Step::Tick { ms, waits }),
        4 => Just(Step::Write),
        3 => Just(Step::Acknowledge),
        1 => Just(Step::LoseAcknowledgement),
        2 => Just(Step::Commit),
    ];
    prop::collection::vec(step, 0..120)
}

impl World {
    fn new() -> Self {
        let now = Now {
            mono_ms: 0,
            wall_ms: 1_000_000,
            ages_tell: true,
        };
        Self {
            cover: Cover::new(now),
            held: Tally::default(),
            now,
            next: 0,
            unsettled: BTreeSet::new(),
            released: BTreeSet::new(),
            is_unread: false,
            committed: 0,
            durable: None,
            on_its_way: None,
            in_doubt: Vec::new(),
            state_id: 0,
        }
    }

    fn go(&mut self, step: Step) {
        match step {
            Step::Record => {
                self.cover.hold(self.next, &self.held, self.now);
                self.unsettled.insert(self.next);
                self.next += 1;
                self.release(false);
            }
            Step::Settle(number) => {
                if let Some(offset) = self.unsettled.iter().nth(number).copied() {
                    self.unsettled.remove(&offset);
                    self.released.remove(&offset);
                    self.cover.settled(offset);
                }
            }
            Step::Unread(is_unread) => self.is_unread = is_unread,
            Step::Tick { ms, waits } => {
                self.now.mono_ms += ms;
                self.now.wall_ms += ms;
                self.release(waits);
            }
            Step::Write => self.write(),
            Step::Acknowledge => {
                if let Some(state) = self.on_its_way.take() {
                    self.durable = state;
                    self.in_doubt.clear();
                    let released = self.cover.acknowledged(self.state_id, self.next);
                    self.released.extend(released);
                }
            }
            Step::LoseAcknowledgement => {
                if let Some(state) = self.on_its_way.take() {
                    self.in_doubt.push(state);
                    self.cover.not_acknowledged();
                }
            }
            Step::Commit => {
                let held = self.unsettled.difference(&self.released).next();
                self.committed = held.copied().unwrap_or(self.next);
            }
        }
    }

    fn must_release(&self, waits: bool) -> bool {
        self.is_unread || self.cover.holds_too_long(waits, HOLD_MS_MAX, self.now)
    }

    fn release(&mut self, waits: bool) {
        if self.must_release(waits) {
            let released = self.cover.release(self.next, self.now);
            self.released.extend(released);
        }
    }

    fn lowest_unsettled(&self) -> Offset {
        self.unsettled.first().copied().unwrap_or(self.next)
    }

    /// Whether everything is settled that the cursor covered, and the commit has passed it.
    fn comes_back(&self) -> bool {
        let live_from = self.cover.live_from();
        !self.must_release(false)
            && live_from.is_some_and(|live_from| self.lowest_unsettled() >= live_from)
            && self.cover.is_passed_by(self.committed)
    }

    /// Sends a state; under another id if there is one in doubt.
    fn write(&mut self) {
        if self.on_its_way.is_some() {
            return;
        }
        let anew = !self.in_doubt.is_empty();
        if !anew && !self.must_release(false) {
            self.cover.want_no_more();
        }
        let keeps_cursor = anew || !self.comes_back();
        let since_ms = self.cover.wanted_since_ms().filter(|_| keeps_cursor);
        let state = since_ms.map(|since_ms| self.state(since_ms));
        if anew {
            self.state_id += 1;
        } else if state.as_ref() == self.cover.recorded().durable() {
            return;
        }
        self.cover.send(state.clone(), self.now);
        self.on_its_way = Some(state);
    }

    fn state(&self, behind_since_ms: i64) -> LaneState {
        let lowest_unsettled = self.lowest_unsettled();
        let above = lowest_unsettled + 1..self.next;
        LaneState {
            endpoint: "ep_a".parse().unwrap(),
            state_id: self.state_id,
            cursor: Some(Cursor {
                lowest_unsettled,
                settled: above
                    .filter(|offset| !self.unsettled.contains(offset))
                    .collect(),
                behind_since_ms,
            }),
            failing_since_ms: None,
            breaker_openings: 0,
            breaker_open_until_ms: 0,
            blocked: Vec::new(),
        }
    }

    /// What a new owner would go on from: any of these.
    fn candidates(&self) -> impl Iterator<Item = Option<&Cursor>> {
        let unacknowledged = self.on_its_way.iter().chain(&self.in_doubt);
        let all = std::iter::once(&self.durable).chain(unacknowledged);
        all.map(|state| state.as_ref()?.cursor.as_ref())
    }

    fn check(&self) {
        for cursor in self.candidates() {
            for &offset in &self.released {
                let covers = cursor.is_some_and(|cursor| !cursor.has_settled(offset));
                assert!(covers, "{offset} is released, and lost with {cursor:?}");
            }
        }
        assert_eq!(
            self.held.amount(),
            self.unsettled.len() - self.released.len()
        );
        assert_eq!(self.cover.holds(), self.held.amount() > 0);
        let is_behind = self
            .durable
            .as_ref()
            .is_some_and(|state| state.cursor.is_some());
        let ends = self.candidates().any(|cursor| cursor.is_none());
        assert_eq!(self.cover.behind_since_ms().is_some(), is_behind && !ends);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_happens_nothing_is_lost_and_nothing_is_held_for_ever(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.go(step);
            world.check();
        }
        // The log answers again, and nobody settles anything.
        world.go(Step::Acknowledge);
        world.go(Step::Write);
        world.go(Step::Acknowledge);
        world.go(Step::Tick { ms: HOLD_MS_MAX, waits: false });
        world.go(Step::Write);
        world.go(Step::Acknowledge);
        world.check();
        prop_assert_eq!(world.held.amount(), 0, "{:?}", world);
        // The endpoint is back: everything is settled, and the lane is live.
        world.go(Step::Unread(false));
        while !world.unsettled.is_empty() {
            world.go(Step::Settle(0));
        }
        world.go(Step::Commit);
        for _ in 0..3 {
            world.go(Step::Write);
            world.go(Step::Acknowledge);
            world.check();
        }
        prop_assert_eq!(world.cover.phase, Phase::Live);
        world.go(Step::Record);
        prop_assert_eq!(world.held.amount(), 1, "it holds the commit again");
    }
}
