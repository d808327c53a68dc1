//! What a partition of `deliveries` holds that is not settled, found while nobody owns it.

use std::collections::BTreeMap;

use postrider_log::{Assignment, Log, LogError, Offset, Partition, Reader, Record, Stretch};
use postrider_model::delivery::{Delivery, LaneState};
use postrider_model::ids::EndpointId;
use postrider_model::topics::{DELIVERIES, GROUP_DELIVER};

use super::settled::SettledSet;
use super::take_over::left_behind;
use crate::config::DeliverConfig;

/// Reads the unsettled records of a partition in order: those that the group's commit has not
/// passed, and those of lanes that are behind. Nothing may run meanwhile.
#[derive(Debug)]
pub struct PendingDeliveries {
    reader: Box<dyn Reader>,
    stretch: Stretch,
    committed: Offset,
    /// Lanes that are behind.
    lanes: BTreeMap<EndpointId, LaneState>,
    settled: SettledSet,
}

impl PendingDeliveries {
    /// Reads what the last owner left behind. Without a commit nobody knows what was done, and all
    /// counts as pending.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(
        log: &dyn Log,
        config: &DeliverConfig,
        partition: Partition,
        now_ms: i64,
    ) -> Result<Self, LogError> {
        let bounds = log.bounds(DELIVERIES, partition).await?;
        let index = usize::try_from(partition).unwrap_or_default();
        let mut all = log.committed(GROUP_DELIVER, DELIVERIES).await?;
        let committed = all.get_mut(index).and_then(Option::take);
        let offset = committed.as_ref().map_or(0, |one| one.offset);
        let assignment = Assignment {
            partition,
            generation: 0,
            committed,
            bounds,
        };
        let (settled, found) = left_behind(log, config, &assignment, now_ms).await?;
        let behind = found
            .states
            .into_iter()
            .filter(|state| state.cursor.is_some());
        let lanes: BTreeMap<EndpointId, LaneState> = behind
            .map(|state| (state.endpoint.clone(), state))
            .collect();
        let lowest = lanes.values().filter_map(LaneState::lowest_unsettled);
        let from = lowest.fold(offset, Offset::min);
        Ok(Self {
            reader: log.reader(DELIVERIES).await?,
            stretch: Stretch::new(partition, from.max(bounds.start)..bounds.end),
            committed: offset,
            lanes,
            settled,
        })
    }

    /// The next of them; `None` when there are no more.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<Record>>, LogError> {
        let mut records = self.stretch.read(&mut *self.reader).await?;
        if let Some(records) = &mut records {
            records.retain(|record| self.is_pending(record));
        }
        Ok(records)
    }

    /// Whether the last owner, or one before it, has recorded that this is settled.
    pub fn is_settled(&self, delivery: &Delivery) -> bool {
        let work = self.settled.work_of(delivery);
        // Where order matters, a failed attempt is made again from the same record.
        match delivery.order_key() {
            Some(_) => self.settled.has_ended(&work),
            None => self.settled.is_duplicate(&work, delivery.attempt),
        }
    }

    fn is_pending(&self, record: &Record) -> bool {
        let value = record.value.as_deref().unwrap_or_default();
        let Ok(delivery) = Delivery::decode(value) else {
            // It would be a dead letter.
            return record.offset >= self.committed;
        };
        let reflected = match self.lanes.get(&delivery.endpoint) {
            Some(lane) => lane.has_settled(record.offset, delivery.order_key()),
            None => record.offset < self.committed,
        };
        !reflected && !self.is_settled(&delivery)
    }
}
