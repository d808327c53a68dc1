//! Lanes, endpoints and tenants, and the few worst of them.

use std::collections::BTreeMap;

use postrider_daemon::metrics::catalogue::{
    BREAKERS_OPEN, BUSIEST_TENANT_ATTEMPTS, ENDPOINTS, ENDPOINTS_FAILING, LANES_BEHIND,
    LANES_BEHIND_AGE_SECONDS, LANES_BEHIND_OFFSETS, PAUSED, REGISTRY_LAST_WRITE, REGISTRY_RECORDS,
    TENANTS, WORST_ENDPOINT_BEHIND, WORST_ENDPOINT_FAILURES, WORST_TENANT_FAILURES,
};
use postrider_daemon::metrics::{Sample, whole};
use postrider_log::{Bounds, LogError, Offset};
use postrider_model::topics::REGISTRY;
use postrider_registry::Lookup;

use super::{Exporter, ends, number, seconds};
use crate::lanes::Cause;
use crate::shown::Values;
use crate::worst::most;

/// The lanes of one cause.
#[derive(Debug, Default)]
struct OfCause {
    lanes: u64,
    offsets_max: Offset,
    /// Of each partition, the lowest unsettled offset.
    lowest: BTreeMap<i32, Offset>,
}

impl Exporter {
    pub(super) async fn lanes(
        &mut self,
        values: &mut Values,
        deliveries: &[Bounds],
    ) -> Result<(), LogError> {
        let now_ms = self.clock.now_ms();
        let mut by_cause: BTreeMap<Cause, OfCause> = BTreeMap::new();
        let mut since = Vec::new();
        let (mut failing, mut open) = (0, 0);
        for (partition, lane) in self.lanes.all() {
            let Lookup::Found(endpoint) = self.registry.endpoint(&lane.endpoint) else {
                continue;
            };
            failing += u64::from(lane.failing_since_ms.is_some());
            open += u64::from(lane.breaker_open);
            let Some(behind) = lane.behind else {
                continue;
            };
            let end = deliveries.get(partition).map_or(0, |bounds| bounds.end);
            let of_cause = by_cause
                .entry(Cause::of(&lane, &endpoint.value, &self.registry))
                .or_default();
            of_cause.lanes += 1;
            of_cause.offsets_max = of_cause.offsets_max.max(behind.offsets(end));
            let partition = i32::try_from(partition).unwrap_or(i32::MAX);
            let lowest = of_cause.lowest.entry(partition).or_insert(behind.from);
            *lowest = behind.from.min(*lowest);
            since.push((
                (endpoint.value.tenant.clone(), lane.endpoint.clone()),
                now_ms - behind.since_ms,
            ));
        }
        for (cause, name) in Cause::ALL {
            let behind = by_cause.remove(&cause).unwrap_or_default();
            let mut age_ms = 0;
            for (partition, lowest) in behind.lowest {
                let appended_ms = self
                    .cursors
                    .appended_ms(&*self.log, partition, lowest)
                    .await?;
                age_ms = appended_ms
                    .map_or(0, |appended_ms| now_ms - appended_ms)
                    .max(age_ms);
            }
            values.labelled(&LANES_BEHIND, [name], whole(behind.lanes));
            values.labelled(&LANES_BEHIND_OFFSETS, [name], number(behind.offsets_max));
            values.labelled(&LANES_BEHIND_AGE_SECONDS, [name], seconds(age_ms));
        }
        self.cursors.forget_unasked();
        for ((tenant, endpoint), behind_ms) in most(since.into_iter(), self.config.worst_max) {
            let labels = [tenant.as_str(), endpoint.as_str()];
            values.labelled(&WORST_ENDPOINT_BEHIND, labels, seconds(behind_ms));
        }
        values.add(&ENDPOINTS_FAILING, Sample::count(failing));
        values.add(&BREAKERS_OPEN, Sample::count(open));
        Ok(())
    }

    pub(super) async fn registry(&mut self, values: &mut Values) -> Result<(), LogError> {
        let counts = self.registry.counts();
        for (state, count) in [
            ("enabled", counts.endpoints_enabled),
            ("paused", counts.endpoints_paused),
            ("disabled", counts.endpoints_disabled),
        ] {
            values.labelled(
                &ENDPOINTS,
                [state],
                whole(count.try_into().unwrap_or(u64::MAX)),
            );
        }
        values.add(
            &TENANTS,
            Sample::count(counts.tenants.try_into().unwrap_or(u64::MAX)),
        );
        let paused = self.registry.installation().value.deliveries_paused;
        values.add(&PAUSED, Sample::count(u64::from(paused)));
        let bounds = self.log.all_bounds(REGISTRY).await?;
        ends(values, REGISTRY, &bounds);
        let Some(bounds) = bounds.first() else {
            return Ok(());
        };
        values.add(
            &REGISTRY_RECORDS,
            Sample::plain(number(bounds.end - bounds.start)),
        );
        if bounds.end > bounds.start {
            let last = self
                .registry_times
                .appended_ms(&*self.log, 0, bounds.end - 1)
                .await?;
            if let Some(last_ms) = last {
                values.add(&REGISTRY_LAST_WRITE, Sample::plain(seconds(last_ms)));
            }
        }
        self.registry_times.forget_unasked();
        Ok(())
    }

    pub(super) fn worst(&mut self, values: &mut Values) {
        let (now_ms, at_most) = (self.clock.now_ms(), self.config.worst_max);
        for (tenant, count) in self.attempts_by.tenant.most(now_ms, at_most) {
            values.labelled(&BUSIEST_TENANT_ATTEMPTS, [tenant.as_str()], whole(count));
        }
        for (tenant, count) in self.attempts_by.tenant_failed.most(now_ms, at_most) {
            values.labelled(&WORST_TENANT_FAILURES, [tenant.as_str()], whole(count));
        }
        for ((tenant, endpoint), count) in self.attempts_by.endpoint_failed.most(now_ms, at_most) {
            let labels = [tenant.as_str(), endpoint.as_str()];
            values.labelled(&WORST_ENDPOINT_FAILURES, labels, whole(count));
        }
    }
}
