//! One gathering: from the log, the registry and what was kept, to values.

mod retries;
mod whole_installation;

use std::time::Duration;

use postrider_daemon::metrics::catalogue::{
    COLLECTED_AT, COLLECTION_DURATION, CONSUMER_LAG_RECORDS, CONSUMER_LAG_SECONDS,
    CONSUMER_LOST_RECORDS, EXPORTER_UNCOUNTED, READY_AGE_SECONDS, TOPIC_END_OFFSET,
};
use postrider_daemon::metrics::{Sample, whole};
use postrider_log::{Bounds, LogError};
use postrider_model::topics::{
    ATTEMPTS, DEAD_LETTERS, DELIVERIES, ENDPOINT_STATE, EVENTS, GROUP_DELIVER, GROUP_FAN_OUT,
    ROUTES,
};
use postrider_registry::{Gate, Lookup};
use tokio::time::Instant;

use super::Exporter;
use crate::counting::{self, Counting};
use crate::counts::Counts;
use crate::lag::{Place, places};
use crate::ready::Search;
use crate::shown::{COUNTED, Values};

const READ_WAIT: Duration = Duration::from_secs(1);

impl Exporter {
    pub(super) async fn gather_values(&mut self) -> Result<Values, LogError> {
        let started = Instant::now();
        let mut values = Values::default();
        // Commits before bounds: what was committed is within what there is.
        let delivered = self.log.committed(GROUP_DELIVER, DELIVERIES).await?;
        let deliveries = self.log.all_bounds(DELIVERIES).await?;
        self.lanes
            .follow(
                &*self.log,
                &delivered,
                &deliveries,
                self.config.read_bytes_max,
            )
            .await?;
        let delivering = places(&delivered, &deliveries);
        self.begin_searches(&delivering);
        self.count(started + self.config.interval()).await?;
        self.counted(&mut values);
        self.search(&delivering).await?;
        self.ready(&mut values, &delivering);
        self.fan_out(&mut values).await?;
        self.retries(&mut values).await?;
        self.lanes(&mut values, &deliveries).await?;
        self.registry(&mut values).await?;
        self.worst(&mut values);
        for topic in [ATTEMPTS, DEAD_LETTERS, ROUTES, ENDPOINT_STATE] {
            ends(&mut values, topic, &self.log.all_bounds(topic).await?);
        }
        ends(&mut values, DELIVERIES, &deliveries);
        values.add(&COLLECTED_AT, Sample::plain(seconds(self.clock.now_ms())));
        values.add(
            &COLLECTION_DURATION,
            Sample::plain(started.elapsed().as_secs_f64()),
        );
        Ok(values)
    }

    fn counted(&self, values: &mut Values) {
        let Some((attempts, dead_letters)) = &self.counting else {
            return;
        };
        let now_ms = self.clock.now_ms();
        let mut all = Counts::default();
        let complete = [attempts, dead_letters].map(|counting| {
            let counts = counting.committed();
            counts.inspect(|counts| all.add_all(counts)).is_some()
        });
        // Without one of the two, half of the reasons would begin with a jump.
        if complete == [true; 2] {
            values.counted(&all);
        }
        for (topic, counting) in COUNTED.into_iter().zip([attempts, dead_letters]) {
            if let Some(counts) = counting.committed() {
                values.unreadable(topic, counts);
            }
            own_lag(values, topic, counting, now_ms);
        }
    }

    fn begin_searches(&mut self, places: &[Place]) {
        self.searches.resize_with(places.len(), Search::default);
        let position = self.registry.position();
        for (number, (search, place)) in self.searches.iter_mut().zip(places).enumerate() {
            search.begin(place.at, position, self.lanes.behind(number));
        }
    }

