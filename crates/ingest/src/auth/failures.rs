//! How often each address presented a key that is none.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::problem::{Problem, Unauthorized};

/// Addresses remembered at most; beyond it the one whose last failure is oldest is forgotten.
const ADDRESSES_MAX: usize = 10_000;
const SECONDS: f64 = 60.0;

/// Counts failures by address, of IPv6 by network. An address has as many as the limit at once, and
/// as many again within a minute.
#[derive(Debug)]
pub(crate) struct Failures {
    per_minute_max: f64,
    counted: Mutex<BTreeMap<IpAddr, Counted>>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    /// At this time; they become fewer as time goes by.
    failures: f64,
    at: Instant,
}

impl Failures {
    pub(crate) fn new(per_minute_max: u32) -> Self {
        Self {
            per_minute_max: f64::from(per_minute_max),
            counted: Mutex::default(),
        }
    }

    /// Whether the address had so many that its keys are not looked for any more.
    pub(super) fn are_too_many(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address.map(network) else {
            return false;
        };
        let present = self.counted.lock().get(&address).copied();
        present.is_some_and(|present| self.left(present) + 1.0 > self.per_minute_max)
    }

    /// What a failure is answered with, after counting it. Probes and browsers that ask first bear
    /// no key at all; these are not counted.
    pub(super) fn counted(&self, address: Option<IpAddr>, why: Unauthorized) -> Problem {
        let address = address.map(network).filter(|_| why != Unauthorized::Absent);
        let Some(address) = address else {
            return why.into();
        };
        let now = Instant::now();
        let mut counted = self.counted.lock();
        let present = counted.get(&address).copied();
        let failures = present.map_or(0.0, |present| self.left(present)) + 1.0;
        if failures > self.per_minute_max {
            let seconds = (failures - self.per_minute_max) * SECONDS / self.per_minute_max.max(1.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "at most a minute"
            )]
            let again_after_s = seconds.ceil().clamp(1.0, SECONDS) as u32;
            return Problem::TooManyFailures { again_after_s };
        }
        if present.is_none() && counted.len() >= ADDRESSES_MAX {
            forget_oldest(&mut counted);
        }
        counted.insert(address, Counted { failures, at: now });
        why.into()
    }

    fn left(&self, counted: Counted) -> f64 {
        let gone = counted.at.elapsed().as_secs_f64() * self.per_minute_max / SECONDS;
        (counted.failures - gone).max(0.0)
    }
}

fn forget_oldest(counted: &mut BTreeMap<IpAddr, Counted>) {
    let oldest = counted.iter().min_by_key(|(_, counted)| counted.at);
    if let Some(oldest) = oldest.map(|(address, _)| *address) {
        counted.remove(&oldest);
    }
}

/// Who has one IPv6 address has all 2^64 of its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_fails_so_often_in_a_minute() {
        let failures = Failures::new(3);
        let fail = |text| failures.counted(address(text), Unauthorized::Unknown);
        for _ in 0..3 {
            assert!(!failures.are_too_many(address("10.0.0.1")));
            assert!(matches!(fail("10.0.0.1"), Problem::Unauthorized(_)));
        }
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(failures.are_too_many(address("10.0.0.1")));
        assert!(failures.are_too_many(address("::ffff:10.0.0.1")));
        let refused = fail("10.0.0.1");
        assert!(
            matches!(refused, Problem::TooManyFailures { again_after_s: 20 }),
            "{refused:?}"
        );
        assert!(matches!(fail("10.0.0.2"), Problem::Unauthorized(_)));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(matches!(fail("10.0.0.1"), Problem::Unauthorized(_)));
        assert!(matches!(fail("10.0.0.1"), Problem::TooManyFailures { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_ipv6_network_are_one() {
        let failures = Failures::new(1);
        let fail = |text| failures.counted(address(text), Unauthorized::Unknown);
        assert!(matches!(fail("2001:db8::1"), Problem::Unauthorized(_)));
        assert!(matches!(
            fail("2001:db8::2"),
            Problem::TooManyFailures { .. }
        ));
        assert!(matches!(fail("2001:db8:0:1::1"), Problem::Unauthorized(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_addresses_takes_no_more_room_than_there_is() {
        let failures = Failures::new(1);
        for number in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 100 {
            let from = IpAddr::from(number.to_be_bytes());
            failures.counted(Some(from), Unauthorized::Unknown);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(failures.counted.lock().len(), ADDRESSES_MAX);
        assert!(!failures.are_too_many(address("0.0.0.0")));
    }
}
