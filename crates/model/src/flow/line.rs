//! Whose turn it is: tenant by tenant, and for each tenant lane by lane.

use std::collections::{BTreeMap, VecDeque};

/// Lanes that wait for a turn. A tenant with a thousand lanes has as many turns as one with a
/// single lane.
#[derive(Debug, Clone)]
pub struct FairLine<T, L> {
    tenants: VecDeque<T>,
    lanes: BTreeMap<T, VecDeque<L>>,
}

impl<T, L> Default for FairLine<T, L> {
    fn default() -> Self {
        Self {
            tenants: VecDeque::new(),
            lanes: BTreeMap::new(),
        }
    }
}

impl<T: Ord + Clone, L> FairLine<T, L> {
    /// Puts a lane at the end of its tenant's line. It must not be in line already.
    pub fn push(&mut self, tenant: T, lane: L) {
        if let Some(lanes) = self.lanes.get_mut(&tenant) {
            lanes.push_back(lane);
            return;
        }
        self.tenants.push_back(tenant.clone());
        self.lanes.insert(tenant, VecDeque::from([lane]));
    }

    /// The next lane of the next tenant; both leave, and the tenant goes to the end if it has more
    /// lanes.
    pub fn pop(&mut self) -> Option<(T, L)> {
        let tenant = self.tenants.pop_front()?;
        let lanes = self.lanes.get_mut(&tenant)?;
        let lane = lanes.pop_front()?;
        if lanes.is_empty() {
            self.lanes.remove(&tenant);
        } else {
            self.tenants.push_back(tenant.clone());
        }
        Some((tenant, lane))
    }

    /// Takes lanes out of line.
    pub fn retain(&mut self, mut keep: impl FnMut(&L) -> bool) {
        self.lanes.retain(|_, lanes| {
            lanes.retain(&mut keep);
            !lanes.is_empty()
        });
        self.tenants
            .retain(|tenant| self.lanes.contains_key(tenant));
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::FairLine;

    #[test]
    fn a_tenant_with_a_hundred_lanes_has_no_more_turns_than_one_with_one() {
        let mut line = FairLine::default();
        (0..100).for_each(|lane| line.push("flood", lane));
        line.push("trickle", 1_000);
        let mut turns = Vec::new();
        for _ in 0..20 {
            let (tenant, lane) = line.pop().unwrap();
            turns.push(tenant);
            line.push(tenant, lane);
        }
        assert_eq!(
            turns.iter().filter(|tenant| **tenant == "trickle").count(),
            10
        );
    }

    proptest! {
        #[test]
        fn nobody_has_two_turns_while_another_waits(
            pushes in prop::collection::vec((0_u8..6, any::<u16>()), 1..200),
        ) {
            let mut line = FairLine::default();
            pushes.iter().for_each(|(tenant, lane)| line.push(*tenant, *lane));
            let mut last: std::collections::BTreeMap<u8, usize> = std::collections::BTreeMap::new();
            let mut order = Vec::new();
            while let Some((tenant, lane)) = line.pop() {
                order.push((tenant, lane));
            }
            prop_assert_eq!(order.len(), pushes.len());
            for (turn, (tenant, _)) in order.iter().enumerate() {
                if let Some(before) = last.insert(*tenant, turn) {
                    let between: std::collections::BTreeSet<_> = order[before + 1..turn].iter().map(|(other, _)| other).collect();
                    prop_assert_eq!(between.len(), turn - before - 1, "each other tenant at most once");
                    for waiting in order[turn..].iter().map(|(other, _)| other).filter(|other| *other != tenant) {
                        prop_assert!(between.contains(waiting), "{} was passed over", waiting);
                    }
                }
            }
        }

        #[test]
        fn whoever_is_taken_out_has_no_turn(pushes in prop::collection::vec((0_u8..6, 0_u16..50), 1..100)) {
            let mut line = FairLine::default();
            pushes.iter().for_each(|(tenant, lane)| line.push(*tenant, *lane));
            line.retain(|lane| lane % 2 == 0);
            let mut left = 0;
            while let Some((_, lane)) = line.pop() {
                prop_assert_eq!(lane % 2, 0);
                left += 1;
            }
            prop_assert_eq!(left, pushes.iter().filter(|(_, lane)| lane % 2 == 0).count());
            prop_assert!(line.is_empty());
        }
    }
}
