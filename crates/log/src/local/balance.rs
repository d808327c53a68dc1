//! Who of a group should have which partition.

use std::collections::BTreeMap;

/// Shares partitions out evenly (counts differ by at most one) and moves as few as that allows.
///
/// `holders` says who has each partition now; one that is not among the members, or none, makes it
/// free.
pub(super) fn balance<M: Copy + Ord>(holders: &[Option<M>], members: &[M]) -> Vec<Option<M>> {
    if members.is_empty() {
        return vec![None; holders.len()];
    }
    let mut room = quotas(holders, members);
    let mut shares: Vec<Option<M>> = holders
        .iter()
        .map(|holder| holder.filter(|holder| take(&mut room, holder)))
        .collect();
    for share in shares.iter_mut().filter(|share| share.is_none()) {
        let roomiest = members
            .iter()
            .copied()
            .rev()
            .max_by_key(|member| room[member]);
        *share = roomiest.filter(|member| take(&mut room, member));
    }
    shares
}

/// How many each member gets. The odd ones go to those who have most, because then they need not
/// move.
fn quotas<M: Copy + Ord>(holders: &[Option<M>], members: &[M]) -> BTreeMap<M, usize> {
    let mut held: BTreeMap<M, usize> = members.iter().map(|member| (*member, 0)).collect();
    for holder in holders.iter().flatten() {
        if let Some(count) = held.get_mut(holder) {
            *count += 1;
        }
    }
    let mut by_held: Vec<M> = members.to_vec();
    by_held.sort_by_key(|member| (std::cmp::Reverse(held[member]), *member));
    let (base, odd) = (holders.len() / members.len(), holders.len() % members.len());
    by_held
        .into_iter()
        .enumerate()
        .map(|(rank, member)| (member, base + usize::from(rank < odd)))
        .collect()
}

fn take<M: Ord>(room: &mut BTreeMap<M, usize>, member: &M) -> bool {
    let Some(left) = room.get_mut(member).filter(|left| **left > 0) else {
        return false;
    };
    *left -= 1;
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::balance;

    fn count(shares: &[Option<u8>], member: u8) -> usize {
        shares
            .iter()
            .filter(|share| **share == Some(member))
            .count()
    }

    proptest! {
        #[test]
        fn is_even_and_moves_only_the_surplus(
            holders in prop::collection::vec(prop::option::of(0_u8..6), 0..40),
            members in prop::collection::btree_set(0_u8..6, 1..6),
        ) {
            let members: Vec<u8> = members.into_iter().collect();
            let shares = balance(&holders, &members);
            prop_assert!(shares.iter().all(|share| share.is_some_and(|member| members.contains(&member))));
            let counts: Vec<usize> = members.iter().map(|member| count(&shares, *member)).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
            let ceiling = holders.len().div_ceil(members.len());
            for member in &members {
                let kept = holders.iter().zip(&shares).filter(|(was, is)| **was == Some(*member) && was == is);
                let kept = kept.count();
                let held = count(&holders, *member);
                prop_assert!(kept == held || kept == count(&shares, *member), "gives up only what is too much");
                prop_assert!(kept >= held.min(ceiling.saturating_sub(1)));
            }
        }
    }

    #[test]
    fn nobody_gets_anything_without_members() {
        assert_eq!(balance(&[Some(1), None], &[]), [None, None]);
    }
}
