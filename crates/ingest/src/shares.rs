//! Permits of which no tenant takes more than its share.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use postrider_model::ids::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many permits, and how many of them one tenant may have.
#[derive(Debug)]
pub(crate) struct Shares {
    permits: Arc<Semaphore>,
    share: usize,
    taken: Mutex<BTreeMap<TenantId, usize>>,
}

/// A permit; it is given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    _permit: OwnedSemaphorePermit,
    of: Option<(Arc<Shares>, TenantId)>,
}

impl Shares {
    /// At least one permit, and one for each tenant.
    pub(crate) fn new(permits: usize, share: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS))),
            share: share.max(1),
            taken: Mutex::default(),
        })
    }

    /// A permit for a tenant, or for nobody's tenant; `None` if there is none left for it.
    pub(crate) fn take(self: &Arc<Self>, tenant: Option<&TenantId>) -> Option<Share> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        let of = match tenant {
            None => None,
            Some(tenant) => {
                let mut taken = self.taken.lock();
                let count = taken.entry(tenant.clone()).or_default();
                if *count >= self.share {
                    return None;
                }
                *count += 1;
                Some((Arc::clone(self), tenant.clone()))
            }
        };
        Some(Share {
            _permit: permit,
            of,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some((shares, tenant)) = &self.of else {
            return;
        };
        let mut taken = shares.taken.lock();
        if let Some(count) = taken.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                taken.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_takes_more_than_its_share_and_all_is_given_back() {
        let shares = Shares::new(3, 2);
        let [a, b] = ["a", "b"].map(|id| TenantId::try_new(id).unwrap());
        let held = [shares.take(Some(&a)), shares.take(Some(&a))];
        assert!(held.iter().all(Option::is_some));
        assert!(shares.take(Some(&a)).is_none());
        let last = shares.take(Some(&b));
        assert!(last.is_some());
        assert!(shares.take(None).is_none(), "there are no more");
        drop(held);
        let all = [shares.take(None), shares.take(None)];
        assert!(all.iter().all(Option::is_some));
        drop((last, all));
        assert!(shares.taken.lock().is_empty());
    }
}