    /// Looks for the oldest ready delivery of each partition.
    async fn search(&mut self, places: &[Place]) -> Result<(), LogError> {
        let mut reader = match self.deliveries.take() {
            Some(reader) => reader,
            None => self.log.reader(DELIVERIES).await?,
        };
        let mut bytes_left = self.config.ready_bytes_max;
        for (number, (search, place)) in (0..).zip(self.searches.iter_mut().zip(places)) {
            while bytes_left > 0
                && let Some(from) = search.wants(place.end)
            {
                let bytes_max = self.config.read_bytes_max.min(bytes_left);
                let batch = reader.read(number, from, bytes_max, READ_WAIT).await?;
                if batch.next <= from {
                    break;
                }
                for record in &batch.records {
                    bytes_left = bytes_left.saturating_sub(record.size_bytes());
                    let callable = |endpoint: &_| match self.registry.endpoint(endpoint) {
                        Lookup::Found(endpoint) => {
                            self.registry.gate(&endpoint.value) == Gate::Open
                        }
                        Lookup::Deleted => false,
                        // Our view may be older than the record.
                        Lookup::Unknown => true,
                    };
                    if search.look(record, callable) {
                        break;
                    }
                }
                search.looked_up_to(batch.next);
            }
        }
        self.deliveries = Some(reader);
        Ok(())
    }

    fn ready(&self, values: &mut Values, places: &[Place]) {
        let now_ms = self.clock.now_ms();
        for (number, (search, place)) in self.searches.iter().zip(places).enumerate() {
            let partition = number.to_string();
            let age = seconds(search.ready_age_ms(now_ms));
            values.labelled(&READY_AGE_SECONDS, [&partition], age);
            lag(
                values,
                [GROUP_DELIVER, DELIVERIES, &partition],
                *place,
                search.lag_ms(place.end, now_ms),
            );
        }
    }

    async fn fan_out(&mut self, values: &mut Values) -> Result<(), LogError> {
        let committed = self.log.committed(GROUP_FAN_OUT, EVENTS).await?;
        let bounds = self.log.all_bounds(EVENTS).await?;
        ends(values, EVENTS, &bounds);
        for (number, place) in (0..).zip(places(&committed, &bounds)) {
            let appended_ms = match place.lag() {
                0 => None,
                _ => {
                    self.events
                        .appended_ms(&*self.log, number, place.at)
                        .await?
                }
            };
            let age_ms = appended_ms.map_or(0, |appended_ms| self.clock.now_ms() - appended_ms);
            lag(
                values,
                [GROUP_FAN_OUT, EVENTS, &number.to_string()],
                place,
                age_ms,
            );
        }
        self.events.forget_unasked();
        Ok(())
    }
}

fn own_lag(values: &mut Values, topic: &'static str, counting: &Counting, now_ms: i64) {
    let mut all = 0;
    for (number, uncounted) in counting.uncounted().enumerate() {
        all += uncounted.records;
        let place = Place {
            at: 0,
            end: uncounted.records,
            lost: 0,
        };
        let age_ms = uncounted.since_ms.map_or(0, |since_ms| now_ms - since_ms);
        lag(
            values,
            [counting::GROUP, topic, &number.to_string()],
            place,
            age_ms,
        );
    }
    values.labelled(&EXPORTER_UNCOUNTED, [topic], number(all));
}

/// Adds how far a group is behind, by `[group, topic, partition]`.
fn lag(values: &mut Values, labels: [&str; 3], place: Place, age_ms: i64) {
    let age_ms = if place.lag() == 0 { 0 } else { age_ms.max(0) };
    values.labelled(&CONSUMER_LAG_RECORDS, labels, number(place.lag()));
    values.labelled(&CONSUMER_LAG_SECONDS, labels, seconds(age_ms));
    values.labelled(&CONSUMER_LOST_RECORDS, labels, number(place.lost));
}

fn ends(values: &mut Values, topic: &str, bounds: &[Bounds]) {
    for (partition, bounds) in bounds.iter().enumerate() {
        values.labelled(
            &TOPIC_END_OFFSET,
            [topic, &partition.to_string()],
            number(bounds.end),
        );
    }
}

/// Offsets and counts are never negative.
fn number(count: i64) -> f64 {
    whole(count.unsigned_abs())
}

fn seconds(ms: i64) -> f64 {
    number(ms.max(0)) / 1000.0
}
