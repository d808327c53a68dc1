//! What waits in the retry topic, by delay, and when it is due.

use std::collections::BTreeMap;

use postrider_daemon::metrics::Sample;
use postrider_daemon::metrics::catalogue::{RETRIES_DUE, RETRIES_OVERDUE_SECONDS, RETRIES_WAITING};
use postrider_log::{Log, LogError, Offset};
use postrider_model::delivery::Delivery;
use postrider_model::topics::{GROUP_SCHEDULER, RETRY};

use super::{Exporter, READ_WAIT, ends, lag, number, seconds};
use crate::lag::{Place, places};
use crate::retries::{Delay, HORIZONS_S};
use crate::shown::Values;

impl Exporter {
    pub(super) async fn retries(&mut self, values: &mut Values) -> Result<(), LogError> {
        let committed = self.log.committed(GROUP_SCHEDULER, RETRY).await?;
        let bounds = self.log.all_bounds(RETRY).await?;
        ends(values, RETRY, &bounds);
        let places = places(&committed, &bounds);
        let recorded = self.registry.retry_delays();
        let delays_ms = recorded.map_or_else(
            || self.ladder.delays_ms().to_vec(),
            |delays| delays.value.to_vec(),
        );
        self.follow_retries(&places, &delays_ms).await?;
        let now_ms = self.clock.now_ms();
        let mut overdue_ms = 0;
        // Several partitions may wait for the same time.
        let mut by_delay: BTreeMap<i64, (Offset, [Offset; 3])> = BTreeMap::new();
        for (number, (delay, place)) in self.delays.iter().zip(&places).enumerate() {
            let head = delay.head();
            let age_ms = head.map_or(0, |(appended_ms, _)| now_ms - appended_ms);
            lag(
                values,
                [GROUP_SCHEDULER, RETRY, &number.to_string()],
                *place,
                age_ms,
            );
            overdue_ms = head
                .map_or(0, |(_, due_ms)| now_ms - due_ms)
                .max(overdue_ms);
            let Some(&delay_ms) = delays_ms.get(number) else {
                continue;
            };
            let (waiting, due) = by_delay.entry(delay_ms).or_default();
            *waiting += place.lag();
            let counted = due_within(&*self.log, delay, place, (number, delay_ms), now_ms).await?;
            for (sum, counted) in due.iter_mut().zip(counted) {
                *sum += counted;
            }
        }
        for (delay_ms, (waiting, due)) in by_delay {
            let delay = seconds(delay_ms).to_string();
            values.labelled(&RETRIES_WAITING, [&delay], number(waiting));
            for (horizon_s, due) in HORIZONS_S.into_iter().zip(due) {
                values.labelled(&RETRIES_DUE, [&delay, &horizon_s.to_string()], number(due));
            }
        }
        values.add(&RETRIES_OVERDUE_SECONDS, Sample::plain(seconds(overdue_ms)));
        Ok(())
    }

    /// Reads the due times of what leaves within the longest horizon, as many as may be kept.
    async fn follow_retries(
        &mut self,
        places: &[Place],
        delays_ms: &[i64],
    ) -> Result<(), LogError> {
        let mut reader = match self.retries.take() {
            Some(reader) => reader,
            None => self.log.reader(RETRY).await?,
        };
        self.delays.resize_with(places.len(), Delay::default);
        for (delay, place) in self.delays.iter_mut().zip(places) {
            delay.committed(place.at);
        }
        let mut kept: usize = self.delays.iter().map(Delay::len).sum();
        let now_ms = self.clock.now_ms();
        for (number, (delay, place)) in self.delays.iter_mut().zip(places).enumerate() {
            let partition = i32::try_from(number).unwrap_or(i32::MAX);
            let delay_ms = delays_ms.get(number).copied().unwrap_or_default();
            while kept < self.config.retries_max
                && let Some(from) = delay.wants(place.end, now_ms)
            {
                let batch = reader
                    .read(partition, from, self.config.read_bytes_max, READ_WAIT)
                    .await?;
                if batch.next <= from {
                    break;
                }
                for record in &batch.records {
                    let decoded = Delivery::decode(record.value.as_deref().unwrap_or_default());
                    let due_ms = decoded.ok().map(|delivery| delivery.due_at_ms);
                    delay.take(record.offset, record.timestamp_ms, delay_ms, due_ms);
                    kept += 1;
                }
                delay.read_up_to(batch.next);
            }
        }
        self.retries = Some(reader);
        Ok(())
    }
}

/// How many of a partition are due within each horizon. Of those that were not read, the ones count
/// that leave by then.
async fn due_within(
    log: &dyn Log,
    delay: &Delay,
    place: &Place,
    (partition, delay_ms): (usize, i64),
    now_ms: i64,
) -> Result<[Offset; HORIZONS_S.len()], LogError> {
    let read = HORIZONS_S.map(|horizon_s| delay.due_within(horizon_s, now_ms));
    let mut due = read.map(|count| Offset::try_from(count).unwrap_or(Offset::MAX));
    if delay.wants(place.end, now_ms).is_none() {
        return Ok(due);
    }
    let partition = i32::try_from(partition).unwrap_or(i32::MAX);
    for (due, horizon_s) in due.iter_mut().zip(HORIZONS_S) {
        let appended_by_ms = now_ms + horizon_s * 1000 - delay_ms;
        let leaving = log
            .offset_for_time(RETRY, partition, appended_by_ms)
            .await?;
        *due += (leaving.min(place.end) - delay.next()).max(0);
    }
    Ok(due)
}
