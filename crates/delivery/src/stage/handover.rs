//! Partitions that leave, by a revoke or because the process ends, drain first.

use std::time::Duration;

use postrider_log::Partition;
use tokio::time::Instant;

use super::Stage;

/// Partitions that are being drained: at `cut_at` what still runs is cut, at `end_at` they go as
/// they are.
pub(super) struct Handover {
    pub(super) partitions: Vec<Partition>,
    cut_at: Option<Instant>,
    end_at: Instant,
}

impl Handover {
    pub(super) fn new(partitions: Vec<Partition>, deadline: Duration) -> Self {
        let now = Instant::now();
        Self {
            partitions,
            cut_at: Some(now + deadline * 3 / 4),
            end_at: now + deadline * 19 / 20,
        }
    }

    pub(super) fn wakes_at(&self) -> Instant {
        self.cut_at.unwrap_or(self.end_at)
    }

    /// Whether nothing of them is under way any more, or it is time. Cuts when that is due.
    pub(super) fn is_over<S: Stage>(&mut self, stage: &mut S) -> bool {
        let now = Instant::now();
        if self.cut_at.is_some_and(|cut_at| now >= cut_at) {
            self.cut_at = None;
            stage.cut(&self.partitions);
        }
        now >= self.end_at
            || self
                .partitions
                .iter()
                .all(|partition| stage.is_idle(*partition))
    }
}
