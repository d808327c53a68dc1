//! How endpoints want to be called: not at all for now, or no more often than so.

use std::collections::BTreeMap;

use postrider_model::endpoint::RateLimit;

use super::Audit;
use crate::simulation::chronicle::Sent;

/// By when everybody knows how an endpoint wants to be called: after a read of the registry, and a
/// look at its past that was under way, each of whose three calls may take as long here.
const KNOWN_AFTER_MS: i64 = 4_000;
/// Silences everybody's endpoints.
pub(crate) const EVERYBODY: &str = "everybody";

#[derive(Debug, Default)]
pub(super) struct Wishes {
    tenants: BTreeMap<String, String>,
    /// Endpoints, tenants or everybody that are not to be called, and since when.
    silent: BTreeMap<String, i64>,
    rates: BTreeMap<String, Rate>,
}

/// A bucket that is at least as full as the one of whoever calls.
#[derive(Debug)]
struct Rate {
    limit: RateLimit,
    since_ms: i64,
    /// The assignment, what is left, and when.
    bucket: Option<(usize, f64, i64)>,
}

impl Audit {
    /// Whose an endpoint is.
    pub(crate) fn belongs(&mut self, endpoint: &str, tenant: &str) {
        let owned = (endpoint.to_owned(), tenant.to_owned());
        self.wishes.tenants.extend([owned]);
    }

    /// From now on the endpoint, those of the tenant, or everybody's are not to be called.
    pub(crate) fn silence(&mut self, scope: &str, at_ms: i64) {
        let since = self.wishes.silent.entry(scope.to_owned());
        since.or_insert(at_ms);
    }

    pub(crate) fn end_silence(&mut self, scope: &str) {
        self.wishes.silent.remove(scope);
    }

    /// From now on the endpoint is to be called no more often than so.
    pub(crate) fn set_rate(&mut self, endpoint: &str, limit: Option<RateLimit>, at_ms: i64) {
        self.wishes.rates.remove(endpoint);
        if let Some(limit) = limit {
            let rate = Rate {
                limit,
                since_ms: at_ms,
                bucket: None,
            };
            self.wishes.rates.insert(endpoint.to_owned(), rate);
        }
    }

    pub(super) fn check_wishes(&mut self, sent: &Sent) {
        let is_known = |since_ms: i64| {
            sent.at_ms > since_ms + KNOWN_AFTER_MS && sent.thawed_ms > KNOWN_AFTER_MS
        };
        let tenant = self.wishes.tenants.get(&sent.endpoint).map(String::as_str);
        for scope in [Some(sent.endpoint.as_str()), tenant, Some(EVERYBODY)] {
            let since_ms = scope.and_then(|scope| self.wishes.silent.get(scope));
            let known = since_ms.is_some_and(|since_ms| is_known(*since_ms));
            assert!(!known, "{scope:?} is not to be called: {sent:?}");
        }
        if let Some(rate) = self.wishes.rates.get_mut(&sent.endpoint)
            && is_known(rate.since_ms)
        {
            rate.check(sent);
        }
    }
}

impl Rate {
    /// Takes a token. What was allowed may leave a little later, when a view was waited for.
    fn check(&mut self, sent: &Sent) {
        let tenure = sent.tenure.map_or(0, |tenure| tenure.number);
        let burst = f64::from(self.limit.burst());
        let (mut left, since_ms) = match self.bucket {
            Some((of, left, since_ms)) if of == tenure => (left, since_ms),
            _ => (burst, sent.at_ms),
        };
        let seconds = |ms: i64| f64::from(i32::try_from(ms).expect("short")) / 1000.0;
        left = burst.min(left + seconds(sent.at_ms - since_ms) * self.limit.per_second()) - 1.0;
        let late = 1.0 + seconds(KNOWN_AFTER_MS) * self.limit.per_second();
        assert!(left >= -late, "more often than {:?}: {sent:?}", self.limit);
        self.bucket = Some((tenure, left, sent.at_ms));
    }
}
